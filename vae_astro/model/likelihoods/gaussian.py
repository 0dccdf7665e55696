"""Gaussian likelihoods: a width that is given, learned, or known for every pixel."""

from __future__ import annotations

import math

from torch import Tensor

from vae_astro.model.likelihoods.base import Likelihood, sum_good
from vae_astro.model.likelihoods.scale import Scale
from vae_astro.settings import check_number

__all__ = ["FixedGaussian", "NoiseGaussian", "PixelMeanMSE", "SharedGaussian"]

LOG_2PI = math.log(2 * math.pi)


class FixedGaussian(Likelihood):
    r""":math:`\mathcal N(x; \hat x, \sigma^2)` with a standard deviation that is given.

    Parameters
    ----------
    std : float
        Standard deviation in units of the normalised image.
    """

    def __init__(self, *, std: float = 1.0) -> None:
        super().__init__()
        self.std = check_number("likelihood.std", std, above=0)

    def log_prob(self, image: Tensor, output: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        """See `Likelihood`."""
        return _gaussian_log_prob(image - output, image.new_full((), self.std), mask)


class SharedGaussian(Likelihood):
    """One standard deviation per band for all stamps and pixels, learned; the default.

    Parameters
    ----------
    n_bands : int
        C.
    learn : {"closed_form", "gradient"}
        The running optimum (Rybkin et al. 2021), or a parameter that Adam moves.
    """

    learns_scale = True

    def __init__(self, *, n_bands: int, learn: str = "closed_form") -> None:
        super().__init__()
        self.scale = Scale("likelihood", n_bands, learn)

    @property
    def started(self) -> bool:  # type: ignore[override]
        """See `Likelihood`."""
        return self.scale.started

    def log_prob(self, image: Tensor, output: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        """See `Likelihood`."""
        return _gaussian_log_prob(image - output, self.scale(), mask)

    def observe(self, image: Tensor, output: Tensor, mask: Tensor, noise: Tensor) -> None:
        """See `Likelihood`."""
        self.scale.observe(image - output, mask)

    def settle(self, image: Tensor, output: Tensor, mask: Tensor, noise: Tensor) -> None:
        """See `Likelihood`."""
        self.scale.settle(image - output, mask)

    def learned(self) -> dict[str, Tensor]:
        """``std`` in units of the normalised image."""
        return {"std": self.scale().flatten()}


class NoiseGaussian(Likelihood):
    """The known noise of every pixel, times one inflation per band that is learned.

    The noise is taken as given. That holds with ``data.normalize.stretch=linear`` or ``minmax``. A
    stretch scales the noise by its slope at the noisy pixel, and the density then integrates to
    0.93 (asinh) or 0.84 (log) on bare sky instead of 1, which the inflation takes up.

    Parameters
    ----------
    n_bands : int
        C.
    learn : {"closed_form", "gradient"}
        As in `SharedGaussian`.
    """

    learns_scale = True

    def __init__(self, *, n_bands: int, learn: str = "closed_form") -> None:
        super().__init__()
        self.inflation = Scale("likelihood", n_bands, learn)

    @property
    def started(self) -> bool:  # type: ignore[override]
        """See `Likelihood`."""
        return self.inflation.started

    def log_prob(self, image: Tensor, output: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        """See `Likelihood`."""
        return _gaussian_log_prob(image - output, self.inflation() * noise, mask)

    def observe(self, image: Tensor, output: Tensor, mask: Tensor, noise: Tensor) -> None:
        """See `Likelihood`."""
        self.inflation.observe((image - output) / noise, mask)

    def settle(self, image: Tensor, output: Tensor, mask: Tensor, noise: Tensor) -> None:
        """See `Likelihood`."""
        self.inflation.settle((image - output) / noise, mask)

    def learned(self) -> dict[str, Tensor]:
        """``inflation``, dimensionless."""
        return {"inflation": self.inflation().flatten()}


class PixelMeanMSE(SharedGaussian):
    """Mean squared error over pixels, as many tutorials have it: not a density.

    Training minimises ``MSE + kl_weight * beta * KL``. Multiplied by D / 2, with D the number of
    good pixels, that is the unit-variance Gaussian with a beta of ``kl_weight * beta * D / 2``: a
    weight of 1 already means a beta of 1985 for a 63x63 stamp. For figures in nats (validation),
    `log_prob` is the Gaussian with the best shared standard deviation.

    Parameters
    ----------
    n_bands : int
        C.
    kl_weight : float
        Weight of the KL beside the mean squared error.
    """

    is_density = False
    learns_scale = False  # training knows no width: only figures in nats do

    def __init__(self, *, n_bands: int, kl_weight: float = 1.0) -> None:
        super().__init__(n_bands=n_bands)
        self.kl_weight = check_number("likelihood.kl_weight", kl_weight, above=0)

    def training_term(self, image: Tensor, output: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        """Minus the mean squared error of the good pixels, shape (B,); no unit."""
        squared = sum_good((image - output).square(), mask)
        return -squared / mask.flatten(1).sum(1).clamp(min=1)


def _gaussian_log_prob(residual: Tensor, std: Tensor, mask: Tensor) -> Tensor:
    """Normalised Gaussian log-density of the good pixels, shape (B,), in nats."""
    return sum_good(-0.5 * ((residual / std).square() + 2 * std.log() + LOG_2PI), mask)
