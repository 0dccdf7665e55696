"""Several clusterings of the same stamps, made into one, and how far they agree.

The clustering that agrees best with the others, by adjusted Rand index, lends its classes. Every
other one votes with the share of each of its clusters that lies in each of those classes
(cumulative voting: Ayad & Kamel 2008, which needs no equal number of classes), and the votes are
averaged. A class is then looked for again in every clustering: the cluster that shares most with
it, by Jaccard index, one to one (Hungarian assignment). Where that index is below one half the
class counts as dissolved there (Hennig 2007).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score

from vae_astro.evaluate.clusters import hard_classes

__all__ = ["ClassFound", "Consensus", "Stray", "agree", "voted"]

FOUND = 0.5
"""Jaccard index from which a class is found again: no two clusters can both share so much."""
STABLE = 0.75
"""Stability from which a class is called stable (Hennig 2007)."""


@dataclass(frozen=True)
class ClassFound:
    """One class of a consensus.

    Attributes
    ----------
    occupancy : float
        Share of the stamps.
    unsure : float
        Share of its stamps whose probability is below the threshold.
    stability : float or None
        Adjusted Rand index of the class against all else, mean over pairs of clusterings; None
        where there is one clustering only.
    jaccard : float or None
        Mean Jaccard index with the cluster that matches it in each clustering.
    found_in : int
        Clusterings in which that index is at least `FOUND`.
    n_clusterings : int
    """

    occupancy: float
    unsure: float
    stability: float | None
    jaccard: float | None
    found_in: int
    n_clusterings: int

    @property
    def verdict(self) -> str:
        """How far the class can be relied upon, in words."""
        if self.stability is None:
            return "not known: one clustering only"
        if self.found_in <= 1:
            return "unstable: appears in one seed only" if self.found_in else "unstable: in no seed"
        if self.stability < FOUND:
            return f"unstable: found in {self.found_in} of {self.n_clusterings} seeds"
        if self.stability < STABLE or self.found_in < self.n_clusterings:
            return f"doubtful: found in {self.found_in} of {self.n_clusterings} seeds"
        return "stable"


@dataclass(frozen=True)
class Stray:
    """A cluster that is no class of the consensus.

    Attributes
    ----------
    occupancy : float
        Share of the stamps, where it was found.
    found_in : int
        Clusterings that have it.
    """

    occupancy: float
    found_in: int


@dataclass(frozen=True)
class Consensus:
    """What several clusterings say together.

    Attributes
    ----------
    votes : tuple of ndarray, shape (K_r, K)
        For each clustering, the share of each of its clusters that goes to each class.
    shares : ndarray, shape (N, K)
        Class probabilities of the stamps, the most occupied class first.
    classes : tuple of ClassFound, length K
    strays : tuple of Stray
        The most occupied first.
    ari : float or None
        Adjusted Rand index, mean over pairs of clusterings.
    ari_between_networks : float or None
        The same over pairs of different networks; None with one.
    unsure : float
        Share of all stamps without a class that is probable enough.
    """

    votes: tuple[np.ndarray, ...]
    shares: np.ndarray
    classes: tuple[ClassFound, ...]
    strays: tuple[Stray, ...]
    ari: float | None
    ari_between_networks: float | None
    unsure: float

    @property
    def n_classes(self) -> int:
        return len(self.classes)

    def as_dict(self) -> dict[str, Any]:
        """Its figures, for JSON."""
        return {
            "n_classes": self.n_classes,
            "n_clusterings": len(self.votes),
            "ari": self.ari,
            "ari_between_networks": self.ari_between_networks,
            "unsure": self.unsure,
            "classes": [vars(each) | {"verdict": each.verdict} for each in self.classes],
            "strays": [vars(each) for each in self.strays],
        }


def agree(runs: Sequence[np.ndarray], networks: Sequence[int], unsure_below: float) -> Consensus:
    """Make one clustering of several.

    Parameters
    ----------
    runs : sequence of ndarray, shape (N, K_r)
        Class probabilities of the same stamps in each clustering.
    networks : sequence of int
        Which network each is of.
    unsure_below : float
        A stamp is unsure where no class has this probability.
    """
    found = [hard_classes(shares) for shares in runs]
    pairs = list(combinations(range(len(runs)), 2))
    rand = np.eye(len(runs))
    for r, s in pairs:
        rand[r, s] = rand[s, r] = adjusted_rand_score(found[r], found[s])
    reference = int(rand.sum(axis=0).argmax())
    votes = [_votes(each, found[reference], len(runs[r].T), len(runs[reference].T))
             for r, each in enumerate(found)]  # fmt: skip
    votes = _none_silent(runs, votes, runs[reference])
    votes = _most_occupied_first(runs, votes)
    shares = voted(runs, votes)
    told = hard_classes(shares)
    matched = [_matched(told, shares.shape[1], each, len(runs[r].T))
               for r, each in enumerate(found)]  # fmt: skip
    unsure = shares.max(axis=1) < unsure_below
    classes = tuple(
        _class_found(told == k, unsure, [found[r] == at[k] for r, (at, _) in enumerate(matched)])
        for k in range(shares.shape[1])
    )
    across = [rand[r, s] for r, s in pairs if networks[r] != networks[s]]
    return Consensus(
        tuple(votes),
        shares,
        classes,
        _strays(found, matched),
        float(np.mean([rand[pair] for pair in pairs])) if pairs else None,
        float(np.mean(across)) if across else None,
        float(unsure.mean()),
    )


def voted(runs: Sequence[np.ndarray], votes: Sequence[np.ndarray]) -> np.ndarray:
    """Class probabilities (N, K): those of each clustering (N, K_r), translated and averaged."""
    return sum(shares @ vote for shares, vote in zip(runs, votes, strict=True)) / len(runs)


def _votes(found: np.ndarray, classes: np.ndarray, n_found: int, n_classes: int) -> np.ndarray:
    """Share of each cluster (n_found, n_classes) that lies in each class."""
    counts = np.zeros((n_found, n_classes))
    counted = (found >= 0) & (classes >= 0)
    np.add.at(counts, (found[counted], classes[counted]), 1)
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def _most_occupied_first(
    runs: Sequence[np.ndarray], votes: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Classes in falling order of their stamps, without those that are voted out altogether."""
    told = hard_classes(voted(runs, votes))
    counts = np.bincount(told[told >= 0], minlength=votes[0].shape[1])
    order = np.argsort(-counts, kind="stable")
    kept = order[counts[order] > 0]
    if not len(kept):  # every stamp in no class: the reference's are all there is
        return list(votes)
    chosen = [vote[:, kept] for vote in votes]
    left = [np.maximum(vote.sum(axis=1, keepdims=True), np.finfo(float).tiny) for vote in chosen]
    chosen = [vote / whole for vote, whole in zip(chosen, left, strict=True)]
    return _none_silent(runs, chosen, voted(runs, votes)[:, kept])


