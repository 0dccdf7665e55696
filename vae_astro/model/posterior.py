"""The approximate posterior of one stamp's latent code."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["DiagonalGaussian"]


@dataclass(frozen=True)
class DiagonalGaussian:
    r""":math:`q(z|x) = \mathcal N(\mu, \mathrm{diag}(e^{\ell}))` for a batch.

    Attributes
    ----------
    mean, log_var : Tensor, shape (B, Z)
        Mean and natural log of the variance.
    """

    mean: Tensor
    log_var: Tensor

    @property
    def std(self) -> Tensor:
        """Standard deviation, shape (B, Z)."""
        return torch.exp(0.5 * self.log_var)

    def sample(self, eps: Tensor) -> Tensor:
        """Reparameterized draw ``mean + std * eps`` (Kingma & Welling 2014, section 2.4).

        Parameters
        ----------
        eps : Tensor, shape (B, Z) or (S, B, Z)
            Standard normal noise; drawn by the caller, so that this is a pure function.
        """
        return self.mean + self.std * eps
