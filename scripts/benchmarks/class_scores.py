"""What labels say of a representation that was made without them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vae_astro.errors import InputError
from vae_astro.evaluate.mixtures import fit_mixture

__all__ = ["N_FOLDS", "SCORES", "Judge", "Scores", "labels_to_score", "nmi"]

N_FOLDS = 5
N_NEIGHBOURS = 15
N_INIT = 10
"""Starts of a k-means, of which the best counts."""
SCORES = ("Gaussian mixture", "k-means", "neighbours", "linear probe")
"""NMI of two kinds of clusters; balanced accuracy of two kinds of votes over folds."""

Weights = np.ndarray
Metric = Callable[[np.ndarray, np.ndarray, Weights], float]


@dataclass(frozen=True)
class Scores:
    """Of one representation.

    Attributes
    ----------
    mean : dict of str to float
        `SCORES`, the mean over seeds of the clustering and of the training.
    over_seeds : dict of str to float
        Standard deviation over the seeds of the training, of means over those of the clustering;
        0 with one.
    drawn : dict of str to ndarray, shape (D,)
        The means again, for objects drawn with replacement: the same draws for all
        representations, so that differences can be taken draw by draw.
    """

    mean: dict[str, float]
    over_seeds: dict[str, float]
    drawn: dict[str, np.ndarray]


def labels_to_score(labels: np.ndarray, objects: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Stamps that can be scored, and the labels that too few objects have.

    Parameters
    ----------
    labels, objects : ndarray, shape (N,), str
        Label, empty where unknown, and name of the object.

    Returns
    -------
    tuple
        Rows, ascending, whose label `N_FOLDS` objects or more have; the other labels.

    Raises
    ------
    InputError
        Fewer than two labels are left.
    """
    names = sorted(set(labels) - {""})
    rare = [name for name in names if len(set(objects[labels == name])) < N_FOLDS]
    rows = np.flatnonzero((labels != "") & ~np.isin(labels, rare))
    if len(names) - len(rare) < 2:
        found = ", ".join(names) or "none"
        raise InputError(
            f"two labels with {N_FOLDS} objects each are needed, the labels are {found}; set "
            "data.labels, or choose among them with data.classes"
        )
    return rows, rare


def nmi(truth: np.ndarray, found: np.ndarray, weights: Weights) -> float:
    """Normalised mutual information (arithmetic mean) of stamps that count ``weights`` times."""
    joint = np.zeros((truth.max() + 1, found.max() + 1))
    np.add.at(joint, (truth, found), weights)
    joint /= joint.sum()
    entropies = [_entropy(joint.sum(axis)) for axis in (0, 1)]
    shared = sum(entropies) - _entropy(joint.ravel())
    return 2 * shared / sum(entropies) if sum(entropies) > 0 else 1.0


def _entropy(shares: np.ndarray) -> float:
    positive = shares[shares > 0]
    return float(-(positive * np.log(positive)).sum())


def _balanced_accuracy(truth: np.ndarray, found: np.ndarray, weights: Weights) -> float:
    return float(balanced_accuracy_score(truth, found, sample_weight=weights))


METRICS: dict[str, Metric] = dict(zip(SCORES, (nmi, nmi, *[_balanced_accuracy] * 2), strict=True))


def _in_one_unit(codes: np.ndarray) -> np.ndarray:
    """Centred, over the spread of all columns together: what is large stays large."""
    codes = codes.astype(np.float64) - codes.mean(axis=0)
    return codes / (np.sqrt(np.square(codes).mean()) or 1.0)


class Judge:
    """Scores representations of the same stamps.

    Parameters
    ----------
    labels, objects : ndarray, shape (N,), str
        No label empty.
    n_seeds : int
        Clusterings of each kind.
    n_draws : int
        Of the bootstrap.
    """

    def __init__(
        self, labels: np.ndarray, objects: np.ndarray, n_seeds: int = 5, n_draws: int = 200
    ) -> None:
        names, self.truth = np.unique(labels.astype(str), return_inverse=True)
        self.n_classes = len(names)
        self.objects = objects.astype(str)
        self.n_seeds = n_seeds
        _, of_stamp = np.unique(self.objects, return_inverse=True)
        rng, n_objects = np.random.default_rng(0), of_stamp.max() + 1
        times = rng.multinomial(n_objects, np.full(n_objects, 1 / n_objects), n_draws)
        self._weights = times[:, of_stamp]

    def __call__(
        self, codes_of_seeds: Sequence[np.ndarray], to_vote: Sequence[np.ndarray] | None = None
    ) -> Scores:
        """Score codes (N, D) of each training; one of them where nothing was trained.

        Votes are taken in ``to_vote`` (N, E) where it is given.
        """
        found = [
            self._found(codes, described)
            for codes, described in zip(codes_of_seeds, to_vote or codes_of_seeds, strict=True)
        ]
        mean, over_seeds, drawn = {}, {}, {}
        everyone = np.ones(len(self.truth))
        for name, metric in METRICS.items():
            of_seeds = [
                np.mean([metric(self.truth, each, everyone) for each in one[name]]) for one in found
            ]
            mean[name], over_seeds[name] = float(np.mean(of_seeds)), float(np.std(of_seeds))
            every = [each for one in found for each in one[name]]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a draw may lack a small class
                drawn[name] = np.array(
                    [
                        np.mean([metric(self.truth, each, weights) for each in every])
                        for weights in self._weights
                    ]
                )
        return Scores(mean, over_seeds, drawn)

    def _found(self, codes: np.ndarray, described: np.ndarray) -> dict[str, list[np.ndarray]]:
        """What clusters and votes make of each stamp, by the names of `SCORES`."""
        codes, described = _in_one_unit(codes), _in_one_unit(described)
        mixtures = [
            fit_mixture(codes, self.n_classes, "full", seed).at(codes).argmax(axis=1)
            for seed in range(self.n_seeds)
        ]
        with warnings.catch_warnings():
            # the codes of a full collapse are all the same; a probe may be slow to converge
            warnings.simplefilter("ignore")
            means = [
                KMeans(self.n_classes, n_init=N_INIT, random_state=seed).fit_predict(codes)
                for seed in range(self.n_seeds)
            ]
            votes = [
                cross_val_predict(
                    vote, described, self.truth, groups=self.objects,
                    cv=StratifiedGroupKFold(N_FOLDS, shuffle=True, random_state=0),
                )
                for vote in (
                    KNeighborsClassifier(min(N_NEIGHBOURS, len(codes) // 2)),
                    make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
                )
            ]  # fmt: skip
        return dict(zip(SCORES, (mixtures, means, votes[:1], votes[1:]), strict=True))
