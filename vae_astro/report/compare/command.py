"""From run folders to a comparison on the disk. What ``scripts/compare.py`` calls."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vae_astro.command.files import whole, write_whole
from vae_astro.errors import InputError
from vae_astro.report.compare.figure import draw_comparison
from vae_astro.report.compare.find import find_runs
from vae_astro.report.compare.rows import compare_runs
from vae_astro.report.compare.table import as_csv, as_json, as_text
from vae_astro.settings import check_bool, check_text

__all__ = ["compare"]

FILES = ("compare.png", "compare.csv", "compare.json")


def compare(settings: Mapping[str, Any]) -> str:
    """Compare runs, and write ``compare.png``, ``.csv`` and ``.json``.

    Parameters
    ----------
    settings : mapping
        The keys of ``conf/compare.yaml``, as plain Python.

    Returns
    -------
    str
        What is to be said of them: the table, and where the files are.

    Raises
    ------
    InputError
        There is no run; the files exist and are not to be replaced; they cannot be written.
    """
    runs, left_out = find_runs(_paths(settings["runs"]))
    out = _free_folder(settings["out"], settings["overwrite"])
    comparison = compare_runs(runs)
    try:
        write_whole(out / "compare.csv", as_csv(comparison))
        write_whole(out / "compare.json", as_json(comparison))
        with whole(out / "compare.png") as partial:
            draw_comparison(comparison).savefig(partial, format="png", dpi=110)
    except OSError as error:
        raise InputError(f"out={out} cannot be written: {error}; choose another folder") from error
    said = [as_text(comparison)]
    if left_out:
        said.append(f"no run in {', '.join(str(path) for path in left_out)}")
    said.append(f"written: {', '.join(str(out / name) for name in FILES)}")
    return "\n\n".join(said)


def _paths(given: object) -> list[str]:
    listed = given if isinstance(given, list) else [given]
    return [check_text("runs", path) for path in listed]


def _free_folder(given: object, overwrite: object) -> Path:
    """The folder for the files, made where it is not there; nothing in it is lost unasked."""
    out = Path(check_text("out", given)).expanduser()
    taken = [name for name in FILES if (out / name).exists()]
    if taken and not check_bool("overwrite", overwrite):
        raise InputError(f"out={out} holds {taken[0]}; choose another, or give overwrite=true")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out={out} cannot be a folder: {error}; choose another") from error
    return out
