"""Which pixels are light, and how bright and noisy the sky behind them is; numpy alone.

Packing measures the sky of every stamp once, in processes that need not know torch; what is
normalised without a store is measured by the same function.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

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
        n = len(pixels[block])
        level[block], noise[block] = _sky_of_rows(
            pixels[block], good[block], ordered[:n], n_clips, clip
        )
    return level.reshape(shape), noise.reshape(shape)


def _sky_of_rows(
    pixels: np.ndarray, good: np.ndarray, ordered: np.ndarray, n_clips: int, clip: float
) -> tuple[np.ndarray, np.ndarray]:
    """Level and noise of each row; ``ordered`` is memory to sort them in."""
    count = _sort_good(pixels, good, ordered)
    rows = _SortedRows(ordered)
    first, last = np.zeros_like(count), count
    level, noise = rows.median_and_mad(first, last)
    for _ in range(n_clips):
        # sorted once: what lies within the clip is a range of positions, never a new array
        reach = clip * noise
        first, last = rows.positions(level - reach, level + reach)
        clipped_level, clipped_noise = rows.median_and_mad(first, last)
        # a MAD of zero would clip everything but one value away
        keep = noise > 0
        level, noise = np.where(keep, clipped_level, level), np.where(keep, clipped_noise, noise)
    flat = np.flatnonzero(noise <= 0)
    if len(flat):
        spread = _std(pixels[flat], good[flat])
        noise[flat] = np.where(spread > 0, spread, 1)
    # a noise-free simulation has wings of 1e-32: no pixel may lie so far out that its square
    # leaves float32
    reach = rows.at(count - 1) - ordered[:, 0]
    return level, np.maximum(noise, reach / FILL_VALUE_LIMIT)


def _sort_good(pixels: np.ndarray, good: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Sort the good pixels of each row to its front, infinities behind; how many are good.

    A row without a good pixel becomes one pixel of 0.
    """
    np.copyto(ordered, pixels)
    count = np.full(len(pixels), pixels.shape[1])
    if not good.all():
        np.copyto(ordered, np.inf, where=~good)
        count = np.count_nonzero(good, axis=1)
    ordered.sort(axis=1)
    empty = count == 0
    ordered[empty, 0] = 0
    count[empty] = 1
    return count


class _SortedRows:
    """Order statistics of many sorted rows at once, each step for all of them.

    Parameters
    ----------
    ordered : ndarray, shape (R, N)
        Ascending, contiguous.
    """

    def __init__(self, ordered: np.ndarray) -> None:
        self.values = ordered.ravel()
        self.width = ordered.shape[1]
        self.starts = np.arange(0, ordered.size, self.width)

    def at(self, position: np.ndarray) -> np.ndarray:
        """One value of each row, at ``position`` (R,)."""
        return self.values[self.starts + position]

    def positions(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First position of each row that is not below ``low``, and first that is above ``high``.

        Both finite, shape (R,).
        """
        # above high is not below the next float; so both are one search
        bound = np.stack([low, np.nextafter(high, np.inf, dtype=high.dtype)])
        before = np.broadcast_to(self.starts, bound.shape).copy()
        n = self.width
        while n > 1:  # the answer is one of n + 1 positions from ``before`` on
            half = n // 2
            before += half * (self.values[before + (half - 1)] < bound)
            n -= half
        before += self.values[before] < bound
        first, last = before - self.starts
        return first, last

    def median_and_mad(self, first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Median and scaled MAD of positions ``first`` to ``last`` (exclusive) of each row."""
        count = last - first
        level = 0.5 * (self.at(first + (count - 1) // 2) + self.at(first + count // 2))
        return level, 0.5 * MAD_TO_STD * self._two_deviations(level, first, last)

    def _two_deviations(self, level: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Sum of the two middle distances from ``level``, or twice the one, without another sort.

        The n nearest values are neighbours in the row. As a window of n values moves right, its
        left edge comes nearer to the level and its right edge goes away: bisect for where they
        balance.
        """
        count = last - first
        n = count // 2 + 1
        lowest, highest = self.starts + first, self.starts + (last - n)  # where windows begin

        def edges(start: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return level - self.values[start], self.values[start + (n - 1)] - level

        start = lowest
        span = int((highest - lowest).max())
        while span > 0:  # the first balanced window begins at ``start``, or up to span later
            half = (span + 1) // 2
            left, right = edges(np.minimum(start + (half - 1), highest), n)
            start = start + half * (right < left)
            span -= half
        start = np.minimum(start, highest)
        before = np.maximum(start - 1, lowest)
        start = np.where(
            np.maximum(*edges(before, n)) < np.maximum(*edges(start, n)), before, start
        )
        left, right = edges(start, n)
        # of an even number one value less: the window loses whichever edge is further away
        n_lost = (count % 2 == 0).astype(count.dtype)
        inner = edges(start + n_lost * (left >= right), n - n_lost)
        return np.maximum(left, right) + np.maximum(*inner)


def _std(pixels: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Standard deviation of the good pixels of each row, 0 without one."""
    n_good = np.maximum(np.count_nonzero(good, axis=1), 1)
    values = np.where(good, pixels, 0).astype(np.float64)
    mean = values.sum(axis=1) / n_good
    deviation = np.where(good, values - mean[:, None], 0)
    return np.sqrt(np.square(deviation).sum(axis=1) / n_good).astype(pixels.dtype)
