"""One batch through encoder, sampling, decoder and objective, as functions of tensors alone.

Nothing is drawn, logged or read back from the device here, and numbers that change from step to
step come as tensors. So a step does not wait for its device, and can be compiled once for a run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vae_astro.data.batches import Batch
from vae_astro.data.normalize import Normalizer
from vae_astro.data.stamp import SMALLEST_STAMP
from vae_astro.errors import InputError
from vae_astro.model.focus import build_likelihood
from vae_astro.model.likelihoods import Likelihood
from vae_astro.model.networks import NETWORKS, Network, with_defaults
from vae_astro.model.orientation import OrientationMarginal
from vae_astro.model.posterior import DiagonalGaussian
from vae_astro.model.priors import PRIORS, Prior
from vae_astro.objective.beta import RatePenalty, Schedule
from vae_astro.objective.elbo import Elbo
from vae_astro.objective.geco import Geco, chi2_per_pixel
from vae_astro.settings import build, construct

__all__ = [
    "Evaluated",
    "Parts",
    "StampScores",
    "Trained",
    "Weights",
    "build_parts",
    "check_stamps",
    "weights_at",
]


PREPARED_BYTES = 2**29
"""Of pixels that are held at once before the first step; a few copies are made of them."""


class Weights(NamedTuple):
    """What the KL costs at one step: scalars on the device of the batch.

    Attributes
    ----------
    beta : Tensor
        Its weight, the likelihood's own included; where a controller moves it, that own weight.
    capacity_nats : Tensor or None
        As `RatePenalty` has it.
    controller : Tensor or None
        `Geco.state` before the step.
    """

    beta: Tensor
    capacity_nats: Tensor | None
    controller: Tensor | None


class Trained(NamedTuple):
    """What one training step gives.

    Attributes
    ----------
    loss : Tensor, scalar
        To minimise; alone has a gradient.
    reconstruction, kl, beta : Tensor, scalar
        Means over the batch of what `Elbo` has, and the weight of the KL.
    controller : Tensor or None
        `Geco.state` after the step.
    """

    loss: Tensor
    reconstruction: Tensor
    kl: Tensor
    beta: Tensor
    controller: Tensor | None


class Evaluated(NamedTuple):
    """What `StampScores` holds, as tensors."""

    mean: Tensor
    log_var: Tensor
    reconstruction: Tensor
    kl_per_unit: Tensor
    location: Tensor
    chi2_per_pixel: Tensor


@dataclass(frozen=True)
class StampScores:
    """What the model says of each stamp of a batch, at beta = 1.

    Attributes
    ----------
    posterior : DiagonalGaussian
        Mean and log-variance, (B, Z).
    elbo : Elbo
        Log-density of the pixels at one posterior sample, and KL per unit, in nats.
    location : Tensor, shape (B, C, H, W)
        Expected pixels at the posterior mean, normalised, as the stamp lies.
    chi2_per_pixel : Tensor, shape (B,)
        Mean over the good pixels of the squared residual at the posterior mean, in units of the
        pixel noise (`Normalizer.residual`): near 1 where the stamp is explained down to its noise.
    """

    posterior: DiagonalGaussian
    elbo: Elbo
    location: Tensor
    chi2_per_pixel: Tensor


class Parts:
    """The modules of a model, and what they do together; holds no weight of its own.

    Parameters
    ----------
    network, likelihood, prior, normalizer
        Of a `VAE`.
    """

    def __init__(
        self,
        network: Network,
        likelihood: Likelihood,
        prior: Prior,
        normalizer: Normalizer,
    ) -> None:
        self.network = network
        self.likelihood = likelihood
        self.prior = prior
        self.normalizer = normalizer

    @property
    def wants_stamps(self) -> bool:
        """Whether `prepare` looks at any."""
        return self.network.wants_stamps or self.likelihood.wants_stamps

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Let network and likelihood look at training stamps, before the first step.

        They come in random order: large ones are looked at until `PREPARED_BYTES` of pixels.
        """
        if not self.wants_stamps:
            return
        held: list[Batch] = []
        n_bytes = 0
        for batch in batches:
            held.append(batch)
            n_bytes += batch["image"].nbytes
            if n_bytes >= PREPARED_BYTES:
                break
        self.network.prepare(held)
        self.likelihood.prepare(held)

    def train(
        self,
        image: Tensor,
        mask: Tensor,
        noise: Tensor,
        eps: Tensor,
        weights: Weights,
        free_bits_nats: float,
        controller: Geco | None,
        observes: bool,
    ) -> Trained:
        """Loss of a batch; buffers that are learned in closed form move on the way.

        Parameters
        ----------
        image, mask, noise : Tensor, shape (B, C, H, W)
            The batch.
        eps : Tensor, shape (B, Z)
            Standard normal noise.
        weights : Weights
            Of the KL.
        free_bits_nats : float
            As `RatePenalty` has it.
        controller : Geco or None
            What moves beta.
        observes : bool
            Whether the decoder learns in this step, and what follows its residuals with it.
        """
        posterior = self.network.encode(image)
        output = self.network.decode(self.network.sample(posterior, eps))
        self.prior.observe(posterior)
        beta, state = weights.beta, weights.controller
        if observes:
            with torch.no_grad():
                seen = output.detach()
                self.likelihood.observe(image, seen, mask, noise)
                if controller is not None and state is not None:
                    chi2 = self._chi2(image, self._location(image, seen, mask, noise), mask, noise)
                    state = controller.moved(state, chi2)
        if state is not None:
            beta = beta * state[0].to(beta.dtype)
        elbo = Elbo(
            self.likelihood.training_term(image, output, mask, noise),
            self.prior.divergence(posterior, eps),
        )
        penalty = RatePenalty(beta, free_bits_nats, weights.capacity_nats)  # type: ignore[arg-type]
        loss = elbo.loss(penalty)
        means = elbo.reconstruction.detach().mean(), elbo.kl.detach().mean()
        return Trained(loss, *means, beta, state)

    def evaluate(self, image: Tensor, mask: Tensor, noise: Tensor, eps: Tensor) -> Evaluated:
        """What the model says of a batch at beta = 1; shapes as in `train`."""
        posterior = self.network.encode(image)
        output = self.network.decode(self.network.sample(posterior, eps))
        reconstruction = self.likelihood.log_density(image, output, mask, noise)
        location = self._location(image, self.network.decode(posterior.mean), mask, noise)
        chi2 = self._chi2(image, location, mask, noise)
        kl = self.prior.divergence(posterior, eps)
        return Evaluated(*_both(posterior), reconstruction, kl, location, chi2)

    def _location(self, image: Tensor, output: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        """Expected pixels, as the stamp lies."""
        return self.likelihood.location(self.likelihood.aligned(image, output, mask, noise))

    def _chi2(self, image: Tensor, location: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        return chi2_per_pixel(self.normalizer.residual(image, location, noise), mask)


def check_stamps(
    stamp_shape: Sequence[int], band_names: Sequence[str] | None
) -> tuple[tuple[int, int, int], list[str]]:
    """Shape (C, H, W) that a model is made for, and the names of its bands.

    Raises
    ------
    InputError
        Stamps that are not square, or too small; more or fewer names than bands.
    """
    try:
        n_bands, height, width = (int(n) for n in stamp_shape)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"stamp_shape must be (bands, height, width), got {stamp_shape!r}"
        ) from error
    if height != width or height < SMALLEST_STAMP:
        raise InputError(
            f"stamps are {height}x{width}; they must be square and at least {SMALLEST_STAMP} "
            "pixels wide: set data.size"
        )
    names = list(band_names or (f"band{band}" for band in range(n_bands)))
    if n_bands < 1 or len(names) != n_bands:
        raise InputError(
            f"stamp_shape has {n_bands} bands, band_names {len(names)}: {', '.join(names)}"
        )
    return (n_bands, height, width), names


def build_parts(
    stamp_shape: tuple[int, int, int],
    model: Mapping[str, Any] | None,
    likelihood: Mapping[str, Any] | None,
    prior: Mapping[str, Any] | None,
    normalize: Mapping[str, Any] | None,
) -> Parts:
    """The modules that these settings name, fitted to one another.

    Parameters
    ----------
    stamp_shape : tuple of int
        C, H, W; see `check_stamps`.
    model, likelihood, prior, normalize : mapping or None
        As `VAE` has them.

    Raises
    ------
    InputError
        A setting that is unknown or out of range.
    """
    n_bands, size, _ = stamp_shape
    normalizer = construct("data.normalize", Normalizer, normalize or {})
    of_stamps: dict[str, Any] = {"n_bands": n_bands, "size": size, "normalizer": normalizer}
    network = build("model", NETWORKS, with_defaults(model), **of_stamps)
    density = build_likelihood(likelihood or {"name": "sigma"}, **of_stamps)
    if network.any_orientation:
        density = OrientationMarginal(density)
    code = build(
        "prior",
        PRIORS,
        prior or {"name": "standard"},
        latent_dim=network.latent_dim,
        stamp_shape=stamp_shape,
        clustered_units=network.clustered_units,
    )
    code.attach(network)
    return Parts(network, density, code, normalizer)


def _both(posterior: DiagonalGaussian) -> tuple[Tensor, Tensor]:
    return posterior.mean, posterior.log_var


def weights_at(step: int, schedule: Schedule, kl_weight: float, device: torch.device) -> Weights:
    """Of optimiser step ``step``, on ``device``; nothing is copied there but in the first step."""
    if schedule.controller is not None:
        own = torch.full((), kl_weight, device=device)
        return Weights(own, None, schedule.controller.state_on(device))
    penalty = schedule(step)
    # filled on the device: a tensor made from a number would be copied there, and waited for
    capacity_nats = None
    if penalty.capacity_nats is not None:
        capacity_nats = torch.full((), penalty.capacity_nats, device=device)
    return Weights(torch.full((), penalty.beta * kl_weight, device=device), capacity_nats, None)
