"""Stamps decoded once into one packed, memory-mapped file, with a catalogue beside them.

A store is a folder named after its key, the digest of everything that decides its content: the
files (path, size, time of change), the reader and its settings, the stamp size. It holds

``pixels.f32``
    Raw float32 pixels (N, C, H, W) in native byte order, bad ones NaN, bit for bit as read.
``catalogue.parquet``
    One row a stamp: id, object_id, source, label, ra, dec, seeing, and for each band the sky
    level, sky noise and fraction of good pixels.
``rejects.csv``
    What was set aside: source, reason, detail.
``manifest.json``
    Format version, shapes, checksum. Written last: a folder without one is no store.

It is built in a folder of another name and renamed when complete, so a run that is killed leaves
nothing that a later one would trust.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import math
import os
import shutil
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from filelock import FileLock
from tqdm import tqdm

from vae_astro.data.normalize import Normalizer, measure_sky
from vae_astro.data.stamp import (
    LARGEST_STAMP,
    SMALLEST_STAMP,
    Reject,
    Stamp,
    StampReader,
    fit_to_size,
)
from vae_astro.errors import InputError
from vae_astro.settings import check_int

__all__ = ["StampStore", "open_or_pack"]

FORMAT_VERSION = 2
"""Part of the key: a store of another format is not found, and its stamps are packed anew."""
CHUNK = 512
"""Stamps whose statistics are measured together while packing."""
PROBE = 32
"""Stamps looked at to find the size where none is given."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StampStore:
    """A finished store, open for reading.

    Attributes
    ----------
    path : Path
        Its folder.
    pixels : ndarray, shape (N, C, H, W), float32
        Memory map of the raw pixels, read-only; NaN where bad.
    sky_level, sky_noise, good_fraction : ndarray, shape (N, C), float32
        Background of each stamp and band in raw units, and the share of good pixels.
    catalogue : pyarrow.Table
        One row a stamp, in the order of ``pixels``.
    band_names : tuple of str
        One for each C.
    n_rejected : int
        Stamps that were set aside while packing.
    """

    path: Path
    pixels: np.ndarray
    sky_level: np.ndarray
    sky_noise: np.ndarray
    good_fraction: np.ndarray
    catalogue: pa.Table
    band_names: tuple[str, ...]
    n_rejected: int

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def stamp_shape(self) -> tuple[int, int, int]:
        """C, H, W."""
        n_bands, height, width = self.pixels.shape[1:]
        return n_bands, height, width

    @classmethod
    def open(cls, path: Path) -> StampStore:
        """Open a finished store.

        Raises
        ------
        InputError
            If it is not one, or its pixels are not all there.
        """
        path = Path(path)
        try:
            manifest = json.loads((path / "manifest.json").read_text())
            shape = tuple(manifest["shape"])
            version = manifest["format_version"]
            catalogue = pq.read_table(path / "catalogue.parquet")
            found = (path / "pixels.f32").stat().st_size
            bands, n_rejected = tuple(manifest["band_names"]), int(manifest["n_rejected"])
            sky_level, sky_noise, good_fraction = (
                np.stack([catalogue[f"{name}_{band}"].to_numpy() for band in bands], axis=1)
                for name in _STATISTICS
            )
            expected = 4 * math.prod(shape)
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise InputError(
                f"{path} is not a complete stamp store ({error}); delete it"
            ) from error
        if version != FORMAT_VERSION or found != expected or len(catalogue) != shape[0]:
            raise InputError(
                f"{path} is a damaged stamp store or one of another version (format {version}, "
                f"{found} bytes of pixels, expected format {FORMAT_VERSION} and {expected}); "
                "delete it"
            )
        return cls(
            path=path,
            pixels=np.memmap(path / "pixels.f32", np.float32, "r", shape=shape),
            sky_level=sky_level,
            sky_noise=sky_noise,
            good_fraction=good_fraction,
            catalogue=catalogue,
            band_names=bands,
            n_rejected=n_rejected,
        )

    def verify(self) -> bool:
        """Whether the pixels still have the checksum they were written with."""
        manifest = json.loads((self.path / "manifest.json").read_text())
        checksum = 0
        with (self.path / "pixels.f32").open("rb") as file:
            while block := file.read(1 << 24):
                checksum = zlib.crc32(block, checksum)
        return checksum == manifest["pixels_crc32"]


