"""The sky of a stamp as a graph: `measure_sky` in operations that travel to other runtimes.

The compiled loop of `vae_astro.data.sky` stops early, bisects and skips rows, and a graph can do
none of that. The same numbers come from sorts, counts and gathers over all rows at once: what
lies within a clip is a range of positions in a sorted row, and its ends are counts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vae_astro.data.normalize import Sky
from vae_astro.data.sky import FILL_VALUE_LIMIT, MAD_TO_STD

__all__ = ["traced_sky"]

N_CLIPS, CLIP = 3, 3.0
"""Those of `measure_sky`."""


def traced_sky(raw: Tensor, mask: Tensor) -> Sky:
    """What `measure_sky` gives, in operations that can be traced.

    Parameters
    ----------
    raw : Tensor, shape (B, C, H, W), float32
        Pixels in raw units.
    mask : Tensor, shape (B, C, H, W), bool
        True where the pixel counts; finite there.

    Returns
    -------
    Sky
        Level and noise, each (B, C), as `measure_sky` describes them: 0 and 1 for a band without a
        good pixel, the standard deviation where the MAD is zero.
    """
    pixels, good = raw.flatten(2), mask.flatten(2)
    ordered = pixels.where(good, pixels.new_full((), torch.inf)).sort(dim=2).values
    count = good.long().sum(2)
    first, last = torch.zeros_like(count), count
    level, noise = _median_and_mad(ordered, first, last)
    for _ in range(N_CLIPS):
        # a MAD of zero would clip everything but one value away; it stays as it is
        clips = noise > 0
        below = ordered < (level - CLIP * noise)[:, :, None]
        within = ordered <= (level + CLIP * noise)[:, :, None]
        first = below.long().sum(2).where(clips, first)
        # bad pixels are infinite, and so may the bound be
        last = within.long().sum(2).minimum(count).where(clips, last)
        level, noise = _median_and_mad(ordered, first, last)
    reach = (_at(ordered, count - 1) - ordered[:, :, 0]) / FILL_VALUE_LIMIT
    noise = noise.maximum(reach).where(noise > 0, _spread(pixels, good, count))
    seen = count > 0
    return Sky(
        level.where(seen, level.new_zeros(())),
        noise.where(seen & (noise > 0), noise.new_ones(())),
    )


def _median_and_mad(ordered: Tensor, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Median and scaled MAD of positions ``first`` to ``last`` (exclusive) of sorted rows."""
    count = last - first
    lower, upper = (count - 1) // 2, count // 2
    level = 0.5 * (_at(ordered, first + lower) + _at(ordered, first + upper))
    inner, outer = (_nth_deviation(ordered, level, first, last, n + 1) for n in (lower, upper))
    return level, 0.5 * MAD_TO_STD * (inner + outer)


def _nth_deviation(
    ordered: Tensor, level: Tensor, first: Tensor, last: Tensor, n: Tensor
) -> Tensor:
    """The n-th smallest distance from ``level`` (B, C), without another sort.

    The n nearest values are neighbours in the row: of all windows of n values, theirs reaches
    least far from the level.
    """
    n_pixels = ordered.shape[2]
    left = torch.arange(n_pixels, device=ordered.device).expand_as(ordered)
    right = left + (n - 1)[:, :, None]
    inside = (left >= first[:, :, None]) & (right < last[:, :, None])
    at_right = ordered.gather(2, right.clamp(0, n_pixels - 1))
    reach = (level[:, :, None] - ordered).maximum(at_right - level[:, :, None])
    return reach.where(inside, reach.new_full((), torch.inf)).amin(2)


def _at(rows: Tensor, position: Tensor) -> Tensor:
    """The value at a position (B, C) of each row of (B, C, N); at the first for -1."""
    return rows.gather(2, position.clamp(0, rows.shape[2] - 1)[:, :, None])[:, :, 0]


def _spread(pixels: Tensor, good: Tensor, count: Tensor) -> Tensor:
    """Standard deviation of the good pixels of each row (B, C); 0 without one."""
    n_good = count.clamp(min=1).double()
    # float64: stamps of level 1e8 and a noise of 1 are real
    clean = pixels.where(good, pixels.new_zeros(())).double()
    mean = clean.sum(2) / n_good
    deviation = (clean - mean[:, :, None]) * good.double()
    return (deviation.square().sum(2) / n_good).sqrt().float()
