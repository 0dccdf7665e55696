"""A mixture of Gaussians as a prior: a code that falls into classes by itself (VaDE)."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from vae_astro.errors import InputError
from vae_astro.model.posterior import DiagonalGaussian
from vae_astro.model.priors.base import Prior, standard_log_density
from vae_astro.model.priors.components import (
    component_log_density,
    cost_per_unit,
    gaussian_costs,
)
from vae_astro.model.priors.fit import (
    FEWEST_TO_SPLIT,
    Components,
    fit_components,
    split_component,
)
from vae_astro.objective.kl import gaussian_kl_per_unit
from vae_astro.ranks import mean_over_ranks
from vae_astro.settings import check_choice, check_int, check_number

__all__ = ["MixturePrior"]

MOST_COMPONENTS = 1000
"""Beyond which a number is taken for a slip."""
MOST_FITTED = 4096
"""Training stamps that a mixture is fitted to."""
WARMUP_SHARE = 0.3
"""Of the run, where no length is given."""
LAST_RESEED = 0.8
"""Share of the run after which a component is not re-seeded: it would not come to anything."""

log = logging.getLogger(__name__)


class MixturePrior(Prior):
    r""":math:`p(z) = \sum_c \pi_c \mathcal N(z; m_c, \mathrm{diag}(v_c))`, learned with the rest.

    VaDE (Jiang et al. 2017): a unit Gaussian for the first epochs, until the code says something;
    then a mixture fitted to codes of training stamps, and from there on weights, means and
    variances follow the gradient of the bound. The divergence is VaDE's, with the best
    :math:`q(c|x)` in closed form instead of one from a single draw: see `components`.

    Components that hold hardly any stamp are noticed at the end of an epoch, said, and given half
    of the largest.

    Parameters
    ----------
    latent_dim : int
        Z.
    n_components : int
        K.
    warmup_epochs : int, optional
        Epochs under a unit Gaussian; 0.3 of the run where absent.
    min_std : float
        Floor of the width of each component in each unit, so that none shrinks onto a point.
    on_dead : {"reseed", "leave"}
        What is done about a component that holds too little, while less than 0.8 of the run is
        over.
    dead_fraction : float
        Share of the training stamps that is too little.
    clustered_units : sequence of int, optional
        Units that the components differ in; the others keep a unit Gaussian. All, where absent.

    Raises
    ------
    InputError
        A setting out of range.
    """

    name = "mixture"
    learns = True
    occupied: Tensor
    n_batches: Tensor
    n_reseeded: Tensor
    clustered: Tensor

    def __init__(
        self,
        latent_dim: int,
        n_components: int = 10,
        warmup_epochs: int | None = None,
        min_std: float = 0.05,
        on_dead: str = "reseed",
        dead_fraction: float = 0.002,
        clustered_units: Sequence[int] | None = None,
    ) -> None:
        super().__init__(latent_dim)
        self.n_components = check_int(
            "prior.n_components", n_components, minimum=1, maximum=MOST_COMPONENTS
        )
        if warmup_epochs is not None:
            check_int("prior.warmup_epochs", warmup_epochs, minimum=0)
        self.warmup_epochs = warmup_epochs
        self.min_std = check_number("prior.min_std", min_std, above=0, maximum=0.5)
        self.on_dead = check_choice("prior.on_dead", on_dead, ("reseed", "leave"))
        self.dead_fraction = check_number(
            "prior.dead_fraction", dead_fraction, minimum=0, maximum=0.5
        )
        units = range(latent_dim) if clustered_units is None else clustered_units
        n_units = len(units)
        self.is_of_all_units = n_units == latent_dim
        self.register_buffer("clustered", torch.tensor(list(units)), persistent=False)
        self.logits = nn.Parameter(torch.zeros(n_components))
        self.means = nn.Parameter(torch.zeros(n_components, n_units))
        self.raw_log_vars = nn.Parameter(
            self._raw(torch.zeros(n_components, n_units, dtype=torch.float64)).float()
        )
        self.register_buffer("started", torch.tensor(False))
        self.register_buffer("epoch", torch.tensor(-1))
        self.register_buffer("occupied", torch.zeros(n_components))
        self.register_buffer("n_batches", torch.tensor(0))
        self.register_buffer("n_reseeded", torch.tensor(0))
        self._said_dead: list[int] = []

    # -- parameters --------------------------------------------------------------------------

    @property
    def _floor(self) -> float:
        return 2 * math.log(self.min_std)

    def _raw(self, log_vars: Tensor) -> Tensor:
        """What `log_vars` makes these of."""
        above = (log_vars - self._floor).clamp(min=0.1)  # at the floor itself no gradient is left
        return self._floor + above + torch.log(-torch.expm1(-above))

    @property
    def log_vars(self) -> Tensor:
        """Log-variances of the components, shape (K, Z of the clustered units)."""
        # a softplus and no clamp: at a clamp the gradient would be lost
        return self._floor + F.softplus(_wide(self.raw_log_vars) - self._floor)

    @property
    def log_weights(self) -> Tensor:
        """Logs of the weights, shape (K,)."""
        return torch.log_softmax(_wide(self.logits), dim=0)

    @torch.no_grad()
    def set_components(self, components: Components) -> None:
        """Take these components, and end the warm-up."""
        weights, means, variances = (torch.from_numpy(values) for values in components)
        tiny = torch.finfo(torch.float32).tiny
        self.logits.copy_(weights.clamp(min=tiny).log())
        self.means.copy_(means)
        self.raw_log_vars.copy_(self._raw(variances.log()))
        self.started.fill_(True)

    def _components(self) -> Components:
        values = (self.log_weights.exp(), self.means, self.log_vars.exp())
        return Components(*(value.detach().cpu().double().numpy() for value in values))

    # -- nats --------------------------------------------------------------------------------

    def kl_per_unit(self, posterior: DiagonalGaussian) -> Tensor:
        """VaDE's bound on the divergence, in closed form, shape (B, Z); see `components`.

        During the warm-up the divergence from a unit Gaussian.
        """
        standard = gaussian_kl_per_unit(posterior.mean, posterior.log_var)
        ours, _ = cost_per_unit(self._costs(posterior), self.log_weights)
        if not self.is_of_all_units:
            ours = standard.index_copy(1, self.clustered, ours)
        return torch.where(self.started, ours, standard)

    def categories(self, posterior: DiagonalGaussian) -> Tensor:
        r"""Probability of each component given the posterior, shape (B, K).

        The :math:`q(c|x)` of the bound: :math:`\propto \pi_c e^{-\mathrm{KL}(q\|p_c)}`. All alike
        during the warm-up.
        """
        gamma = torch.softmax(self.log_weights - self._costs(posterior).sum(2), dim=1)
        return self._known(gamma)

    def responsibilities(self, z: Tensor) -> Tensor:
        """:math:`p(c|z)` for codes ``z`` (..., Z), shape (..., K); all alike in the warm-up."""
        return self._known(torch.softmax(self._joint(z), dim=-1))

    def log_density(self, z: Tensor) -> Tensor:
        """See `Prior`; that of a unit Gaussian during the warm-up."""
        standard = standard_log_density(z)
        ours = self._joint(z).logsumexp(-1)
        if not self.is_of_all_units:
            others = torch.ones_like(z).index_fill(-1, self.clustered, 0)
            ours = ours + (others * standard).sum(-1)
        return torch.where(self.started, ours, standard.sum(-1))

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """See `Prior`."""
        device = torch.device("cpu") if generator is None else generator.device
        z = torch.randn(n, self.latent_dim, generator=generator, device=device)
        if not self.started:
            return z
        weights = self.log_weights.exp().to(device)
        chosen = torch.multinomial(weights, n, replacement=True, generator=generator)
        clustered = self.clustered.to(device)
        means, std = self.means.to(device), torch.exp(0.5 * self.log_vars).to(device)
        drawn = means[chosen] + std[chosen] * z[:, clustered]
        return z.index_copy(1, clustered, drawn.to(z.dtype))

    @torch.no_grad()
    def unit_std(self) -> Tensor:
        """See `Prior`."""
        weights = self.log_weights.exp()[:, None]
        means = _wide(self.means)
        centre = (weights * means).sum(0)
        spread = (weights * (self.log_vars.exp() + (means - centre).square())).sum(0)
        ones = torch.ones(self.latent_dim, dtype=spread.dtype, device=spread.device)
        return torch.where(self.started, ones.index_copy(0, self.clustered, spread.sqrt()), ones)

    def _costs(self, posterior: DiagonalGaussian) -> Tensor:
        """Divergence of the clustered units from each component, shape (B, K, Z of those)."""
        mean, log_var = posterior.mean, posterior.log_var
        if not self.is_of_all_units:
            mean, log_var = (value.index_select(1, self.clustered) for value in (mean, log_var))
        return gaussian_costs(mean, log_var, _wide(self.means), self.log_vars)

    def _joint(self, z: Tensor) -> Tensor:
        """Log of weight times density of the clustered units, shape (..., K)."""
        if not self.is_of_all_units:
            z = z.index_select(-1, self.clustered)
        density = component_log_density(z, _wide(self.means), self.log_vars)
        return self.log_weights + density.sum(-1)

    def _known(self, probabilities: Tensor) -> Tensor:
        alike = torch.full_like(probabilities, 1 / self.n_components)
        return torch.where(self.started, probabilities, alike)

    # -- epoch by epoch ----------------------------------------------------------------------

    @torch.no_grad()
    def observe(self, posterior: DiagonalGaussian) -> None:
        """Add to what each component holds in this epoch, over all processes."""
        self.occupied += mean_over_ranks(self.categories(posterior).mean(0))
        self.n_batches += 1

    @property
    def shares(self) -> list[float] | None:
        """Share of the stamps since the epoch began that each component holds; None in warm-up."""
        if not (self.started and self.n_batches):
            return None
        return (self.occupied / self.n_batches).tolist()

    @property
    def dead(self) -> list[int]:
        """Components that hold less than ``dead_fraction`` of the stamps of this epoch."""
        return [c for c, share in enumerate(self.shares or ()) if share < self.dead_fraction]

    def warmup(self, n_epochs: int) -> int:
        """Epochs under a unit Gaussian in a run of ``n_epochs``."""
        if self.warmup_epochs is not None:
            return self.warmup_epochs
        return max(1, round(WARMUP_SHARE * n_epochs))

    def check_run(self, n_stamps: int | None, n_epochs: int) -> None:
        """See `Prior`."""
        if n_stamps is not None and n_stamps < self.n_components:
            raise InputError(
                f"prior.n_components={self.n_components}, but there are {n_stamps} training "
                "stamps; set fewer components"
            )
        if self.n_components == 1:
            log.warning("prior.n_components=1: a single Gaussian, which sorts nothing")
        if not self.started and self.warmup(n_epochs) >= n_epochs:
            log.warning(
                "prior.warmup_epochs=%d, and the run has %d: the mixture never starts, the prior "
                "stays a unit Gaussian; set fewer",
                self.warmup(n_epochs),
                n_epochs,
            )

    def n_wanted(self, epoch: int, n_epochs: int) -> int:
        """See `Prior`."""
        if not self.started:
            return MOST_FITTED if epoch >= self.warmup(n_epochs) else 0
        return MOST_FITTED if self._reseeds(epoch, n_epochs) and self.dead else 0

    def _reseeds(self, epoch: int, n_epochs: int) -> bool:
        return self.on_dead == "reseed" and epoch < LAST_RESEED * n_epochs

    def begin_epoch(self, epoch: int, n_epochs: int, shown: Tensor | None) -> bool:
        """See `Prior`: fit the mixture, or see to the components that died."""
        dead, changed = self.dead, False
        if shown is None:
            self._say(dead, "left as they are")
        else:
            codes = shown[:, self.clustered].double().cpu().numpy()
            changed = self._reseed(codes, dead) if self.started else self._start(codes)
        self.epoch.fill_(epoch)
        self.occupied.zero_()
        self.n_batches.zero_()
        return changed

    def _start(self, codes: np.ndarray) -> bool:
        if len(codes) < self.n_components:
            raise InputError(
                f"prior.n_components={self.n_components}, but there are {len(codes)} training "
                "stamps; set fewer components"
            )
        fitted = fit_components(codes, self.n_components, self.min_std)
        self.set_components(fitted)
        held = np.sort(fitted.weights)[::-1]
        log.info(
            "prior: the warm-up is over; %d components fitted to %d codes hold %s %%",
            self.n_components,
            len(codes),
            ", ".join(f"{100 * share:.1f}" for share in held),
        )
        return True

    def _reseed(self, codes: np.ndarray, dead: list[int]) -> bool:
        """Split the largest component for each that died."""
        revived = []
        for which in dead:
            z = self.means.new_tensor(codes)
            members = self._members(z)
            largest = int(np.bincount(members, minlength=self.n_components).argmax())
            if (members == largest).sum() < FEWEST_TO_SPLIT or largest == which:
                continue
            self.set_components(
                split_component(self._components(), codes, members, largest, which, self.min_std)
            )
            revived.append(which)
        self.n_reseeded += len(revived)
        self._say(dead, f"re-seeded: {', '.join(map(str, revived)) or 'none'}")
        return bool(revived)

    @torch.no_grad()
    def _members(self, clustered: Tensor) -> np.ndarray:
        """The likeliest component of codes of the clustered units alone."""
        density = component_log_density(clustered, _wide(self.means), self.log_vars).sum(-1)
        return (self.log_weights + density).argmax(-1).cpu().numpy()

    def _say(self, dead: list[int], done: str) -> None:
        if dead and dead != self._said_dead:
            log.warning(
                "prior: components %s hold less than %.3g %% of the stamps (%s); prior.n_components"
                "=%d may be more than the stamps have",
                ", ".join(map(str, dead)),
                100 * self.dead_fraction,
                done,
                self.n_components,
            )
        self._said_dead = dead

    def figures(self) -> dict[str, float]:
        """See `Prior`."""
        shares = self.shares
        if shares is None:
            return {}
        return {
            "prior/components_alive": float(self.n_components - len(self.dead)),
            "prior/smallest_share": min(shares),
            "prior/largest_share": max(shares),
            "prior/n_reseeded": float(self.n_reseeded),
        }

    def as_dict(self) -> dict[str, Any]:
        """See `Prior`."""
        return {
            "name": self.name,
            "started": bool(self.started),
            "n_components": self.n_components,
            "shares": self.shares,
            "n_dead": None if self.shares is None else len(self.dead),
            "n_reseeded": int(self.n_reseeded),
        }

    def extra_repr(self) -> str:
        return f"n_components={self.n_components}, min_std={self.min_std:g}"


def _wide(values: Tensor) -> Tensor:
    """In float32 at least, whatever the weights are kept in."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
