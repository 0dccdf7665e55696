"""Which file is meant."""

from __future__ import annotations

import os
from pathlib import Path

from vae_astro.errors import InputError, first_of
from vae_astro.settings import check_text

__all__ = ["find_checkpoint"]


def find_checkpoint(key: str, path: str) -> Path:
    """The checkpoint that a user means by a file or a run folder.

    Parameters
    ----------
    key : str
        ``resume``, which takes a run's last checkpoint, or ``init_from`` or ``checkpoint``, which
        take its best, or the last of a run that was stopped before its first validation.
    path : str
        File, run folder or its ``checkpoints`` folder.

    Raises
    ------
    InputError
        If there is none.
    """
    given = Path(check_text(key, path)).expanduser()
    names = ("last.ckpt",) if key == "resume" else ("best.ckpt", "last.ckpt")
    folders = (given / "checkpoints", given)
    for candidate in (given, *(folder / name for name in names for folder in folders)):
        if os.path.isfile(candidate):  # False for a name that is too long, too
            return candidate
    if not os.path.exists(given):
        raise InputError(f"{key}={path} does not exist; give a run folder or a .ckpt file")
    looked_for = " and no ".join(f"checkpoints/{name}" for name in names)
    others = sorted(file.name for folder in folders for file in folder.glob("[!.]*.ckpt"))
    raise InputError(
        f"{key}={path} holds no checkpoint: there is no {looked_for} in it"
        + (f", but {first_of(others, 3)}: give the file itself" if others else "")
    )
