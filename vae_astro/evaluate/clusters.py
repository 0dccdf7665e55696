"""How well clusters found without labels agree with labels, beside a baseline."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

__all__ = ["ClusterScores", "kmeans_scores", "pca_codes"]

SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class ClusterScores:
    """Agreement of k-means with labels, the median over `SEEDS`.

    Attributes
    ----------
    n_classes : int
        Distinct labels; k-means is given this number.
    n_labelled : int
        Stamps that were clustered and scored.
    nmi, ari : float
        Normalised mutual information (arithmetic mean) and adjusted Rand index.
    """

    n_classes: int
    n_labelled: int
    nmi: float
    ari: float


def kmeans_scores(codes: np.ndarray, labels: np.ndarray) -> ClusterScores | None:
    """Cluster the labelled stamps' codes into as many clusters as there are labels, and compare.

    Parameters
    ----------
    codes : ndarray, shape (N, K)
        Any representation.
    labels : ndarray, shape (N,), str
        Empty where unknown; such stamps are left out.

    Returns
    -------
    ClusterScores or None
        None with fewer than two classes: there is nothing to compare.
    """
    labelled = labels != ""
    names, truth = np.unique(labels[labelled].astype(str), return_inverse=True)
    if len(names) < 2:
        return None
    with warnings.catch_warnings():
        # the codes of a full collapse are all the same: a finding, not a failure of k-means
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = [
            KMeans(len(names), n_init=10, random_state=seed).fit_predict(codes[labelled])
            for seed in SEEDS
        ]
    return ClusterScores(
        n_classes=len(names),
        n_labelled=int(labelled.sum()),
        nmi=float(np.median([normalized_mutual_info_score(truth, labels) for labels in found])),
        ari=float(np.median([adjusted_rand_score(truth, labels) for labels in found])),
    )


def pca_codes(images: np.ndarray, n_components: int = 16) -> np.ndarray:
    """Principal components of normalised stamps: the baseline any latent code has to beat.

    Parameters
    ----------
    images : ndarray, shape (N, ...)
        Normalised stamps, masked pixels 0.
    n_components : int
        At most; fewer where the stamps or pixels are fewer.

    Returns
    -------
    ndarray, shape (N, K)
    """
    flat = images.reshape(len(images), -1)
    n_components = min(n_components, *flat.shape)
    return PCA(n_components, svd_solver="randomized", random_state=0).fit_transform(flat)
