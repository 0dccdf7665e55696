"""Folders of simulated stamps as far as they can be told without drawing: light to import."""

from __future__ import annotations

import json
from pathlib import Path

from vae_astro.data.stamp import LARGEST_STAMP, SMALLEST_STAMP
from vae_astro.errors import InputError
from vae_astro.settings import check_int

__all__ = ["SUMMARY", "is_finished", "settings_of"]

FORMAT_VERSION = 1
"""Raise it with every change to a file or a pixel, so that old folders are not reused."""
SUMMARY = "simulation.json"
"""Written last: a folder that has it is complete."""


def settings_of(n_stamps: int, seed: int, size: int) -> dict[str, int]:
    """What a simulation is told by.

    Raises
    ------
    InputError
        A value out of range.
    """
    check_int("data.n_stamps", n_stamps, minimum=1)
    check_int("data.size", size, minimum=SMALLEST_STAMP, maximum=LARGEST_STAMP)
    check_int("data.simulation_seed", seed, minimum=0)
    return {"format": FORMAT_VERSION, "n_stamps": n_stamps, "seed": seed, "size": size}


def is_finished(root: Path, settings: dict[str, int]) -> bool:
    """Whether ``root`` holds the simulation of ``settings``; False if it is new or empty.

    Raises
    ------
    InputError
        It holds anything else.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        summary = json.loads((root / SUMMARY).read_text())
        found = {key: summary[key] for key in settings}
    except (FileNotFoundError, NotADirectoryError):
        found = None
        what = "files that are not a finished simulation" if root.is_dir() else "not a folder"
    except (ValueError, KeyError, TypeError):
        found = None
        what = f"a {SUMMARY} that cannot be read"
    if found == settings:
        return True
    if found is not None:
        what = f"a simulation with {_listed(found)}"
    raise InputError(
        f"data.root: {root} is taken, found {what}, expected a new or empty folder or a simulation "
        f"with {_listed(settings)}; set data.root to another folder, or data.n_stamps, data.size "
        "and data.simulation_seed to what is there; to train on stamps of your own, add data=fits"
    )


def _listed(settings: dict[str, int]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items())
