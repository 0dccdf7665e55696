"""What a handful of labels says of classes that were found without them, and of the codes.

Nothing here is trained into a class: labels are compared with what was found, and show what a vote
of neighbours or a linear probe can read from the codes. Stamps of one object are never on both
sides of a fold.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    accuracy_score,
    adjusted_rand_score,
    balanced_accuracy_score,
    homogeneity_completeness_v_measure,
    normalized_mutual_info_score,
)
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

__all__ = ["Agreement", "Readable", "compare", "readable"]

N_FOLDS = 5
N_NEIGHBOURS = 15


@dataclass(frozen=True)
class Agreement:
    """Classes against labels.

    Attributes
    ----------
    n_labelled : int
        Stamps that have a label.
    labels : tuple of str, length L
        Sorted.
    confusion : ndarray, shape (L, K + 1), int
        Stamps of each label in each class; the last column counts those in none.
    mapping : tuple of (str or None), length K
        The label that most labelled stamps of a class have; None for a class without any.
    purity : tuple of (float or None), length K
        Share of the labelled stamps of a class that have it.
    overall_purity : float
        The same over all labelled stamps: the accuracy that the mapping has.
    nmi, ari, homogeneity, completeness : float or None
        Normalised mutual information (arithmetic mean), adjusted Rand index, and Rosenberg &
        Hirschberg 2007. None with fewer than two labels: there is nothing to compare.
    """

    n_labelled: int
    labels: tuple[str, ...]
    confusion: np.ndarray
    mapping: tuple[str | None, ...]
    purity: tuple[float | None, ...]
    overall_purity: float
    nmi: float | None
    ari: float | None
    homogeneity: float | None
    completeness: float | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "confusion": self.confusion.tolist()}


@dataclass(frozen=True)
class Readable:
    """What can be read from codes with labels at hand, over folds that part objects.

    Attributes
    ----------
    n_folds : int
    neighbours_balanced_accuracy : float
        Vote of the nearest 15 stamps.
    probe_accuracy, probe_balanced_accuracy : float
        Multinomial logistic regression.
    """

    n_folds: int
    neighbours_balanced_accuracy: float
    probe_accuracy: float
    probe_balanced_accuracy: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dict(vars(self))


def compare(classes: np.ndarray, labels: np.ndarray, n_classes: int) -> Agreement | None:
    """Hold classes against labels.

    Parameters
    ----------
    classes : ndarray, shape (N,), int
        Class of each stamp, -1 for none.
    labels : ndarray, shape (N,), str
        Empty where unknown; such stamps are left out.
    n_classes : int
        K.

    Returns
    -------
    Agreement or None
        None without a single label.
    """
    known = labels != ""
    if not known.any():
        return None
    names, truth = np.unique(labels[known].astype(str), return_inverse=True)
    found = classes[known]
    confusion = np.zeros((len(names), n_classes + 1), int)
    np.add.at(confusion, (truth, found), 1)  # -1 counts in the last column
    sizes, best = confusion.sum(axis=0), confusion.max(axis=0)
    held = range(n_classes)
    scores: list[float | None] = [None] * 4
    if len(names) > 1:
        homogeneity, completeness, _ = homogeneity_completeness_v_measure(truth, found)
        scores = [
            float(normalized_mutual_info_score(truth, found)),
            float(adjusted_rand_score(truth, found)),
            float(homogeneity),
            float(completeness),
        ]
    return Agreement(
        int(known.sum()),
        tuple(map(str, names)),
        confusion,
        tuple(str(names[confusion[:, k].argmax()]) if sizes[k] else None for k in held),
        tuple(float(best[k] / sizes[k]) if sizes[k] else None for k in held),
        float(best[:n_classes].sum() / len(truth)),
        *scores,
    )


def readable(
    codes: np.ndarray, labels: np.ndarray, objects: np.ndarray, seed: int = 0
) -> Readable | None:
    """Score a vote of neighbours and a linear probe on codes.

    Parameters
    ----------
    codes : ndarray, shape (N, D)
        Any representation; neighbours are nearest in its own units.
    labels : ndarray, shape (N,), str
        Empty where unknown; such stamps are left out.
    objects : ndarray, shape (N,), str
        Name of each stamp's object.
    seed : int
        Of the folds.

    Returns
    -------
    Readable or None
        None with fewer than two labels that two objects have: no fold can be made. Labels of one
        object alone are left out; folds are fewer than five where a label has fewer objects.
    """
    known = labels != ""
    groups_of = {
        label: len(np.unique(objects[labels == label])) for label in np.unique(labels[known])
    }
    known &= np.isin(labels, [label for label, n_groups in groups_of.items() if n_groups > 1])
    names, truth = np.unique(labels[known].astype(str), return_inverse=True)
    if len(names) < 2:
        return None
    codes, objects = codes[known], objects[known]
    n_folds = min(N_FOLDS, *(groups_of[name] for name in names))
    folds = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    voted, probed = np.full(len(truth), -1), np.full(len(truth), -1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few labels: a fold may lack one, a probe may not converge
        for train, test in folds.split(codes, truth, objects):
            if not len(train) or not len(test):
                continue
            vote = KNeighborsClassifier(min(N_NEIGHBOURS, len(train)))
            voted[test] = vote.fit(codes[train], truth[train]).predict(codes[test])
            if len(np.unique(truth[train])) > 1:
                probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
                probed[test] = probe.fit(codes[train], truth[train]).predict(codes[test])
            else:
                probed[test] = truth[train][0]
        return Readable(
            n_folds,
            float(balanced_accuracy_score(truth, voted)),
            float(accuracy_score(truth, probed)),
            float(balanced_accuracy_score(truth, probed)),
        )
