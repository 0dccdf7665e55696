r"""What codes tell of the stamps they came from, and how far codes as a whole stray from the prior.

With :math:`q(z) = \langle q(z|x) \rangle` the aggregate posterior, the KL of a VAE has two parts
(Hoffman & Johnson 2016):

.. math::
    \langle \mathrm{KL}(q(z|x)\,\|\,p(z)) \rangle = I(x; z) + \mathrm{KL}(q(z)\,\|\,p(z)) ,

information that each code carries about its stamp, and a mismatch that says nothing about any of
them. A KL that is all mismatch is a collapsed code that looks alive.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from vae_astro.data.batches import Batch
from vae_astro.vae import VAE

__all__ = [
    "MOST_COMPARED",
    "Information",
    "choose_stamps",
    "information_of",
    "measure_information",
]

MOST_COMPARED = 512
"""Stamps that are compared with each other: time goes with their square."""
FEWEST_PER_UNIT = 2
"""Stamps for each living unit below which dependence between units cannot be told from chance."""
LIVING_KL_NATS = 1e-3
"""A unit with a smaller KL carries less than that, and is left out."""
SMALLEST_EIGENVALUE = 1e-6
"""Of a correlation matrix: units that are copies of each other share a finite number of nats."""


@dataclass(frozen=True)
class Information:
    """The two parts of the KL; they add up to that of the stamps measured.

    Attributes
    ----------
    mutual_information_nats : float
        :math:`I(x; z)`, between 0 and the KL.
    aggregate_mismatch_nats : float
        :math:`\\mathrm{KL}(q(z)\\,\\|\\,p(z))`.
    """

    mutual_information_nats: float
    aggregate_mismatch_nats: float


def choose_stamps(n_stamps: int) -> np.ndarray:
    """Which of ``n_stamps`` to measure: at most `MOST_COMPARED`, evenly spaced, always the same."""
    n_chosen = min(n_stamps, MOST_COMPARED)
    return np.arange(n_chosen) * n_stamps // max(n_chosen, 1)


@torch.no_grad()
def information_of(vae: VAE, batches: Iterable[Batch]) -> Information | None:
    """`measure_information` of a model on the stamps of ``batches``: see `choose_stamps`."""
    vae.eval()
    columns: list[list[np.ndarray]] = [[], [], [], []]
    for batch in batches:
        index = batch["index"].to(vae.device)
        posterior = vae.network.encode(batch["image"].to(vae.device))
        eps = vae.evaluation_noise(index)
        values = (
            posterior.mean,
            posterior.log_var,
            vae.prior.divergence(posterior, eps),
            eps,
        )
        for column, value in zip(columns, values, strict=True):
            column.append(value.float().cpu().numpy())
    mean, log_var, kl_per_unit, noise = (np.concatenate(column) for column in columns)
    return measure_information(mean, log_var, kl_per_unit, noise)


def measure_information(
    mean: np.ndarray, log_var: np.ndarray, kl_per_unit: np.ndarray, eps: np.ndarray
) -> Information | None:
    r"""Split the KL of N stamps into information and mismatch.

    A mixture of N posteriors, the usual stand-in for :math:`q(z)` (Hoffman & Johnson 2016, He et
    al. 2019), can tell no more than :math:`\ln N` nats in all: 6.2 for 512 stamps, where codes
    carry 30. So it is used unit by unit, and what units say twice is taken off:

    .. math:: I(x; z) = \sum_i I(x; z_i) - T, \qquad T = \sum_i H(z_i) - H(z)

    is exact for posteriors that are independent given the stamp. :math:`I(x; z_i)` comes from the
    mixture in one dimension with one draw of each posterior, the total correlation T from the
    correlation matrix R of the draws' normal scores, :math:`-\tfrac12\ln\det R`, less what it
    would be by chance for independent units.

    Bias: a unit is understated as its information comes near :math:`\ln N` (by 0.05 nats at 3, 0.1
    at 4, 0.2 at 5 with 512 stamps). T knows monotone dependence of pairs only, so the sum is
    overstated where units depend on each other otherwise. The result is kept between 0 and the KL.

    Parameters
    ----------
    mean, log_var : ndarray, shape (N, Z)
        Posteriors.
    kl_per_unit : ndarray, shape (N, Z)
        Their divergence from the prior, in nats. Units below `LIVING_KL_NATS` on average are left
        out: they carry less than that.
    eps : ndarray, shape (N, Z)
        Standard normal noise, to draw one code from each posterior.

    Returns
    -------
    Information or None
        None where there are fewer than `FEWEST_PER_UNIT` stamps for each living unit.
    """
    n_stamps = len(mean)
    unit_kl = kl_per_unit.mean(axis=0, dtype=np.float64)
    kl = float(unit_kl.sum())
    alive = unit_kl >= LIVING_KL_NATS
    if n_stamps < max(2, FEWEST_PER_UNIT * int(alive.sum())):
        return None
    mean, log_var, eps = (values[:, alive].astype(np.float32) for values in (mean, log_var, eps))
    std = np.exp(0.5 * log_var)
    each = [_of_one_unit(mean[:, i], std[:, i], eps[:, i]) for i in range(mean.shape[1])]
    information = sum(each) - _total_correlation(mean + std * eps)
    information = min(max(information, 0.0), kl)
    return Information(information, kl - information)


def _of_one_unit(mean: np.ndarray, std: np.ndarray, eps: np.ndarray) -> float:
    """Information of one unit, in nats; arguments have shape (N,)."""
    z = mean + std * eps
    precision_root, own = 1 / std, -0.5 * eps**2 - np.log(std)  # own: log-density, up to a constant
    ratio = np.multiply.outer(z, precision_root)  # (N, N): code i under the posterior of j
    ratio -= mean * precision_root
    np.square(ratio, out=ratio)
    ratio *= -0.5
    ratio -= np.log(std)
    ratio -= own[:, None]
    # each row holds its own posterior, at 1; what is 80 nats likelier still fits float32
    np.exp(np.minimum(ratio, 80.0, out=ratio), out=ratio)
    return -float(np.log(ratio.mean(axis=1, dtype=np.float64)).mean())


def _total_correlation(z: np.ndarray) -> float:
    """Nats that units (columns of ``z``, shape (N, Z)) share, as far as ranks are correlated."""
    n_stamps, n_units = z.shape
    if n_units < 2:
        return 0.0
    ranks = torch.from_numpy(z.argsort(axis=0).argsort(axis=0))
    scores = torch.special.ndtri((ranks.double() + 0.5) / n_stamps).numpy()
    eigenvalues = np.linalg.eigvalsh(np.corrcoef(scores, rowvar=False))
    shared = -0.5 * float(np.log(np.maximum(eigenvalues, SMALLEST_EIGENVALUE)).sum())
    # the mean of the same for independent Gaussians: the determinant of a Wishart matrix
    degrees = torch.arange(n_stamps - 1, n_stamps - 1 - n_units, -1, dtype=torch.float64)
    psi = torch.special.digamma(degrees / 2)
    return shared - 0.5 * float((psi[0] - psi).sum())
