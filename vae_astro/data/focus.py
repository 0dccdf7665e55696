r"""How far out to look: chosen from stamps without labels.

A stamp is cut in two halves by a line through its centre. Light that belongs to the object in the
middle is in both; neighbours, defects and noise are in one. So the covariance of the two halves'
ring means over the stamps is the variance of the symmetric light, :math:`S`, and half the variance
of their difference, :math:`N`, what disturbs it (a split-half reliability; Spearman 1910). What a
ring tells is then about :math:`\tfrac12 \ln(1 + 2 S / N)` nats, both halves taken together.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vae_astro.data.rings import ring_means, ring_members

__all__ = ["informative_radius", "ring_information"]

INFORMATION = 0.9
"""Share of what all rings tell that those within the radius have to tell."""
SMALLEST_RADIUS = 4.0
"""Pixels: what a point source needs."""
RING_WIDTH = 1.5
"""Pixels; a half of the innermost ring then has more than one pixel."""


def ring_information(light: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Nats that each ring tells of the shape of its stamp.

    Parameters
    ----------
    light, mask : Tensor, shape (N, C, H, W)
        Pixels above the sky in units of their noise, before a stretch; True where good.

    Returns
    -------
    tuple of Tensor, shape (R + 1,) and (R,)
        Edges of the rings in pixels, and nats, the mean over the bands and two cuts.
    """
    height, width = light.shape[2:]
    n_rings = max(1, math.floor(0.5 * min(height, width) / RING_WIDTH))
    edges = torch.linspace(0, 0.5 * min(height, width), n_rings + 1, dtype=torch.float64)
    members = ring_members(height, width, edges)
    rows = torch.arange(height) - 0.5 * (height - 1)
    columns = torch.arange(width) - 0.5 * (width - 1)
    above = (rows[:, None].expand(height, width)).flatten()
    left = (columns[None, :].expand(height, width)).flatten()
    nats = torch.zeros(n_rings)
    # clipped, so that a few bright stamps do not speak for all
    tame = torch.asinh(light)
    for side in (above, left):
        one = ring_means(tame, mask, members * (side < 0))
        other = ring_means(tame, mask, members * (side > 0))
        # the flux is no matter of shape: the same factor for both halves
        norm = (one + other).square().sum((1, 2), keepdim=True).sqrt().clamp(min=1e-6)
        one, other = one / norm, other / norm
        one, other = one - one.mean(0), other - other.mean(0)
        signal = (one * other).mean(0).clamp(min=0)
        noise = 0.5 * (one - other).square().mean(0)
        nats += 0.25 * (2 * signal / noise.clamp(min=1e-12)).log1p().sum(0)
    return edges, nats / light.shape[1]


def informative_radius(light: Tensor, mask: Tensor) -> float:
    """Radius in pixels within which the rings tell `INFORMATION` of all that they tell.

    What is told by chance, the square root of two over N in S / N, counts as nothing. Half of the
    stamp where no ring tells anything. Parameters as in `ring_information`.
    """
    edges, nats = ring_information(light, mask)
    chance = 0.5 * math.log1p(2 * math.sqrt(2 / len(light)))
    told = (nats - chance).clamp(min=0)
    if not told.any():
        return float(edges[-1])
    share = told.cumsum(0) / told.sum()
    ring = int((share < INFORMATION).sum())
    return max(float(edges[ring + 1]), min(SMALLEST_RADIUS, float(edges[-1])))
