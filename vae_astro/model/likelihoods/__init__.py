r"""How likely a stamp is, given what the decoder drew: normalised densities of the good pixels.

Every likelihood sums over the good pixels of a stamp and never averages, so its nats and those of
the KL are the same nats. A masked pixel contributes nothing. `PixelMeanMSE` alone trains on
something else, kept to study what it does, and says so.
"""

from __future__ import annotations

from collections.abc import Callable

from vae_astro.model.likelihoods.base import Likelihood
from vae_astro.model.likelihoods.bernoulli import Bernoulli
from vae_astro.model.likelihoods.gaussian import (
    FixedGaussian,
    NoiseGaussian,
    PixelMeanMSE,
    SharedGaussian,
)
from vae_astro.model.likelihoods.student_t import StudentT

__all__ = [
    "LIKELIHOODS",
    "Bernoulli",
    "FixedGaussian",
    "Likelihood",
    "NoiseGaussian",
    "PixelMeanMSE",
    "SharedGaussian",
    "StudentT",
]

LIKELIHOODS: dict[str, Callable[..., Likelihood]] = {
    "gaussian": FixedGaussian,
    "sigma": SharedGaussian,
    "noise": NoiseGaussian,
    "student_t": StudentT,
    "bernoulli": Bernoulli,
    "pixel_mean_mse": PixelMeanMSE,
}
