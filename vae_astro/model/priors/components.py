r"""What priors share that are a sum of components: densities, and a KL told unit by unit.

For :math:`p(z) = \sum_c \pi_c \prod_i p_{ci}(z_i)` and costs :math:`a_{ci}` of unit i under
component c, be they :math:`\mathrm{KL}(q_i\,\|\,p_{ci})` or
:math:`\ln q_i(z_i) - \ln p_{ci}(z_i)`, the cost of the code is

.. math::
    A = -\ln \sum_c \pi_c e^{-\sum_i a_{ci}}
      = \sum_i \sum_c \gamma_c a_{ci} + \mathrm{KL}(\gamma\,\|\,\pi), \qquad
    \gamma_c \propto \pi_c e^{-\sum_i a_{ci}} .

With divergences this is the decomposition of VaDE (Jiang et al. 2017) at the :math:`q(c|x)` that is
best for it: the least over all :math:`\gamma`, and never below the divergence from p itself
(Hershey & Olsen 2007). With log-ratios it is :math:`\ln q(z) - \ln p(z)` exactly.

The last term is no unit's own. It is shared out by what each unit says about the component,
:math:`d_i = \sum_c (\pi_c - \gamma_c) a_{ci}`, since these add up to
:math:`\mathrm{KL}(\gamma\|\pi) + \mathrm{KL}(\pi\|\gamma)`: a unit that says nothing, or that
speaks for another component, gets none of it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["component_log_density", "cost_per_unit", "gaussian_costs"]


def gaussian_costs(mean: Tensor, log_var: Tensor, centre: Tensor, log_width: Tensor) -> Tensor:
    """Divergence of each unit from each Gaussian component.

    Parameters
    ----------
    mean, log_var : Tensor, shape (B, Z)
        Posteriors.
    centre, log_width : Tensor, shape (K, Z)
        Mean and log-variance of the components.

    Returns
    -------
    Tensor, shape (B, K, Z)
        Nats.
    """
    narrower = log_var[:, None] - log_width
    distance2 = (mean[:, None] - centre).square() * torch.exp(-log_width)
    return 0.5 * (distance2 + narrower.expm1() - narrower)


def component_log_density(z: Tensor, centre: Tensor, log_width: Tensor) -> Tensor:
    """Log-density of each unit of codes ``z`` (..., Z) under each component, shape (..., K, Z)."""
    distance2 = (z[..., None, :] - centre).square() * torch.exp(-log_width)
    return -0.5 * (distance2 + log_width + math.log(2 * math.pi))


def cost_per_unit(cost: Tensor, log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """The cost of each code unit by unit, as the module says it.

    Parameters
    ----------
    cost : Tensor, shape (B, K, Z)
        Of each unit under each component, in nats.
    log_weights : Tensor, shape (K,)
        Logs of weights that sum to 1.

    Returns
    -------
    per_unit : Tensor, shape (B, Z)
        In nats; sums to the cost of the code. Shares in the last term carry no gradient, so that
        free bits hold back what a unit costs and not how it is told.
    gamma : Tensor, shape (B, K)
        Probability of each component.
    """
    log_gamma = torch.log_softmax(log_weights - cost.sum(2), dim=1)
    gamma = log_gamma.exp()
    # no matrix product: under autocast that would be rounded to 16 bits
    own = (gamma[:, :, None] * cost).sum(1)
    category = (gamma * (log_gamma - log_weights)).sum(1, keepdim=True)
    with torch.no_grad():
        told = ((log_weights.exp() - gamma)[:, :, None] * cost).sum(1).clamp(min=0)
        total = told.sum(1, keepdim=True)
        share = torch.where(total > 0, told / total, torch.full_like(told, 1 / told.shape[1]))
    return own + share * category, gamma
