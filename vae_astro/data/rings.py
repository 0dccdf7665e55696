"""Stamps as rings: what is left of them when the angle is averaged out.

Rings lie around the true centre of the array, (H - 1) / 2 and (W - 1) / 2, which every flip and
quarter-turn of a square stamp leaves in place: a ring holds the same pixels before and after.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["harmonic_power", "radii", "ring_edges", "ring_means", "ring_members"]

INNERMOST_WIDTH = 1.125
"""Widest innermost ring of `ring_edges`, in pixels: half a well-sampled point source."""


def radii(height: int, width: int) -> Tensor:
    """Distance of each pixel from the true centre, shape (height, width), in pixels, float64."""
    rows = torch.arange(height, dtype=torch.float64) - 0.5 * (height - 1)
    columns = torch.arange(width, dtype=torch.float64) - 0.5 * (width - 1)
    return torch.hypot(rows[:, None], columns[None, :])


def ring_edges(n_rings: int, outer_radius: float) -> Tensor:
    """Edges of rings that resolve the centre however far out they reach, shape (n_rings + 1,).

    Of one width where that is at most `INNERMOST_WIDTH`; otherwise the innermost has that width
    and each ring is wider than the one inside it by the same factor. Pixels, float64.
    """
    width = outer_radius / n_rings
    if width <= INNERMOST_WIDTH:
        return torch.linspace(0, outer_radius, n_rings + 1, dtype=torch.float64)
    low, high = 1.0, 1.0 + outer_radius  # factor between neighbours, by bisection
    for _ in range(60):
        factor = math.sqrt(low * high)
        reach = INNERMOST_WIDTH * sum(factor**ring for ring in range(n_rings))
        low, high = (factor, high) if reach < outer_radius else (low, factor)
    widths = low ** torch.arange(n_rings, dtype=torch.float64)
    edges = torch.cat([torch.zeros(1, dtype=torch.float64), widths.cumsum(0)])
    return edges * (outer_radius / float(edges[-1]))


def ring_members(height: int, width: int, edges: Tensor) -> Tensor:
    """Which pixels each ring holds, shape (n_rings, height * width), 1 or 0, float32.

    A ring holds the pixels whose centres lie from its inner edge up to, not at, its outer one.
    """
    distance = radii(height, width).flatten()
    inside = (distance >= edges[:-1, None]) & (distance < edges[1:, None])
    return inside.float()


def ring_means(image: Tensor, mask: Tensor, members: Tensor) -> Tensor:
    """Mean of the good pixels of each ring, shape (B, C, n_rings); 0 where a ring has none.

    Parameters
    ----------
    image, mask : Tensor, shape (B, C, H, W)
        Pixels, and True where they are good; what the others hold (NaN too) does not matter.
    members : Tensor, shape (n_rings, H * W)
        Of `ring_members`.
    """
    clean = image.where(mask, image.new_zeros(()))
    total = clean.flatten(2) @ members.to(image.dtype).T
    n_good = mask.to(image.dtype).flatten(2) @ members.to(image.dtype).T
    return total / n_good.clamp(min=1)


def harmonic_power(image: Tensor, mask: Tensor, members: Tensor, n_orders: int) -> Tensor:
    r"""Power of the first angular harmonics of each ring, shape (B, C, R, n_orders).

    :math:`|\sum_i (x_i - \bar x) e^{i m \theta_i}|^2 / n` over the n good pixels of a ring, for m
    from 1: its own noise gives the variance of a pixel on average. A turn changes the phase alone,
    so the power is that of all eight poses; which way round is not told. Parameters as in
    `ring_means`.
    """
    height, width = image.shape[2:]
    rows = torch.arange(height, dtype=torch.float64) - 0.5 * (height - 1)
    columns = torch.arange(width, dtype=torch.float64) - 0.5 * (width - 1)
    angle = torch.atan2(rows[:, None], columns[None, :]).flatten()
    members = members.to(image.dtype)
    good = mask.to(image.dtype).flatten(2)
    n_good = (good @ members.T).clamp(min=1)
    mean = ring_means(image, mask, members)
    clean = image.where(mask, image.new_zeros(())).flatten(2)
    deviation = (clean - mean @ members) * good
    # the pixel in the very middle has no angle: with any, it would not turn as the others do
    turns = radii(height, width).flatten() > 0
    orders = []
    for order in range(1, n_orders + 1):
        waves = ((order * angle).cos() * turns, (order * angle).sin() * turns)
        parts = [(deviation * wave.to(image)) @ members.T for wave in waves]
        orders.append((parts[0].square() + parts[1].square()) / n_good)
    return torch.stack(orders, dim=-1)
