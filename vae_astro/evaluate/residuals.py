r"""Where a stamp is odd: what the model leaves, in units of what it could be expected to leave.

The residual of a pixel is taken in units of its noise, and of a share of its light,

.. math:: r = \frac{x - \hat x}{\sqrt{\sigma^2 + (f \max(|x|, |\hat x|))^2}},

since a model is never exact where a source is a thousand times its noise: without the second term
the cores of the brightest stars would be the oddest pixels of every survey. What shows up is light
where the model expects none. Smoothed over several widths, each map is in units of its own noise
again (a matched filter), so that an arc or a ghost stands out that no single pixel shows.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from vae_astro.data.normalize import Normalizer

__all__ = ["RESIDUAL_SCORES", "ResidualMaps", "residual_maps", "residual_scores"]

MODEL_ERROR = 0.5
"""f: the share of its light to which a pixel is expected to be reproduced."""
WIDTH_SHOWN = 1.5
"""Standard deviation in pixels of the smoothing of the map that is shown."""
WIDTH_BROAD = 6.0
"""That of the broad smoothing, for what is too faint to be seen in any one place."""
STANDS_OUT = 3.0
"""Noises of the smoothed map from which a place counts as odd; more than twice that counts no more,
so that one bright neighbour is not odder than a whole arc."""
CLIPPED_AT = {"light": 2.5, "broad": 2.0, "line": 4.0}
"""Noises that one pixel may add to a score."""
N_ANGLES = 36
LEAST_LENGTH = 0.35
"""Of a line that is looked along, over the width of the stamp."""

RESIDUAL_SCORES = ("left_light", "odd_area", "broad", "line")
"""What `residual_scores` gives: the mean square of the clipped light that the model does not draw,
the area over which the smoothed map stands out, its highest point where it is smoothed broadly, and
the brightest straight line."""


class ResidualMaps(NamedTuple):
    """Residuals of a batch.

    Attributes
    ----------
    pixels : Tensor, shape (B, C, H, W)
        r as above; 0 where masked.
    smoothed : Tensor, shape (B, H, W)
        All bands together, in units of its own noise.
    """

    pixels: Tensor
    smoothed: Tensor


def residual_maps(
    normalizer: Normalizer, image: Tensor, location: Tensor, mask: Tensor, noise: Tensor
) -> ResidualMaps:
    """Residual maps of a batch.

    Parameters
    ----------
    normalizer : Normalizer
        Of the model.
    image, location, noise : Tensor, shape (B, C, H, W)
        Normalised stamps, expected pixels and noise.
    mask : Tensor, shape (B, C, H, W), bool
        True where good.
    """
    off = normalizer.residual(image, location, noise)
    seen = normalizer.residual(image, torch.zeros_like(image), noise)
    light = torch.maximum(seen.abs(), (seen - off).abs())
    # in this order: the square of a bright pixel leaves float32
    scale = torch.hypot(torch.ones_like(light), MODEL_ERROR * light)
    pixels = (off / scale).where(mask, off.new_zeros(()))
    return ResidualMaps(pixels, _smoothed(pixels, mask.to(pixels.dtype), WIDTH_SHOWN))


def residual_scores(maps: ResidualMaps, mask: Tensor) -> Tensor:
    """Numbers that are large where a stamp is odd, shape (B, 4): see `RESIDUAL_SCORES`."""
    good = mask.to(maps.pixels.dtype)
    n_good = good.flatten(1).sum(1).clamp(min=1)
    left = maps.pixels.clamp(0, CLIPPED_AT["light"]).square().flatten(1).sum(1) / n_good
    area = (maps.smoothed - STANDS_OUT).clamp(0, STANDS_OUT).flatten(1).sum(1) / STANDS_OUT
    broad = maps.pixels.clamp(-CLIPPED_AT["broad"], CLIPPED_AT["broad"])
    along = maps.pixels.clamp(-CLIPPED_AT["line"], CLIPPED_AT["line"])
    highest = _smoothed(broad, good, WIDTH_BROAD).flatten(1).amax(1)
    return torch.stack([left, area, highest, _brightest_line(along.sum(1), good.sum(1))], dim=1)


def _smoothed(pixels: Tensor, good: Tensor, width: float) -> Tensor:
    """Sum over a Gaussian and all bands in units of its noise, shape (B, H, W)."""
    kernel = _gaussian(width).to(pixels)

    def blur(planes: Tensor, taps: Tensor) -> Tensor:
        padding = len(taps) // 2
        planes = F.conv2d(planes[:, None], taps[None, None, :, None], padding=(padding, 0))
        return F.conv2d(planes, taps[None, None, None, :], padding=(0, padding))[:, 0]

    variance = blur(good.sum(1), kernel.square())
    # where hardly a pixel is good, nothing can be said
    least = 0.05 * float(kernel.square().sum()) ** 2
    smooth = blur(pixels.sum(1), kernel) / variance.clamp(min=least).sqrt()
    return smooth.where(variance >= least, smooth.new_zeros(()))


def _gaussian(width: float) -> Tensor:
    reach = math.ceil(3 * width)
    taps = torch.arange(-reach, reach + 1, dtype=torch.float64)
    return torch.exp(-0.5 * (taps / width).square())


def _brightest_line(pixels: Tensor, n_good: Tensor) -> Tensor:
    """Largest sum along a straight line two pixels wide, in units of its noise, shape (B,)."""
    height, width = pixels.shape[1:]
    least = LEAST_LENGTH * min(height, width)
    flat = torch.stack([pixels.flatten(1), n_good.flatten(1)])
    brightest = pixels.new_full((len(pixels),), -torch.inf)
    for strip, n_strips in _strips(height, width):
        sums = flat.new_zeros(2, len(pixels), n_strips)
        sums.index_add_(2, strip.to(flat.device), flat)
        light, count = sums[..., :-1] + sums[..., 1:]
        brightest = torch.maximum(brightest, (light / count.clamp(min=least).sqrt()).amax(1))
    return brightest


@lru_cache(maxsize=4)
def _strips(height: int, width: int) -> list[tuple[Tensor, int]]:
    """For each angle, which strip one pixel wide every pixel lies in, and how many there are."""
    y, x = torch.meshgrid(
        torch.arange(height) - 0.5 * (height - 1),
        torch.arange(width) - 0.5 * (width - 1),
        indexing="ij",
    )
    found = []
    for angle in torch.arange(N_ANGLES, dtype=torch.float64) * (math.pi / N_ANGLES):
        across = (x * angle.cos() + y * angle.sin()).flatten()
        strip = (across - across.min()).floor().long()
        found.append((strip, int(strip.max()) + 1))
    return found
