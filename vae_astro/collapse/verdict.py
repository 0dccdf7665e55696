"""Has the latent code collapsed? One word and one sentence, from figures that stand beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from vae_astro.errors import InputError

__all__ = ["ACTIVE_VARIANCE", "FULL_COLLAPSE_NATS", "CollapseVerdict", "judge"]

ACTIVE_VARIANCE = 0.01
"""A unit is active if its posterior mean varies more than this over stamps (Burda et al. 2016)."""
FULL_COLLAPSE_NATS = 0.1
"""Total KL below which the code says nothing, whatever its units seem to do."""


@dataclass(frozen=True)
class CollapseVerdict:
    """What the latent code knows.

    Attributes
    ----------
    verdict : {"none", "partial", "full"}
        ``full``: no active unit, or less than `FULL_COLLAPSE_NATS` in total; ``partial``: fewer
        than half of the units active; ``none`` otherwise.
    active_units, latent_dim : int
        Units whose posterior mean varies, of how many.
    kl_per_unit_nats : tuple of float
        Mean divergence from the prior, for each unit.
    """

    verdict: Literal["none", "partial", "full"]
    active_units: int
    latent_dim: int
    kl_per_unit_nats: tuple[float, ...]

    @property
    def kl_nats(self) -> float:
        """Divergence summed over units."""
        return sum(self.kl_per_unit_nats)

    @property
    def sentence(self) -> str:
        """The verdict for a person."""
        figures = (
            f"{self.active_units} of {self.latent_dim} latent units are active and carry "
            f"{self.kl_nats:.3g} nats per stamp"
        )
        return {
            "none": f"No collapse: {figures}.",
            "partial": f"Partial collapse: only {figures}; fewer units, a smaller beta or a "
            "learned sigma would use the code better.",
            "full": f"Full collapse: {figures}; the code says nothing about the stamps. Lower the "
            "final beta or the decoder's variance (likelihood=sigma learns it).",
        }[self.verdict]


def judge(means: np.ndarray, kl_per_unit: np.ndarray) -> CollapseVerdict:
    """Judge a model by its posteriors over many stamps.

    Parameters
    ----------
    means : ndarray, shape (N, Z)
        Posterior means.
    kl_per_unit : ndarray, shape (N, Z)
        Divergence of each unit for each stamp, in nats.

    Returns
    -------
    CollapseVerdict

    Raises
    ------
    InputError
        If a posterior is not finite.
    """
    if not (np.isfinite(means).all() and np.isfinite(kl_per_unit).all()):
        raise InputError(
            "posteriors are not finite: the run diverged; lower optim.lr, or look for extreme "
            "pixels and set data.normalize.saturation"
        )
    active_units = int((np.var(means, axis=0, dtype=np.float64) > ACTIVE_VARIANCE).sum())
    mean_kl = kl_per_unit.mean(axis=0, dtype=np.float64)
    latent_dim = means.shape[1]
    verdict: Literal["none", "partial", "full"] = "none"
    if active_units == 0 or mean_kl.sum() < FULL_COLLAPSE_NATS:
        verdict = "full"
    elif 2 * active_units < latent_dim:
        verdict = "partial"
    return CollapseVerdict(verdict, active_units, latent_dim, tuple(map(float, mean_kl)))
