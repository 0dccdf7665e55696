r"""Will the latent code collapse? Answered before training, from the stamps and the settings alone.

With :math:`\lambda_i` the eigenvalues of the stamps' covariance in the units of the loss (see
`Spectrum`) and :math:`\beta s^2` the threshold that weight and decoder variance set, a linear VAE
keeps the directions above it (Lucas et al. 2019; Wang & Ziyin 2022, Theorem 2), and then

.. math::
    \mathrm{KL}_i = \tfrac12 \ln \frac{\lambda_i}{\beta s^2}, \qquad
    \mathrm{Var}(\mu_i) = 1 - \frac{\beta s^2}{\lambda_i}, \qquad
    s^2 = \frac{\sum_{\text{discarded}} \lambda_i}{D - \beta k} \;\text{ where it is learned.}

For a deep network the same threshold is the stability limit of the collapsed state: whether it
collapses is forecast, the KL to tens of per cent, the number of active units is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from vae_astro.collapse.spectrum import Spectrum, measure_spectrum
from vae_astro.collapse.units import VERDICT_WORDS, Verdict, verdict_of
from vae_astro.data.batches import Batch
from vae_astro.errors import InputError
from vae_astro.model.likelihoods import Likelihood
from vae_astro.objective.beta import RatePenalty, Schedule

__all__ = ["Forecast", "Outlook", "forecast", "forecast_run", "outlook", "passed_threshold"]

BURDA_MARGIN = 1 / 0.99
"""Eigenvalue over threshold from which the posterior mean varies by more than 0.01."""
APART = 0.9
"""Share of a threshold below which another one is drawn beside it."""
SCALE_STEPS = 200
SCALE_PRECISION = 1e-6
LARGEST_WEIGHT = 1e12
SCHEDULE_POINTS = 513


@dataclass(frozen=True)
class Outlook:
    """What a run settles at if the KL keeps one weight.

    Attributes
    ----------
    beta : float
        The schedule's.
    threshold : float
        ``beta * s2``: eigenvalue that a direction has to exceed, squared units of the decoder's
        output (of the normalised image, but for Bernoulli likelihoods: logits).
    eigenvalues : tuple of float
        Leading eigenvalues of the stamps' covariance in the same units, descending.
    decoder_variance : tuple of float
        s2 of each band in which stamps differ, in the same units: as given, or what is learned.
    kl_per_unit_nats : tuple of float
        One for each latent unit, descending; infinite at beta = 0.
    active_units : int
        Units whose posterior mean varies by more than 0.01 (Burda et al. 2016).
    n_surviving : int
        Directions of the stamps above the threshold, however many units there are.
    """

    beta: float
    threshold: float
    eigenvalues: tuple[float, ...]
    decoder_variance: tuple[float, ...]
    kl_per_unit_nats: tuple[float, ...]
    active_units: int
    n_surviving: int

    @property
    def latent_dim(self) -> int:
        """Latent units, alive or not."""
        return len(self.kl_per_unit_nats)

    @property
    def kl_nats(self) -> float:
        """Summed over units."""
        return sum(self.kl_per_unit_nats)

    @property
    def largest_eigenvalue(self) -> float:
        """Of the stamps' covariance."""
        return self.eigenvalues[0]

    @property
    def verdict(self) -> Verdict:
        """As `CollapseVerdict` has it."""
        return verdict_of(self.active_units, self.latent_dim, self.kl_nats)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON; None for what is infinite."""
        return {
            "verdict": self.verdict,
            "kl_nats": _finite(self.kl_nats),
            "active_units": self.active_units,
            "latent_dim": self.latent_dim,
            "beta": self.beta,
            "threshold": self.threshold,
            "largest_eigenvalue": self.largest_eigenvalue,
            "decoder_variance": list(self.decoder_variance),
            "n_surviving": self.n_surviving,
            "kl_per_unit_nats": [_finite(nats) for nats in self.kl_per_unit_nats],
            "eigenvalues": list(self.eigenvalues),
        }


@dataclass(frozen=True)
class Forecast:
    """What a run will come to.

    Attributes
    ----------
    spectrum : Spectrum
        Of the stamps.
    latent_dim : int
        Z.
    end, lowest : Outlook
        At the weight the schedule ends with, which decides, and at the smallest it passes.
    """

    spectrum: Spectrum
    latent_dim: int
    end: Outlook
    lowest: Outlook

    @property
    def verdict(self) -> Verdict:
        """Of the end: no schedule that ends above the threshold saves a run."""
        return self.end.verdict

    @property
    def passed_threshold(self) -> float | None:
        """`passed_threshold` of the two weights."""
        return passed_threshold(self.end.threshold, self.lowest.threshold)

    @cached_property
    def largest_beta_for(self) -> dict[int, float]:
        """Largest final beta that keeps 1, 2, half and all of the latent units active.

        Zero where the stamps do not have that many directions.
        """
        half = -(-self.latent_dim // 2)
        counts = sorted({1, min(2, self.latent_dim), half, self.latent_dim})
        return {n: self.largest_beta(n) for n in counts}

    def largest_beta(self, n_units: int) -> float:
        """Largest beta at which ``n_units`` units stay active; 0 if none does."""
        spectrum = self.spectrum
        if n_units > min(len(spectrum.eigenvalues), self.latent_dim):
            return 0.0

        def keeps(weight: float) -> bool:
            return (
                _settle(spectrum, self.latent_dim, weight)[0][n_units - 1] > weight * BURDA_MARGIN
            )

        low, high = 1e-12, 1e-12
        if not keeps(low):
            return 0.0
        while keeps(high) and high < LARGEST_WEIGHT:
            low, high = high, 4 * high
        while high > 1.001 * low:
            middle = math.sqrt(low * high)
            low, high = (middle, high) if keeps(middle) else (low, middle)
        return low / spectrum.kl_weight

    @property
    def lines(self) -> tuple[str, str]:
        """Two lines for a person."""
        end, room = self.end, self.largest_beta_for
        told = VERDICT_WORDS[end.verdict]
        told += ", whatever the network" if end.verdict == "full" else ""
        compared = f"largest eigenvalue {end.largest_eigenvalue:.3g}, threshold {end.threshold:.3g}"
        kept = ", ".join(
            f"{beta:.3g} for {n}{' living unit' * (n == 1)}" for n, beta in room.items()
        )
        return (
            f"forecast: {told}; KL about {end.kl_nats:.3g} nats in {end.active_units} of "
            f"{end.latent_dim} units ({compared})",
            f"forecast: {self._of_schedule}largest final beta: {kept}",
        )

    def __str__(self) -> str:
        return "\n".join(self.lines)

    @property
    def _of_schedule(self) -> str:
        if self.lowest.beta >= self.end.beta or self.end.verdict == "none":
            return ""
        return (
            f"beta passes {self.lowest.beta:.3g}, where {self.lowest.active_units} units live, but "
            "where it ends decides; "
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {
            **self.end.as_dict(),
            "lowest": self.lowest.as_dict(),
            "largest_beta_for": {str(n): beta for n, beta in self.largest_beta_for.items()},
            "learned_scale": self.spectrum.learned_scale,
            "n_stamps": self.spectrum.n_stamps,
            "n_pixels": self.spectrum.n_pixels,
        }


def passed_threshold(end: float, lowest: float | None) -> float | None:
    """The threshold on the way that is worth a line beside the one where a run ends.

    Parameters
    ----------
    end : float
        ``beta * s2`` where the schedule ends.
    lowest : float or None
        At the smallest beta that it passes, if that is known.

    Returns
    -------
    float or None
        ``lowest`` where it is above zero and below `APART` times ``end``.
    """
    return lowest if lowest is not None and 0 < lowest < APART * end else None


def forecast(spectrum: Spectrum, latent_dim: int, schedule: Schedule, total_steps: int) -> Forecast:
    """Forecast a run of ``total_steps`` optimiser steps.

    Parameters
    ----------
    spectrum : Spectrum
        Of the stamps, under the likelihood of the run.
    latent_dim : int
        Z.
    schedule : Schedule
        Of the run.
    total_steps : int
        Its length; schedules are looked at in `SCHEDULE_POINTS` places.
    """
    steps = np.unique(np.linspace(0, total_steps, SCHEDULE_POINTS).astype(int))
    penalties = [schedule(int(step)) for step in steps]
    lowest = min(penalties, key=lambda penalty: penalty.beta)
    return Forecast(
        spectrum,
        latent_dim,
        outlook(spectrum, latent_dim, penalties[-1]),
        outlook(spectrum, latent_dim, lowest),
    )


def forecast_run(
    batches: Iterable[Batch],
    likelihood: Likelihood,
    latent_dim: int,
    schedule: Schedule,
    total_steps: int,
) -> Forecast:
    """`measure_spectrum` and `forecast` in one; arguments and errors are theirs."""
    spectrum = measure_spectrum(batches, likelihood, n_modes=max(64, 2 * latent_dim))
    return forecast(spectrum, latent_dim, schedule, total_steps)


def outlook(spectrum: Spectrum, latent_dim: int, penalty: RatePenalty) -> Outlook:
    """What a run settles at under one penalty.

    A capacity C holds the KL at C nats where the weight alone would let it fall below. Free bits
    let each unit take what it can up to its allowance, for nothing.

    Raises
    ------
    InputError
        A negative beta.
    """
    if penalty.beta < 0:
        raise InputError(f"beta must not be negative, got {penalty.beta:g}: it would reward the KL")
    weight = penalty.beta * spectrum.kl_weight
    if penalty.capacity_nats is not None:
        weight = _weight_at_capacity(spectrum, latent_dim, weight, penalty.capacity_nats)
    eigenvalues, scale = _settle(spectrum, latent_dim, weight)
    kl = _kl(eigenvalues, latent_dim, weight)
    held = np.arange(latent_dim) < np.sum(eigenvalues > 1e-9 * eigenvalues[0])
    kl = np.where(held, np.maximum(kl, penalty.free_bits_nats), kl)
    variance = spectrum.decoder_variance * scale
    unit = float(variance.mean())
    return Outlook(
        beta=penalty.beta,
        threshold=weight * unit,
        eigenvalues=tuple((eigenvalues * unit).tolist()),
        decoder_variance=tuple(variance.tolist()),
        kl_per_unit_nats=tuple(kl.tolist()),
        active_units=int(np.sum(-np.expm1(-2 * kl) > 1 - 1 / BURDA_MARGIN)),
        n_surviving=int(np.sum(eigenvalues > weight)),
    )


def _kl(eigenvalues: np.ndarray, latent_dim: int, weight: float) -> np.ndarray:
    """KL of each unit (Z,) in nats."""
    kl = np.zeros(latent_dim)
    leading = eigenvalues[:latent_dim]
    with np.errstate(divide="ignore"):
        kl[: len(leading)] = 0.5 * np.log(np.maximum(leading / max(weight, 1e-300), 1.0))
    if weight == 0:
        kl[kl > 0] = math.inf
    return kl


def _settle(spectrum: Spectrum, latent_dim: int, weight: float) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (Q,) and decoder variances (C,) that a run ends with, the latter over the
    collapsed state's.

    A learned variance is the mean squared residual: that of the collapsed state, less what the
    active units explain. It is iterated from the collapsed state, as training goes, so that where
    two answers agree with themselves the one is found that training meets first.
    """
    roots = np.sqrt(spectrum.eigenvalues)
    scale = np.ones(len(spectrum.overlap))
    if spectrum.learned_scale:
        scale = spectrum.variance / spectrum.fitting_variance
    for _ in range(SCALE_STEPS):
        values, vectors = _principal(roots, spectrum.overlap, scale)
        if not spectrum.learned_scale:
            break
        leading = values[:latent_dim]
        survives = leading > weight
        parts = roots[:, None] * vectors[:, :latent_dim][:, survives]
        # variance of each surviving direction in each band, in units of the collapsed state's
        variances = ((spectrum.overlap @ parts) * parts).sum(axis=1)
        explained = variances @ (1 - weight / leading[survives])
        after = (spectrum.variance - explained) / spectrum.fitting_variance
        after = np.maximum(after, 1e-12)
        done = np.allclose(after, scale, rtol=SCALE_PRECISION)
        scale = after
        if done:
            break
    return values, scale


def _principal(
    roots: np.ndarray, overlap: np.ndarray, scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (Q,), descending, and eigenvectors (Q, Q) with bands of other variances."""
    if len(scale) == 1:  # one variance for all pixels turns nothing
        return roots**2 / scale[0], np.eye(len(roots))
    gram = roots[:, None] * np.tensordot(1 / scale, overlap, axes=1) * roots
    # on busy cores threads cost a small matrix a thousand times its work
    with threadpool_limits(1):
        values, vectors = np.linalg.eigh(gram)
    return np.maximum(values[::-1], 0), vectors[:, ::-1]


def _weight_at_capacity(
    spectrum: Spectrum, latent_dim: int, weight: float, capacity_nats: float
) -> float:
    """Weight at which the KL is ``capacity_nats``, at most ``weight``."""

    def kl(weight: float) -> float:
        return float(_kl(_settle(spectrum, latent_dim, weight)[0], latent_dim, weight).sum())

    if kl(weight) >= capacity_nats:
        return weight
    low, high = 1e-12 * max(weight, 1e-300), weight
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if kl(middle) > capacity_nats else (low, middle)
    return low


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
