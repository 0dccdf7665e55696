"""What is measured of each run, each scaling of the stamps and each plane of classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.mixture import GaussianMixture

from vae_astro.collapse.forecast import forecast, outlook
from vae_astro.collapse.spectrum import Spectrum, measure_spectrum
from vae_astro.data.batches import Batch
from vae_astro.model.likelihoods import PixelMeanMSE, SharedGaussian
from vae_astro.model.posterior import DiagonalGaussian
from vae_astro.objective.beta import RatePenalty, constant
from vae_astro.report.question.faults import fault_run
from vae_astro.vae import VAE

__all__ = [
    "Answer",
    "ClassMap",
    "Needed",
    "Outcome",
    "find_classes",
    "needed_weights",
    "outcome_of",
]

N_CODES = 32
"""Codes from the prior that the decoder is tried with."""
MOST_CLASSES = 7


@dataclass(frozen=True)
class Outcome:
    """One run at its end, on the validation stamps.

    Attributes
    ----------
    data : {"simulated", "ztf"}
        Which stamps.
    faults : list of int
        Numbers of the faults that were left in.
    stretch : str
        Normalisation.
    weight : float or None
        Of the KL beside a mean over pixels, where the run is about the weight.
    seed, size : int
        Of the run; side of the stamps in pixels.
    verdict, active_units, latent_dim
        As in `CollapseVerdict`.
    kl_nats : float
        As the network's mean and log-variance claim it.
    drawn_kl_nats : float
        The same for the noise that is really drawn.
    reconstruction_nats, chi2_per_pixel : float
        As in ``metrics.json``.
    forecast_verdict, forecast_kl_nats, forecast_active_units, threshold, largest_eigenvalue
        Of the data and the loss, before training.
    output_moves : bool
        Whether the decoder draws different pictures for different codes, by however little.
    bottleneck_units, living_bottleneck_units : int
        Units before the code, and how many of them differ between stamps.
    n_good_pixels : float
        Of a stamp, on average.
    own_weight : float
        Weight beside a mean over pixels that is the bound with the sigma of the residuals.
    n_train, n_val : int
        Stamps.
    seconds : float
        Of the fit.
    overrides : list of str
        What is typed for it, but for the folder of the stamps.
    """

    data: str
    faults: list[int]
    stretch: str
    weight: float | None
    seed: int
    size: int
    verdict: str
    kl_nats: float
    drawn_kl_nats: float
    active_units: int
    latent_dim: int
    reconstruction_nats: float
    chi2_per_pixel: float
    forecast_verdict: str
    forecast_kl_nats: float
    forecast_active_units: int
    threshold: float
    largest_eigenvalue: float
    output_moves: bool
    bottleneck_units: int
    living_bottleneck_units: int
    n_good_pixels: float
    own_weight: float
    n_train: int
    n_val: int
    seconds: float
    overrides: list[str]

    @property
    def elbo_nats(self) -> float:
        """Bound at beta = 1, with the divergence of the noise that is really drawn."""
        return self.reconstruction_nats - self.drawn_kl_nats


@dataclass(frozen=True)
class Needed:
    """What one scaling of the stamps asks of the weight beside a mean over pixels; forecast.

    Attributes
    ----------
    data, scaling : str
        Which stamps, and how they are normalised.
    size, latent_dim : int
        Side in pixels; latent units.
    largest_eigenvalue : float
        Of the stamps' covariance.
    keeps_one, keeps_all : float
        Largest weights that keep one and all of the latent units.
    own_weight : float
        The weight that is the bound with the sigma that would be learned.
    units_at : dict of str to int
        Units that live at the own weight of each scaling.
    """

    data: str
    scaling: str
    size: int
    latent_dim: int
    largest_eigenvalue: float
    keeps_one: float
    keeps_all: float
    own_weight: float
    units_at: dict[str, int]


@dataclass(frozen=True)
class ClassMap:
    """Stamps in a plane of two latent units, and the classes found there.

    Attributes
    ----------
    codes : ndarray, shape (N, 2)
        Posterior means.
    images : ndarray, shape (N, H, W)
        Normalised.
    found : ndarray, shape (N,), int
        Class found, 0 the largest.
    labels : ndarray, shape (N,), str
        What the stamps are, never trained on; empty where unknown.
    """

    codes: np.ndarray
    images: np.ndarray
    found: np.ndarray
    labels: np.ndarray

    @property
    def composition(self) -> list[dict[str, int]]:
        """Stamps of each label in each class found, most frequent first."""
        tables = []
        for each in range(int(self.found.max()) + 1):
            names, counts = np.unique(self.labels[self.found == each], return_counts=True)
            order = np.argsort(-counts, kind="stable")
            tables.append({str(names[k]): int(counts[k]) for k in order})
        return tables


@dataclass(frozen=True)
class Answer:
    """All that the page tells.

    Attributes
    ----------
    size : {"full", "small"}
        How much was done.
    common : str
        Settings that all runs share.
    outcomes : dict of str to Outcome
        By name of the run.
    needed : list of Needed
        One for each data set and scaling.
    classes : dict of str to list
        `ClassMap.composition` for each data set.
    """

    size: str
    common: str
    outcomes: dict[str, Outcome]
    needed: list[Needed]
    classes: dict[str, list[dict[str, int]]]

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Answer:
        """From what ``dataclasses.asdict`` made of one."""
        outcomes = {name: Outcome(**outcome) for name, outcome in plain["outcomes"].items()}
        needed = [Needed(**row) for row in plain["needed"]]
        return cls(**plain | {"outcomes": outcomes, "needed": needed})

    @property
    def data(self) -> list[str]:
        """Data sets, in order."""
        return list(dict.fromkeys(outcome.data for outcome in self.outcomes.values()))

    def at(self, data: str, faults: Iterable[int], seed: int = 0) -> Outcome:
        """The run with these faults left in, the loss's own weight and the common settings."""
        return self.outcomes[fault_run(data, faults, seed)]

    def seeds(self, data: str, faults: Iterable[int]) -> list[Outcome]:
        """`at` with every seed there is."""
        start = fault_run(data, faults, 0)[:-1]
        return [run for name, run in self.outcomes.items() if name.startswith(start)]

    def sweeps(self, data: str) -> dict[str, tuple[list[Outcome], Outcome]]:
        """By normalisation: runs by falling weight, and the one with a learned sigma."""
        found: dict[str, tuple[list[Outcome], Outcome]] = {}
        for stretch in dict.fromkeys(run.stretch for run in self.outcomes.values()):
            runs = [
                run
                for run in self.outcomes.values()
                if (run.data, run.stretch) == (data, stretch) and run.weight is not None
            ]
            sigma = self.outcomes.get(f"{data}-{stretch}-sigma") or self.at(data, ())
            if runs:
                found[stretch] = (sorted(runs, key=lambda run: -(run.weight or 0)), sigma)
        return found


