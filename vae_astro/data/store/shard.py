"""One lot of sources to shards: pixels as they come, statistics and a row of the catalogue each.

Pixels are stored as ``float32``, bit for bit as read, bad ones NaN or a fill value; or as
``float16``, half as large: see `vae_astro.data.store.float16`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vae_astro.data.sky import FILL_VALUE_LIMIT, good_pixels, measure_sky
from vae_astro.data.sources.reader import StampReader
from vae_astro.data.sources.root import Root
from vae_astro.data.stamp import Reject, Stamp, StampBlock, fit_to_size
from vae_astro.data.store.float16 import encode_float16
from vae_astro.data.store.layout import Form, Lot, Shard, ShardRecord
from vae_astro.data.store.whole_file import WholeFile, checksum, file_checksum
from vae_astro.errors import InputError

__all__ = ["IDENTITY", "STATISTICS", "PackJob", "as_text", "finished_shards", "pack_lot"]

IDENTITY = ("id", "object_id", "source", "label", "ra", "dec", "seeing")
STATISTICS = ("sky_level", "sky_noise", "good_fraction")
BLOCK_STAMPS = 256
"""Stamps that come singly are handled together, so many at a time,"""
BLOCK_BYTES = 1 << 23
"""or so many bytes of them."""
SHARD_BYTES = 1 << 28
"""Most bytes of pixels in a shard."""


@dataclass(frozen=True)
class PackJob:
    """What every lot of a store is packed with; it is sent to other processes.

    Attributes
    ----------
    root, reader : Root, StampReader
        Where the sources are and how they are read.
    shards : Path
        Folder of the shards.
    form : Form
        Of the store.
    saturation : tuple of float, optional
        Raw value from which a pixel is bad, for all bands or for each.
    raise_on_bad : bool
        End at the first stamp that cannot be read.
    """

    root: Root
    reader: StampReader
    shards: Path
    form: Form
    saturation: tuple[float, ...] | None
    raise_on_bad: bool


def pack_lot(job: PackJob, lot: Lot) -> list[Shard]:
    """Write the shards of a lot, or find them written.

    They need not be on the disk yet: whoever makes a manifest of them has to see to it.

    Raises
    ------
    InputError
        At the first bad stamp, if that is wanted.
    OSError
        If they cannot be written. Nothing half-written stays under the name of a shard.
    """
    found = finished_shards(job.shards, lot.name)
    if found is not None and found[1] == job.form:
        return found[0]
    with _LotWriter(job, lot) as writer:
        for item in job.reader.read(lot.sources, job.root):
            writer.add(item)
    return writer.shards


def finished_shards(folder: Path, lot: str) -> tuple[list[Shard], Form] | None:
    """The shards of a lot and their form, or None if they are not all there as they were written.

    Parameters
    ----------
    folder : Path
        Of shards.
    lot : str
        Name of the lot.
    """
    shards: list[Shard] = []
    while True:
        name = shard_name(lot, len(shards))
        try:
            raw = (folder / f"{name}.json").read_bytes()
            record = ShardRecord.from_bytes(raw)
            sums = {
                suffix: file_checksum(folder / f"{name}{suffix}") for suffix in record.checksums
            }
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if sums != record.checksums:
            return None
        shards.append(Shard(name, record.n_stamps, len(record.rejects), checksum(raw)))
        if record.is_last:
            return shards, record.form


def shard_name(lot: str, k: int) -> str:
    """Of the k-th shard of a lot."""
    return f"{lot}-{k:04d}"


class _LotWriter:
    """Takes stamps singly or in blocks, and writes them shard by shard.

    Statistics and writing happen in a second thread while the reader goes on: numpy lets go of the
    interpreter for both. At most one block waits for it. What was rejected before a block travels
    with it, so that all that is written is in the order of the reader.
    """

    def __init__(self, job: PackJob, lot: Lot) -> None:
        self.job, self.lot, self.form = job, lot, job.form
        self.rows_per_shard = max(1, SHARD_BYTES // job.form.stamp_bytes)
        self.shards: list[Shard] = []
        self._singles: list[Stamp] = []
        self._rejects: list[Reject] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pack")
        self._pending: Future[None] | None = None
        # of the shard that is being written, touched by the second thread only
        self._pixels: WholeFile | None = None
        self._columns: list[dict[str, Any]] = []
        self._shard_rejects: list[Reject] = []
        self._checksum = self._n_rows = 0

    def __enter__(self) -> _LotWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._flush()
                self._wait()
                self._shard_rejects += self._rejects
                self._close_shard(is_last=True)
        finally:
            self._thread.shutdown(wait=True)
            if self._pixels is not None:
                self._pixels.discard()

    def add(self, item: Stamp | StampBlock | Reject) -> None:
        """Take the next stamps."""
        if isinstance(item, Reject):
            self._rejects.append(self._raised(item))
        elif isinstance(item, StampBlock):
            self._flush()
            n_bands, has_noise = item.pixels.shape[1], item.noise is not None
            if self._fits(n_bands, has_noise, item.source):
                self._take(item)
            else:
                self._wait()  # the next block may come in the memory of the one before this
        elif self._fits(item.pixels.shape[0], item.noise is not None, [item.source]):
            self._singles.append(_at_size(item, self.form.size))
            n_bytes = len(self._singles) * self.form.stamp_bytes
            if len(self._singles) == BLOCK_STAMPS or n_bytes > BLOCK_BYTES:
                self._flush()

    def _raised(self, reject: Reject) -> Reject:
        if self.job.raise_on_bad:
            raise InputError(f"{reject.reason}: {reject.detail} (data.on_bad=skip sets it aside)")
        return reject

    def _fits(self, n_bands: int, has_noise: bool, sources: Sequence[str]) -> bool:
        """Whether stamps can be stored beside the others; rejected if they cannot."""
        names = self.form.band_names
        if n_bands != len(names):
            reason, detail = (
                "other number of bands",
                (
                    f"has {n_bands} bands, this store has {len(names)} ({', '.join(names)}); keep "
                    "stamps of different bands in different folders"
                ),
            )
        elif self.form.has_noise and not has_noise:
            reason, detail = "no noise", "comes without its noise"
        else:
            return True
        for source in sources:
            self._rejects.append(self._raised(Reject(source, reason, f"{source} {detail}")))
        return False

    def _flush(self) -> None:
        """Make a block of the stamps that came singly."""
        if self._singles:
            stamps, self._singles = self._singles, []
            self._take(_as_block(stamps, self.form))

    def _take(self, block: StampBlock) -> None:
        rejects, self._rejects = self._rejects, []
        self._wait()
        self._pending = self._thread.submit(self._store, block, rejects)

    def _wait(self) -> None:
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def _store(self, block: StampBlock, rejects: list[Reject]) -> None:
        """Measure a block and write it, in the second thread."""
        self._shard_rejects += rejects
        n_rows = max(1, BLOCK_BYTES // self.form.stamp_bytes)
        for first in range(0, len(block), n_rows):
            self._store_rows(block, np.arange(first, min(len(block), first + n_rows)))

    def _store_rows(self, block: StampBlock, rows: np.ndarray) -> None:
        """As `_store`, of a part that stays in the cache."""
        part = slice(rows[0], rows[-1] + 1)
        raw, noise = self._at_size(block.pixels[part]), None
        if self.form.has_noise and block.noise is not None:
            noise = self._at_size(block.noise[part])
            raw = np.where((noise > 0) & (noise < FILL_VALUE_LIMIT), raw, np.float32(np.nan))
        good = good_pixels(raw, self.job.saturation)
        n_good = good.reshape(*good.shape[:2], -1).sum(axis=2, dtype=np.uint32)
        usable = n_good.any(axis=1)
        if not usable.all():
            for k in rows[~usable].tolist():
                detail = f"{block.source[k]} has no good pixel in any band"
                reject = Reject(block.source[k], "all pixels bad", detail)
                self._shard_rejects.append(self._raised(reject))
            rows, raw, good, n_good = rows[usable], raw[usable], good[usable], n_good[usable]
            noise = None if noise is None else noise[usable]
        if not len(rows):
            return
        level, sky_noise = measure_sky(raw, good)
        fraction = (n_good / self.form.size**2).astype(np.float32)
        planes = raw if noise is None else np.concatenate([raw, noise], axis=1)
        statistics = dict(zip(STATISTICS, (level, sky_noise, fraction), strict=True))
        if self.form.stored_as == "float16":
            planes, statistics["unit"] = encode_float16(planes, good, level, sky_noise)
        columns = _identity(block, rows)
        for name, values in statistics.items():
            for k, band in enumerate(self.form.band_names):
                columns[f"{name}_{band}"] = values[:, k]
        self._write(planes, columns)

    def _at_size(self, pixels: np.ndarray) -> np.ndarray:
        return np.asarray(fit_to_size(pixels, self.form.size), np.float32)

    def _write(self, planes: np.ndarray, columns: dict[str, Any]) -> None:
        """Append rows, beginning a new shard where one is full."""
        first = 0
        while first < len(planes):
            if self._n_rows == self.rows_per_shard:
                self._close_shard(is_last=False)
            if self._pixels is None:
                self._pixels = self._file(self.form.suffix)
            last = min(len(planes), first + self.rows_per_shard - self._n_rows)
            data = np.ascontiguousarray(planes[first:last])
            self._pixels.write(data)
            self._checksum = checksum(data, self._checksum)
            self._n_rows += last - first
            self._columns.append({name: column[first:last] for name, column in columns.items()})
            first = last

    def _close_shard(self, *, is_last: bool) -> None:
        checksums = {}
        if self._pixels is not None:
            self._pixels.commit()
            self._pixels = None
            checksums[self.form.suffix] = self._checksum
            catalogue = _arrow_bytes(self._columns)
            checksums[".arrow"] = checksum(catalogue)
            with self._file(".arrow") as file:
                file.write(catalogue)
        record = ShardRecord(
            form=self.form,
            n_stamps=self._n_rows,
            is_last=is_last,
            checksums=checksums,
            sources=[] if self.shards else list(self.lot.sources),
            rejects=[[each.source, each.reason, each.detail] for each in self._shard_rejects],
        )
        content = record.to_bytes()
        with self._file(".json") as file:
            file.write(content)
        name = shard_name(self.lot.name, len(self.shards))
        self.shards.append(Shard(name, self._n_rows, len(record.rejects), checksum(content)))
        self._columns, self._shard_rejects = [], []
        self._checksum = self._n_rows = 0

    def _file(self, suffix: str) -> WholeFile:
        name = f"{shard_name(self.lot.name, len(self.shards))}{suffix}"
        return WholeFile(self.job.shards / name, sync=False)


def _at_size(stamp: Stamp, size: int) -> Stamp:
    """Cropped before it waits for others, so that large stamps do not."""
    if stamp.pixels.shape[-2:] == (size, size):
        return stamp
    noise = None if stamp.noise is None else fit_to_size(stamp.noise, size)
    return replace(stamp, pixels=fit_to_size(stamp.pixels, size), noise=noise)


def _as_block(stamps: Sequence[Stamp], form: Form) -> StampBlock:
    """Stamps of the store's size as a block."""
    has_noise = form.has_noise
    return StampBlock(
        pixels=np.stack([stamp.pixels for stamp in stamps]),
        id=[stamp.id for stamp in stamps],
        object_id=[stamp.object_id for stamp in stamps],
        source=[stamp.source for stamp in stamps],
        label=[stamp.label for stamp in stamps],
        ra=np.array([stamp.ra for stamp in stamps]),
        dec=np.array([stamp.dec for stamp in stamps]),
        seeing=np.array([stamp.seeing for stamp in stamps]),
        noise=np.stack([s.noise for s in stamps if s.noise is not None]) if has_noise else None,
    )


