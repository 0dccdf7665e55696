"""Pixels of plain FITS images, many at once, as astropy gives them bit for bit."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vae_astro.data.sources.fits.standard import PIXEL_TYPES

__all__ = ["ImagePlan"]


@dataclass(frozen=True)
class ImagePlan:
    """How the bytes of an image become float32.

    Parameters
    ----------
    shape : tuple of int
        Of the image, slowest axis first.
    bitpix : int
        FITS pixel type: bits of an integer, or minus those of a float.
    scale, zero : float
        BSCALE and BZERO: the value is ``scale * stored + zero``.
    blank : int, optional
        The stored integer of a pixel that was never observed.

    Raises
    ------
    ValueError
        If astropy is needed.
    """

    shape: tuple[int, ...]
    bitpix: int
    scale: float = 1.0
    zero: float = 0.0
    blank: int | None = None

    def __post_init__(self) -> None:
        if self.bitpix not in PIXEL_TYPES or min(self.shape) < 1:
            raise ValueError(f"shape {self.shape} of BITPIX {self.bitpix}")
        scaled = (self.scale, self.zero) != (1.0, 0.0)
        if self.bitpix < 0 and scaled:
            raise ValueError("scaled floats")
        if scaled and self.blank is not None and (self.blank == 0 or self._offset_only):
            raise ValueError("astropy has rules of its own for this BLANK")

    @property
    def n_bytes(self) -> int:
        """Of all pixels, without what fills the last block."""
        return math.prod(self.shape) * abs(self.bitpix) // 8

    @property
    def dtype(self) -> np.dtype:
        """As the pixels are stored."""
        return np.dtype(PIXEL_TYPES[self.bitpix])

    @property
    def _offset_only(self) -> bool:
        """Integers whose sign bit is turned over, for want of an unsigned type or a signed byte."""
        offset = -128 if self.bitpix == 8 else 2 ** (self.bitpix - 1) if self.bitpix > 0 else 0
        return offset != 0 and self.scale == 1 and self.zero == offset

    def convert(self, stored: np.ndarray, pixels: np.ndarray) -> None:
        """Write the values of stored pixels.

        Parameters
        ----------
        stored : ndarray, shape (N, n)
            Pixels of N images as they lie in their files, of `dtype`.
        pixels : ndarray of float32, shape (N, n)
            Where they go; what was never observed becomes NaN.
        """
        with np.errstate(all="ignore"):  # a float64 may be beyond float32
            if self.bitpix < 0 or (self.scale == 1 and self.zero == 0 and self.blank is None):
                np.copyto(pixels, stored, casting="same_kind")
            elif self._offset_only:
                kind = "u" if self.bitpix > 8 else "i"
                native = stored.astype(stored.dtype.newbyteorder("="))
                values = native.view(f"{kind}{native.itemsize}")
                values ^= values.dtype.type(1 << (self.bitpix - 1)) if kind == "u" else -128
                np.copyto(pixels, values, casting="same_kind")
            else:
                # The precision of astropy, which depends on how many bits are stored.
                values = stored.astype(np.float64 if self.bitpix > 16 else np.float32)
                if self.scale != 1:
                    values *= self.scale
                if self.zero != 0:
                    values += self.zero
                if self.blank is not None:
                    values[stored == self.blank] = np.nan
                np.copyto(pixels, values, casting="same_kind")
