"""One lot of sources to shards: pixels as they come, statistics and a row of the catalogue each.

Pixels are stored as ``float32``, bit for bit as read, bad ones NaN or a fill value; or as
``float16`` in units of the stamp's own scale, ``(raw - sky_level) / unit``, which takes half the
disk: the unit is the sky noise, or more where the brightest pixel would leave the range, and what
comes back is within 2^-11 of the distance to the sky level. Bad pixels are then NaN.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vae_astro.data.sky import good_pixels, measure_sky
from vae_astro.data.sources.reader import StampReader
from vae_astro.data.sources.root import Root
from vae_astro.data.stamp import Reject, Stamp, StampBlock, fit_to_size
from vae_astro.data.store.layout import (
    Form,
    Lot,
    Shard,
    ShardRecord,
    WholeFile,
    checksum,
    file_checksum,
)
from vae_astro.errors import InputError

__all__ = ["IDENTITY", "STATISTICS", "PackJob", "decode_float16", "finished_shards", "pack_lot"]

IDENTITY = ("id", "object_id", "source", "label", "ra", "dec", "seeing")
STATISTICS = ("sky_level", "sky_noise", "good_fraction")
BLOCK_STAMPS = 256
"""Stamps that come singly are handled together, so many at a time,"""
BLOCK_BYTES = 1 << 23
"""or so many bytes of them."""
LARGEST_FLOAT16 = 6e4


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
    shard_bytes : int
        Most bytes of pixels in a shard.
    """

    root: Root
    reader: StampReader
    shards: Path
    form: Form
    saturation: tuple[float, ...] | None
    raise_on_bad: bool
    shard_bytes: int


def pack_lot(job: PackJob, lot: Lot) -> list[Shard]:
    """Write the shards of a lot, or find them written.

    Raises
    ------
    InputError
        At the first bad stamp, if that is wanted.
    OSError
        If they cannot be written. Nothing half-written stays under the name of a shard.
    """
    found = finished_shards(job, lot)
    if found is not None:
        return found
    with _LotWriter(job, lot) as writer:
        for item in job.reader.read(lot.sources, job.root):
            writer.add(item)
    return writer.shards


def finished_shards(job: PackJob, lot: Lot) -> list[Shard] | None:
    """The shards of a lot if they are all there and as they were written, else None."""
    shards: list[Shard] = []
    while True:
        name = shard_name(lot, len(shards))
        try:
            raw = (job.shards / f"{name}.json").read_bytes()
            record = ShardRecord(**json.loads(raw))
            sums = {
                suffix: file_checksum(job.shards / f"{name}{suffix}") for suffix in record.checksums
            }
        except (OSError, ValueError, TypeError):
            return None
        if sums != record.checksums:
            return None
        shards.append(Shard(name, record.n_stamps, len(record.rejects), checksum(raw)))
        if record.is_last:
            return shards


def shard_name(lot: Lot, k: int) -> str:
    """Of the k-th shard of a lot."""
    return f"{lot.name}-{k:04d}"


