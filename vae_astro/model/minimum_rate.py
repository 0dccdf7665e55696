r"""A floor under the rate: posteriors that cannot come closer to the prior than a committed KL.

delta-VAE (Razavi et al. 2019) chooses the family of posteriors so that the KL has a positive
minimum. Under an independent Gaussian prior a cap on the posterior variance does that, but it buys
rate without information: narrow posteriors that are the same for all stamps. BN-VAE (Zhu et al.
2020) batch-normalises the posterior means, so that they must differ from stamp to stamp. Here both,
matched: with :math:`\delta` nats for a unit, its means vary over the batch by at least
:math:`\gamma^2 = 1 - e^{-2\delta}`, and its posterior variance stays below
:math:`1 - \gamma^2`. Then

.. math:: \langle\mathrm{KL}\rangle \ge \tfrac12\left(\gamma^2 + (1 - \gamma^2)
          - \ln(1 - \gamma^2) - 1\right) = \delta,

and a code at the floor has the mean and variance of the prior in the aggregate, so its rate is
information about the stamp and no mere offset: these are the moments that the optimal linear model
has at that rate.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from vae_astro.model.posterior import DiagonalGaussian
from vae_astro.ranks import mean_over_ranks, n_ranks

__all__ = ["MinimumRate"]


class MinimumRate(nn.Module):
    """Widens the means of a unit that varies too little, and caps its variance.

    The distance of the means from their average is multiplied until their variance reaches the
    floor; a unit whose means vary more than that is left as it is.

    Guaranteed: over each training batch of two stamps and more, the mean KL from a unit Gaussian is
    at least ``nats / latent_dim`` in every unit, so ``nats`` in all, unless the encoder's means are
    the same for all stamps to a part in a million; a batch that processes share counts as a whole.
    In evaluation, and in training with one stamp at a time, the running mean and variance of the
    means take the batch's place, each stamp has its own posterior whatever stands beside it, and
    the floor holds as far as they describe the stamps.

    Not guaranteed: that the decoder listens to a unit, that what a unit is made to vary with is
    worth knowing (it may be noise), or that the ELBO gains by it. All units share the floor alike,
    those that the data have no use for too; where the forecast leaves no room for them, the floor
    costs ELBO. Counts of active units say nothing here: every unit varies by construction.

    Parameters
    ----------
    latent_dim : int
        Z.
    nats : float
        Least KL, summed over units, above 0.
    momentum : float
        Share of the running mean and variance kept at each batch.
    """

    SMALLEST_STD = 1e-6
    """Of the encoder's means, below which they count as the same for all stamps."""

    running_mean: Tensor
    running_var: Tensor
    n_updates: Tensor

    def __init__(self, latent_dim: int, nats: float, momentum: float = 0.95) -> None:
        super().__init__()
        per_unit = nats / latent_dim
        self.least_std = math.sqrt(-math.expm1(-2 * per_unit))
        self.highest_log_var = -2 * per_unit
        self.momentum = momentum
        self.register_buffer("running_mean", torch.zeros(latent_dim))
        self.register_buffer("running_var", torch.ones(latent_dim))
        self.register_buffer("n_updates", torch.zeros((), dtype=torch.long))

    def forward(self, posterior: DiagonalGaussian) -> DiagonalGaussian:
        """The posterior (B, Z) with its rate raised; in training the running figures move."""
        mean, log_var = posterior.mean, posterior.log_var
        if self.training:
            var, centre = _var_mean(mean)
            self._observe(var.detach(), centre.detach())
        if not self.training or len(mean) * n_ranks() == 1:
            # clones: the next batch moves the running figures before a late backward pass
            var, centre = self.running_var.clone(), self.running_mean.clone()
        std = var.clamp(min=self.SMALLEST_STD**2).sqrt()
        widening = (self.least_std / std).clamp(min=1)
        # a softplus and no clamp: at a clamp the gradient would be lost
        capped = self.highest_log_var - F.softplus(self.highest_log_var - log_var)
        return DiagonalGaussian(centre + widening * (mean - centre), capped)

    @torch.no_grad()
    def _observe(self, var: Tensor, centre: Tensor) -> None:
        """Fold variance and mean (Z,) of a batch of means into the running ones."""
        self.n_updates += 1
        # a plain average until the window is full
        new = torch.clamp(1 / self.n_updates, min=1 - self.momentum)
        # what is not finite would stay in the running figures for good
        finite = torch.isfinite(centre + var)
        centre = torch.where(finite, centre, self.running_mean)
        var = torch.where(finite, var, self.running_var)
        step = centre - self.running_mean
        self.running_mean += new * step
        self.running_var.copy_((1 - new) * (self.running_var + new * step.square()) + new * var)

    def extra_repr(self) -> str:
        return f"least_std={self.least_std:.3g}, highest_log_var={self.highest_log_var:.3g}"


def _var_mean(mean: Tensor) -> tuple[Tensor, Tensor]:
    """Variance and mean (Z,) of the means (B, Z) of the whole batch, whoever has its stamps."""
    if n_ranks() == 1:
        var, centre = torch.var_mean(mean, dim=0, correction=0)
        return var, centre
    centre = mean_over_ranks(mean.mean(dim=0))
    return mean_over_ranks((mean - centre).square().mean(dim=0)), centre
