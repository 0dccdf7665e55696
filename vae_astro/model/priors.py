"""Priors over the latent code."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vae_astro.model.posterior import DiagonalGaussian
from vae_astro.objective.kl import gaussian_kl_per_unit

__all__ = ["PRIORS", "StandardNormal"]

LOG_2PI = math.log(2 * math.pi)


class StandardNormal(nn.Module):
    r""":math:`p(z) = \mathcal N(0, I)`, without parameters (Kingma & Welling 2014).

    Parameters
    ----------
    latent_dim : int
        Number of latent units Z.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim

    def kl_per_unit(self, posterior: DiagonalGaussian) -> Tensor:
        """Exact divergence of the posterior from the prior, shape (B, Z), in nats."""
        return gaussian_kl_per_unit(posterior.mean, posterior.log_var)

    def log_density(self, z: Tensor) -> Tensor:
        """Exact log-density of codes ``z`` (..., Z), shape (...,), in nats."""
        return -0.5 * (z.square() + LOG_2PI).sum(-1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``n`` draws, shape (n, Z), on the generator's device (CPU without one)."""
        device = generator.device if generator is not None else None
        return torch.randn(n, self.latent_dim, generator=generator, device=device)


PRIORS: dict[str, Callable[..., StandardNormal]] = {"standard": StandardNormal}
