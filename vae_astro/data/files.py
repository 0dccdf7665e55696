"""What the readers share: finding files, opening only safe ones, saying why one is refused."""

from __future__ import annotations

import bz2
import gzip
import os
import stat
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from vae_astro.data.stamp import Reject
from vae_astro.errors import InputError

__all__ = [
    "GZIP_OR_BZIP2",
    "MAX_UNPACKED_BYTES",
    "RefusedError",
    "as_reject",
    "check_file",
    "find_files",
    "source_name",
    "unpack",
]

GZIP_OR_BZIP2 = (b"\x1f\x8b", b"BZh")  # how the data of the two begin
MAX_UNPACKED_BYTES = 2**30  # a compressed file is unpacked in memory, never beyond this


class RefusedError(Exception):
    """Why a file or a stamp cannot be used, on its way to becoming a `Reject`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def find_files(
    root: Path, suffixes: tuple[str, ...], other_suffixes: tuple[str, ...], advice: str
) -> list[Path]:
    """Every file below a folder that ends in one of the suffixes, or the folder if it is a file.

    Upper and lower case are one; hidden files and folders are skipped; folders behind a symbolic
    link are not entered.

    Parameters
    ----------
    root : Path
        A folder, searched to any depth, or one file.
    suffixes, other_suffixes : tuple of str
        Endings that are wanted, and those of another reader; lower case, with their dot.
    advice : str
        What to advise if nothing fits but a file of the other reader is there.

    Returns
    -------
    list of Path
        At least one file, sorted.

    Raises
    ------
    InputError
        If nothing is found; the message says what is there instead.
    """
    if not os.path.exists(root):
        raise InputError(f"data.root={root} does not exist; give a folder or a file that does")
    names = [root] if root.is_file() else sorted(_visible_files(root))
    found = [path for path in names if path.name.lower().endswith(suffixes)]
    if found:
        return found
    if not names:
        raise InputError(f"data.root={root} holds no files; expected some ending in {suffixes[0]}")
    count = "1 file" if len(names) == 1 else f"{len(names)} files"
    has_other = any(path.name.lower().endswith(other_suffixes) for path in names)
    raise InputError(
        f"data.root={root} holds {count}, none ending in {', '.join(suffixes)}; the first is "
        f"{names[0].name}" + (f". {advice}" if has_other else "")
    )


def _visible_files(root: Path) -> Iterator[Path]:
    """Every file below root but the hidden ones."""

    def refuse(error: OSError) -> None:
        raise InputError(f"data.root={root}: cannot list {error.filename}: {error.strerror}")

    for folder, subfolders, names in os.walk(root, onerror=refuse):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        yield from (Path(folder, name) for name in names if not name.startswith("."))


def source_name(path: Path, root: Path) -> str:
    """The file relative to its root, with forward slashes; its own name if it is the root."""
    try:
        relative = path.relative_to(root)
    except ValueError:
        return path.as_posix()
    return relative.as_posix() if relative.parts else path.name


def check_file(path: Path, root: Path) -> int:
    """Size in bytes of a file that is safe to open.

    Raises
    ------
    RefusedError
        If it lies outside the root (a symbolic link can), is empty or is no regular file: a pipe
        would block for ever.
    OSError
        If it is not there.
    """
    target = path.resolve(strict=True)
    if not target.is_relative_to(root.resolve()):
        raise RefusedError(
            "outside the root",
            f"a symbolic link leads to {target}, outside data.root={root}; copy the file",
        )
    status = target.stat()
    if not stat.S_ISREG(status.st_mode):
        raise RefusedError("not a regular file", "a folder, pipe or device; expected a file")
    if status.st_size == 0:
        raise RefusedError("empty file", "0 bytes")
    return status.st_size


def as_reject(source: str, error: Exception) -> Reject:
    """The `Reject` that stands for an exception; running out of memory is raised again."""
    if isinstance(error, MemoryError):
        raise error
    if isinstance(error, RefusedError):
        return Reject(source, error.reason, f"{source}: {error.detail}")
    detail = f"{source}: {type(error).__name__}: {error}"
    gone = isinstance(error, FileNotFoundError | PermissionError)
    return Reject(source, "vanished" if gone else "unreadable", detail)


def unpack(raw: bytes, max_bytes: int = MAX_UNPACKED_BYTES) -> bytes:
    """Content of gzip or bzip2 data, told by its first bytes; other data comes back as it is.

    Raises
    ------
    RefusedError
        If the data breaks off or unpacks to more than ``max_bytes``.
    OSError, zlib.error
        If it is corrupt.
    """
    if not raw.startswith(GZIP_OR_BZIP2):
        return raw
    opener = bz2.open if raw.startswith(b"BZh") else gzip.open
    chunks, n_bytes = [], 0
    try:
        with opener(BytesIO(raw)) as packed:
            while chunk := packed.read(2**20):
                n_bytes += len(chunk)
                if n_bytes > max_bytes:
                    detail = f"unpacks to more than {max_bytes} bytes; unpack it first"
                    raise RefusedError("too large", detail)
                chunks.append(chunk)
    except EOFError as error:
        raise RefusedError("truncated file", f"the compressed data breaks off: {error}") from error
    return b"".join(chunks)
