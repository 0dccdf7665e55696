r"""How likely a stamp is, given what the decoder drew: normalised densities of the good pixels.

Every likelihood sums over the good pixels of a stamp and never averages, so its nats and those of
the KL are the same nats. A masked pixel contributes nothing. `PixelMeanMSE` alone trains on
something else, kept to study what it does, and says so.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from vae_astro.errors import InputError
from vae_astro.model.continuous_bernoulli import langevin, log_sinhc
from vae_astro.ranks import gather, sum_over_ranks
from vae_astro.settings import check_choice, check_number

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

LOG_2PI = math.log(2 * math.pi)


class Likelihood(nn.Module, ABC):
    """Density of the pixels of a batch around the decoder's output.

    All methods take ``image``, ``output``, ``noise`` as (B, C, H, W) float32 and ``mask`` as
    (B, C, H, W) bool, True where the pixel is good. ``output`` is what the decoder emits.
    """

    is_density = True
    """False where `training_term` is not a log-density, so beta has no fixed meaning."""

    kl_weight = 1.0
    """Factor on beta in training; 1 for every density."""

    learns_scale = False
    """Whether training adapts the width of the density to the residuals."""

    pixel_range: tuple[float, float] | None = None
    """Between what the good pixels have to lie; None: anywhere."""

    started = True
    """False where the next batch that is observed gives what learning starts from."""

    @abstractmethod
    def log_prob(self, image: Tensor, output: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        """Log-density of the good pixels of each stamp, shape (B,), in nats."""

    def training_term(self, image: Tensor, output: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        """What is maximised in training beside the KL, shape (B,); here the log-density.

        Nothing is read back from the device here, nor in `log_density` and `observe`: training does
        not wait for it. Whether the pixels are in range is for the caller to check.
        """
        return self.log_density(image, output, mask, noise)

    def log_density(self, image: Tensor, output: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        """`log_prob` of pixels that are known to be in range."""
        return self.log_prob(image, output, mask, noise)

    def check_range(self, low: float, high: float) -> None:
        """Raise `InputError` if pixels from ``low`` to ``high`` are not within `pixel_range`."""

    @property
    def wants_stamps(self) -> bool:
        """Whether `prepare` looks at any."""
        return False

    def prepare(self, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Take what is needed from training ``batches`` before the first step: here nothing."""

    def observe(self, image: Tensor, output: Tensor, mask: Tensor, noise: Tensor) -> None:
        """Update what is learned in closed form; called once for each training batch."""

    def settle(self, image: Tensor, output: Tensor, mask: Tensor, noise: Tensor) -> None:
        """Set what is learned to its best value for these outputs, at once."""

    def location(self, output: Tensor) -> Tensor:
        """Expected pixel value (B, C, H, W), to look at and to take residuals against."""
        return output

    def aligned(self, image: Tensor, output: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        """``output`` in the orientation of the stamp; as it is, where the two have but one."""
        return output

    @property
    def of_one_orientation(self) -> Likelihood:
        """The density of a stamp whose orientation is known: pixel by pixel."""
        return self

    def learned(self) -> dict[str, Tensor]:
        """What was learned, by name, each (C,); left on the device."""
        return {}

    def describe(self) -> dict[str, list[float]]:
        """What was learned, by name, one number per band; for logs."""
        return {name: values.tolist() for name, values in self.learned().items()}


class _Scale(nn.Module):
    """One positive number per band, learned from squared residuals in closed form or by gradient.

    In closed form it is the running root of the mean squared residual: the maximum of a Gaussian
    likelihood for fixed outputs (Rybkin et al. 2021, "optimal sigma"), averaged over batches so
    that training and evaluation use the same number. It starts at the first batch's value.

    Parameters
    ----------
    group : str
        Config key prefix for messages.
    n_bands : int
        C.
    learn : {"closed_form", "gradient"}
        How.
    momentum : float
        Share of the old mean square kept at each batch, between 0 and 1.
    """

    FLOOR = 1e-6
    """Smallest mean square, so that a perfect reconstruction has a finite density."""

    log_std: nn.Parameter
    mean_square: Tensor
    n_updates: Tensor

    def __init__(self, group: str, n_bands: int, learn: str, momentum: float = 0.98) -> None:
        super().__init__()
        self.learn = check_choice(f"{group}.learn", learn, ("closed_form", "gradient"))
        self.momentum = momentum
        if self.learn == "gradient":
            self.log_std = nn.Parameter(torch.zeros(n_bands))
        else:
            self.register_buffer("mean_square", torch.ones(n_bands))
        self.register_buffer("n_updates", torch.zeros(n_bands, dtype=torch.long))
        self._known_to_have_started = self.learn == "closed_form"

    @property
    def started(self) -> bool:
        """Whether a first batch has been seen, where it is needed.

        The device is asked no more once it has said so.
        """
        if not self._known_to_have_started:
            self._known_to_have_started = bool(self.n_updates.any())
        return self._known_to_have_started

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._known_to_have_started = self.learn == "closed_form"

    def forward(self) -> Tensor:
        """The scale, shape (C, 1, 1)."""
        log_std = self.log_std if self.learn == "gradient" else 0.5 * self.mean_square.log()
        return log_std.exp()[:, None, None]

    @torch.no_grad()
    def observe(self, residual: Tensor, mask: Tensor) -> None:
        """Fold in the squared ``residual`` (B, C, H, W) of the good pixels."""
        if self.learn == "gradient":
            self.start(lambda: self.settle(gather(residual), gather(mask)))
            return
        squared = residual.square().where(mask, residual.new_zeros(()))
        totals = torch.stack([squared.sum((0, 2, 3)), mask.to(residual.dtype).sum((0, 2, 3))])
        totals = sum_over_ranks(totals)
        mean_square = (totals[0] / totals[1].clamp(min=1)).clamp(min=self.FLOOR)
        # a plain average until the window is full, so that the first batches are not half forgotten
        observed = (totals[1] > 0) & torch.isfinite(totals[0])
        self.n_updates += observed
        keep = torch.clamp(1 - 1 / self.n_updates.clamp(min=1), max=self.momentum)
        self.mean_square.copy_(
            torch.where(
                observed, keep * self.mean_square + (1 - keep) * mean_square, self.mean_square
            )
        )

    @torch.no_grad()
    def start(self, settle: Callable[[], None]) -> None:
        """At the first batch take the best scale: from 1, Adam would need thousands of steps.

        ``settle`` is to look at the whole batch, not only at the part that this process has.
        """
        if self.started:
            self.n_updates.clamp_(min=1)  # a step that is taken again has set it back
            return
        settle()
        self.n_updates += 1
        self._known_to_have_started = True

    @torch.no_grad()
    def settle(self, residual: Tensor, mask: Tensor) -> None:
        """Take the root of the mean squared ``residual`` (B, C, H, W) of the good pixels."""
        squared = residual.square().where(mask, residual.new_zeros(()))
        n_good = mask.sum((0, 2, 3)).clamp(min=1)
        mean_square = (squared.sum((0, 2, 3)) / n_good).clamp(min=self.FLOOR)
        if self.learn == "gradient":
            self.log_std.copy_(0.5 * mean_square.log())
        else:
            self.mean_square.copy_(mean_square)


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
        self.scale = _Scale("likelihood", n_bands, learn)

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
        self.inflation = _Scale("likelihood", n_bands, learn)

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
        self.scale = _Scale("likelihood", n_bands, "gradient")
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
        return _sum_good(log_density, mask)

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
            self.scale.log_std.copy_(0.5 * mean.clamp(min=_Scale.FLOOR).log())

    def learned(self) -> dict[str, Tensor]:
        """``scale`` in units of the normalised image."""
        return {"scale": self.scale().flatten()}


class Bernoulli(Likelihood):
    """Pixels between 0 and 1; the decoder emits logits.

    Parameters
    ----------
    kind : {"continuous", "binary"}
        ``continuous``: the density that Bernoulli cross-entropy lacks the constant of
        (Loaiza-Ganem & Cunningham 2019). ``binary``: the plain probability, for pixels that are
        exactly 0 or 1.
    """

    pixel_range = (0.0, 1.0)

    def __init__(self, *, kind: str = "continuous") -> None:
        super().__init__()
        self.kind = check_choice("likelihood.kind", kind, ("continuous", "binary"))

    def log_prob(self, image: Tensor, output: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        """See `Likelihood`.

        Raises
        ------
        InputError
            If a good pixel lies outside 0 to 1.
        """
        # masked pixels are 0 by contract, so the extremes of the whole tensor will do
        self.check_range(*(float(bound) for bound in image.aminmax()))
        return self.log_density(image, output, mask, noise)

    def check_range(self, low: float, high: float) -> None:
        """See `Likelihood`."""
        if low < 0 or high > 1:
            raise InputError(
                f"likelihood=bernoulli needs pixels between 0 and 1, got {low:g} to {high:g}; "
                "set data.normalize.stretch=minmax or choose another likelihood"
            )

    def log_density(self, image: Tensor, output: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        """See `Likelihood`."""
        if self.kind == "continuous":
            # the same as x logit - log(...) of the paper, written around x = 1/2: no overflow
            log_density = output * (image - 0.5) - log_sinhc(0.5 * output)
        else:
            log_density = -F.binary_cross_entropy_with_logits(output, image, reduction="none")
        return _sum_good(log_density, mask)

    def location(self, output: Tensor) -> Tensor:
        """Mean of the density."""
        if self.kind == "continuous":
            return 0.5 + 0.5 * langevin(0.5 * output)
        return output.sigmoid()


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
        squared = _sum_good((image - output).square(), mask)
        return -squared / mask.flatten(1).sum(1).clamp(min=1)


LIKELIHOODS: dict[str, Callable[..., Likelihood]] = {
    "gaussian": FixedGaussian,
    "sigma": SharedGaussian,
    "noise": NoiseGaussian,
    "student_t": StudentT,
    "bernoulli": Bernoulli,
    "pixel_mean_mse": PixelMeanMSE,
}


def _sum_good(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of ``values`` (B, C, H, W) over the pixels of ``mask``, shape (B,)."""
    return values.where(mask, values.new_zeros(())).flatten(1).sum(1)


def _gaussian_log_prob(residual: Tensor, std: Tensor, mask: Tensor) -> Tensor:
    """Normalised Gaussian log-density of the good pixels, shape (B,), in nats."""
    return _sum_good(-0.5 * ((residual / std).square() + 2 * std.log() + LOG_2PI), mask)
