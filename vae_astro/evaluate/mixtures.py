"""Gaussian mixtures in a latent space, and how many components the stamps ask for."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import solve_triangular
from scipy.special import logsumexp, xlogy
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from vae_astro.progress import progress_of

__all__ = ["COVARIANCES", "CRITERIA", "Curve", "Mixture", "fit_mixture", "n_classes_curve"]

COVARIANCES = ("full", "diag", "tied")
CRITERIA = ("icl", "bic")
SMALLEST_VARIANCE = 1e-3
"""Added to every variance, in units of the frame: a few repeated stamps are no class of their own.
"""
N_INIT = 4
"""Starts of a fit, of which the likeliest counts: single ones end in poor local optima."""


@dataclass(frozen=True)
class Mixture:
    r"""A mixture :math:`\sum_k \pi_k \mathcal N(z; m_k, S_k)`.

    Attributes
    ----------
    weights : ndarray, shape (K,)
    means : ndarray, shape (K, D)
    covariances : ndarray, shape (K, D, D)
    """

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray

    @property
    def n_classes(self) -> int:
        return len(self.weights)

    def log_joint(self, z: np.ndarray) -> np.ndarray:
        """Log-density of codes (M, D) in each component times its weight, (M, K), in nats."""
        columns = []
        for weight, mean, covariance in zip(
            self.weights, self.means, self.covariances, strict=True
        ):
            root = np.linalg.cholesky(covariance)
            # S^-1 = W W^T: one product for all codes
            whiten = solve_triangular(root, np.eye(len(root)), lower=True).T
            squared = np.square((z - mean) @ whiten).sum(axis=1)
            log_volume = np.log(np.diag(root)).sum() + 0.5 * len(root) * np.log(2 * np.pi)
            columns.append(np.log(max(weight, 1e-300)) - log_volume - 0.5 * squared)
        return np.stack(columns, axis=1)

    def at(self, z: np.ndarray) -> np.ndarray:
        """Responsibility of each component (M, K) at codes (M, D)."""
        joint = self.log_joint(z)
        shares = np.exp(joint - joint.max(axis=1, keepdims=True))
        return shares / shares.sum(axis=1, keepdims=True)

    def log_density(self, z: np.ndarray) -> np.ndarray:
        """Log-density (M,) at codes (M, D), in nats."""
        return logsumexp(self.log_joint(z), axis=1)

    def arrays(self) -> dict[str, np.ndarray]:
        """The parameters by name."""
        return {"weights": self.weights, "means": self.means, "covariances": self.covariances}


def fit_mixture(codes: np.ndarray, n_classes: int, covariance: str, seed: int) -> Mixture:
    """The likeliest of a few fits by expectation-maximisation (scikit-learn).

    Parameters
    ----------
    codes : ndarray, shape (N, D)
        In units of their spread.
    n_classes : int
        Components K, at most N.
    covariance : {"full", "diag", "tied"}
        One matrix or one set of variances for each component, or one matrix for all.
    seed : int
        Of the starting points.
    """
    fitted = _fitted(codes, n_classes, covariance, seed, N_INIT)
    matrices: np.ndarray = fitted.covariances_
    if covariance == "diag":
        matrices = matrices[:, :, None] * np.eye(codes.shape[1])
    elif covariance == "tied":
        matrices = np.repeat(matrices[None], n_classes, axis=0)
    return Mixture(
        fitted.weights_.astype(np.float64),
        fitted.means_.astype(np.float64),
        matrices.astype(np.float64),
    )


def _fitted(
    codes: np.ndarray, n_classes: int, covariance: str, seed: int, n_init: int
) -> GaussianMixture:
    model = GaussianMixture(
        n_classes,
        covariance_type=covariance,
        reg_covar=SMALLEST_VARIANCE,
        n_init=n_init,
        max_iter=200,
        random_state=seed,
    )
    with warnings.catch_warnings():
        # slow to converge where there are more components than classes: its curve says so
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(codes)


@dataclass(frozen=True)
class Curve:
    """What each number of classes costs; the lowest wins.

    Attributes
    ----------
    n_classes : tuple of int
        Numbers that were tried, rising.
    bic, icl : tuple of float
        Bayesian information criterion (Schwarz 1978), and integrated completed likelihood
        (Biernacki, Celeux & Govaert 2000): BIC plus twice the entropy of the responsibilities,
        which charges for components that overlap. Both for one stamp, in nats times two.
    """

    n_classes: tuple[int, ...]
    bic: tuple[float, ...]
    icl: tuple[float, ...]

    def best(self, criterion: str) -> int:
        """Number of classes with the lowest ``bic`` or ``icl``."""
        return self.n_classes[int(np.argmin(getattr(self, criterion)))]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"n_classes": list(self.n_classes), "bic": list(self.bic), "icl": list(self.icl)}


def n_classes_curve(
    codes: Sequence[np.ndarray], most: int, covariance: str, seed: int, show: bool = False
) -> Curve:
    """BIC and ICL of mixtures of 1 to ``most`` components.

    Parameters
    ----------
    codes : sequence of ndarray, shape (N, D)
        The same stamps in the frame of each checkpoint; the criteria are averaged over them.
    most : int
        Components at most; never more than a tenth of the stamps, so that each can have some.
    covariance : {"full", "diag", "tied"}
    seed : int
        Of the starting points.
    show : bool
        Whether to show progress.
    """
    tried = range(1, max(1, min(most, len(codes[0]) // 10)) + 1)
    bic, icl = np.zeros(len(tried)), np.zeros(len(tried))
    n_fits = len(codes) * len(tried)
    with progress_of(n_fits, "choosing the number of classes", "mixture", show=show) as bar:
        for z in codes:
            for k, n_classes in enumerate(tried):
                model = _fitted(z, n_classes, covariance, seed, 2)
                shares = model.predict_proba(z)
                cost = model.bic(z) / len(z)
                bic[k] += cost / len(codes)
                icl[k] += (cost - 2 * xlogy(shares, shares).sum() / len(z)) / len(codes)
                bar.update()
    return Curve(tuple(tried), tuple(map(float, bic)), tuple(map(float, icl)))