@torch.no_grad()
def outcome_of(
    vae: VAE, metrics: dict[str, Any], batches: Sequence[Batch], **about: Any
) -> Outcome:
    """Measure one finished run.

    Parameters
    ----------
    vae : VAE
        As it ended, with ``model=question``.
    metrics : dict
        Its ``metrics.json``.
    batches : sequence of Batch
        Its validation stamps.
    **about
        What the run was: the other fields of `Outcome`.
    """
    image = torch.cat([batch["image"] for batch in batches])
    n_good = float(torch.cat([batch["mask"] for batch in batches]).sum()) / len(image)
    posterior = vae.network.encode(image)
    noise_only = DiagonalGaussian(torch.zeros_like(posterior.mean), posterior.log_var)
    drawn = vae.network.sample(noise_only, torch.ones_like(posterior.mean))  # its std, exactly
    rate = 0.5 * (posterior.mean.square() + drawn.square() - 1) - drawn.log()
    codes = torch.randn(N_CODES, vae.latent_dim, generator=torch.Generator().manual_seed(0))
    pictures = vae.decode(codes)
    features = vae.network.encoder.trunk(image)  # type: ignore[operator]
    val, collapse, foreseen = metrics["val"], metrics["collapse"], metrics["collapse"]["forecast"]
    return Outcome(
        verdict=collapse["verdict"],
        kl_nats=val["kl_nats"],
        drawn_kl_nats=float(rate.sum(1).mean()),
        active_units=collapse["active_units"],
        latent_dim=collapse["latent_dim"],
        reconstruction_nats=val["reconstruction_nats"],
        chi2_per_pixel=val["chi2_per_pixel"],
        forecast_verdict=foreseen["verdict"],
        forecast_kl_nats=foreseen["kl_nats"],
        forecast_active_units=foreseen["active_units"],
        threshold=foreseen["threshold"],
        largest_eigenvalue=foreseen["largest_eigenvalue"],
        output_moves=bool((pictures != pictures[:1]).any()),
        bottleneck_units=features.shape[1],
        living_bottleneck_units=int((features.var(0) > 0).sum()),
        n_good_pixels=n_good,
        own_weight=2 * vae.likelihood.describe()["std"][0] ** 2 / n_good,
        n_train=metrics["data"]["n_train"],
        n_val=metrics["data"]["n_val"],
        seconds=metrics["timing"]["seconds_fit"],
        **about,
    )


