"""How a store lies on disk, and what its small files say.

::

    STORE/
      manifest.json        what the store is and which shards it consists of; replaced as a whole
      rejects.csv          what was set aside: source, reason, detail
      shards/LOT-K.f32     pixels of up to 256 MiB, (N, P, H, W) in native byte order (or ``.f16``)
      shards/LOT-K.arrow   one row a stamp: identity and statistics (Arrow IPC; pandas reads it too)
      shards/LOT-K.json    what went in: sources, rejects, shapes; written last

A lot is a set of sources that are packed together; its name is a digest of them, so a shard is a
function of its name and is never changed. A packer writes new shards beside the old ones and then
replaces the manifest: whoever reads sees the one store or the other.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from isal import isal_zlib

from vae_astro.data.sources.reader import Source
from vae_astro.data.sources.root import FileVersion
from vae_astro.data.stamp import Reject
from vae_astro.errors import InputError

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST",
    "REJECTS",
    "SHARDS",
    "STORED_AS",
    "Form",
    "Lot",
    "Manifest",
    "Shard",
    "ShardRecord",
    "WholeFile",
    "checksum",
    "digest_of",
    "file_checksum",
    "lot_of",
]

FORMAT_VERSION = 3
"""Part of a store's name: one of another format is not found, and its stamps are packed anew."""
MANIFEST = "manifest.json"
REJECTS = "rejects.csv"
SHARDS = "shards"
STORED_AS: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
}
"""The forms of pixels on disk; see `vae_astro.data.store.shard`."""
READ_BYTES = 1 << 22


