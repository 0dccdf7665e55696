"""What a file is that is no checkpoint, told by its bytes; nothing in it is unpickled."""

from __future__ import annotations

import zipfile
from pathlib import Path

__all__ = ["what_else"]

PICKLE_PROTOCOL = b"\x80"
BEGINNINGS = {
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself; fetch it: git lfs pull",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file, perhaps weights of Keras",
    b"\x93NUMPY": "a NumPy array",
    b"SIMPLE  =": "a FITS file",
    b"PAR1": "a Parquet file",
    b"\x1f\x8b": "compressed with gzip; unpack it first",
    b"<!DOCTYPE": "a web page",
    b"<html": "a web page",
}
LONGEST_HEADER = 100 << 20
"""Bytes; that of safetensors is no longer."""


def what_else(path: Path) -> str | None:
    """What ``path`` is in a few words; None if it has the outer form of a checkpoint.

    That is a zip archive of torch: ``data.pkl`` in one folder. The forms that torch wrote before
    1.6, a bare pickle or a tar archive, are told as something else: no version of ours wrote them,
    and the less is read of a stranger's file the better.

    Raises
    ------
    OSError
        It cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(512)
        size = file.seek(0, 2)
    if not head:
        return "an empty file"
    for beginning, what in BEGINNINGS.items():
        if head.startswith(beginning):
            return what
    if head.startswith(b"PK"):
        return _in_zip(path, size)
    if head.startswith(PICKLE_PROTOCOL):
        return (
            "a bare pickle, as torch wrote before version 1.6; it is not read, for it can hold code"
        )
    if head[257:262] == b"ustar":
        return "a tar archive"
    if size > 8 and int.from_bytes(head[:8], "little") < LONGEST_HEADER and head[8:9] == b"{":
        return "a file of safetensors, which holds weights without the settings of their model"
    if _is_text(head):
        return f"text that begins with {head.split()[0][:20].decode('utf-8', 'replace')!r}"
    return f"something that begins with the bytes {head[:4].hex(' ')}"


def _in_zip(path: Path, size: int) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] for name in archive.namelist()}
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return f"a damaged zip archive: {size} bytes, and its end is missing; copy it once more"
    if "constants.pkl" in names:
        return "a TorchScript archive, which is a program and not read"
    if "data.pkl" not in names:
        return "a zip archive without weights"
    return None


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        text = head[: error.start].decode("utf-8") if error.start > len(head) - 4 else ""
    return bool(text.strip()) and all(c.isprintable() or c.isspace() for c in text)
