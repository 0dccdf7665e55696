"""Gaussian mixtures fitted to codes, before gradients take over."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np

__all__ = ["FEWEST_TO_SPLIT", "Components", "fit_components", "split_component"]

N_STARTS = 4
"""k-means starts that a fit takes the best of."""
FEWEST_TO_SPLIT = 4
"""Codes below which a component is not split."""


class Components(NamedTuple):
    """A mixture of K diagonal Gaussians, in float64.

    Attributes
    ----------
    weights : ndarray, shape (K,)
        They sum to 1.
    means, variances : ndarray, shape (K, Z)
        Of each component.
    """

    weights: np.ndarray
    means: np.ndarray
    variances: np.ndarray


def fit_components(codes: np.ndarray, n_components: int, min_std: float) -> Components:
    """The likeliest mixture of codes, by expectation maximisation from k-means.

    The same codes give the same mixture: one thread, and a random state of its own.

    Parameters
    ----------
    codes : ndarray, shape (N, Z)
        Draws of the posteriors, N at least ``n_components``.
    n_components : int
        K.
    min_std : float
        Added in quadrature to the width of every component.
    """
    # scikit-learn takes a second to import: not before it is needed
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    model = GaussianMixture(
        n_components,
        covariance_type="diag",
        reg_covar=min_std**2,
        n_init=N_STARTS,
        max_iter=200,
        random_state=0,
    )
    with threadpool_limits(1), warnings.catch_warnings():
        # identical codes, or a fit that is not quite there: gradients go on from either
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(np.asarray(codes, dtype=np.float64))
    return Components(model.weights_, model.means_, model.covariances_)


def split_component(
    components: Components, codes: np.ndarray, members: np.ndarray, largest: int, dead: int,
    min_std: float,
) -> Components:  # fmt: skip
    """Give component ``dead`` a half of component ``largest``.

    Parameters
    ----------
    components : Components
        Left as they are.
    codes : ndarray, shape (N, Z)
        Draws of the posteriors.
    members : ndarray, shape (N,), int
        The likeliest component of each.
    largest, dead : int
        Which.
    min_std : float
        As in `fit_components`.
    """
    halves = fit_components(codes[members == largest], 2, min_std)
    weights, means, variances = (values.copy() for values in components)
    shared = weights[largest] + weights[dead]
    for which, half in ((largest, 0), (dead, 1)):
        weights[which] = shared * halves.weights[half]
        means[which], variances[which] = halves.means[half], halves.variances[half]
    return Components(weights, means, variances)
