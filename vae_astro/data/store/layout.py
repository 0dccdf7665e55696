"""How a store lies on disk, and what its small files say.

::

    STORE/
      manifest.json        what the store is and which shards it consists of; replaced as a whole
      rejects.csv          what was set aside: source, reason, detail
      shards/LOT-K.f32     pixels of up to 256 MiB, (N, P, H, W) in native byte order (or ``.f16``)
      shards/LOT-K.arrow   one row a stamp: identity and statistics (Arrow IPC; pandas reads it too)
      shards/LOT-K.json    what went in: sources, rejects, the form; written last

A lot is a set of sources that are packed together; its name is a digest of them, with an ``r`` for
each time it was repaired. So a shard is a function of its name and is never changed. A packer
writes new shards beside the old ones and then replaces the manifest: whoever reads sees the one
store or the other.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from vae_astro.data.sources.reader import Source
from vae_astro.data.sources.root import FileVersion
from vae_astro.data.stamp import Reject
from vae_astro.data.store.whole_file import WholeFile, checksum
from vae_astro.errors import InputError

__all__ = [
    "FORMAT_VERSION",
    "HOW_TO_MEND",
    "MANIFEST",
    "REJECTS",
    "SHARDS",
    "STORED_AS",
    "Form",
    "Lot",
    "Manifest",
    "RunningDigest",
    "Shard",
    "ShardRecord",
    "digest_of",
    "is_store",
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
"""The forms of pixels on disk; see `vae_astro.data.store.float16`."""
HOW_TO_MEND = (
    "mend it from the files that it was packed from (python scripts/pack.py action=repair with the "
    "same data settings), or delete it"
)
"""Advice at the end of a message."""
REPAIRED = "r"
"""Mark in the name of a lot, one for each repair."""

_SIGNATURE = ',\n "crc32": '

DIGEST_SOURCES = 4096
"""Sources that are put into words at a time."""


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

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Form:
        """The form from what ``asdict`` and JSON make of it."""
        return cls(**{**content, "band_names": tuple(content["band_names"])})


@dataclass(frozen=True)
class Lot:
    """Sources that are packed together, and again if one of them changes.

    Attributes
    ----------
    name : str
        Digest of the sources, and a mark for each repair.
    sources : tuple of Source
        In the order of their stamps.
    """

    name: str
    sources: tuple[Source, ...]

    @property
    def digest(self) -> str:
        """Of its sources: its name without the marks of repairs."""
        return self.name.rstrip(REPAIRED)

    def packed_again(self) -> Lot:
        """The same sources under another name, for shards that lie beside the earlier ones."""
        return Lot(self.name + REPAIRED, self.sources)


@dataclass(frozen=True)
class ShardRecord:
    """The ``.json`` of a shard.

    Attributes
    ----------
    form : Form
        Of the store.
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

    form: Form
    n_stamps: int
    is_last: bool
    checksums: dict[str, int]
    sources: list[Any]
    rejects: list[list[str]]

    def to_bytes(self) -> bytes:
        """The content of its file."""
        return json.dumps({**vars(self), "form": asdict(self.form)}).encode()

    @classmethod
    def from_bytes(cls, raw: bytes) -> ShardRecord:
        """The inverse of `to_bytes`.

        Raises
        ------
        ValueError, KeyError, TypeError
            If it is not one.
        """
        content = json.loads(raw)
        return cls(**{**content, "form": Form.from_json(content["form"])})

    @classmethod
    def read(cls, store: Path, shard: Shard) -> ShardRecord:
        """The record of a shard of a store.

        Raises
        ------
        InputError
            If it is not as it was written.
        """
        name = f"{SHARDS}/{shard.name}.json"
        try:
            raw = (store / name).read_bytes()
            if checksum(raw) != shard.record_checksum:
                raise ValueError("its checksum is another")
            return cls.from_bytes(raw)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{store} is a damaged stamp store: cannot read {name} ({error}); {HOW_TO_MEND}"
            ) from error

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
        with WholeFile(store / MANIFEST) as file:
            file.write(_signed(json.dumps(content, indent=1)))

    @classmethod
    def read(cls, store: Path) -> Manifest:
        """The manifest of a store.

        Raises
        ------
        InputError
            If there is none, it is damaged, or it is one of another format.
        """
        try:
            raw = (store / MANIFEST).read_bytes()
            content = json.loads(raw)
            version = content["format_version"]
            if version == FORMAT_VERSION:
                if _signed(raw.decode().rpartition(_SIGNATURE)[0] + "\n}") != raw:
                    raise ValueError("its checksum is another")
                return cls(
                    packed_from=content["packed_from"],
                    sources_digest=content["sources_digest"],
                    form=Form.from_json(content["form"]),
                    shards=tuple(Shard(**shard) for shard in content["shards"]),
                )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{store} is not a complete stamp store: cannot read {MANIFEST} ({error}); "
                f"{HOW_TO_MEND}"
            ) from error
        raise InputError(
            f"{store} is a stamp store of format {version}, this version reads {FORMAT_VERSION}; "
            "delete it or set data.store_dir to another folder"
        )


def is_store(path: Path) -> bool:
    """Whether a folder is a finished store, and not one of stamps with a manifest of their own."""
    return os.path.isfile(path / MANIFEST) and os.path.isdir(path / SHARDS)


def _signed(text: str) -> bytes:
    """A JSON object with the checksum of itself as its last entry."""
    return f"{text[:-2]}{_SIGNATURE}{checksum(text.encode())}\n}}".encode()


def lot_of(sources: Iterable[Source]) -> Lot:
    """The lot of some sources, named by what they are and when they changed."""
    sources = tuple(sources)
    return Lot(digest_of(sources), sources)


def digest_of(sources: Iterable[Source]) -> str:
    """Name of a list of sources: another one if a file is added, changed or lost."""
    running = RunningDigest()
    remaining = iter(sources)
    while some := list(islice(remaining, DIGEST_SOURCES)):
        running.add(some)
    return running.text


class RunningDigest:
    """`digest_of` the sources so far."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=10)

    def add(self, sources: Iterable[Source]) -> None:
        """Take more."""
        # No name has a NUL, and no other entry a line break: two lists never have one text.
        lines = [
            "\0".join([f"{name}\0{n_bytes}\0{version}" for name, n_bytes, version in files])
            + ("\n" if part is None else f"\0{part}\n")
            for files, part, _ in sources
        ]
        self._hash.update("".join(lines).encode(errors="surrogatepass"))

    @property
    def text(self) -> str:
        """In hexadecimal digits."""
        return self._hash.hexdigest()
