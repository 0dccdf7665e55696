"""Latent units that say nothing, taken out of a model without changing what it says.

An inactive unit has the same posterior mean for every stamp. Its mean is put in once and for all:
where the decoder is linear in the code, :math:`b \\to b + W_{:,i} c_i`, its column and its rows in
the encoder's heads go, and the prior becomes that of the units that stay (the exact marginal). The
decoder is then bit for bit linear algebra of what it was at :math:`z_i = c_i`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vae_astro.collapse.units import ACTIVE_VARIANCE
from vae_astro.errors import InputError
from vae_astro.export.places import Places, places_of
from vae_astro.model.priors import MixturePrior
from vae_astro.vae import VAE

__all__ = ["PrunedUnit", "Pruning", "prune"]

CLASS_CHANGE = 1e-3
"""Probability of a class of a mixture that pruning may move; a unit that moves more stays."""
BATCH = 256


@dataclass(frozen=True)
class PrunedUnit:
    """What was found of one latent unit, and what became of it.

    Attributes
    ----------
    unit : int
        Its number before.
    mean, variance : float
        Of its posterior mean over the stamps, the variance in units of the prior's.
    kl_nats : float
        Mean divergence from the prior.
    pruned : bool
    reason : str
        Why it went or stayed.
    """

    unit: int
    mean: float
    variance: float
    kl_nats: float
    pruned: bool
    reason: str


@dataclass(frozen=True)
class Pruning:
    """A model without its inactive units.

    Attributes
    ----------
    vae : VAE
        In evaluation mode; the one that was given, where no unit went.
    units : tuple of PrunedUnit
        All units of the model before.
    n_stamps : int
        That they were judged by.
    largest_change : float
        Of any pixel of any of these stamps' reconstructions, in normalised units.
    """

    vae: VAE
    units: tuple[PrunedUnit, ...]
    n_stamps: int
    largest_change: float

    @property
    def kept(self) -> list[int]:
        """Numbers of the units that stay, in their order after."""
        return [unit.unit for unit in self.units if not unit.pruned]

    def __str__(self) -> str:
        lines = ["unit  variance of the mean  KL in nats  became"]
        lines += [
            f"{u.unit:4d}  {u.variance:20.3g}  {u.kl_nats:10.3g}  "
            f"{'pruned' if u.pruned else 'stays'}: {u.reason}"
            for u in self.units
        ]
        n_pruned = len(self.units) - len(self.kept)
        lines.append(
            f"{n_pruned} of {len(self.units)} units pruned; over {self.n_stamps} stamps no pixel "
            f"of a reconstruction moved by more than {self.largest_change:.2g} (normalised)"
        )
        return "\n".join(lines)


@torch.no_grad()
def prune(vae: VAE, images: Iterable[Tensor], active_variance: float = ACTIVE_VARIANCE) -> Pruning:
    """Take the inactive units out of a model.

    Parameters
    ----------
    vae : VAE
        Not changed.
    images : iterable of Tensor, shape (B, C, H, W)
        Normalised stamps that activity is judged by; those of the model's own run, best. Gone
        through once, and held.
    active_variance : float
        A unit goes if its posterior mean varies by less than this over the stamps, in units of the
        prior's variance (Burda et al. 2016).

    Raises
    ------
    InputError
        Fewer than two stamps, or posteriors that are not finite.

    Notes
    -----
    At least one unit stays. Units that have a meaning of their own in a decoder (the pose of
    ``model.pose``; flux and background of ``model=rings``) stay, and so do units in which the
    components of a mixture prior tell classes apart. ``prior=vamp`` is pruned with its encoder.
    """
    vae = vae.eval()
    held = [part for image in images for part in image.to(vae.device).split(BATCH)]
    n_stamps = sum(map(len, held))
    if n_stamps < 2:
        raise InputError(f"prune=true judges units by stamps, and got {n_stamps}; give more")
    posteriors = [vae.network.encode(image) for image in held]
    means = torch.cat([posterior.mean for posterior in posteriors]).double().cpu()
    if not means.isfinite().all():
        raise InputError("prune=true: posteriors of this model are not finite; it cannot be judged")
    kl = torch.cat([vae.prior.kl_per_unit(posterior) for posterior in posteriors]).mean(0).cpu()
    center, variance = means.mean(0), means.var(0, correction=0)
    variance = variance / vae.prior.unit_std().double().cpu().square()
    places = places_of(vae)
    reasons = _reasons(vae, variance, active_variance, places, means)
    removed = [unit for unit, (goes, _) in enumerate(reasons) if goes]
    units = tuple(
        PrunedUnit(unit, float(center[unit]), float(variance[unit]), float(kl[unit]), goes, why)
        for unit, (goes, why) in enumerate(reasons)
    )
    if not removed:
        return Pruning(vae, units, n_stamps, 0.0)
    pruned = _without(vae, removed, center, places)
    change = max(float((_drawn(vae, image) - _drawn(pruned, image)).abs().max()) for image in held)
    return Pruning(pruned, units, n_stamps, change)


def _drawn(vae: VAE, image: Tensor) -> Tensor:
    return vae.decode(vae.network.encode(image).mean)


def _reasons(
    vae: VAE, variance: Tensor, limit: float, places: Places, means: Tensor
) -> list[tuple[bool, str]]:
    """For each unit whether it goes, and why."""
    found = []
    for unit, seen in enumerate(variance.tolist()):
        if unit in places.fixed:
            found.append((False, places.fixed[unit]))
        elif seen > limit:
            found.append((False, "active"))
        elif _moves_classes(vae, unit, means):
            found.append((False, "the components of prior=mixture differ in it"))
        else:
            found.append((True, "inactive"))
    for group in places.never_empty:
        if all(found[unit][0] for unit in group):
            found[group[0]] = (False, "one unit has to stay")
    return found


def _moves_classes(vae: VAE, unit: int, means: Tensor) -> bool:
    """Whether a class of a mixture is another one without this unit."""
    prior = vae.prior
    if not isinstance(prior, MixturePrior) or not prior.started:
        return False
    clustered = prior.clustered.tolist()
    if unit not in clustered:
        return False
    z = means.float().to(vae.device)
    column = clustered.index(unit)
    deviation = z[:, unit, None] - prior.means[:, column]
    log_var = prior.log_vars[:, column]
    of_unit = -0.5 * (deviation.square() * torch.exp(-log_var) + log_var)
    with_it = prior.responsibilities(z)
    without = torch.softmax(with_it.clamp(min=1e-30).log() - of_unit, dim=1)
    return bool((with_it - without).abs().max() > CLASS_CHANGE)


def _without(vae: VAE, removed: Sequence[int], center: Tensor, places: Places) -> VAE:
    """A model of the other units, which draws what this one draws at ``center`` (Z,)."""
    weights = {name: value.detach().cpu().clone() for name, value in vae.state_dict().items()}
    for rows in places.rows:
        weights[rows.name] = weights[rows.name][rows.kept(removed)]
    for inputs in places.inputs:
        columns = inputs.columns_of(removed)
        weight, bias = weights[f"{inputs.name}.weight"].double(), f"{inputs.name}.bias"
        constants = center[[unit for unit in removed if unit in inputs.units]]
        shift = weight[:, columns] @ constants
        weights[bias] = (weights[bias].double() + shift).to(weights[bias].dtype)
        kept = [column for column in range(weight.shape[1]) if column not in columns]
        weights[f"{inputs.name}.weight"] = weights[f"{inputs.name}.weight"][:, kept].contiguous()
    settings = copy.deepcopy(dict(vae.hparams))
    settings["model"] = places.settings(settings["model"], removed)
    pruned = VAE(**settings)
    if isinstance(vae.prior, MixturePrior):
        clustered = vae.prior.clustered.tolist()
        kept = [column for column, unit in enumerate(clustered) if unit not in removed]
        for name in ("prior.means", "prior.raw_log_vars"):
            weights[name] = weights[name][:, kept].contiguous()
    pruned.load_state_dict(weights)
    pruned.run_settings = _run_settings(vae.run_settings, settings["model"])
    pruned.total_steps = vae.total_steps
    return pruned.to(vae.device).eval()


def _run_settings(run: Mapping[str, Any] | None, model: dict[str, Any]) -> dict[str, Any] | None:
    return None if run is None else {**copy.deepcopy(dict(run)), "model": model}
