"""Priors over the latent code, by the name that ``prior=`` gives them."""

from __future__ import annotations

from collections.abc import Callable

from vae_astro.model.priors.base import Prior, StandardNormal
from vae_astro.model.priors.mixture import MixturePrior
from vae_astro.model.priors.vamp import VampPrior

__all__ = ["PRIORS", "MixturePrior", "Prior", "StandardNormal", "VampPrior"]

PRIORS: dict[str, Callable[..., Prior]] = {
    "standard": StandardNormal,
    "mixture": MixturePrior,
    "vamp": VampPrior,
}
