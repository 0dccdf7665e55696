"""Files that are there whole or not at all, and the sums that tell whether they still are."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout
from isal import isal_zlib

__all__ = ["WholeFile", "checksum", "file_checksum", "locked", "partial_files", "sync"]

log = logging.getLogger(__name__)

READ_BYTES = 1 << 22


class WholeFile:
    """A file to write that appears under its name with all its content, or not at all.

    Until then it is a hidden file beside it; see `partial_files`.

    Parameters
    ----------
    path : Path
        Its name once `commit` was called, or the ``with`` block left without an error.
    sync : bool
        Whether it is on the disk by then, and not only on its way there.
    """

    def __init__(self, path: Path, *, sync: bool = True) -> None:
        self.path = path
        self.sync = sync
        self._partial = path.with_name(f".{path.name}.{uuid4().hex[:12]}")
        self._file = self._partial.open("wb", buffering=0)

    def write(self, data: Any) -> None:
        """Append all bytes of a buffer."""
        view = memoryview(data).cast("B")
        while len(view):  # one call may write fewer
            view = view[self._file.write(view) :]

    def commit(self) -> None:
        """Put the file under its name."""
        if self.sync:
            os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._partial, self.path)

    def discard(self) -> None:
        """Leave nothing behind."""
        self._file.close()
        self._partial.unlink(missing_ok=True)

    def __enter__(self) -> WholeFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.commit()
        finally:
            self.discard()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time for a folder, by a file beside it; the others wait."""
    lock = FileLock(folder.parent / f".{folder.name}.lock")
    try:
        lock.acquire(timeout=1)
    except Timeout:
        log.warning("waiting for another process that works on %s", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def partial_files(folder: Path) -> list[Path]:
    """What killed writers left in a folder; nobody else may be writing there now."""
    return [file for file in folder.glob(".*.????????????") if file.is_file()]


def sync(path: Path) -> None:
    """Put a file on the disk; or the names in a folder, which those of its files do not have."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum(data: Any, start: int = 0) -> int:
    """CRC-32 of bytes, going on from another; every change of up to 32 neighbouring bits shows."""
    return int(isal_zlib.crc32(data, start))


def file_checksum(path: Path) -> int:
    """CRC-32 of a file."""
    result = 0
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            result = checksum(block, result)
    return result
