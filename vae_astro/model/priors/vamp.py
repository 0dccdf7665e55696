"""A prior made of posteriors: of stamps that are learned (VampPrior)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vae_astro.errors import InputError
from vae_astro.model.networks import Network
from vae_astro.model.posterior import DiagonalGaussian
from vae_astro.model.priors.base import Prior
from vae_astro.model.priors.components import (
    component_log_density,
    cost_per_unit,
    gaussian_costs,
)
from vae_astro.settings import check_int

__all__ = ["VampPrior"]

MOST_PSEUDO_INPUTS = 10_000
"""Beyond which a number is taken for a slip."""

log = logging.getLogger(__name__)


class VampPrior(Prior):
    r""":math:`p(z) = \frac1K \sum_k q(z|u_k)` with pseudo-inputs :math:`u_k` that are learned.

    Tomczak & Welling (2018). The pseudo-inputs start as training stamps and go through the encoder
    at every step, which costs as much as K stamps more in a batch there.

    The KL term of the bound is that of a single draw, :math:`\ln q(z|x) - \ln p(z)`: right on
    average over draws, and negative for some stamps. `kl_per_unit`, which has no draw, is a bound
    on it from above.

    Parameters
    ----------
    latent_dim : int
        Z.
    stamp_shape : sequence of int
        C, H, W.
    n_pseudo_inputs : int
        K.

    Raises
    ------
    InputError
        A setting out of range.
    """

    name = "vamp"
    learns = True
    draws = True
    starts_from = "stamps"

    def __init__(
        self, latent_dim: int, stamp_shape: Sequence[int], n_pseudo_inputs: int = 64
    ) -> None:
        super().__init__(latent_dim)
        check_int("prior.n_pseudo_inputs", n_pseudo_inputs, minimum=1, maximum=MOST_PSEUDO_INPUTS)
        self.n_pseudo_inputs = n_pseudo_inputs
        self.pseudo_inputs = nn.Parameter(torch.zeros(n_pseudo_inputs, *stamp_shape))
        self.register_buffer("started", torch.tensor(False))
        self.register_buffer("epoch", torch.tensor(-1))
        self._encode: Callable[[Tensor], DiagonalGaussian] | None = None

    def attach(self, network: Network) -> None:
        """See `Prior`; the encoder stays the network's own."""
        super().attach(network)
        self._encode = network.encode  # a method, so that no weight is there twice

    def components(self) -> DiagonalGaussian:
        """Posteriors of the pseudo-inputs, (K, Z)."""
        assert self._encode is not None, "attach() comes first"
        return self._encode(self.pseudo_inputs)

    @property
    def log_weights(self) -> Tensor:
        """Logs of the weights, shape (K,)."""
        uniform = torch.zeros(self.n_pseudo_inputs, device=self.pseudo_inputs.device)
        return uniform - math.log(self.n_pseudo_inputs)

    def kl_per_unit(self, posterior: DiagonalGaussian) -> Tensor:
        """A bound on the divergence, in closed form, shape (B, Z); see `components`."""
        parts = self.components()
        cost = gaussian_costs(posterior.mean, posterior.log_var, parts.mean, parts.log_var)
        return cost_per_unit(cost, self.log_weights)[0]

    def divergence(self, posterior: DiagonalGaussian, eps: Tensor) -> Tensor:
        """:math:`\\ln q(z|x) - \\ln p(z)` of the draw with ``eps``, unit by unit, (B, Z)."""
        parts = self.components()
        own = -0.5 * (eps.square() + posterior.log_var + math.log(2 * math.pi))
        theirs = component_log_density(posterior.sample(eps), parts.mean, parts.log_var)
        return cost_per_unit(own[:, None] - theirs, self.log_weights)[0]

    def log_density(self, z: Tensor) -> Tensor:
        """See `Prior`."""
        return self._joint(z).logsumexp(-1)

    def responsibilities(self, z: Tensor) -> Tensor:
        """Probability of each pseudo-input given codes ``z`` (..., Z), shape (..., K)."""
        return torch.softmax(self._joint(z), dim=-1)

    def _joint(self, z: Tensor) -> Tensor:
        parts = self.components()
        return self.log_weights + component_log_density(z, parts.mean, parts.log_var).sum(-1)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """See `Prior`."""
        device = torch.device("cpu") if generator is None else generator.device
        z = torch.randn(n, self.latent_dim, generator=generator, device=device)
        chosen = torch.randint(self.n_pseudo_inputs, (n,), generator=generator, device=device)
        parts = self.components()
        return parts.mean.to(device)[chosen] + parts.std.to(device)[chosen] * z

    @torch.no_grad()
    def unit_std(self) -> Tensor:
        """See `Prior`."""
        parts = self.components()
        return (parts.log_var.exp().mean(0) + parts.mean.var(0, correction=0)).sqrt()

    # -- epoch by epoch ----------------------------------------------------------------------

    def check_run(self, n_stamps: int | None, n_epochs: int) -> None:
        """See `Prior`."""
        if n_stamps is not None and n_stamps < self.n_pseudo_inputs:
            raise InputError(
                f"prior.n_pseudo_inputs={self.n_pseudo_inputs}, but there are {n_stamps} training "
                "stamps to start from; set fewer"
            )

    def n_wanted(self, epoch: int, n_epochs: int) -> int:
        """See `Prior`."""
        return 0 if self.started else self.n_pseudo_inputs

    @torch.no_grad()
    def begin_epoch(self, epoch: int, n_epochs: int, shown: Tensor | None) -> bool:
        """See `Prior`: before the first step the pseudo-inputs become training stamps."""
        self.epoch.fill_(epoch)
        if shown is None:
            return False
        self.check_run(len(shown), n_epochs)
        self.pseudo_inputs.copy_(shown)
        self.started.fill_(True)
        log.info("prior: %d training stamps are the first pseudo-inputs", self.n_pseudo_inputs)
        return True

    def as_dict(self) -> dict[str, Any]:
        """See `Prior`."""
        return {"name": self.name, "n_pseudo_inputs": self.n_pseudo_inputs}

    def extra_repr(self) -> str:
        return f"n_pseudo_inputs={self.n_pseudo_inputs}"
