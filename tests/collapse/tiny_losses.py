"""Losses with closed forms on stamps of four pixels, and their gradients under examination."""

from __future__ import annotations

from typing import Any

import torch
from tiny_subjects import Weighed, bench_of
from torch import Tensor

from vae_astro.collapse.audit.objective import _Loss

DOUBLE = torch.float64


def cross(*strengths: float) -> Tensor:
    """Stamps of 2x2 pixels: plus and minus each strength in a pixel of its own, on a picture."""
    rows = []
    for pixel, strength in enumerate(strengths):
        for sign in (1, -1):
            row = torch.zeros(4, dtype=DOUBLE)
            row[pixel] = sign * strength
            rows.append(row)
    picture = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=DOUBLE)
    return (picture + torch.stack(rows)).view(-1, 1, 2, 2)


STAMPS = cross(4.0, 2.0)  # eigenvalues 16 / 2 and 4 / 2
NOTHING = torch.zeros((), dtype=DOUBLE)


def loss_of(reconstruction: Any = None, kl: Any = None, **flags: Any) -> Weighed:
    """A reconstruction of output and stamps plus a KL of mean and spread."""

    def loss(recon: Tensor, stamps: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
        total = NOTHING if reconstruction is None else reconstruction(recon, stamps)
        return total if kl is None else total + kl(mean, spread)

    return Weighed(loss, **flags)


def half_sse(weight: float | Tensor = 1.0) -> Any:
    return lambda recon, stamps: (0.5 * weight * (recon - stamps).square()).sum()


def a_loss(reconstruction: Any = None, kl: Any = None, **flags: Any) -> _Loss:
    return _Loss(bench_of(STAMPS, loss_of(reconstruction, kl, **flags)))


def quartic(recon: Tensor, stamps: Tensor) -> Tensor:
    """Around the mean stamp: curvature grows with the square of the step."""
    centre = STAMPS.mean(0)
    centre = centre + 0.05 * (centre.mean() - centre)
    return (recon - centre).pow(4).sum()
