"""Files that a command writes: looked at before the work that fills them, there whole or not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vae_astro.errors import InputError
from vae_astro.settings import check_text

__all__ = ["figure_to_write", "file_to_write", "whole", "write_whole"]

FIGURES = (".png", ".pdf", ".svg")


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


def figure_to_write(key: str, given: object) -> Path | None:
    """As `file_to_write`, for a figure, whose ending says what it is.

    Raises
    ------
    InputError
        As there, or another ending.
    """
    path = file_to_write(key, given)
    if path is not None and path.suffix.lower() not in FIGURES:
        raise InputError(f"{key}={given} must be a .png, .pdf or .svg")
    return path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A hidden file beside ``path``, of the same ending, which takes its name if all goes well.

    Until then what was there stays, and nothing is left of a file that an error or a signal stops.
    A link stays one, to what is written. What cannot be replaced is written in place: a pipe, a
    device, a file in a folder that takes no others.

    Raises
    ------
    OSError
        As writing and renaming raise it.
    """
    place = path.absolute().parts[1:2]
    if place in (("dev",), ("proc",)) or (path.exists() and not path.is_file()):
        yield path  # such as /dev/stdout, behind which there may be a file
        return
    path = path.resolve()
    if path.exists() and not os.access(path.parent, os.W_OK):
        yield path
        return
    # a name may have 255 bytes, and that of the file may be as long
    partial = path.with_name(f".{path.stem[:40]}.partial-{os.getpid()}{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all; raises as `whole` does."""
    with whole(path) as partial:
        partial.write_text(text, "utf-8")