@dataclass(frozen=True)
class Form:
    """What all shards of a store have in common.

    Attributes
    ----------
    size : int
        Height and width of every stamp, in pixels.
    band_names : tuple of str
        One for each band C.
    has_noise : bool
        Whether the C planes of pixels are followed by C planes of their noise.
    stored_as : str
        A key of `STORED_AS`.
    """

    size: int
    band_names: tuple[str, ...]
    has_noise: bool
    stored_as: str

    @property
    def planes(self) -> tuple[int, int, int]:
        """Shape (P, H, W) of one stamp on disk; P is C, or 2C with the noise."""
        n_bands = len(self.band_names)
        return (2 * n_bands if self.has_noise else n_bands), self.size, self.size

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the numbers on disk."""
        return STORED_AS[self.stored_as]

    @property
    def stamp_bytes(self) -> int:
        """Bytes of one stamp on disk."""
        planes, height, width = self.planes
        return planes * height * width * self.dtype.itemsize

    @property
    def suffix(self) -> str:
        """Of the files of pixels."""
        return f".f{8 * self.dtype.itemsize}"


@dataclass(frozen=True)
class Lot:
    """Sources that are packed together, and again if one of them changes.

    Attributes
    ----------
    name : str
        Digest of the sources.
    sources : tuple of Source
        In the order of their stamps.
    """

    name: str
    sources: tuple[Source, ...]


@dataclass(frozen=True)
class ShardRecord:
    """The ``.json`` of a shard.

    Attributes
    ----------
    n_stamps : int
        Its stamps.
    is_last : bool
        Whether it is the last shard of its lot.
    checksums : dict of str to int
        CRC-32 of its other files by their suffix.
    sources : list
        Those of the lot, in its first shard; empty in the others.
    rejects : list
        source, reason and detail of what was set aside on the way.
    """

    n_stamps: int
    is_last: bool
    checksums: dict[str, int]
    sources: list[Any]
    rejects: list[list[str]]

    @classmethod
    def read(cls, store: Path, shard: str) -> ShardRecord:
        """The record of a shard by its name.

        Raises
        ------
        OSError, ValueError, TypeError
            If it is not there or damaged.
        """
        return cls(**json.loads((store / SHARDS / f"{shard}.json").read_bytes()))

    def lot_sources(self) -> tuple[Source, ...]:
        """The sources as the reader listed them."""
        return tuple(
            Source(
                tuple(FileVersion(*file) for file in files),
                None if part is None else (part[0], part[1]),
                n_bytes,
            )
            for files, part, n_bytes in self.sources
        )

    def lot_rejects(self) -> list[Reject]:
        """What was set aside."""
        return [Reject(*row) for row in self.rejects]


@dataclass(frozen=True)
class Shard:
    """A line of the manifest.

    Attributes
    ----------
    name : str
        Of its files below ``shards/``, without their suffix.
    n_stamps, n_rejected : int
        Stamps in it, and what was set aside on the way.
    record_checksum : int
        CRC-32 of its ``.json``, which holds those of the others.
    """

    name: str
    n_stamps: int
    n_rejected: int
    record_checksum: int

    @property
    def lot(self) -> str:
        """Name of its lot."""
        return self.name.rpartition("-")[0]


@dataclass(frozen=True)
class Manifest:
    """Contents of ``manifest.json``.

    Attributes
    ----------
    packed_from : dict
        Root, reader and settings that made it, in words.
    sources_digest : str
        Of all sources as they were listed; another one means that there is work to do.
    form : Form
        Of all shards.
    shards : tuple of Shard
        In the order of the rows.
    """

    packed_from: dict[str, str]
    sources_digest: str
    form: Form
    shards: tuple[Shard, ...]

    @property
    def n_stamps(self) -> int:
        """Rows of the store."""
        return sum(shard.n_stamps for shard in self.shards)

    @property
    def n_rejected(self) -> int:
        """Stamps and files that were set aside."""
        return sum(shard.n_rejected for shard in self.shards)

    def write(self, store: Path) -> None:
        """Replace the manifest of a store in one step."""
        content = {
            "format_version": FORMAT_VERSION,
            "n_stamps": self.n_stamps,
            "n_rejected": self.n_rejected,
            **asdict(self),
        }
        body = json.dumps(content, indent=1)
        # The checksum is that of everything before it, so that a flipped bit anywhere is noticed.
        signed = f'{body[:-2]},\n "crc32": {checksum(body.encode())}\n}}'
        with WholeFile(store / MANIFEST) as file:
            file.write(signed.encode())

    @classmethod
    def read(cls, store: Path) -> Manifest:
        """The manifest of a store.

        Raises
        ------
        InputError
            If there is none, it is damaged, or it is one of another format.
        """
        try:
            text = (store / MANIFEST).read_text()
            content = json.loads(text)
            if not isinstance(content, dict) or "format_version" not in content:
                raise ValueError("no format_version")
            if content["format_version"] != FORMAT_VERSION:
                raise InputError(
                    f"{store} is a stamp store of format {content['format_version']}, this version "
                    f"reads {FORMAT_VERSION}; delete it or set data.store_dir to another folder"
                )
            body, _, tail = text.rpartition(',\n "crc32": ')
            if checksum(f"{body}\n}}".encode()) != int(tail[:-2]):
                raise ValueError("its checksum is another")
            form = dict(content["form"], band_names=tuple(content["form"]["band_names"]))
            return cls(
                packed_from=content["packed_from"],
                sources_digest=content["sources_digest"],
                form=Form(**form),
                shards=tuple(Shard(**shard) for shard in content["shards"]),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{store} is not a complete stamp store ({error}); delete it"
            ) from error


def lot_of(sources: Iterable[Source]) -> Lot:
    """The lot of some sources, named by what they are and when they changed."""
    sources = tuple(sources)
    return Lot(digest_of(sources), sources)


def digest_of(sources: Iterable[Source]) -> str:
    """Name of a list of sources: another one if a file is added, changed or lost."""
    digest = hashlib.blake2b(digest_size=10)
    for source in sources:
        digest.update(repr((source.files, source.part)).encode(errors="surrogateescape"))
    return digest.hexdigest()


class WholeFile:
    """A file to write that appears under its name with all its content, or not at all.

    Parameters
    ----------
    path : Path
        Its name once `commit` was called, or the ``with`` block left without an error.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._partial = path.with_name(f".{path.name}.{uuid4().hex[:12]}")
        self._file = self._partial.open("wb", buffering=0)

    def write(self, data: Any) -> None:
        """Append all bytes of a buffer."""
        view = memoryview(data).cast("B")
        while len(view):  # one call may write fewer
            view = view[self._file.write(view) :]

    def commit(self) -> None:
        """Put the file on the disk and under its name."""
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
