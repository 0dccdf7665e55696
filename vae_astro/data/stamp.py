"""One stamp of sky: its pixels, where it came from, and what is known of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

__all__ = [
    "LARGEST_STAMP",
    "SMALLEST_STAMP",
    "Reject",
    "Stamp",
    "StampBlock",
    "fit_to_size",
    "plausible_seeing",
]

SMALLEST_STAMP = 16
"""Height and width of the smallest stamp that is stored, in pixels."""
LARGEST_STAMP = 4096
"""And of the largest: beyond it is not a stamp."""
SEEING_LIMITS = (0.5, 64.0)
"""Widths in pixels that can be those of a point source: no telescope samples it less, and beyond
the upper one it would fill a stamp."""


@dataclass(frozen=True)
class Stamp:
    """Pixels of one object in all bands, as the telescope left them.

    Attributes
    ----------
    pixels : ndarray, shape (C, H, W), float32
        Raw values in the file's own unit, native byte order. A pixel that was never observed
        (padding, BLANK, a missing band) is NaN; every other value is what the file holds.
    id : str
        Name of this stamp, for the catalogue and for finding its label.
    object_id : str
        Name of the object; all stamps of one object fall on the same side of a split.
    source : str
        The file relative to its root, with ``[hdu]`` or ``[hdu][plane]`` where a file holds many.
    ra, dec : float
        ICRS position in degrees, NaN where unknown.
    label : str
        Class name, empty where unknown.
    seeing : float
        Full width at half maximum of a point source in pixels, NaN where unknown.
    noise : ndarray, shape (C, H, W), float32, optional
        Standard deviation of each pixel in the unit of ``pixels``, from the error, variance or
        weight plane that came with them; NaN or infinite where the pixel says nothing.
    """

    pixels: np.ndarray = field(repr=False)
    id: str
    object_id: str
    source: str
    ra: float = float("nan")
    dec: float = float("nan")
    label: str = ""
    seeing: float = float("nan")
    noise: np.ndarray | None = field(default=None, repr=False)


@dataclass(frozen=True)
class StampBlock:
    """Stamps of one shape, read together: the columns are those of `Stamp`, one entry a stamp.

    Readers that handle many stamps at once hand them on as blocks; nothing loops over them.

    Attributes
    ----------
    pixels : ndarray, shape (N, C, H, W), float32
        As in `Stamp`. A reader may use the memory again for the next block but one.
    id, object_id, source, label : list of str
        Of each stamp.
    ra, dec, seeing : ndarray, shape (N,), float64
        Of each stamp.
    noise : ndarray, shape (N, C, H, W), float32, optional
        As in `Stamp`.
    """

    pixels: np.ndarray = field(repr=False)
    id: list[str]
    object_id: list[str]
    source: list[str]
    label: list[str]
    ra: np.ndarray
    dec: np.ndarray
    seeing: np.ndarray
    noise: np.ndarray | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True)
class Reject:
    """A stamp that could not be read, set aside with its reason.

    Attributes
    ----------
    source : str
        As in `Stamp`.
    reason : str
        A short, countable phrase: ``"truncated file"``, ``"not a FITS file"``.
    detail : str
        What was found, what was expected, the key to change.
    """

    source: str
    reason: str
    detail: str


def plausible_seeing(fwhm: float) -> float:
    """``fwhm`` in pixels, or NaN if no point source is that narrow or wide."""
    low, high = SEEING_LIMITS
    return fwhm if low <= fwhm <= high else float("nan")


def fit_to_size(pixels: np.ndarray, size: int) -> np.ndarray:
    """Centre-crop or pad the last two axes to ``size``; nothing is ever stretched.

    The central pixel ``n // 2`` of the input lands on the central pixel ``size // 2`` of the
    output, so an odd stamp stays centred.

    Parameters
    ----------
    pixels : ndarray, shape (..., H, W)
        Floating-point pixels.
    size : int
        Height and width wanted, in pixels.

    Returns
    -------
    ndarray, shape (..., size, size)
        Same dtype; padding is NaN. The input itself where nothing has to change.
    """
    height, width = pixels.shape[-2:]
    if (height, width) == (size, size):
        return pixels
    fitted = np.full((*pixels.shape[:-2], size, size), np.nan, dtype=pixels.dtype)
    (rows_from, rows_to), (columns_from, columns_to) = _overlap(height, size), _overlap(width, size)
    fitted[..., rows_to, columns_to] = pixels[..., rows_from, columns_from]
    return fitted


def _overlap(n: int, size: int) -> tuple[slice, slice]:
    """Slices of an axis of length n and of one of length size, aligned at their central pixels."""
    shift = size // 2 - n // 2
    first, last = max(0, shift), min(size, n + shift)
    return slice(first - shift, last - shift), slice(first, last)
