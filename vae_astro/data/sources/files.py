"""What the readers share: unpacking within limits, and saying why something is refused."""

from __future__ import annotations

import bz2
import zlib
from io import BytesIO
from typing import IO

from isal import igzip, isal_zlib
from isal.igzip_lib import IsalError

from vae_astro.data.stamp import Reject

__all__ = [
    "GZIP_OR_BZIP2",
    "MAX_UNPACKED_BYTES",
    "RefusedError",
    "as_reject",
    "unpack",
]

GZIP_OR_BZIP2 = (b"\x1f\x8b", b"BZh")  # how the data of the two begin
# The stubs of isal take the exception for an instance of one.
_CORRUPT: tuple[type[Exception], ...] = (OSError, zlib.error, IsalError)  # type: ignore[assignment]
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
    if isinstance(error, OSError) and error.errno is not None and not gone:
        return Reject(source, "input/output error", detail)  # of the system, not of the content
    return Reject(source, "vanished" if gone else "unreadable", detail)


def unpack(raw: bytes | memoryview, max_bytes: int = MAX_UNPACKED_BYTES) -> bytes:
    """Content of gzip or bzip2 data, told by its first bytes; other data comes back as it is.

    Raises
    ------
    RefusedError
        If the data breaks off, unpacks to more than ``max_bytes`` or is corrupt.
    """
    head = bytes(raw[:3])
    if not head.startswith(GZIP_OR_BZIP2):
        return bytes(raw)
    try:
        if head.startswith(b"BZh"):
            return _read_all(bz2.open(BytesIO(raw)), max_bytes)
        # In one piece, as most files allow; what is left over is for a stream that knows of
        # several members and of padding.
        member = isal_zlib.decompressobj(isal_zlib.MAX_WBITS | 16)
        content = member.decompress(raw, max_bytes + 1)
        if member.eof and not member.unused_data and len(content) <= max_bytes:
            return content
        return _read_all(igzip.open(BytesIO(raw)), max_bytes)
    except EOFError as error:
        raise RefusedError("truncated file", f"the compressed data breaks off: {error}") from error
    except _CORRUPT as error:
        raise RefusedError("unreadable", f"the compressed data is corrupt: {error}") from error


def _read_all(packed: IO[bytes], max_bytes: int) -> bytes:
    """What a stream unpacks to, refused once it is too much."""
    chunks, n_bytes = [], 0
    with packed:
        while chunk := packed.read(2**20):
            n_bytes += len(chunk)
            if n_bytes > max_bytes:
                raise RefusedError(
                    "too large", f"unpacks to more than {max_bytes} bytes; unpack it first"
                )
            chunks.append(chunk)
    return b"".join(chunks)
