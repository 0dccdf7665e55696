r"""Classes in latent codes: which units they are made of, and what each method finds in them.

Every method ends in an object whose ``at(z)`` gives the share of each class at a code. A stamp has
no code but a posterior of codes, so its class probability is the average of those shares,

.. math:: p(k \mid x) = \mathrm E_{z \sim q(z \mid x)}[p(k \mid z)],

taken over the same low-discrepancy draws for every stamp: neither the order of stamps nor a seed
moves it. A stamp whose code is uncertain gets an uncertain class.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.special import ndtri
from scipy.stats import qmc
from sklearn.cluster import HDBSCAN, KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.neighbors import NearestNeighbors

from vae_astro.errors import InputError
from vae_astro.evaluate.mixtures import Mixture, fit_mixture
from vae_astro.settings import check_int

__all__ = [
    "METHODS",
    "Centres",
    "Clusters",
    "Frame",
    "Members",
    "PriorClasses",
    "clusters_from",
    "fit_clusters",
    "frame_of",
    "hard_classes",
    "posterior_draws",
    "posterior_shares",
    "units_named",
]

METHODS = ("mixture", "kmeans", "hdbscan", "prior")
CODES_AT_ONCE = 1 << 17
"""Codes that are compared with classes in one go: some tens of MB."""
MOST_MEMBERS = 5000
"""Stamps that stand for the classes of HDBSCAN when others are assigned to them."""


class Clusters(Protocol):
    """What a method has found.

    Attributes
    ----------
    n_classes : int
    """

    @property
    def n_classes(self) -> int: ...

    def at(self, z: np.ndarray) -> np.ndarray:
        """Share of each class (M, K) at codes (M, D); what is missing to 1 is in no class."""

    def arrays(self) -> dict[str, np.ndarray]:
        """All that `clusters_from` needs, as plain arrays."""


@dataclass(frozen=True)
class Frame:
    """Units that classes are looked for in, and their scale.

    A unit is centred on its mean and divided by the standard deviation of its aggregate posterior,
    the square root of the variance of its means plus its mean posterior variance. A unit that says
    little thus stays small beside the noise it carries, where division by the spread of its
    means alone would blow it up.

    Attributes
    ----------
    units : tuple of int
        Columns of the code, D of them.
    centre, scale : ndarray, shape (D,)
    """

    units: tuple[int, ...]
    centre: np.ndarray
    scale: np.ndarray

    def __call__(self, mean: np.ndarray, std: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Posterior means and standard deviations (N, Z) in this frame, (N, D) each."""
        chosen = list(self.units)
        return (mean[:, chosen] - self.centre) / self.scale, std[:, chosen] / self.scale


def units_named(
    wanted: str | Sequence[int], clustered: Sequence[int], latent_dim: int
) -> tuple[int, ...]:
    """Latent units by the key ``units``: ``clustered``, ``all`` or a list of their numbers.

    Raises
    ------
    InputError
        Anything else, a unit that the code does not have or one that is named twice.
    """
    if wanted == "clustered":
        return tuple(clustered)
    if wanted == "all":
        return tuple(range(latent_dim))
    if isinstance(wanted, str) or not isinstance(wanted, Sequence) or not len(wanted):
        raise InputError(f"units must be clustered, all or a list of numbers, got {wanted!r}")
    units = tuple(check_int("units", each, minimum=0, maximum=latent_dim - 1) for each in wanted)
    if len(set(units)) < len(units):
        raise InputError(f"units names a unit twice: {', '.join(map(str, units))}")
    return units


def frame_of(
    mean: np.ndarray, std: np.ndarray, units: Sequence[int], least_variance: float
) -> Frame:
    """Frame of the active ones among some units.

    Parameters
    ----------
    mean, std : ndarray, shape (N, Z)
        Posteriors of stamps.
    units : sequence of int
        Those that may be used.
    least_variance : float
        Variance of its mean from which a unit counts as active. Where none does, all are used.

    Raises
    ------
    InputError
        All stamps have the same code.
    """
    chosen = list(units)
    variance = mean[:, chosen].var(axis=0, dtype=np.float64)
    if not (np.ptp(mean[:, chosen], axis=0) > 1e-6).any():
        raise InputError(
            f"all {len(mean)} stamps have the same code in the {len(chosen)} units that classes "
            "are made of: the stamps are identical, or the checkpoint knows nothing of them; look "
            "at data.root, or set units=all"
        )
    active = variance > least_variance
    if active.any():
        chosen = [unit for unit, used in zip(chosen, active, strict=True) if used]
    means = mean[:, chosen].astype(np.float64)
    noise = np.square(std[:, chosen], dtype=np.float64).mean(axis=0)
    return Frame(tuple(chosen), means.mean(axis=0), np.sqrt(means.var(axis=0) + noise))


@dataclass(frozen=True)
class Centres:
    """Classes of k-means: every code belongs to the nearest of ``centres`` (K, D)."""

    centres: np.ndarray

    @property
    def n_classes(self) -> int:
        return len(self.centres)

    def at(self, z: np.ndarray) -> np.ndarray:
        squared = np.square(self.centres).sum(axis=1) - 2 * z @ self.centres.T
        return np.eye(self.n_classes)[squared.argmin(axis=1)]

    def arrays(self) -> dict[str, np.ndarray]:
        return {"centres": self.centres}


