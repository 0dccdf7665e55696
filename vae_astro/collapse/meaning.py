r"""What the surviving units of a latent code say of the stamps.

A unit can be alive and useless: it may carry nats and follow nothing but the level of the sky.
Each active unit is set against measured properties of the stamps by rank correlation, and the
active units together by how well they predict a property: a linear readout, cross-validated.
Everything is done on ranks, so a property may be of any scale and a unit follow it along any
rising or falling curve. An axial angle :math:`\theta` (an orientation) is the pair
:math:`(\cos 2\theta, \sin 2\theta)`, and its correlation the multiple one of both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

__all__ = ["NUISANCES", "CodeMeaning", "UnitMeaning", "explain_code", "in_words"]

WORDS = {
    "sky_level": "the sky level",
    "sky_noise": "the sky noise",
    "normalized_sky": "the level of the sky in the normalised stamp",
    "good_fraction": "the fraction of good pixels",
    "seeing": "the seeing",
    "flux": "the flux of the source",
    "peak": "the brightest pixel of the source",
    "size": "the size of the source",
    "ellipticity": "the ellipticity of the source",
    "orientation": "the orientation of the source",
    "x_offset": "the column of the source",
    "y_offset": "the row of the source",
    "offset": "the distance of the source from the centre",
}
"""Properties for a person; of further bands they are called ``NAME_BAND``."""
NUISANCES = ("sky_level", "sky_noise", "normalized_sky", "good_fraction", "seeing")
"""Properties of how a stamp was taken and not of what lies on it."""
AXIAL = ("orientation",)
"""Angles in degrees that come back after 180."""

CHANCE = 0.01
"""Probability that any correlation passes its floor by chance, all units and properties together
(Bonferroni)."""
USEFUL = 0.2
"""Share of a property's variance from which a code counts as knowing it."""
SAME_VALUE = 0.95
"""Share of stamps with one value from which a property counts as constant."""
FEWEST_STAMPS = 30
MOST_STAMPS = 5000
"""Stamps that are compared; of more, so many are drawn."""
N_FOLDS = 5
RIDGE = 1e-3
N_NAMED = 3
"""Units and properties that a sentence names."""


@dataclass(frozen=True)
class UnitMeaning:
    """What one active unit follows.

    Attributes
    ----------
    unit : int
        Its number, from 0.
    kl_nats : float
        Its mean divergence from the prior.
    follows : str or None
        The property with the largest correlation of those that chance does not explain.
    correlation : float
        Of that property, or the largest there is: Spearman's with its sign, R for an orientation.
    floor : float
        What chance alone reaches there.
    """

    unit: int
    kl_nats: float
    follows: str | None
    correlation: float
    floor: float

    @property
    def sentence(self) -> str:
        """For a person."""
        who = f"Unit {self.unit} ({self.kl_nats:.2g} nats)"
        strength = abs(self.correlation)
        if self.follows is None:
            return f"{who} follows nothing that was measured (|r| < {self.floor:.2g})."
        verb = "follows" if strength >= 0.7 else "leans on" if strength >= 0.4 else "hints at"
        return f"{who} {verb} {in_words(self.follows)} (|r| = {strength:.3g})."


@dataclass(frozen=True)
class CodeMeaning:
    """What the active units follow, one by one and together.

    Attributes
    ----------
    units : tuple of UnitMeaning
        Active units, the one with the most nats first.
    properties : tuple of str
        Those that vary among the stamps.
    correlations : ndarray, shape (len(units), len(properties)), float64
        Spearman's with its sign; R, not negative, for an orientation.
    readable : dict of str to float
        Share of the variance of each property (of its rank) that the active units predict,
        cross-validated: 0 nothing, 1 all.
    beyond_nuisances : dict of str to float
        For each property of the source, the share of what the nuisances leave of it.
    left_out : tuple of str
        Properties that do not vary or are known for too few stamps.
    n_stamps : int
        Stamps that were compared.
    """

    units: tuple[UnitMeaning, ...]
    properties: tuple[str, ...]
    correlations: np.ndarray
    readable: dict[str, float]
    beyond_nuisances: dict[str, float]
    left_out: tuple[str, ...]
    n_stamps: int

    @property
    def is_useless(self) -> bool:
        """Alive, and nothing but nuisances: each unit follows one, and all of them together say
        nothing of the source that the nuisances do not.
        """
        return (
            bool(self.units and self.beyond_nuisances)
            and all(unit.follows and is_nuisance(unit.follows) for unit in self.units)
            and max(self.beyond_nuisances.values()) < USEFUL
        )

    @property
    def sentences(self) -> tuple[str, ...]:
        """For a person: the strongest units, what the code tells, and a warning if it is due."""
        if not self.units:
            return ()
        told = [unit.sentence for unit in self.units[:N_NAMED]]
        best = sorted(self.readable.items(), key=lambda item: -item[1])[:N_NAMED]
        if known := [f"{in_words(name)} ({r2:.2f})" for name, r2 in best if r2 >= USEFUL]:
            told.append(f"Together the active units predict (R2) {', '.join(known)}.")
        elif self.readable:
            told.append("Together the active units predict none of the measured properties.")
        if self.is_useless:
            told.append(
                "Alive, and useless: beyond the sky, the bad pixels and the seeing the code says "
                "nothing of the sources; normalise the sky away (data.normalize.stretch=asinh) or "
                "lower the final beta."
            )
        return tuple(told)

    def as_dict(self) -> dict[str, Any]:
        """Plain Python for ``metrics.json``."""
        return {
            "n_stamps": self.n_stamps,
            "units": [
                {
                    "unit": unit.unit,
                    "kl_nats": unit.kl_nats,
                    "follows": unit.follows,
                    "correlation": unit.correlation,
                    "chance_floor": unit.floor,
                    "correlations": dict(zip(self.properties, map(float, row), strict=True)),
                }
                for unit, row in zip(self.units, self.correlations, strict=True)
            ],
            "readable_r2": self.readable,
            "r2_beyond_nuisances": self.beyond_nuisances,
            "left_out": list(self.left_out),
            "only_nuisances": self.is_useless,
        }


