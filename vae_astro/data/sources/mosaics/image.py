"""One image of a FITS file, open for cutting: mapped into memory, decoded only where it is cut."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, BinaryIO

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from vae_astro.data.sources.files import (
    RefusedError,
)
from vae_astro.data.sources.fits.headers import header_seeing, quiet_astropy
from vae_astro.data.sources.mosaics.sky_grid import SkyGrid, sky_grid
from vae_astro.data.sources.root import FileVersion

__all__ = ["MosaicImage"]

Decode = Callable[[np.ndarray], np.ndarray]


@dataclass(eq=False)
class MosaicImage:
    """An image of H rows and W columns whose file is open; see `open_images`.

    Attributes
    ----------
    file : FileVersion
        Where it is from.
    number : int
        Of its HDU in the file.
    data : ndarray, shape (H, W)
        Values as the file holds them, in its byte order; most often mapped and not read yet.
    scale, zero, blank
        BSCALE, BZERO and BLANK that are still to be applied.
    """

    file: FileVersion
    number: int
    data: np.ndarray = field(repr=False)
    hdus: list[Any] = field(repr=False)
    stream: BinaryIO = field(repr=False)
    scale: float = 1.0
    zero: float = 0.0
    blank: int | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.data.shape[0], self.data.shape[1]

    @cached_property
    def sky(self) -> SkyGrid | None:
        """Its celestial WCS, None where it has none."""
        return sky_grid(self.hdus[self.number].header, self.shape, self.hdus)

    @cached_property
    def seeing(self) -> float:
        """As in `Stamp`."""
        with quiet_astropy():
            return header_seeing([self.hdus[self.number].header, self.hdus[0].header])

    def close(self) -> None:
        """Close the file; what was cut stays."""
        self.stream.close()

    def check_unchanged(self) -> None:
        """Refuse a file that was written to since it was opened: reading a mapping of a shorter
        file would end the process.

        Raises
        ------
        RefusedError
            If size or time of change are others.
        """
        try:
            status = os.fstat(self.stream.fileno())
        except (OSError, AttributeError):  # in memory, and so our own
            return
        if (status.st_size, str(status.st_mtime_ns)) != self.file[1:]:
            raise RefusedError("changed", f"{self.file.name} was written to while it was read")

    def holds(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Which pixels lie in the image, shape (N,)."""
        height, width = self.shape
        return (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)

    def values(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Single pixels, shape (N,), float32; all of them must lie in the image."""
        return self._decode(self.data[rows, columns])

    def region(self, rows: slice, columns: slice) -> np.ndarray:
        """A rectangle of it, float32, in memory of its own."""
        return self._decode(np.array(self.data[rows, columns]))

    def region_plane(self, rows: slice, columns: slice) -> np.ndarray:
        """As `region`, of a plane of weights or a mask: of the file's own type."""
        return self._physical(np.array(self.data[rows, columns]))

    def cut(self, rows: np.ndarray, columns: np.ndarray, size: int) -> np.ndarray:
        """Stamps around pixels, all in one go.

        Parameters
        ----------
        rows, columns : ndarray, shape (N,), int
            The pixel that lands on ``size // 2`` of both axes; it must lie in the image.
        size : int
            Rows and columns of a stamp.

        Returns
        -------
        ndarray, shape (N, size, size), float32
            NaN beyond the image.
        """
        return self._cut(rows, columns, size, self._decode, np.nan)

    def cut_plane(self, rows: np.ndarray, columns: np.ndarray, size: int) -> np.ndarray:
        """As `cut`, of a plane of weights or a mask: of the file's own type, 0 beyond it."""
        return self._cut(rows, columns, size, self._physical, 0)

    def _cut(
        self, rows: np.ndarray, columns: np.ndarray, size: int, decode: Decode, beyond: float
    ) -> np.ndarray:
        height, width = self.shape
        tops, lefts = rows - size // 2, columns - size // 2
        inside = (tops >= 0) & (lefts >= 0) & (tops + size <= height) & (lefts + size <= width)
        if size <= height and size <= width:
            windows = sliding_window_view(self.data, (size, size))
            # those at the edge are cut beside it, and then again
            nearest = windows[tops.clip(0, height - size), lefts.clip(0, width - size)]
            stamps = decode(nearest)
        else:
            dtype = decode(np.empty(0, self.data.dtype)).dtype
            stamps = np.empty((len(rows), size, size), dtype)
        for k in np.flatnonzero(~inside).tolist():
            top, left = int(tops[k]), int(lefts[k])
            bottom, right = min(top + size, height), min(left + size, width)
            first_row, first_column = max(top, 0), max(left, 0)
            stamps[k] = beyond
            stamps[k, first_row - top : bottom - top, first_column - left : right - left] = decode(
                np.array(self.data[first_row:bottom, first_column:right])
            )
        return stamps

    def _decode(self, raw: np.ndarray) -> np.ndarray:
        """Pixels as astropy has them, float32; ``raw`` is used up."""
        blank = None if self.blank is None else raw == self.blank
        pixels = self._physical(raw).astype(np.float32, copy=False)
        if blank is not None:
            pixels[blank] = np.nan
        return pixels

    def _physical(self, raw: np.ndarray) -> np.ndarray:
        """BSCALE and BZERO applied, in a type that loses nothing; ``raw`` is used up."""
        n_bytes = raw.dtype.itemsize
        if self.scale == 1 and self.zero == 0:
            if not raw.dtype.isnative:
                raw = raw.byteswap(inplace=True).view(raw.dtype.newbyteorder())
            return raw
        if raw.dtype.kind == "i" and self.scale == 1 and self.zero == 2.0 ** (8 * n_bytes - 1):
            # the unsigned types, exactly: adding 2^63 in floating point would round twice
            unsigned = raw.astype(f"i{n_bytes}").view(f"u{n_bytes}")
            unsigned ^= unsigned.dtype.type(1 << (8 * n_bytes - 1))
            return unsigned
        # astropy scales in single precision what fits in it
        single = n_bytes <= 2 or (raw.dtype.kind == "f" and n_bytes == 4)
        values: Any = raw.astype(np.float32 if single else np.float64)
        if self.scale != 1:
            values *= self.scale
        if self.zero != 0:
            values += self.zero
        return values