def _identity(block: StampBlock, rows: np.ndarray) -> dict[str, Any]:
    """Columns of the catalogue that come from the source, and the hash that decides the split."""
    columns: dict[str, Any] = {}
    for name in IDENTITY:
        values = getattr(block, name)
        is_array = isinstance(values, np.ndarray)
        columns[name] = values[rows] if is_array else [values[k] for k in rows]
    hashes = [object_hash(each) for each in columns["object_id"]]
    columns["object_hash"] = np.array(hashes, np.uint64)
    return columns


def object_hash(object_id: str) -> int:
    """A number below 2^64 that depends on the name alone: it decides on which side of a split."""
    name = object_id.encode(errors="backslashreplace")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big")


def _arrow_bytes(parts: list[dict[str, Any]]) -> pa.Buffer:
    """Rows of the catalogue as an Arrow file in one record batch."""
    columns = {}
    for name in parts[0]:
        values = [part[name] for part in parts]
        if isinstance(values[0], np.ndarray):
            columns[name] = pa.array(np.concatenate(values))
        else:
            columns[name] = _text_column([text for part in values for text in part])
    batch = pa.record_batch(columns)
    stream = pa.BufferOutputStream()
    with pa.ipc.new_file(stream, batch.schema) as writer:
        writer.write_batch(batch)
    return stream.getvalue()


def _text_column(texts: list[str]) -> pa.Array:
    try:
        return pa.array(texts, pa.string())
    except UnicodeEncodeError:
        return pa.array([as_text(text) for text in texts], pa.string())


def as_text(name: str) -> str:
    """A name as the catalogue spells it: names of files need not be UTF-8, Arrow must."""
    return name.encode(errors="backslashreplace").decode()
