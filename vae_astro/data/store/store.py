"""A finished store, open for reading: pixels by row, statistics, catalogue."""

from __future__ import annotations

import ctypes
import mmap
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vae_astro.data.gather import copy_rows
from vae_astro.data.store.float16 import decode_float16
from vae_astro.data.store.layout import HOW_TO_MEND, REJECTS, SHARDS, Manifest, Shard
from vae_astro.data.threads import n_cores
from vae_astro.errors import InputError

__all__ = ["StampStore", "read_catalogue"]


class StampStore:
    """Stamps of a store by their row; nothing is read before it is asked for.

    Attributes
    ----------
    path : Path
        Its folder.
    manifest : Manifest
        What it consists of.
    first_rows : ndarray, shape (S + 1,), int64
        First row of each shard, and the number of rows.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._shards = [shard for shard in manifest.shards if shard.n_stamps]
        counts = [shard.n_stamps for shard in self._shards]
        self.first_rows = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self._maps = [self._map(shard) for shard in self._shards]
        self._addresses = np.array([each.ctypes.data for each in self._maps], np.uint64)

    @classmethod
    def open(cls, path: Path) -> StampStore:
        """Open a store.

        Raises
        ------
        InputError
            If it is not one, it is damaged, or its shards are not all there.
        """
        path = Path(path)
        return cls(path, Manifest.read(path))

    def __reduce__(self) -> Any:
        """Other processes map the same shards, even if a packer has replaced the manifest since."""
        return StampStore, (self.path, self.manifest)

    def __len__(self) -> int:
        return int(self.first_rows[-1])

    @property
    def stamp_shape(self) -> tuple[int, int, int]:
        """C, H, W."""
        size = self.manifest.form.size
        return len(self.band_names), size, size

    @property
    def band_names(self) -> tuple[str, ...]:
        """One for each C."""
        return self.manifest.form.band_names

    @property
    def has_noise(self) -> bool:
        """Whether the C planes of pixels are followed by C planes of their noise."""
        return self.manifest.form.has_noise

    @property
    def n_rejected(self) -> int:
        """Stamps and files that were set aside while packing."""
        return self.manifest.n_rejected

    @property
    def n_bytes(self) -> int:
        """Bytes of all stamps on disk."""
        return len(self) * self.manifest.form.stamp_bytes

    @property
    def rejects(self) -> Path:
        """Table of what was set aside: source, reason, detail."""
        return self.path / REJECTS

    def gather(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Raw planes of some stamps.

        Parameters
        ----------
        rows : ndarray, shape (B,), int64
            Which, in any order.
        out : ndarray, shape (B, P, H, W), optional
            Memory for them, contiguous and of the dtype on disk: fresh memory costs more than
            filling it.

        Returns
        -------
        ndarray, shape (B, P, H, W), float32
            P is C, or 2C where the noise follows the pixels. ``out`` itself for a float32 store.
        """
        form = self.manifest.form
        planes = self.stored(rows, out)
        if form.dtype == np.float16:
            return decode_float16(planes, self.sky_level[rows], self.unit[rows])
        return planes

    def stored(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Planes of some stamps as they are on disk; parameters as `gather` has them.

        Returns
        -------
        ndarray, shape (B, P, H, W), float32 or float16
            The latter as `encode_float16` has it, in `unit`.
        """
        form = self.manifest.form
        shape = (len(rows), *form.planes)
        planes = np.empty(shape, form.dtype) if out is None else out
        if planes.shape != shape or planes.dtype != form.dtype or not planes.flags.carray:
            raise ValueError(f"out must be a contiguous array of {form.dtype}, shape {shape}")
        copy_rows(self._addresses_on_disk(rows), planes, n_threads=n_cores())
        return planes

    def addresses(self, rows: np.ndarray) -> np.ndarray | None:
        """Where the planes of some stamps lie in memory, for compiled code.

        Returns
        -------
        ndarray, shape (B,), uint64
            None for a store that is not float32. Valid as long as the store is open.
        """
        if self.manifest.form.dtype != np.float32:
            return None
        return self._addresses_on_disk(rows)

    def _addresses_on_disk(self, rows: np.ndarray) -> np.ndarray:
        shards, local = self._locate(rows)
        offsets = local.astype(np.uint64) * np.uint64(self.manifest.form.stamp_bytes)
        return self._addresses[shards] + offsets

    def will_need(self, first: int, last: int) -> None:
        """Have the system read rows ahead, so that the disk works while others compute.

        Rows before the first and after the last one of the store are not missed.
        """
        first, last = max(0, first), min(last, len(self))
        if first >= last or not hasattr(os, "posix_fadvise"):
            return
        n_bytes = self.manifest.form.stamp_bytes
        low, high = np.searchsorted(self.first_rows, [first, last - 1], side="right") - 1
        for shard in range(low, high + 1):
            begin = max(first - self.first_rows[shard], 0)
            end = min(last, self.first_rows[shard + 1]) - self.first_rows[shard]
            try:
                descriptor = os.open(self._pixels(self._shards[shard]), os.O_RDONLY)
            except OSError:  # deleted since it was mapped: it is read without being asked for
                continue
            try:
                span = int(begin * n_bytes), int((end - begin) * n_bytes)
                os.posix_fadvise(descriptor, *span, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(descriptor)

    def let_go(self, first: int, last: int) -> None:
        """Stop counting rows as memory of this process; they are read again where asked for.

        Mapped pixels stay with a process once it has read them: without this, one pass over a store
        ends up holding all of it.

        Parameters
        ----------
        first, last : int
            First and last row (exclusive).
        """
        if first >= last or not hasattr(mmap, "MADV_DONTNEED"):
            return
        advise, page = ctypes.CDLL(None).madvise, mmap.PAGESIZE
        low, high = np.searchsorted(self.first_rows, [first, last - 1], side="right") - 1
        for shard in range(low, high + 1):
            pixels, n_bytes = self._maps[shard], self.manifest.form.stamp_bytes
            begin = max(first - int(self.first_rows[shard]), 0)
            end = min(last - int(self.first_rows[shard]), len(pixels))
            # the page of the first row with what lies before it, but not that of the next row
            low_page = (pixels.ctypes.data + begin * n_bytes) // page * page
            high_page = (pixels.ctypes.data + end * n_bytes) // page * page
            if low_page < high_page:  # advice: whatever the system makes of it, no pixel changes
                span = ctypes.c_void_p(low_page), ctypes.c_size_t(high_page - low_page)
                advise(*span, mmap.MADV_DONTNEED)

    def identity(self, rows: np.ndarray) -> pa.Table:
        """The catalogue of some rows, read for this call and not kept.

        Parameters
        ----------
        rows : ndarray, shape (B,), int64
            Ascending.
        """
        shards, local = self._locate(rows)
        tables = []
        for shard in np.unique(shards):
            table = read_catalogue(self.path, self._shards[shard])
            tables.append(table.take(pa.array(local[shards == shard])))
        return pa.concat_tables(tables)

    @cached_property
    def catalogue(self) -> pa.Table:
        """One row a stamp: id, object_id, source, label, position, seeing and the statistics."""
        return pa.concat_tables([read_catalogue(self.path, shard) for shard in self._shards])

    @property
    def object_hashes(self) -> np.ndarray:
        """A number for the object of each stamp, (N,) uint64: see `object_hash`."""
        return self.catalogue["object_hash"].to_numpy()

    @cached_property
    def sky_level(self) -> np.ndarray:
        """Background of each stamp and band in raw units, (N, C) float32."""
        return self._statistic("sky_level")

    @cached_property
    def sky_noise(self) -> np.ndarray:
        """Its noise, (N, C) float32."""
        return self._statistic("sky_noise")

    @cached_property
    def good_fraction(self) -> np.ndarray:
        """Share of good pixels, (N, C) float32."""
        return self._statistic("good_fraction")

    @cached_property
    def unit(self) -> np.ndarray:
        """What a pixel is stored in units of, (N, C) float32; of a float16 store alone."""
        return self._statistic("unit")

    def _statistic(self, name: str) -> np.ndarray:
        columns = [self.catalogue[f"{name}_{band}"].to_numpy() for band in self.band_names]
        return np.ascontiguousarray(np.stack(columns, axis=1))

    def _locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shard of each row, and the row within it.

        Raises
        ------
        IndexError
            If a row is not in the store.
        """
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of a store of {len(self)}")
        shards = np.searchsorted(self.first_rows, rows, side="right") - 1
        return shards, rows - self.first_rows[shards]

    def _pixels(self, shard: Shard) -> Path:
        return self.path / SHARDS / f"{shard.name}{self.manifest.form.suffix}"

    def _map(self, shard: Shard) -> np.ndarray:
        form, path = self.manifest.form, self._pixels(shard)
        expected, found = shard.n_stamps * form.stamp_bytes, 0
        try:
            # unlike numpy's, this map needs no open file: there may be thousands of shards
            with pa.memory_map(str(path)) as file:
                pixels = np.frombuffer(file.read_buffer(), form.dtype)
                found = pixels.nbytes
        except (OSError, ValueError, pa.ArrowException):  # missing, or not of whole pixels
            pass
        if found != expected:
            raise InputError(
                f"{self.path} is a damaged stamp store: {path.name} has {found} bytes of pixels, "
                f"expected {expected}; {HOW_TO_MEND}"
            )
        return pixels.reshape(shard.n_stamps, *form.planes)


def read_catalogue(store: Path, shard: Shard) -> pa.Table:
    """Rows of one shard that holds stamps, memory-mapped.

    Raises
    ------
    InputError
        If they are not there or damaged.
    """
    path = store / SHARDS / f"{shard.name}.arrow"
    try:
        with pa.memory_map(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
        if len(table) != shard.n_stamps:
            raise ValueError(f"{len(table)} rows, expected {shard.n_stamps}")
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(
            f"{store} is a damaged stamp store: cannot read {path.name} ({error}); {HOW_TO_MEND}"
        ) from error
    return table