@dataclass(frozen=True)
class Members:
    """Classes of HDBSCAN, which has no rule for others: a code goes where its nearest member is.

    Attributes
    ----------
    codes : ndarray, shape (M, D)
        Codes of stamps it was fitted to.
    classes : ndarray, shape (M,), int
        Their classes, -1 for those it left in none.
    """

    codes: np.ndarray
    classes: np.ndarray

    @property
    def n_classes(self) -> int:
        return int(self.classes.max()) + 1

    def at(self, z: np.ndarray) -> np.ndarray:
        nearest = NearestNeighbors(n_neighbors=1).fit(self.codes)
        found = self.classes[nearest.kneighbors(z, return_distance=False)[:, 0]]
        none = np.zeros(self.n_classes)
        return np.vstack([np.eye(self.n_classes), none])[found]

    def arrays(self) -> dict[str, np.ndarray]:
        return {"codes": self.codes, "classes": self.classes}


@dataclass(frozen=True)
class PriorClasses:
    """The components of a mixture prior, which its checkpoint holds.

    Attributes
    ----------
    responsibilities : callable
        Codes (M, Z) to shares of the components (M, K).
    n_classes : int
    """

    responsibilities: Callable[[np.ndarray], np.ndarray]
    n_classes: int

    def at(self, z: np.ndarray) -> np.ndarray:
        return self.responsibilities(z)

    def arrays(self) -> dict[str, np.ndarray]:
        return {}


def clusters_from(arrays: Mapping[str, np.ndarray]) -> Mixture | Centres | Members:
    """What ``arrays()`` was taken of."""
    kind = {"covariances": Mixture, "centres": Centres, "classes": Members}
    return next(made(**arrays) for name, made in kind.items() if name in arrays)


def fit_clusters(
    method: str,
    codes: np.ndarray,
    n_classes: int | None,
    seed: int,
    *,
    covariance: str = "full",
    min_class_size: int | None = None,
) -> Mixture | Centres | Members:
    """Find classes in codes, the same ones every time.

    Parameters
    ----------
    method : {"mixture", "kmeans", "hdbscan"}
        Gaussian mixture, k-means, or HDBSCAN (Campello et al. 2013), all of scikit-learn.
    codes : ndarray, shape (N, D)
        Posterior means in the `Frame` of their checkpoint.
    n_classes : int or None
        How many; HDBSCAN finds that itself.
    seed : int
        Of the starting points.
    covariance : {"full", "diag", "tied"}
        Of a mixture's components.
    min_class_size : int, optional
        Fewest stamps in a class of HDBSCAN; a hundredth of them, and 10 at least, if absent.

    Raises
    ------
    InputError
        HDBSCAN finds no class.
    """
    if method == "hdbscan":
        return _hdbscan(codes, min_class_size or max(10, len(codes) // 100), seed)
    assert n_classes is not None
    if method == "mixture":
        return fit_mixture(codes, n_classes, covariance, seed)
    with warnings.catch_warnings():
        # fewer different codes than classes: some classes stay empty, and are reported so
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(n_classes, n_init=10, random_state=seed).fit(codes)
    return Centres(found.cluster_centers_.astype(np.float64))


def _hdbscan(codes: np.ndarray, min_class_size: int, seed: int) -> Members:
    size = min(min_class_size, len(codes))
    found = HDBSCAN(min_cluster_size=max(size, 2), copy=True).fit_predict(codes)
    if found.max() < 0:
        raise InputError(
            f"method=hdbscan finds no class among {len(codes)} stamps with min_class_size={size}; "
            "lower it, or take method=mixture"
        )
    few = np.random.default_rng(seed).permutation(len(codes))[:MOST_MEMBERS]
    # a class must not lose all its members to the choice
    kept = np.unique(np.concatenate([few, np.unique(found, return_index=True)[1]]))
    return Members(codes[kept].astype(np.float64), found[kept].astype(np.int64))


def posterior_draws(n_draws: int, n_units: int) -> np.ndarray:
    """Standard normal noise (S, D): scrambled Sobol points, the same every time.

    Parameters
    ----------
    n_draws : int
        S; a power of two spreads best. 1 stands for the posterior mean alone.
    n_units : int
        D.
    """
    if n_draws == 1:
        return np.zeros((1, n_units))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The balance properties")
        uniform = qmc.Sobol(n_units, rng=np.random.default_rng(0)).random(n_draws)
    return ndtri(np.clip(uniform, 1e-9, 1 - 1e-9))


def posterior_shares(
    clusters: Clusters, mean: np.ndarray, std: np.ndarray, draws: np.ndarray
) -> np.ndarray:
    """Class probabilities of stamps, averaged over their posteriors.

    Parameters
    ----------
    clusters : Clusters
        In the frame of the codes.
    mean, std : ndarray, shape (N, D)
        Posteriors.
    draws : ndarray, shape (S, D)
        `posterior_draws`.

    Returns
    -------
    ndarray, shape (N, K)
        Rows sum to 1, or to less where HDBSCAN leaves a share in no class.
    """
    shares = np.empty((len(mean), clusters.n_classes))
    step = max(1, CODES_AT_ONCE // len(draws))
    for first in range(0, len(mean), step):
        few = slice(first, first + step)
        z = mean[few, None] + std[few, None] * draws
        at = clusters.at(z.reshape(-1, z.shape[2]))
        shares[few] = at.reshape(*z.shape[:2], -1).mean(axis=1)
    return shares


def hard_classes(shares: np.ndarray) -> np.ndarray:
    """Most probable class (N,), -1 where being in none is more probable than any."""
    none = 1 - shares.sum(axis=1)
    return np.where(none > shares.max(axis=1), -1, shares.argmax(axis=1))
