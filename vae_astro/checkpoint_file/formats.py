"""Versions of what a checkpoint holds, and the way from each to the next.

A change of what is saved adds one to `CHECKPOINT_FORMAT` and one function to `MIGRATIONS`, from the
format before; the rest of the package knows the newest alone. A new setting with a default is no
new format.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vae_astro.errors import InputError

__all__ = ["CHECKPOINT_FORMAT", "MIGRATIONS", "migrated"]

CHECKPOINT_FORMAT = 2


def migrated(checkpoint: dict[str, Any], name: object) -> dict[str, Any]:
    """``checkpoint`` in the newest format, changed in place; ``name`` is for messages.

    Raises
    ------
    InputError
        A format that is newer than this version, or none.
    """
    ours = checkpoint["vae_astro"]
    found = ours.get("format")
    written = f"(written by vae_astro {ours.get('version', 'unknown')})"
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise InputError(
            f"{name} has checkpoint format {found!r} {written}, expected a number from 1 to "
            f"{CHECKPOINT_FORMAT}; it is damaged or was changed by hand"
        )
    if found > CHECKPOINT_FORMAT:
        raise InputError(
            f"{name} has checkpoint format {found} {written}; this version reads formats 1 to "
            f"{CHECKPOINT_FORMAT}: install that version of vae_astro, or a later one"
        )
    for older in range(found, CHECKPOINT_FORMAT):
        MIGRATIONS[older](checkpoint)
        ours["format"] = older + 1
    return checkpoint


def _from_1(checkpoint: dict[str, Any]) -> None:
    """Format 1 grew without saying so: bring what early versions wrote to what the last one did."""
    checkpoint["vae_astro"].setdefault("state", {})
    callbacks = {}
    for name, state in checkpoint.get("callbacks", {}).items():
        if name.startswith("ModelCheckpoint{"):
            name = "Best" + name.removeprefix("Model")
        if name == "RandomState" and "ranks" in state:
            state = state["ranks"][0]  # all processes have the first one's
        if name == "CollapseMonitor" and "validations" not in state:
            continue  # KL per unit alone: its history begins anew
        callbacks[name] = state
    checkpoint["callbacks"] = callbacks


MIGRATIONS: dict[int, Callable[[dict[str, Any]], None]] = {1: _from_1}
"""Each takes a checkpoint of its format to the next one, in place."""
