"""Which pixels are light, and how bright and noisy the sky behind them is; without torch.

Packing measures the sky of every stamp once, in processes that need not know torch; what is
normalised without a store is measured by the same function.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vae_astro.data.compiled import compiled

__all__ = ["FILL_VALUE_LIMIT", "good_pixels", "measure_sky"]

FILL_VALUE_LIMIT = 1e18
"""Magnitude from which a finite value is a fill value (-3.4e38 in ZTF templates), not light.

Its square still fits in float32.
"""

MAD_TO_STD = 1.4826022185056018
"""Standard deviation of a Gaussian over its median absolute deviation."""

BLOCK_BYTES = 8 << 20
"""Pixels that are sorted before their medians are searched: they must stay in the cache, and be
rows enough that a search of all of them together costs little for each."""


def good_pixels(raw: np.ndarray, saturation: Sequence[float] | None = None) -> np.ndarray:
    """Mask of ``raw``, True where the value is light and not a defect.

    Parameters
    ----------
    raw : ndarray, shape (N, C, H, W), float
        Pixels as the file holds them. NaN, infinities and fill values are not good.
    saturation : sequence of float, optional
        Raw value from which a pixel is not good either: one for all bands, or one for each.

    Returns
    -------
    ndarray, shape (N, C, H, W), bool
    """
    good: np.ndarray = np.abs(raw) < FILL_VALUE_LIMIT  # False for NaN and infinities too
    if saturation is not None:
        good &= raw < np.asarray(saturation, dtype=raw.dtype)[:, None, None]
    return good


def measure_sky(
    raw: np.ndarray, good: np.ndarray, *, n_clips: int = 3, clip: float = 3.0
) -> tuple[np.ndarray, np.ndarray]:
    """Median and MAD-based noise of each stamp and band, sources clipped away.

    Parameters
    ----------
    raw : ndarray, shape (N, C, H, W), float
        Pixels in raw units.
    good : ndarray, shape (N, C, H, W), bool
        True where the pixel counts; finite there.
    n_clips : int
        How often pixels further than ``clip`` noises from the median are set aside.
    clip : float
        Clipping distance in units of the noise.

    Returns
    -------
    level, noise : ndarray, shape (N, C)
        Of the dtype of ``raw``. Level 0 and noise 1 for a band without a good pixel. Where the
        MAD is zero (more than half of the pixels are equal) the noise is the standard deviation,
        or 1 if that is zero as well.
    """
    shape = raw.shape[:2]
    n_rows, width = shape[0] * shape[1], raw.shape[2] * raw.shape[3]
    pixels, good = raw.reshape(n_rows, width), good.reshape(n_rows, width)
    level, noise = np.empty((2, n_rows), dtype=raw.dtype)
    n_block = max(1, min(n_rows, BLOCK_BYTES // max(1, width * raw.itemsize)))
    ordered = np.empty((n_block, width), dtype=raw.dtype)
    for first in range(0, n_rows, n_block):
        block = slice(first, first + n_block)
        rows = ordered[: len(pixels[block])]
        count = _sort_good(pixels[block], good[block], rows)
        _sky_of_rows(rows, count, n_clips, raw.dtype.type(clip), level[block], noise[block])
    flat = np.flatnonzero(noise <= 0)
    if len(flat):
        spread = _std(pixels[flat], good[flat])
        noise[flat] = np.where(spread > 0, spread, 1)
    return level.reshape(shape), noise.reshape(shape)


def _sort_good(pixels: np.ndarray, good: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Sort the good pixels of each row to its front, infinities behind; how many are good."""
    np.copyto(ordered, pixels)
    count = np.full(len(pixels), pixels.shape[1])
    if not good.all():
        np.copyto(ordered, np.inf, where=~good)
        count = np.count_nonzero(good, axis=1)
    ordered.sort(axis=1)
    return count


@compiled
def _sky_of_rows(ordered: Any, count: Any, n_clips: Any, clip: Any, level: Any, noise: Any) -> None:
    """Level and noise of each sorted row (R, N); a noise of 0 has to be found by other means.

    Sorted once: what lies within a clip is a range of positions, never a new array.
    """
    for row in range(len(ordered)):
        values, n = ordered[row], count[row]
        if n == 0:
            level[row], noise[row] = 0, 1
            continue
        first, last = 0, n
        middle, spread = _median_and_mad(values, first, last)
        for _ in range(n_clips):
            # a MAD of zero would clip everything but one value away
            if spread <= 0:
                break
            first = np.searchsorted(values[:n], middle - clip * spread)
            last = np.searchsorted(values[:n], middle + clip * spread, side="right")
            middle, spread = _median_and_mad(values, first, last)
        level[row] = middle
        if spread > 0:
            # a noise-free simulation has wings of 1e-32: no pixel may lie so far out that its
            # square leaves float32
            reach = (values[n - 1] - values[0]) / values.dtype.type(FILL_VALUE_LIMIT)
            spread = max(spread, reach)
        noise[row] = spread


@compiled
def _median_and_mad(values: Any, first: Any, last: Any) -> Any:
    """Median and scaled MAD of positions ``first`` to ``last`` (exclusive) of a sorted row."""
    count = last - first
    half = values.dtype.type(0.5)
    level = half * (values[first + (count - 1) // 2] + values[first + count // 2])
    inner = _nth_deviation(values, level, first, last, (count - 1) // 2 + 1)
    outer = _nth_deviation(values, level, first, last, count // 2 + 1)
    return level, values.dtype.type(0.5 * MAD_TO_STD) * (inner + outer)


@compiled
def _nth_deviation(values: Any, level: Any, first: Any, last: Any, n: Any) -> Any:
    """The n-th smallest distance from ``level``, without another sort.

    The n nearest values are neighbours in the row. As a window of n values moves right, its left
    edge comes nearer to the level and its right edge goes away: bisect for where they balance.
    """
    low, high = first, last - n
    while low < high:
        middle = (low + high) // 2
        if values[middle + n - 1] - level >= level - values[middle]:
            high = middle
        else:
            low = middle + 1
    reach = max(level - values[low], values[low + n - 1] - level)
    if low > first:
        before = max(level - values[low - 1], values[low + n - 2] - level)
        reach = min(reach, before)
    return reach


def _std(pixels: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Standard deviation of the good pixels of each row, 0 without one."""
    n_good = np.maximum(np.count_nonzero(good, axis=1), 1)
    values = np.where(good, pixels, 0).astype(np.float64)
    mean = values.sum(axis=1) / n_good
    deviation = np.where(good, values - mean[:, None], 0)
    return np.sqrt(np.square(deviation).sum(axis=1) / n_good).astype(pixels.dtype)