def explain_code(
    means: np.ndarray,
    kl_per_unit: np.ndarray,
    active: np.ndarray,
    properties: Mapping[str, np.ndarray],
) -> CodeMeaning:
    """Set the active units of a code against properties of the stamps.

    Parameters
    ----------
    means : ndarray, shape (N, Z)
        Posterior means.
    kl_per_unit : ndarray, shape (Z,)
        Mean divergence of each unit, in nats.
    active : ndarray, shape (Z,), bool
        Which units to explain. The others hold nothing, but their ranks could still follow a
        property perfectly.
    properties : mapping of str to ndarray, shape (N,)
        Measured properties. A stamp counts for those that are finite; a property that is the same
        for nearly all stamps, or known for fewer than `FEWEST_STAMPS`, is left out.

    Raises
    ------
    ValueError
        If the shapes do not fit, or a posterior mean is not finite.
    """
    n_stamps, latent_dim = means.shape
    if np.shape(kl_per_unit) != (latent_dim,) or np.shape(active) != (latent_dim,):
        raise ValueError(f"{latent_dim} units, but {np.shape(kl_per_unit)} KL, {np.shape(active)}")
    for name, values in properties.items():
        if np.shape(values) != (n_stamps,):
            raise ValueError(f"{name} has shape {np.shape(values)}, expected ({n_stamps},)")
    if not np.isfinite(means).all():
        raise ValueError("posterior means must be finite")
    numbers = [int(unit) for unit in np.argsort(-kl_per_unit, kind="stable") if active[unit]]
    rows = np.sort(np.random.default_rng(0).permutation(n_stamps)[:MOST_STAMPS])
    code = means[rows][:, numbers]
    drawn = {name: values[rows].astype(np.float64) for name, values in properties.items()}
    kept = {name: values for name, values in drawn.items() if _varies(values)}
    left_out = tuple(name for name in properties if name not in kept)
    correlations = np.zeros((len(numbers), len(kept)))
    floors = np.zeros(len(kept))
    readable, beyond = {}, {}
    ranked: dict[bytes, np.ndarray] = {}  # most properties are known for the same stamps
    for k, (name, values) in enumerate(kept.items() if numbers else ()):
        known = np.isfinite(values)
        if known.tobytes() not in ranked:
            ranked[known.tobytes()] = _standard_ranks(code[known])
        target, units = _target(name, values[known]), ranked[known.tobytes()]
        correlations[:, k] = _correlations(units, target)
        floors[k] = _floor(int(known.sum()), correlations.size, target.shape[1])
        readable[name] = _predicted(units, target)
        if not is_nuisance(name):
            beyond[name] = _beyond(_nuisances(kept, known), units, target, readable[name])
    return CodeMeaning(
        units=tuple(
            _meaning(unit, float(kl_per_unit[unit]), tuple(kept), row, floors)
            for unit, row in zip(numbers, correlations, strict=True)
        ),
        properties=tuple(kept),
        correlations=correlations,
        readable=readable,
        beyond_nuisances=beyond,
        left_out=left_out,
        n_stamps=len(rows),
    )


def is_nuisance(name: str) -> bool:
    """Whether a property, of whichever band, is of how the stamp was taken."""
    return _base(name) in NUISANCES


def in_words(name: str) -> str:
    """``sky_level_template`` as "the sky level (template)"."""
    base = _base(name)
    band = name.removeprefix(base).removeprefix("_")
    return WORDS.get(base, base.replace("_", " ")) + (f" ({band})" if band else "")


def _base(name: str) -> str:
    """The property without its band."""
    found = [word for word in WORDS if name == word or name.startswith(f"{word}_")]
    return found[0] if found else name


