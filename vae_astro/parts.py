"""One batch through encoder, sampling, decoder and objective, as functions of tensors alone.

Nothing is drawn, logged or read back from the device here, and numbers that change from step to
step come as tensors. So a step does not wait for its device, and can be compiled once for a run.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vae_astro.data.normalize import Normalizer
from vae_astro.model.likelihoods import Likelihood
from vae_astro.model.networks import Network
from vae_astro.model.posterior import DiagonalGaussian
from vae_astro.model.priors import Prior
from vae_astro.objective.beta import RatePenalty, Schedule
from vae_astro.objective.elbo import Elbo
from vae_astro.objective.geco import Geco, chi2_per_pixel

__all__ = ["Evaluated", "Parts", "Trained", "Weights", "weights_at"]


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