def open_or_pack(
    root: Path,
    reader: StampReader,
    store_dir: Path,
    *,
    size: int | None = None,
    normalizer: Normalizer | None = None,
    progress: bool = True,
) -> StampStore:
    """The store of the stamps below ``root``, packed now if it does not exist yet.

    Parameters
    ----------
    root : Path
        Folder (or one file) of stamps.
    reader : StampReader
        How to read them.
    store_dir : Path
        Folder of stores; made if missing.
    size : int, optional
        Height and width of the stored stamps, in pixels. Other shapes are centre-cropped or
        padded, never stretched. Without it: the most common longer side among the first files.
    normalizer : Normalizer, optional
        Tells good pixels from bad ones for the sky statistics; its saturation is part of the key.
    progress : bool
        Show a progress bar.

    Raises
    ------
    InputError
        No stamps, none usable, or the disk is full or read-only. Nothing half-written stays.
    """
    normalizer = normalizer or Normalizer()
    if size is not None:
        check_int("data.size", size, minimum=SMALLEST_STAMP, maximum=LARGEST_STAMP)
    root, store_dir = Path(root), Path(store_dir)
    files = reader.find(root)
    key = _key(root, files, reader, size, normalizer)
    path = store_dir / key
    try:
        if not (path / "manifest.json").exists():  # a finished store may lie on a read-only disk
            store_dir.mkdir(parents=True, exist_ok=True)
            # one packer at a time for one key: the others wait and then find its work done
            with FileLock(store_dir / f".{key}.lock"):
                if not (path / "manifest.json").exists():
                    _pack(path, root, files, reader, size, normalizer, progress)
    except OSError as error:
        raise InputError(
            f"cannot write the stamp store {path}: {error.strerror or error}; "
            "free space there or set data.store_dir to another folder"
        ) from error
    store = StampStore.open(path)
    if store.n_rejected:
        log.warning("%d stamps set aside; reasons in %s", store.n_rejected, path / "rejects.csv")
    return store