def _none_silent(
    runs: Sequence[np.ndarray], votes: Sequence[np.ndarray], shares: np.ndarray
) -> list[np.ndarray]:
    """``votes`` in which clusters without a vote follow the classes they overlap with.

    No stamp may be most probably in such a cluster, yet its probability must not be lost: what is
    missing from one means that a stamp is in no class.
    """
    filled = []
    for run, vote in zip(runs, votes, strict=True):
        overlap = run.T @ shares
        whole = overlap.sum(axis=1, keepdims=True)
        overlap = np.divide(overlap, whole, out=np.zeros_like(overlap), where=whole > 0)
        filled.append(np.where(vote.sum(axis=1, keepdims=True) > 0, vote, overlap))
    return filled


def _matched(
    told: np.ndarray, n_classes: int, found: np.ndarray, n_found: int
) -> tuple[np.ndarray, np.ndarray]:
    """The cluster that matches each class (K,), -2 where none is left, and their Jaccard index."""
    both = np.zeros((n_classes, n_found))
    counted = (told >= 0) & (found >= 0)
    np.add.at(both, (told[counted], found[counted]), 1)
    sizes = np.bincount(told[told >= 0], minlength=n_classes)[:, None]
    other = np.bincount(found[found >= 0], minlength=n_found)[None]
    jaccard = both / np.maximum(sizes + other - both, 1)
    rows, columns = linear_sum_assignment(jaccard, maximize=True)
    cluster, index = np.full(n_classes, -2), np.zeros(n_classes)
    cluster[rows], index[rows] = columns, jaccard[rows, columns]
    return cluster, index


def _class_found(
    members: np.ndarray, unsure: np.ndarray, clusters: Sequence[np.ndarray]
) -> ClassFound:
    """What several clusterings say of one class: bool (N,) each."""
    occupancy = float(members.mean())
    unsure_share = float(unsure[members].mean()) if members.any() else 0.0
    if len(clusters) == 1:
        return ClassFound(occupancy, unsure_share, None, None, 1, 1)
    jaccard = [
        float((members & cluster).sum() / max((members | cluster).sum(), 1)) for cluster in clusters
    ]
    rand = [
        # an empty match agrees with nothing, though two empty ones look the same
        adjusted_rand_score(one, other) if one.any() and other.any() else 0.0
        for one, other in combinations(clusters, 2)
    ]
    return ClassFound(
        occupancy,
        unsure_share,
        float(np.mean(rand)),
        float(np.mean(jaccard)),
        sum(index >= FOUND for index in jaccard),
        len(clusters),
    )


def _strays(
    found: Sequence[np.ndarray], matched: Sequence[tuple[np.ndarray, np.ndarray]]
) -> tuple[Stray, ...]:
    """Clusters that match no class, those put together that match each other."""
    groups: list[list[np.ndarray]] = []
    for each, (cluster, index) in zip(found, matched, strict=True):
        taken = set(cluster[index >= FOUND])
        for left in np.setdiff1d(each[each >= 0], list(taken)):
            members = each == left
            for group in groups:
                both, either = (members & group[0]).sum(), (members | group[0]).sum()
                if both / either >= FOUND:
                    group.append(members)
                    break
            else:
                groups.append([members])
    strays = [Stray(float(np.mean([m.mean() for m in group])), len(group)) for group in groups]
    return tuple(sorted(strays, key=lambda stray: -stray.occupancy))
