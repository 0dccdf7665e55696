"""Kullback-Leibler divergences, one number per latent unit."""

from __future__ import annotations

from torch import Tensor

__all__ = ["gaussian_kl_per_unit"]


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
