"""Many files in one piece of memory, unpacked, each at the start of a FITS block."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from vae_astro.data.sources.files import GZIP_OR_BZIP2, RefusedError, as_reject, unpack
from vae_astro.data.sources.fits.standard import BLOCK_BYTES, in_whole_blocks
from vae_astro.data.sources.reader import Source
from vae_astro.data.sources.root import FileVersion, Root
from vae_astro.data.stamp import Reject

__all__ = ["Chunk", "Memory", "read_chunks"]

CHUNK_BYTES = 2**22  # what is read is used while it is still in the processor's cache
MAX_FILES = 512

Memory = dict[tuple[int, ...], np.ndarray]
"""To be used again: the files of a chunk under (), blocks of pixels under their shape."""


class Chunk(NamedTuple):
    """Some files, one after the other.

    Attributes
    ----------
    memory : ndarray of uint8, shape (n,)
        The files that were read, used again for the next chunk.
    names : list of str
        Of those files.
    first, n_bytes : ndarray of int, shape (n_files,)
        The block that each begins with, and how long it is.
    items : list
        All files in their order: the number of one in ``names``, a file that is too large for
        memory, one that unpacked to too much with what it unpacked to, or why there is none.
    """

    memory: np.ndarray
    names: list[str]
    first: np.ndarray
    n_bytes: np.ndarray
    items: list[int | FileVersion | tuple[str, bytes] | Reject]

    @classmethod
    def of(cls, name: str, content: bytes) -> Chunk:
        """A single file."""
        whole = content.ljust(in_whole_blocks(len(content)))
        memory = np.frombuffer(whole, dtype=np.uint8)
        return cls(memory, [name], np.array([0]), np.array([len(content)]), [0])

    def content(self, file: int) -> memoryview:
        """The bytes of a file."""
        start = int(self.first[file]) * BLOCK_BYTES
        return self.memory.data[start : start + int(self.n_bytes[file])]

    def columns(self, starts: np.ndarray, n: int, dtype: np.dtype) -> np.ndarray:
        """What lies at some places: without a copy where those are evenly spaced.

        Parameters
        ----------
        starts : ndarray of int, shape (N,)
            Where each row begins, in bytes.
        n : int
            Elements of a row.
        dtype : dtype
            Of the elements.

        Returns
        -------
        ndarray of ``dtype``, shape (N, n)
        """
        steps = np.diff(starts)
        if len(steps) == 0 or (steps == steps[0]).all():
            step = int(steps[0]) if len(steps) else dtype.itemsize
            place, strides = int(starts[0]), (step, dtype.itemsize)
            return np.ndarray((len(starts), n), dtype, self.memory.data, place, strides)
        rows = np.empty((len(starts), n), dtype)
        for row, start in zip(rows, starts.tolist(), strict=True):
            row[:] = np.frombuffer(self.memory, dtype, n, start)
        return rows


def read_chunks(
    sources: Sequence[Source], root: Root, in_memory_bytes: int, memory: Memory
) -> Iterator[Chunk]:
    """The first file of each source, read and unpacked, as many at a time as make a good chunk.

    Parameters
    ----------
    sources : sequence of Source
        What to read.
    root : Root
        Where.
    in_memory_bytes : int
        Files that are larger, packed or unpacked, are not taken into the chunk.
    memory : Memory
        What there is already; what was made larger is left in it.
    """
    contents: Iterator[bytes | RefusedError | OSError] | None = None
    if type(root) is not Root:  # not on this machine: it reads ahead
        small = [s.files[0] for s in sources if s.files[0].n_bytes <= in_memory_bytes]
        contents = root.read_many(small, in_memory_bytes)
    if () not in memory:
        memory[()] = np.empty(CHUNK_BYTES, np.uint8)
    filling = _Filling(memory[()])
    for source in sources:
        file = source.files[0]
        if file.n_bytes > in_memory_bytes:
            filling.items.append(file)
            continue
        if not filling.has_room(file.n_bytes):
            yield filling.chunk()
            filling = filling.emptied(file.n_bytes)
        try:
            if contents is None:
                content: bytes | memoryview = _read(file, root, filling.view[filling.at :])
            else:
                answer = next(contents)
                if isinstance(answer, Exception):
                    raise answer
                content = answer
            if bytes(content[:3]).startswith(GZIP_OR_BZIP2):
                content = unpack(content)
        except Exception as error:
            filling.items.append(as_reject(file.name, error))
            continue
        if len(content) > in_memory_bytes:
            filling.items.append((file.name, bytes(content)))
            yield filling.chunk()
            filling = filling.emptied(0)
            continue
        if not filling.has_room(len(content)):  # it was larger than it looked
            content = bytes(content)
            yield filling.chunk()
            filling = filling.emptied(len(content))
        filling.add(file.name, content)
    if filling.items:
        yield filling.chunk()
    memory[()] = filling.memory


def _read(file: FileVersion, root: Root, room: memoryview) -> memoryview:
    """A whole file, straight to where it is wanted."""
    descriptor = root.descriptor(file)
    try:
        n_bytes = os.readv(descriptor, [room[: file.n_bytes]])
        while 0 < n_bytes < file.n_bytes:  # some file systems give less than was asked for
            more = os.readv(descriptor, [room[n_bytes : file.n_bytes]])
            if not more:
                break
            n_bytes += more
    finally:
        os.close(descriptor)
    if n_bytes < file.n_bytes:
        raise RefusedError("changed", f"{n_bytes} bytes, {file.n_bytes} when it was listed")
    return room[:n_bytes]


class _Filling:
    """A chunk that is being filled."""

    def __init__(self, memory: np.ndarray) -> None:
        self.memory = memory
        self.view = self.memory.data
        self.items: list[int | FileVersion | tuple[str, bytes] | Reject] = []
        self.names: list[str] = []
        self.first: list[int] = []
        self.n_bytes: list[int] = []
        self.at = 0

    def has_room(self, n_bytes: int) -> bool:
        return self.at + n_bytes + BLOCK_BYTES <= len(self.view) and len(self.items) < MAX_FILES

    def add(self, name: str, content: bytes | memoryview) -> None:
        """Take a file, whose content may already be in place."""
        n_bytes = len(content)
        if not isinstance(content, memoryview):
            self.view[self.at : self.at + n_bytes] = content
        self.items.append(len(self.names))
        self.names.append(name)
        self.first.append(self.at // BLOCK_BYTES)
        self.n_bytes.append(n_bytes)
        self.at -= -n_bytes // BLOCK_BYTES * BLOCK_BYTES

    def chunk(self) -> Chunk:
        first = np.array(self.first, dtype=np.int64)
        n_bytes = np.array(self.n_bytes, dtype=np.int64)
        return Chunk(self.memory[: self.at], self.names, first, n_bytes, self.items)

    def emptied(self, n_bytes: int) -> _Filling:
        """The next one, in the same memory if a file of that size fits into it."""
        n_needed = n_bytes + BLOCK_BYTES
        fits = n_needed <= len(self.memory)
        return _Filling(self.memory if fits else np.empty(n_needed, np.uint8))
