"""A likelihood that forgives a few wild pixels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vae_astro.model.likelihoods.base import Likelihood, sum_good
from vae_astro.model.likelihoods.scale import Scale
from vae_astro.ranks import gather
from vae_astro.settings import check_number

__all__ = ["StudentT"]


class StudentT(Likelihood):
    """Student's t with a scale per band learned by gradient: forgives a few wild pixels.

    Parameters
    ----------
    n_bands : int
        C.
    dof : float
        Degrees of freedom; small is forgiving, large is Gaussian.
    """

    learns_scale = True
    SETTLED_ON = 1024
    """Stamps that `settle` looks at, at most."""

    def __init__(self, *, n_bands: int, dof: float = 4.0) -> None:
        super().__init__()
        self.dof = check_number("likelihood.dof", dof, above=0)
        self.scale = Scale("likelihood", n_bands, "gradient")
        self.log_norm = (
            math.lgamma((self.dof + 1) / 2)
            - math.lgamma(self.dof / 2)
            - 0.5 * math.log(self.dof * math.pi)
        )

    @property
    def started(self) -> bool:  # type: ignore[override]
        """See `Likelihood`."""
        return self.scale.started

    def log_prob(self, image: Tensor, output: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        """See `Likelihood`."""
        scale = self.scale()
        chi2 = ((image - output) / scale).square()
        log_density = self.log_norm - scale.log() - 0.5 * (self.dof + 1) * (chi2 / self.dof).log1p()
        return sum_good(log_density, mask)

    def observe(self, image: Tensor, output: Tensor, mask: Tensor, noise: Tensor) -> None:
        """See `Likelihood`; the first batch gives the scale that the gradient starts from."""
        self.scale.start(lambda: self.settle(*map(gather, (image, output, mask, noise))))

    @torch.no_grad()
    def settle(self, image: Tensor, output: Tensor, mask: Tensor, noise: Tensor) -> None:
        """See `Likelihood`; by expectation maximisation (Lange, Little & Taylor 1989)."""
        every = max(1, len(image) // self.SETTLED_ON)
        squared = (image[::every] - output[::every]).square()
        good = mask[::every]
        n_good = good.sum((0, 2, 3)).clamp(min=1)
        self.scale.settle(image[::every] - output[::every], good)
        for _ in range(30):
            chi2 = squared / self.scale().square()
            weighted = squared * (self.dof + 1) / (self.dof + chi2)
            mean = weighted.where(good, squared.new_zeros(())).sum((0, 2, 3)) / n_good
            self.scale.log_std.copy_(0.5 * mean.clamp(min=Scale.FLOOR).log())

    def learned(self) -> dict[str, Tensor]:
        """``scale`` in units of the normalised image."""
        return {"scale": self.scale().flatten()}