def needed_weights(
    stamps: Mapping[str, Sequence[Batch]], latent_dim: int, **about: Any
) -> list[Needed]:
    """What each scaling of the same stamps asks of the weight.

    Parameters
    ----------
    stamps : mapping of str to batches
        By the name of the scaling.
    latent_dim : int
        Z.
    **about
        ``data`` and ``size`` of `Needed`.
    """
    spectra: dict[str, Spectrum] = {}
    rows: dict[str, dict[str, Any]] = {}
    for scaling, batches in stamps.items():
        n_good = float(sum(batch["mask"].sum() for batch in batches))
        n_good /= sum(len(batch["mask"]) for batch in batches)
        spectra[scaling] = measure_spectrum(batches, PixelMeanMSE(n_bands=1))
        foreseen = forecast(spectra[scaling], latent_dim, constant(), 1)
        learned = measure_spectrum(batches, SharedGaussian(n_bands=1))
        s2 = outlook(learned, latent_dim, RatePenalty(1.0)).decoder_variance[0]
        rows[scaling] = {
            "largest_eigenvalue": foreseen.end.largest_eigenvalue,
            "keeps_one": foreseen.largest_beta(1),
            "keeps_all": foreseen.largest_beta(latent_dim),
            "own_weight": 2 * s2 / n_good,
        }
    return [
        Needed(
            scaling=scaling,
            latent_dim=latent_dim,
            units_at={
                other: outlook(
                    spectrum, latent_dim, RatePenalty(rows[other]["own_weight"])
                ).active_units
                for other in rows
            },
            **rows[scaling],
            **about,
        )
        for scaling, spectrum in spectra.items()
    ]


def find_classes(codes: np.ndarray) -> np.ndarray:
    """Classes (N,) of codes (N, 2), the largest first.

    A Gaussian mixture of as many components as the Bayesian information criterion prefers.
    """
    mixtures = [
        GaussianMixture(n, n_init=5, random_state=0).fit(codes)
        for n in range(1, min(MOST_CLASSES, len(codes) // 4) + 1)
    ]
    found = min(mixtures, key=lambda mixture: mixture.bic(codes)).predict(codes)
    names, counts = np.unique(found, return_counts=True)
    rank = {name: k for k, name in enumerate(names[np.argsort(-counts, kind="stable")])}
    return np.array([rank[name] for name in found])