def decode_float16(stored: np.ndarray, level: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Raw pixels of stamps that are stored as ``float16``.

    Parameters
    ----------
    stored : ndarray, shape (N, P, H, W), float16
        As on disk; planes beyond the first C are noise.
    level, unit : ndarray, shape (N, C), float32
        Zero point and unit of each band.
    """
    n_bands = level.shape[1]
    raw = stored.astype(np.float32)
    pixels, noise = raw[:, :n_bands], raw[:, n_bands:]
    pixels *= unit[:, :, None, None]
    pixels += level[:, :, None, None]
    if noise.shape[1]:
        noise *= unit[:, :, None, None]
    return raw


def _encode_float16(
    planes: np.ndarray, good: np.ndarray, level: np.ndarray, sky_noise: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of `decode_float16`: what is stored, and the unit of each stamp and band."""
    n_bands = level.shape[1]
    pixels = np.where(good, planes[:, :n_bands] - level[:, :, None, None], np.float32(np.nan))
    noise = np.where(good, planes[:, n_bands:], np.float32(np.nan))
    largest = np.fmax.reduce(np.abs(pixels), axis=(2, 3), initial=0)
    if noise.shape[1]:
        largest = np.maximum(largest, np.fmax.reduce(noise, axis=(2, 3), initial=0))
    unit = np.maximum(sky_noise, largest / np.float32(LARGEST_FLOAT16))
    stored = np.concatenate([pixels, noise], axis=1) if noise.shape[1] else pixels
    scale = np.concatenate([unit, unit], axis=1) if noise.shape[1] else unit
    return (stored / scale[:, :, None, None]).astype(np.float16), unit


class _LotWriter:
    """Takes stamps singly or in blocks, and writes them shard by shard.

    Statistics and writing happen in a second thread while the reader goes on: numpy lets go of the
    interpreter for both. At most one block waits for it. What was rejected before a block travels
    with it, so that all that is written is in the order of the reader.
    """

    def __init__(self, job: PackJob, lot: Lot) -> None:
        self.job, self.lot, self.form = job, lot, job.form
        self.rows_per_shard = max(1, job.shard_bytes // job.form.stamp_bytes)
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
            self._reject(item)
        elif isinstance(item, StampBlock):
            self._flush()
            self._take(item)
        elif self._fits(item.pixels.shape[0], item.noise is not None, item.source):
            self._singles.append(item)
            n_bytes = len(self._singles) * self.form.stamp_bytes
            if len(self._singles) == BLOCK_STAMPS or n_bytes > BLOCK_BYTES:
                self._flush()

    def _reject(self, reject: Reject) -> None:
        self._rejects.append(self._raised(reject))

    def _raised(self, reject: Reject) -> Reject:
        if self.job.raise_on_bad:
            raise InputError(f"{reject.reason}: {reject.detail} (data.on_bad=skip sets it aside)")
        return reject

    def _fits(self, n_bands: int, has_noise: bool, source: str) -> bool:
        """Whether a stamp can be stored beside the others; rejected if it cannot."""
        names = self.form.band_names
        if n_bands != len(names):
            detail = (
                f"{source} has {n_bands} bands, the first stamp had {len(names)}; keep stamps of "
                "different bands in different folders"
            )
            self._reject(Reject(source, "other number of bands", detail))
        elif self.form.has_noise and not has_noise:
            self._reject(Reject(source, "no noise", f"{source} comes without its noise"))
        else:
            return True
        return False

    def _flush(self) -> None:
        """Make a block of the stamps that came singly."""
        if self._singles:
            stamps, self._singles = self._singles, []
            self._take(_as_block(stamps, self.form))

    def _take(self, block: StampBlock) -> None:
        n_bands, has_noise = block.pixels.shape[1], block.noise is not None
        fitting = [self._fits(n_bands, has_noise, source) for source in block.source]
        if not all(fitting):  # then none does
            return
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
        raw, noise = fit_to_size(block.pixels, self.form.size), None
        if self.form.has_noise and block.noise is not None:
            noise = fit_to_size(block.noise, self.form.size)
            raw = np.where((noise > 0) & np.isfinite(noise), raw, np.float32(np.nan))
        good = good_pixels(raw, self.job.saturation)
        fraction = good.mean(axis=(2, 3), dtype=np.float32)
        usable = fraction.any(axis=1)
        if not usable.all():
            for k in np.flatnonzero(~usable).tolist():
                source = block.source[k]
                detail = f"{source} has no good pixel in any band"
                reject = Reject(source, "all pixels bad", detail)
                self._shard_rejects.append(self._raised(reject))
            raw, good, fraction = raw[usable], good[usable], fraction[usable]
            noise = None if noise is None else noise[usable]
        if not len(raw):
            return
        level, sky_noise = measure_sky(raw, good)
        planes = raw if noise is None else np.concatenate([raw, noise], axis=1)
        statistics = dict(zip(STATISTICS, (level, sky_noise, fraction), strict=True))
        if self.form.stored_as == "float16":
            planes, statistics["unit"] = _encode_float16(planes, good, level, sky_noise)
        columns = _identity(block, usable)
        for name, values in statistics.items():
            for k, band in enumerate(self.form.band_names):
                columns[f"{name}_{band}"] = values[:, k]
        self._write(planes, columns)

    def _write(self, planes: np.ndarray, columns: dict[str, Any]) -> None:
        """Append rows, beginning a new shard where one is full."""
        first = 0
        while first < len(planes):
            if self._n_rows == self.rows_per_shard:
                self._close_shard(is_last=False)
            if self._pixels is None:
                self._pixels = WholeFile(self._path(self.form.suffix))
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
            with WholeFile(self._path(".arrow")) as file:
                file.write(catalogue)
        record = ShardRecord(
            n_stamps=self._n_rows,
            is_last=is_last,
            checksums=checksums,
            sources=[] if self.shards else list(self.lot.sources),
            rejects=[[each.source, each.reason, each.detail] for each in self._shard_rejects],
        )
        content = json.dumps(vars(record)).encode()
        with WholeFile(self._path(".json")) as file:
            file.write(content)
        name = shard_name(self.lot, len(self.shards))
        self.shards.append(Shard(name, self._n_rows, len(record.rejects), checksum(content)))
        self._columns, self._shard_rejects = [], []
        self._checksum = self._n_rows = 0

    def _path(self, suffix: str) -> Path:
        return self.job.shards / f"{shard_name(self.lot, len(self.shards))}{suffix}"


def _as_block(stamps: Sequence[Stamp], form: Form) -> StampBlock:
    """Stamps of any size as a block of the store's size."""
    noise = None
    if form.has_noise:
        noise = np.stack([fit_to_size(s.noise, form.size) for s in stamps if s.noise is not None])
    return StampBlock(
        pixels=np.stack([fit_to_size(stamp.pixels, form.size) for stamp in stamps]),
        id=[stamp.id for stamp in stamps],
        object_id=[stamp.object_id for stamp in stamps],
        source=[stamp.source for stamp in stamps],
        label=[stamp.label for stamp in stamps],
        ra=np.array([stamp.ra for stamp in stamps]),
        dec=np.array([stamp.dec for stamp in stamps]),
        seeing=np.array([stamp.seeing for stamp in stamps]),
        noise=noise,
    )


def _identity(block: StampBlock, usable: np.ndarray) -> dict[str, Any]:
    """Columns of the catalogue that come from the source, and the hash that decides the split."""
    columns = {name: getattr(block, name) for name in IDENTITY}
    if not usable.all():
        keep = np.flatnonzero(usable)
        columns = {
            name: values[keep] if isinstance(values, np.ndarray) else [values[k] for k in keep]
            for name, values in columns.items()
        }
    columns["object_hash"] = np.array(
        [object_hash(each) for each in columns["object_id"]], np.uint64
    )
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
    except UnicodeEncodeError:  # file names need not be UTF-8, Arrow must
        safe = [text.encode(errors="backslashreplace").decode() for text in texts]
        return pa.array(safe, pa.string())
