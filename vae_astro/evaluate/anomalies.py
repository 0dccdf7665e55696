r"""How odd a stamp is, as a probability: signs of oddness, their combination, and its calibration.

A stamp can be odd to a model in several ways: its pixels are unlikely, the model leaves light that
it did not draw (`vae_astro.evaluate.residuals`), or its code lies where few others do. Each
sign is measured in units of its own reach among normal stamps, from their median to the
`REACH`-quantile, and a stamp is as odd as its oddest sign: to be odd in one way is enough.

The combination is turned into a p-value by rank among held-out normal stamps (conformal prediction:
Vovk, Gammerman & Shafer 2005). No stamp ranks what it helped to fit: the calibration stamps are cut
in folds, each of which ranks the combination that the others fix (cross-conformal: Vovk 2015).

What that promises is marginal. Of a stamp that is exchangeable with the calibration stamps, p <= a
has a probability of about a, and for certain of no more than 2 a and a term that shrinks as 1 / n
(Barber et al. 2021), whatever the model or the combination is worth: on average over the draws of
the calibration stamps, and over all normal stamps together. One calibration flags a share of its
own (`expected_below`), and bright stamps, or those of one class, may be flagged more often than
others. Of stamps of another population (depth, seeing, those that the model was trained on) nothing
is promised.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from scipy.stats import betabinom
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors

from vae_astro.errors import InputError

__all__ = ["FEWEST", "Calibration", "Signs", "calibrate", "expected_below", "normally_below"]

FEWEST = 10
"""Calibration stamps below which nothing is fitted."""
N_FOLDS = 5
N_NEIGHBOURS = 10
"""The distance is that to the neighbour of this number, or to the last of fewer."""
N_COMPONENTS = (1, 2, 4, 8, 16)
"""Of mixtures that are tried; the best by BIC is taken (Schwarz 1978)."""
REACH = 0.995
"""Quantile of normal stamps that is 1 in units of a sign."""
CODE_WEIGHT = 0.3
"""Of the signs that the brightness of an ordinary stamp decides: chi-squared, in which the cores of
bright sources outweigh all else, and the place of the code. Set on planted stamps (docs)."""
STAMPS_PER_NUMBER = 3
"""Stamps for each number of a full covariance, below which it is a diagonal one."""
REGULARISATION = 1e-3
"""Added to variances that are 1 by standardisation."""


@dataclass(frozen=True)
class Signs:
    """What a model says of N stamps.

    Attributes
    ----------
    log_likelihood_nats : ndarray, shape (N,)
        `importance_weighted`.
    n_good : ndarray, shape (N,)
        Good pixels.
    chi2_per_pixel : ndarray, shape (N,)
        As in `StampScores`.
    residual : ndarray, shape (N, R)
        `residual_scores`.
    mean : ndarray, shape (N, Z)
        Of the posterior.
    """

    log_likelihood_nats: np.ndarray
    n_good: np.ndarray
    chi2_per_pixel: np.ndarray
    residual: np.ndarray
    mean: np.ndarray

    def __len__(self) -> int:
        return len(self.mean)

    def of(self, rows: np.ndarray) -> Signs:
        """Those of some stamps, by number or mask."""
        return Signs(*(getattr(self, field.name)[rows] for field in fields(self)))

    @staticmethod
    def joined(parts: Sequence[Signs]) -> Signs:
        """Stamps of several batches as one."""
        return Signs(
            *(
                np.concatenate([getattr(part, each.name) for part in parts])
                for each in fields(Signs)
            )
        )

    @property
    def is_usable(self) -> np.ndarray:
        """Whether everything is finite and some pixel is good, shape (N,), bool."""
        columns = np.column_stack([getattr(self, field.name) for field in fields(self)])
        return np.isfinite(columns).all(axis=1) & (self.n_good > 0)


@dataclass(frozen=True)
class Calibration:
    """Normal stamps, and what ranks others among them; made by `calibrate`.

    Attributes
    ----------
    folds : list of tuple
        The combination that all folds but one fix, and the ascending oddness of that one's stamps.
    codes : _Codes
        Of all calibration stamps: what `latent_log_density` and `neighbour_distance` are read from.
    n_stamps : int
        Calibration stamps that could be used.
    """

    folds: list[tuple[_Normals, np.ndarray]]
    codes: _Codes
    n_stamps: int

    @property
    def smallest_p_value(self) -> float:
        """What a stamp gets that is odder than every calibration stamp."""
        return 1 / (self.n_stamps + 1)

    def p_values(self, signs: Signs) -> np.ndarray:
        r"""Share of normal stamps that are at least as odd, shape (N,), between 0 and 1.

        :math:`p = (1 + \#\{i: s_i \ge s\}) / (n + 1)` over the calibration stamps i, each compared
        under the combination that it did not help to fix. Ties count as odder, which makes p
        larger. A calibration stamp that is asked for again counts itself. NaN where a sign is not
        finite. What a p-value promises, and of which stamps, stands above.
        """
        at_least = np.ones(len(signs))
        usable = signs.is_usable
        chosen = signs.of(usable)
        for normals, ranked in self.folds:
            at_least[usable] += len(ranked) - np.searchsorted(ranked, normals.oddness(chosen))
        return np.where(usable, at_least / (self.n_stamps + 1), np.nan)

    def oddness(self, signs: Signs) -> np.ndarray:
        """What ranks stamps that share the smallest p-value: the mean over folds, shape (N,)."""
        usable = signs.is_usable
        odd = np.full(len(signs), np.nan)
        chosen = signs.of(usable)
        odd[usable] = np.mean([normals.oddness(chosen) for normals, _ in self.folds], axis=0)
        return odd

    def latent_log_density(self, signs: Signs) -> np.ndarray:
        """Log-density of the posterior means under a mixture of the normal codes (N,), in nats."""
        return _where_finite(signs.mean, self.codes.log_density)

    def neighbour_distance(self, signs: Signs) -> np.ndarray:
        """Distance to the `N_NEIGHBOURS`-th nearest normal code, in standard deviations (N,)."""
        return _where_finite(signs.mean, self.codes.distance)


def calibrate(signs: Signs, n_folds: int = N_FOLDS, seed: int = 0) -> Calibration:
    """Learn from held-out normal stamps how odd normal stamps are.

    Parameters
    ----------
    signs : Signs
        Of stamps that the model was not trained on. What is odd among them makes the p-values of
        other odd stamps larger.
    n_folds : int
        See `Calibration`.
    seed : int
        Of the folds and the mixtures.

    Raises
    ------
    InputError
        Fewer than `FEWEST` stamps with finite signs.
    """
    usable = signs.of(signs.is_usable)
    if len(usable) < FEWEST:
        raise InputError(
            f"{len(usable)} normal stamps to calibrate with; it takes {FEWEST}, and 100 for a "
            "p-value below 0.01: give more held-out stamps (data.val_fraction, data.test_fraction)"
        )
    rng = np.random.default_rng(seed)
    fold = rng.permutation(len(usable)) % n_folds
    folds = []
    for k in range(n_folds):
        normals = _Normals(usable.of(fold != k), seed)
        folds.append((normals, np.sort(normals.oddness(usable.of(fold == k)))))
    return Calibration(folds, _Codes(usable.mean, seed), len(usable))


def expected_below(
    alarms: float, n_stamps: int, n_calibration: int
) -> tuple[float, tuple[int, int]]:
    """How many of so many normal stamps have p < ``alarms``.

    Over the draws of both, were each compared under one combination that is fixed: a beta-binomial
    number, which the folds keep to well enough.

    Parameters
    ----------
    alarms : float
        Between 0 and 1.
    n_stamps, n_calibration : int
        Stamps that are ranked and exchangeable with those that calibrate; these.

    Returns
    -------
    tuple
        Their mean number, and the range of 95 in 100 calibrations.
    """
    odder = math.ceil(alarms * (n_calibration + 1)) - 1  # calibration stamps, at the most
    if odder == 0:
        return 0.0, (0, 0)
    law = betabinom(n_stamps, odder, n_calibration + 1 - odder)
    low, high = law.ppf((0.025, 0.975))
    return float(law.mean()), (int(low), int(high))


def normally_below(n_stamps: int, n_calibration: int) -> str:
    """In words how many of so many normal stamps have p < 0.01; see `expected_below`."""
    mean, (low, high) = expected_below(0.01, n_stamps, n_calibration)
    return (
        f"and of as many stamps like the normal ones it would be {mean:.0f} on average over "
        f"calibrations, {low} to {high} in 95 of 100"
    )


class _Normals:
    """How far the signs of normal stamps reach."""

    def __init__(self, signs: Signs, seed: int) -> None:
        self._codes = _Codes(signs.mean, seed)
        numbers = self._numbers(signs, is_own=True)
        self._median, reach = np.quantile(numbers, (0.5, REACH), axis=0)
        # where all normal stamps are the same, any other is odd
        least = 1e-6 * np.maximum(np.abs(self._median), 1.0)
        self._reach = np.maximum(reach - self._median, least)

    def oddness(self, signs: Signs) -> np.ndarray:
        """Largest of the weighted signs, shape (N,); about 1 for the oddest in a hundred."""
        if not len(signs):
            return np.empty(0)
        standard = (self._numbers(signs, is_own=False) - self._median) / self._reach
        n_pixel_signs = 1 + signs.residual.shape[1]
        weights = np.full(standard.shape[1], CODE_WEIGHT)
        weights[:n_pixel_signs] = 1.0
        return (weights * standard).max(axis=1)

    def _numbers(self, signs: Signs, is_own: bool) -> np.ndarray:
        """All signs, those of the pixels first, shape (N, J)."""
        return np.column_stack(
            [
                -signs.log_likelihood_nats / signs.n_good,
                np.log1p(signs.residual),
                np.log1p(signs.chi2_per_pixel),
                -self._codes.log_density(signs.mean),
                np.log1p(self._codes.distance(signs.mean, is_own)),
            ]
        )


class _Codes:
    """Where normal codes lie: a mixture of Gaussians, and the codes themselves."""

    def __init__(self, means: np.ndarray, seed: int) -> None:
        self.standard = _Standard(means)
        codes = self.standard(means)
        self._mixture = _mixture(codes, seed)
        self._log_volume = float(np.log(self.standard.scale).sum())
        self._n_neighbours = min(N_NEIGHBOURS, len(codes) - 1)
        self._neighbours = NearestNeighbors().fit(codes)

    def log_density(self, means: np.ndarray) -> np.ndarray:
        """In nats, of the codes as they are, shape (N,)."""
        return self._mixture.score_samples(self.standard(means)) - self._log_volume

    def distance(self, means: np.ndarray, is_own: bool = False) -> np.ndarray:
        """To the last of the nearest codes, shape (N,); of ``is_own`` codes, not to themselves."""
        k = self._n_neighbours + is_own
        return self._neighbours.kneighbors(self.standard(means), k)[0][:, -1]


class _Standard:
    """Columns in units of their robust spread; one that does not vary stays near zero."""

    def __init__(self, columns: np.ndarray) -> None:
        low, self.centre, high = np.percentile(columns.astype(np.float64), (25, 50, 75), axis=0)
        spread = (high - low) / 1.349  # a standard deviation, for a normal distribution
        # most stamps the same: what the others differ by
        spread = np.where(spread > 0, spread, columns.std(axis=0, dtype=np.float64))
        self.scale = np.maximum(spread, 1e-6 * np.maximum(np.abs(self.centre), 1.0))

    def __call__(self, columns: np.ndarray) -> np.ndarray:
        return (columns - self.centre) / self.scale


def _mixture(points: np.ndarray, seed: int) -> GaussianMixture:
    """The mixture with the best BIC of those that ``points`` (N, D) are enough for."""
    n, n_columns = points.shape
    n_numbers = n_columns * (n_columns + 3) // 2
    kind = "full" if n >= STAMPS_PER_NUMBER * n_columns else "diag"
    best, lowest = None, np.inf
    for n_components in N_COMPONENTS:
        enough = n >= n_components * (n_numbers if kind == "full" else 2 * n_columns)
        if n_components > 1 and not enough:
            break
        mixture = GaussianMixture(
            n_components, covariance_type=kind, reg_covar=REGULARISATION, random_state=seed
        )
        with warnings.catch_warnings():
            # of stamps that are all the same, or of a fit that is good enough as it is
            warnings.simplefilter("ignore", ConvergenceWarning)
            mixture.fit(points)
        if best is None or mixture.bic(points) < lowest:
            best, lowest = mixture, mixture.bic(points)
    assert best is not None
    return best


def _where_finite(rows: np.ndarray, measure: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    finite = np.isfinite(rows).all(axis=1)
    values = np.full(len(rows), np.nan)
    if finite.any():
        values[finite] = measure(rows[finite])
    return values
