"""Run folders behind what a person typed: folders, sweeps, patterns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from glob import glob, has_magic
from pathlib import Path

from vae_astro.errors import InputError
from vae_astro.report.history import Run, is_run_folder, read_run

__all__ = ["find_runs"]

DEEPEST = 3
"""Levels below a folder that runs are looked for in: a sweep, or a folder of sweeps."""
SWEEP_RECORD = "multirun.yaml"
"""What Hydra leaves beside the jobs of a sweep."""
JOB = re.compile(r"[0-9]+(?![^_])")
"""Number that the folder of a job begins with: alone, or with what was set behind it."""


def find_runs(paths: Iterable[str]) -> tuple[list[Run], list[Path]]:
    """Runs of folders that are runs, or hold some; each once, in the order given.

    Parameters
    ----------
    paths : iterable of str
        Run folders, folders of runs (those of Hydra's multirun among them), or patterns of either.

    Returns
    -------
    tuple of list of Run and list of Path
        The runs, and what else was given.

    Raises
    ------
    InputError
        A path is not there, or there is no run in any.
    """
    found: dict[Path, Run] = {}
    left_out = []
    for path in _expanded(paths):
        folders = list(_run_folders(path, DEEPEST))
        if not folders and path.name != SWEEP_RECORD:
            left_out.append(path)
        for folder in folders:
            if folder.resolve() not in found:
                found[folder.resolve()] = read_run(folder)
    if not found:
        given = ", ".join(paths) or "nothing"
        raise InputError(
            f"runs={given}: no run is there; give run folders, such as runs/NAME, the folder of a "
            "sweep, or a pattern, such as 'runs/*'"
        )
    return list(found.values()), left_out


def _expanded(paths: Iterable[str]) -> Iterator[Path]:
    for text in paths:
        path = Path(text).expanduser()
        if path.exists():
            yield path
        elif has_magic(text):
            yield from sorted(map(Path, glob(str(path))), key=_by_number)
        else:
            raise InputError(f"runs={text}: there is no such folder; give that of a run")


def _run_folders(path: Path, levels: int) -> Iterator[Path]:
    if path.suffix == ".ckpt" and path.is_file():
        path = path.parent.parent
    if path.name == "checkpoints":
        path = path.parent
    if not path.is_dir():
        return
    if is_run_folder(path):
        yield path
    elif levels:
        for below in sorted(path.iterdir(), key=_by_number):
            if not below.name.startswith("."):
                yield from _run_folders(below, levels - 1)


def _by_number(path: Path) -> tuple[int, str]:
    """The jobs of a sweep are numbered, ``10`` or ``10_beta_0.1``: 10 comes after 9."""
    number = JOB.match(path.name)
    return (int(number[0]) if number else -1, path.name)
