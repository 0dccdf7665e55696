"""Has the latent code collapsed? One word and one sentence, from figures that stand beside them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vae_astro.collapse.units import ACTIVE_VARIANCE, Verdict, verdict_of
from vae_astro.errors import InputError

__all__ = ["CollapseVerdict", "judge"]


@dataclass(frozen=True)
class CollapseVerdict:
    """What the latent code knows.

    Attributes
    ----------
    verdict : {"none", "partial", "full"}
        See `verdict_of`.
    active_units, latent_dim : int
        Units whose posterior mean varies, of how many.
    kl_per_unit_nats : tuple of float
        Mean divergence from the prior, for each unit.
    """

    verdict: Verdict
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
    verdict = verdict_of(active_units, latent_dim, float(mean_kl.sum()))
    return CollapseVerdict(verdict, active_units, latent_dim, tuple(map(float, mean_kl)))
