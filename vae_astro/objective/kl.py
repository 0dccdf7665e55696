"""Kullback-Leibler divergences, one number per latent unit."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["gaussian_kl_per_unit", "mutual_information"]

MOST_COMPARED = 512
"""Stamps that the mutual information is estimated on: memory goes with their square."""


def gaussian_kl_per_unit(mean: Tensor, log_var: Tensor) -> Tensor:
    r"""Cost of describing each latent unit, against a unit Gaussian prior.

    For one unit :math:`\tfrac12(\mu^2 + e^{\ell} - \ell - 1)`, with :math:`\ell` the log-variance
    (Kingma & Welling 2014, appendix B). Nothing is summed or averaged here, so a unit that the
    decoder no longer listens to shows up as a column of zeros.

    Parameters
    ----------
    mean, log_var : Tensor, shape (B, Z)
        Posterior mean and natural log of its variance.

    Returns
    -------
    Tensor, shape (B, Z)
        Divergence in nats, never negative up to rounding. NaN in, NaN out.

    Raises
    ------
    ValueError
        If the two shapes differ.
    """
    if mean.shape != log_var.shape:
        raise ValueError(f"mean is {tuple(mean.shape)} but log_var is {tuple(log_var.shape)}")
    # expm1: for a unit near the prior, exp(l) - 1 loses its digits exactly where collapse is judged
    return 0.5 * (mean.square() + log_var.expm1() - log_var)


def mutual_information(mean: Tensor, log_var: Tensor, eps: Tensor) -> Tensor:
    r"""Information that codes carry about which of B stamps they belong to.

    :math:`\langle \ln q(z_i|x_i) - \ln \frac1B \sum_j q(z_i|x_j) \rangle_i`, the aggregate
    posterior being that of the stamps given (Hoffman & Johnson 2016). Of more than `MOST_COMPARED`
    stamps the first are taken. It cannot exceed :math:`\ln B`, and says too little where the truth
    comes near that.

    Parameters
    ----------
    mean, log_var : Tensor, shape (B, Z)
        Posteriors of the stamps.
    eps : Tensor, shape (B, Z)
        Standard normal noise, to draw one code from each.

    Returns
    -------
    Tensor, scalar
        Nats.
    """
    mean, log_var, eps = (values[:MOST_COMPARED] for values in (mean, log_var, eps))
    z = mean + torch.exp(0.5 * log_var) * eps
    # the constants of the density are the same for all stamps and cancel
    deviation2 = (z[:, None] - mean).square() * torch.exp(-log_var)  # (B, B, Z)
    log_density = -0.5 * (deviation2 + log_var).sum(2)  # (B, B): code i under the posterior of j
    return (log_density.diagonal() - log_density.logsumexp(1)).mean() + math.log(len(mean))
