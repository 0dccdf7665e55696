"""Packages of others in a folder of their own, so that what they pin reaches nobody else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.turns import SideError

__all__ = ["peers_folder"]

ALONE = (
    "pythae==0.1.2",
    "keras==3.15.1",
    "imageio",
    "cloudpickle",
    "ml_dtypes",
    "h5py",
    "absl-py",
)
"""Without what they name as needed: torch, numpy and scikit-learn are those of this project."""
WITH_ALL = ("pydantic>=2,<3", "rich", "namex", "optree")
SECONDS = 600


def peers_folder(folder: str | None) -> Path:
    """The folder, filled by pip the first time.

    Raises
    ------
    SideError
        They are not wanted, or pip cannot get them.
    """
    if folder is None:
        raise SideError("peers=null")
    path, wanted = Path(folder).absolute(), "\n".join((*ALONE, *WITH_ALL))
    said = path / "installed.txt"
    if said.exists() and said.read_text() == wanted:
        return path
    for options in (["--no-deps", *ALONE], list(WITH_ALL)):
        command = [sys.executable, "-m", "pip", "install", "--upgrade", "--target", str(path)]
        try:
            done = subprocess.run(
                [*command, *options], capture_output=True, text=True, timeout=SECONDS
            )
        except subprocess.TimeoutExpired as error:
            raise SideError(f"pip took more than {SECONDS} s") from error
        if done.returncode:
            told = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise SideError(f"pip: {told[-1] if told else 'failed'}")
    said.write_text(wanted)
    return path
