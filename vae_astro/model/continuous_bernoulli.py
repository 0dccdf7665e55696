"""Two functions of the continuous Bernoulli (Loaiza-Ganem & Cunningham 2019), without cancellation.

Written around x = 1/2: its log-normaliser at logit a is ``log_sinhc(a / 2)``, its mean
``(1 + langevin(a / 2)) / 2``.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["langevin", "log_sinhc"]

SERIES_BELOW = 0.1
"""Argument below which the closed forms lose digits and a Taylor series does not."""


def log_sinhc(a: Tensor) -> Tensor:
    """``log(sinh(a) / a)``, accurate for every ``a``; torch's own clamps and is not normalised."""
    # not of |a|: its derivative at 0 would take the curvature away there
    square = a.square().clamp(max=SERIES_BELOW**2)
    a = a.abs()
    safe = a.where(a > SERIES_BELOW, a.new_ones(()))
    large = safe + torch.log(-torch.expm1(-2 * safe)) - torch.log(2 * safe)
    series = square / 6 - square**2 / 180 + square**3 / 2835 - square**4 / 37800
    return torch.where(a > SERIES_BELOW, large, series)


def langevin(a: Tensor) -> Tensor:
    """``coth(a) - 1 / a``, the derivative of `log_sinhc`."""
    small = a.clamp(-SERIES_BELOW, SERIES_BELOW)
    series = small / 3 - small**3 / 45 + 2 * small**5 / 945 - small**7 / 4725
    safe = a.where(a.abs() > SERIES_BELOW, a.new_ones(()))
    return torch.where(a.abs() > SERIES_BELOW, 1 / safe.tanh() - 1 / safe, series)
