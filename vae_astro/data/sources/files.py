"""What the readers share: unpacking within limits, and saying why something is refused."""

from __future__ import annotations

import bz2
import gzip
from io import BytesIO

from vae_astro.data.stamp import Reject

__all__ = [
    "GZIP_OR_BZIP2",
    "MAX_UNPACKED_BYTES",
    "RefusedError",
    "as_reject",
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
