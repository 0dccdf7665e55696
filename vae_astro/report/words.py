"""Figures and names as a person reads them: on the page, in a table, on a picture.

Times are `vae_astro.progress.duration`, verdicts `vae_astro.collapse.units.VERDICT_WORDS`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["held", "known_number", "number", "shortened", "shown_path"]


def held(source: Any, *keys: str) -> Any:
    """An entry of nested mappings; None where any of them is not there.

    Parameters
    ----------
    source : mapping or anything
        What was read from a file, in which anything may stand.
    *keys : str
        From the outermost on; a dotted one is as many as it has parts.

    Examples
    --------
    >>> held({"val": {"kl_nats": 2.0}}, "val.kl_nats")
    2.0
    """
    value = source
    for key in ".".join(keys).split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


def known_number(value: Any) -> float | None:
    """A finite number, or None for whatever else stands in its place."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def number(value: Any, form: str = ".3g", unknown: str = "–") -> str:
    """A number for a person; ``unknown`` for what is not known.

    >>> number(-0.12345), number(None), number(float("nan"), unknown="-")
    ('−0.123', '–', '-')
    """
    if known_number(value) is None:
        return unknown
    text = format(value, form).rstrip(".")
    return text.replace("-", "−") if "e" not in text else text


def shortened(text: str, longest: int) -> str:
    """Both ends of what is too long: names of runs often differ at either.

    >>> shortened("runs/beta=0.1/latent_dim=8", 15)
    'runs/be…t_dim=8'
    """
    if len(text) <= longest:
        return text
    half = (longest - 1) // 2
    return f"{text[: longest - 1 - half]}…{text[-half:]}" if half else f"{text[: longest - 1]}…"


def shown_path(path: Path) -> str:
    """As a person in this folder would type it."""
    inside = path.resolve().is_relative_to(Path.cwd())
    return os.path.relpath(path) if inside else str(path.resolve())
