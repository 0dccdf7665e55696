"""What every prior can do, and the one that has nothing to learn."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vae_astro.errors import InputError
from vae_astro.model.minimum_rate import MinimumRate
from vae_astro.model.networks import Network
from vae_astro.model.posterior import DiagonalGaussian
from vae_astro.objective.kl import gaussian_kl_per_unit

__all__ = ["Prior", "StandardNormal", "standard_log_density"]


class Prior(nn.Module, ABC):
    """A density of the code, and the divergence of posteriors from it, in nats.

    What `divergence` gives sums over the units to the KL term of the bound, whatever the prior: who
    sums, clamps or plots it need not know which prior it is.

    Parameters
    ----------
    latent_dim : int
        Number of latent units Z.
    """

    name: str
    epoch: Tensor
    """Of a prior that learns: the last for which `begin_epoch` was called; a buffer."""
    started: Tensor
    """Of a prior that learns: whether it is what its name says yet; a buffer."""
    learns: bool = False
    """Whether it has parameters, and something to do at the beginning of an epoch."""
    draws: bool = False
    """Whether `divergence` looks at the noise."""
    starts_from: Literal["stamps", "codes"] = "codes"
    """What `begin_epoch` is shown of the training stamps."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim

    @abstractmethod
    def kl_per_unit(self, posterior: DiagonalGaussian) -> Tensor:
        """Divergence of the posterior in closed form, or a bound from above, shape (B, Z)."""

    def divergence(self, posterior: DiagonalGaussian, eps: Tensor) -> Tensor:
        """The KL term of the bound, shape (B, Z); here `kl_per_unit`.

        Parameters
        ----------
        posterior : DiagonalGaussian
            Of B stamps.
        eps : Tensor, shape (B, Z)
            The standard normal noise that their codes are drawn with, for a prior that `draws`.
        """
        return self.kl_per_unit(posterior)

    @abstractmethod
    def log_density(self, z: Tensor) -> Tensor:
        """Exact log-density of codes ``z`` (..., Z), shape (...,), in nats."""

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``n`` draws, shape (n, Z), on the generator's device (CPU without one)."""

    @abstractmethod
    def unit_std(self) -> Tensor:
        """Standard deviation of each unit under the prior, shape (Z,).

        What a posterior mean has to vary against to be active: a prior that is learned may take any
        scale.
        """

    def observe(self, posterior: DiagonalGaussian) -> None:
        """Take note of a training batch; nothing is read back from the device here."""

    def attach(self, network: Network) -> None:
        """Get to know the network that the codes are of.

        Raises
        ------
        InputError
            If the two do not go together.
        """
        if self.learns and isinstance(network.minimum_rate, MinimumRate):
            raise InputError(
                f"model.minimum_rate_nats keeps a distance from a unit Gaussian, and prior="
                f"{self.name} moves; set model.minimum_rate_nats=0 or prior=standard"
            )

    # -- at the beginning of an epoch --------------------------------------------------------

    def check_run(self, n_stamps: int | None, n_epochs: int) -> None:
        """Before training: raise `InputError` or warn of what ``n_epochs`` epochs cannot give.

        ``n_stamps`` is the number of training stamps, None where it is not known.
        """

    def n_wanted(self, epoch: int, n_epochs: int) -> int:
        """Training stamps that `begin_epoch` has to be shown; 0 for none."""
        return 0

    def begin_epoch(self, epoch: int, n_epochs: int, shown: Tensor | None) -> bool:
        """Do what is due before the first step of epoch ``epoch`` of ``n_epochs``.

        Parameters
        ----------
        epoch, n_epochs : int
            Which one, from 0, of how many.
        shown : Tensor or None
            Training stamps (N, C, H, W), or codes drawn of their posteriors (N, Z), as
            `starts_from` says; None where `n_wanted` is 0.

        Returns
        -------
        bool
            Whether parameters were set, so that moments of theirs mean nothing any more.
        """
        return False

    def figures(self) -> dict[str, float]:
        """What to log at the beginning of an epoch, of the epoch before."""
        return {}

    def as_dict(self) -> dict[str, Any]:
        """For ``metrics.json``: plain Python, None for what is not known."""
        return {"name": self.name}


class StandardNormal(Prior):
    r""":math:`p(z) = \mathcal N(0, I)`, without parameters (Kingma & Welling 2014).

    Parameters
    ----------
    latent_dim : int
        Number of latent units Z.
    """

    name = "standard"

    def kl_per_unit(self, posterior: DiagonalGaussian) -> Tensor:
        """Exact divergence of the posterior from the prior, shape (B, Z), in nats."""
        return gaussian_kl_per_unit(posterior.mean, posterior.log_var)

    def log_density(self, z: Tensor) -> Tensor:
        """See `Prior`."""
        return standard_log_density(z).sum(-1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """See `Prior`."""
        device = generator.device if generator is not None else None
        return torch.randn(n, self.latent_dim, generator=generator, device=device)

    def unit_std(self) -> Tensor:
        """Ones."""
        return torch.ones(self.latent_dim)


def standard_log_density(z: Tensor) -> Tensor:
    """Log-density of each number in ``z`` under a unit Gaussian, of the same shape."""
    return -0.5 * (z.square() + math.log(2 * math.pi))