def _meaning(
    unit: int, kl_nats: float, names: tuple[str, ...], row: np.ndarray, floors: np.ndarray
) -> UnitMeaning:
    """The strongest of a unit's correlations, or the nearest to its floor if none passes."""
    if not names:
        return UnitMeaning(unit, kl_nats, None, 0.0, 1.0)
    strength = np.abs(row)
    passes = strength > floors
    best = int(np.argmax(strength * passes if passes.any() else strength - floors))
    follows = names[best] if passes[best] else None
    return UnitMeaning(unit, kl_nats, follows, float(row[best]), float(floors[best]))


def _varies(values: np.ndarray) -> bool:
    """Whether enough stamps are known to differ in a property."""
    known = values[np.isfinite(values)]
    if len(known) < FEWEST_STAMPS:
        return False
    return int(np.unique(known, return_counts=True)[1].max()) <= SAME_VALUE * len(known)


def _target(name: str, values: np.ndarray) -> np.ndarray:
    """What units are compared with, (N, 1), or (N, 2) for an angle; each column standardised."""
    if _base(name) not in AXIAL:
        return _standard_ranks(values[:, None])
    double = 2 * np.radians(values)
    return _standardised(np.stack([np.cos(double), np.sin(double)], axis=1))


def _standard_ranks(columns: np.ndarray) -> np.ndarray:
    """Ranks of each column, ties at their mean, with mean 0 and variance 1."""
    ranks = np.empty(columns.shape)
    for k, column in enumerate(columns.T):
        _, position, counts = np.unique(column, return_inverse=True, return_counts=True)
        ranks[:, k] = (counts.cumsum() - 0.5 * (counts - 1))[position]
    return _standardised(ranks)


def _standardised(columns: np.ndarray) -> np.ndarray:
    """Mean 0 and variance 1; a constant column becomes 0."""
    centred = columns - columns.mean(axis=0)
    std = centred.std(axis=0)
    return centred / np.where(std > 0, std, 1)


def _correlations(units: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Of each unit (N, K) with the target: Pearson's, or the multiple one for two columns, (K,)."""
    single = units.T @ target / len(target)
    if target.shape[1] == 1:
        return single[:, 0]
    among = target.T @ target / len(target)
    explained = np.einsum("kp,pq,kq->k", single, np.linalg.pinv(among), single)
    return np.sqrt(explained.clip(0, 1))


def _floor(n_stamps: int, n_comparisons: int, n_columns: int) -> float:
    """Correlation that chance exceeds with probability `CHANCE` among all comparisons.

    Fisher's z with the variance 1.06 / (n - 3) for Spearman's (Fieller et al. 1957); for a
    multiple correlation with two columns R^2 follows Beta(1, (n - 3) / 2).
    """
    chance = CHANCE / n_comparisons
    if n_columns == 1:
        return math.tanh(NormalDist().inv_cdf(1 - chance / 2) * math.sqrt(1.06 / (n_stamps - 3)))
    return math.sqrt(1 - chance ** (2 / (n_stamps - 3)))


def _predicted(predictors: np.ndarray, target: np.ndarray) -> float:
    """Share of the target's variance that ridge regression predicts, cross-validated, 0 to 1.

    The folds are drawn, with the same seed each time, because stamps may lie in an order.
    """
    fold = np.random.default_rng(0).permutation(len(target)) % N_FOLDS
    residual = 0.0
    for k in range(N_FOLDS):
        train, test = fold != k, fold == k
        design = predictors[train]
        gram = design.T @ design + RIDGE * len(design) * np.eye(design.shape[1])
        centre = target[train].mean(axis=0)
        weights = np.linalg.solve(gram, design.T @ (target[train] - centre))
        residual += float(np.square(target[test] - centre - predictors[test] @ weights).sum())
    return max(0.0, 1 - residual / float(np.square(target).sum()))


def _nuisances(properties: dict[str, np.ndarray], known: np.ndarray) -> np.ndarray:
    """Ranks of the nuisances (n, Q) for some stamps, the middle one where unknown."""
    columns = []
    for name, values in properties.items():
        if is_nuisance(name):
            column = values[known]
            finite = np.isfinite(column)
            ranks = np.zeros(len(column))
            ranks[finite] = _standard_ranks(column[finite][:, None])[:, 0]
            columns.append(ranks)
    return np.stack(columns, axis=1) if columns else np.empty((int(known.sum()), 0))


def _beyond(nuisances: np.ndarray, units: np.ndarray, target: np.ndarray, alone: float) -> float:
    """Share of what the nuisances leave of the target that the units predict."""
    if nuisances.shape[1] == 0:
        return alone
    left = 1 - _predicted(nuisances, target)
    if left < 1e-3:
        return 0.0
    return max(0.0, 1 - (1 - _predicted(np.hstack([nuisances, units]), target)) / left)
