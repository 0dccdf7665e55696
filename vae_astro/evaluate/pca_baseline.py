"""How well clusters found without labels agree with labels, beside a baseline."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch import Tensor

__all__ = [
    "ClusterScores",
    "LabelScores",
    "kmeans_scores",
    "labelled_rows",
    "pca_codes",
    "score_against_labels",
]

SEEDS = (0, 1, 2)
MAX_SCORED = 20_000
"""Stamps that are scored at most, so that the baseline's images fit in memory."""


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


@dataclass(frozen=True)
class LabelScores:
    """k-means on the latent code, beside k-means on principal components of the same stamps."""

    latent: ClusterScores
    pca: ClusterScores


def labelled_rows(labels: np.ndarray) -> np.ndarray:
    """Rows with a label (N,), ascending; a random choice of `MAX_SCORED` where they are more."""
    rows = np.flatnonzero(labels != "")
    if len(rows) > MAX_SCORED:
        rows = np.sort(np.random.default_rng(0).choice(rows, MAX_SCORED, replace=False))
    return rows


def score_against_labels(
    codes: np.ndarray, labels: np.ndarray, batches: Iterable[Mapping[str, Tensor]]
) -> LabelScores | None:
    """Score the latent code of labelled stamps, beside the baseline.

    Parameters
    ----------
    codes : ndarray, shape (N, Z)
        Posterior means.
    labels : ndarray, shape (N,), str
        Their labels.
    batches : iterable
        The same stamps as batches with an ``image``, for the baseline.

    Returns
    -------
    LabelScores or None
        None with fewer than two classes.
    """
    latent = kmeans_scores(codes, labels)
    if latent is None:
        return None
    images = np.concatenate([batch["image"].flatten(1).numpy() for batch in batches])
    pca = kmeans_scores(pca_codes(images), labels)
    assert pca is not None
    return LabelScores(latent, pca)


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
