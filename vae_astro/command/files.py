"""Files that a command is asked to write: looked at before the work that fills them."""

from __future__ import annotations

import os
from pathlib import Path

from vae_astro.errors import InputError
from vae_astro.settings import check_text

__all__ = ["file_to_write"]


def file_to_write(key: str, given: object) -> Path | None:
    """Where a file can be written, its folder made; None where none is asked for.

    Parameters
    ----------
    key : str
        Setting that asks for it.
    given : str or None
        Its value.

    Raises
    ------
    InputError
        A folder, or a place where no file can be made.
    """
    if given is None:
        return None
    path = Path(check_text(key, given)).expanduser()
    if path.is_dir():
        raise InputError(f"{key}={given} is a folder; give a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{key}={given}: no folder {path.parent} can be made ({error.strerror}); give another "
            "file"
        ) from error
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"{key}={given} cannot be written; give another file")
    return path
