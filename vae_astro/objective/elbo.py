"""The evidence lower bound, with its parts kept apart and in nats per stamp."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vae_astro.objective.beta import RatePenalty
from vae_astro.ranks import mean_over_ranks

__all__ = ["Elbo"]


@dataclass(frozen=True)
class Elbo:
    """The two parts of the bound for a batch.

    Attributes
    ----------
    reconstruction : Tensor, shape (B,)
        Log-density of the good pixels given one posterior sample, summed over pixels, in nats.
    kl_per_unit : Tensor, shape (B, Z)
        Divergence of the posterior from the prior for each latent unit, in nats.
    """

    reconstruction: Tensor
    kl_per_unit: Tensor

    @property
    def kl(self) -> Tensor:
        """Divergence summed over latent units, shape (B,), in nats."""
        return self.kl_per_unit.sum(dim=1)

    @property
    def nats(self) -> Tensor:
        """The bound itself, at beta = 1, shape (B,): comparable between runs of any schedule."""
        return self.reconstruction - self.kl

    def loss(self, penalty: RatePenalty) -> Tensor:
        r"""Scalar to minimise: :math:`-\langle \log p(x|z) \rangle` plus the penalty on the rate.

        Averaged over stamps only, never over pixels or units, so that beta keeps the meaning it
        has in Higgins et al. (2017).

        With free bits each unit's batch-mean KL counts as at least ``free_bits_nats``
        (Kingma et al. 2016); with a capacity C the penalty is ``beta * |KL - C|``
        (Burgess et al. 2018). Both look at the KL of the whole batch where processes share it; the
        mean of this scalar over them is then the loss of the whole batch.
        """
        kl_per_unit = self.kl_per_unit.mean(dim=0)
        if penalty.free_bits_nats > 0 or penalty.capacity_nats is not None:
            kl_per_unit = mean_over_ranks(kl_per_unit)
        if penalty.free_bits_nats > 0:
            kl_per_unit = kl_per_unit.clamp(min=penalty.free_bits_nats)
        rate = kl_per_unit.sum()
        if penalty.capacity_nats is not None:
            rate = torch.abs(rate - penalty.capacity_nats)
        return penalty.beta * rate - self.reconstruction.mean()