def _key(
    root: Path, files: list[Path], reader: StampReader, size: int | None, normalizer: Normalizer
) -> str:
    digest = hashlib.sha256()
    saturation = normalizer.saturation
    digest.update(repr((FORMAT_VERSION, str(root.resolve()), reader, size, saturation)).encode())
    for file in files:
        try:
            status = file.stat()
        except OSError:  # vanished since it was listed: the reader will reject it
            continue
        entry = f"{os.path.relpath(file, root)}\0{status.st_size}\0{status.st_mtime_ns}\0"
        digest.update(entry.encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _pack(
    path: Path,
    root: Path,
    files: list[Path],
    reader: StampReader,
    size: int | None,
    normalizer: Normalizer,
    progress: bool,
) -> None:
    """Build the store at ``path`` in a folder beside it and rename it when complete."""
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a packer that was killed; we hold the lock
    try:
        partial.mkdir()
        if size is None:
            size = _common_size(root, files, reader)
        with (partial / "pixels.f32").open("wb") as pixels:
            writer = _Writer(pixels, size, reader.band_names, normalizer)
            bar = tqdm(files, desc="packing stamps", unit="file", disable=not progress, leave=False)
            for file in bar:
                for item in reader.read(file, root):
                    writer.add(item)
            writer.flush()
            os.fsync(pixels.fileno())
        if not writer.statistics:
            raise InputError(_no_stamps(root, writer.rejects))
        writer.describe(partial, root)
        # rename is atomic: the store appears whole or not at all
        shutil.rmtree(path, ignore_errors=True)
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _common_size(root: Path, files: list[Path], reader: StampReader) -> int:
    """The most common longer side of the first readable stamps, at least the smallest allowed."""
    sides: Counter[int] = Counter()
    for stamp in _readable(root, files, reader):
        sides[max(stamp.pixels.shape[-2:])] += 1
        if sides.total() == PROBE:
            break
    if not sides:
        return SMALLEST_STAMP  # nothing to read: packing will say so
    return max(SMALLEST_STAMP, sides.most_common(1)[0][0])


def _readable(root: Path, files: list[Path], reader: StampReader) -> Iterator[Stamp]:
    for file in files:
        for item in reader.read(file, root):
            if isinstance(item, Stamp):
                yield item


class _Writer:
    """Streams stamps to disk in chunks, so that memory does not grow with their number."""

    def __init__(
        self,
        pixels: BinaryIO,
        size: int,
        band_names: tuple[str, ...] | None,
        normalizer: Normalizer,
    ) -> None:
        self.pixels = pixels
        self.size = size
        self.band_names = band_names
        self.normalizer = normalizer
        self.checksum = 0
        self.waiting: list[Stamp] = []
        self.rows: dict[str, list[Any]] = {name: [] for name in _ROW}
        self.statistics: list[np.ndarray] = []
        self.rejects: list[Reject] = []

    def add(self, item: Stamp | Reject) -> None:
        if isinstance(item, Reject):
            self.rejects.append(item)
            return
        n_bands = len(item.pixels)
        if self.band_names is None:
            self.band_names = tuple(f"band{band}" for band in range(n_bands))
        if n_bands != len(self.band_names):
            detail = (
                f"{item.source} has {n_bands} bands, the first stamp had {len(self.band_names)}; "
                "keep stamps of different bands in different folders"
            )
            self.rejects.append(Reject(item.source, "other number of bands", detail))
            return
        self.waiting.append(item)
        if len(self.waiting) == CHUNK:
            self.flush()

    def flush(self) -> None:
        if not self.waiting:
            return
        raw = np.stack([fit_to_size(stamp.pixels, self.size) for stamp in self.waiting])
        mask = self.normalizer.good_pixels(torch.from_numpy(raw))
        usable = mask.flatten(1).any(1).numpy()
        for stamp in (stamp for stamp, keep in zip(self.waiting, usable, strict=True) if not keep):
            detail = f"{stamp.source} has no good pixel in any band"
            self.rejects.append(Reject(stamp.source, "all pixels bad", detail))
        if usable.any():
            self._write(raw[usable], mask[torch.from_numpy(usable)])
        for stamp in (stamp for stamp, keep in zip(self.waiting, usable, strict=True) if keep):
            for name in _ROW:
                value = getattr(stamp, name)
                if isinstance(value, str):  # file names need not be UTF-8, Parquet must
                    value = value.encode(errors="backslashreplace").decode()
                self.rows[name].append(value)
        self.waiting.clear()

    def _write(self, raw: np.ndarray, mask: torch.Tensor) -> None:
        sky = measure_sky(torch.from_numpy(raw), mask)
        good_fraction = mask.float().mean((2, 3))
        self.statistics.append(torch.stack([*sky, good_fraction], dim=2).numpy())
        data = raw.tobytes()
        self.checksum = zlib.crc32(data, self.checksum)
        self.pixels.write(data)

    def describe(self, folder: Path, root: Path) -> None:
        """Write everything but the pixels; the manifest last."""
        bands = self.band_names or ()
        columns: dict[str, Any] = dict(self.rows)
        statistics = np.concatenate(self.statistics)
        for k, name in enumerate(("sky_level", "sky_noise", "good_fraction")):
            for band, column in zip(bands, statistics[:, :, k].T, strict=True):
                columns[f"{name}_{band}"] = np.ascontiguousarray(column)
        pq.write_table(pa.table(columns), folder / "catalogue.parquet")
        with (folder / "rejects.csv").open(
            "w", newline="", encoding="utf-8", errors="backslashreplace"
        ) as file:
            table = csv.DictWriter(file, ["source", "reason", "detail"])
            table.writeheader()
            table.writerows(asdict(reject) for reject in self.rejects)
        manifest = {
            "format_version": FORMAT_VERSION,
            "shape": [len(statistics), len(bands), self.size, self.size],
            "band_names": list(bands),
            "n_rejected": len(self.rejects),
            "pixels_crc32": self.checksum,
            "root": str(root),
        }
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=2))


_STATISTICS = ("sky_level", "sky_noise", "good_fraction")
_ROW = ("id", "object_id", "source", "label", "ra", "dec", "seeing")


def _no_stamps(root: Path, rejects: Iterable[Reject]) -> str:
    rejects = list(rejects)
    reasons = Counter(reject.reason for reject in rejects)
    listed = ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
    first = f"; the first: {rejects[0].detail}" if rejects else ""
    return f"no usable stamp below data.root={root} ({listed or 'no files'}){first}"
