"""Latent units that say nothing, taken out of a model without changing what it says.

An inactive unit has the same posterior mean for every stamp. Its mean is put in once and for all:
where the decoder is linear in the code, :math:`b \\to b + W_{:,i} c_i`, its column and its rows in
the encoder's heads go, and the prior becomes that of the units that stay (the exact marginal). The
decoder is then bit for bit linear algebra of what it was at :math:`z_i = c_i`.

Units are judged one by one, and the model by all of them together: many that vary by next to
nothing may move a picture that none of them moves alone, or a class of a mixture. What would is put
back, and the finished model is compared with the whole one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from vae_astro.collapse.units import ACTIVE_VARIANCE
from vae_astro.data.batches import Batch
from vae_astro.errors import InputError
from vae_astro.export.places import Places, places_of
from vae_astro.model.modes import in_evaluation
from vae_astro.model.priors import MixturePrior
from vae_astro.vae import VAE

__all__ = ["PrunedUnit", "Pruning", "prune"]

CLASS_CHANGE = 1e-3
"""Probability of a class of a mixture that pruning may move; a unit that moves more stays."""
TOLERANCE = 0.1
"""Most that a reconstruction may move by, in root mean squares of what it misses the stamps by: it
then fits them as well as before, to a per cent of chi-squared."""
AGREEMENT = 1e-4
"""What the finished model may differ by from the whole one at the constants; relative above 1."""
PUT_BACK = "inactive, but together with the others that go it would move {} by too much"
BATCH = 256


@dataclass(frozen=True)
class PrunedUnit:
    """What was found of one latent unit, and what became of it.

    Attributes
    ----------
    unit : int
        Its number before, which figures and metrics of the run know it by.
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
        In evaluation mode; the one that was given, in the mode it was in, where no unit went.
    units : tuple of PrunedUnit
        All units of the model before.
    n_stamps : int
        That they were judged by.
    largest_change : float
        Of any pixel of any of these stamps' reconstructions, in normalised units.
    share_of_residual : float
        Root mean square of the change of the most changed reconstruction, over that of what the
        reconstructions miss the good pixels by, as the stamps lie. At most `TOLERANCE`.
    """

    vae: VAE
    units: tuple[PrunedUnit, ...]
    n_stamps: int
    largest_change: float
    share_of_residual: float = 0.0

    @property
    def kept(self) -> list[int]:
        """Numbers of the units that stay: unit k of the model after is ``kept[k]`` before."""
        return [unit.unit for unit in self.units if not unit.pruned]

    def __str__(self) -> str:
        lines = ["unit  after  variance of the mean  KL in nats  became"]
        after = {unit: number for number, unit in enumerate(self.kept)}
        lines += [
            f"{u.unit:4d}  {after.get(u.unit, '-'):>5}  {u.variance:20.3g}  {u.kl_nats:10.3g}  "
            f"{'pruned' if u.pruned else 'stays'}: {u.reason}"
            for u in self.units
        ]
        n_pruned = len(self.units) - len(self.kept)
        lines.append(
            f"{n_pruned} of {len(self.units)} units pruned; over {self.n_stamps} stamps no pixel "
            f"of a reconstruction moved by more than {self.largest_change:.2g} (normalised), and "
            f"no reconstruction by more than {100 * self.share_of_residual:.2g} % of what it "
            f"misses its stamp by ({100 * TOLERANCE:.0f} % allowed)"
        )
        return "\n".join(lines)


@torch.no_grad()
def prune(vae: VAE, batches: Iterable[Batch], active_variance: float = ACTIVE_VARIANCE) -> Pruning:
    """Take the inactive units out of a model.

    Parameters
    ----------
    vae : VAE
        Not changed, and judged in evaluation mode whatever mode it is in.
    batches : iterable of dict
        ``image``, ``mask`` and ``noise`` (B, C, H, W) of the stamps that activity is judged by;
        those of the model's own run, best. Gone through once, and held.
    active_variance : float
        A unit goes if its posterior mean varies by less than this over the stamps, in units of the
        prior's variance (Burda et al. 2016).

    Raises
    ------
    InputError
        Fewer than two stamps, posteriors that are not finite, or a pruned model that does not say
        what the whole one says.

    Notes
    -----
    At least one unit stays. Units that have a meaning of their own in a decoder (the pose of
    ``model.pose``; flux and background of ``model=rings``) stay, and so do units in which the
    components of a mixture prior tell classes apart. ``prior=vamp`` is pruned with its encoder.
    Of units that are inactive one by one, but not all together, those that move most stay.
    """
    with in_evaluation(vae):
        return _judged(vae, batches, active_variance)


def _judged(vae: VAE, batches: Iterable[Batch], active_variance: float) -> Pruning:
    held = [part for batch in batches for part in _parts_of(batch, vae.device)]
    n_stamps = sum(len(part["image"]) for part in held)
    if n_stamps < 2:
        raise InputError(f"prune=true judges units by stamps, and got {n_stamps}; give more")
    posteriors = [vae.network.encode(part["image"]) for part in held]
    means = torch.cat([posterior.mean for posterior in posteriors]).double().cpu()
    if not means.isfinite().all():
        raise InputError("prune=true: posteriors of this model are not finite; it cannot be judged")
    kl = torch.cat([vae.prior.kl_per_unit(posterior) for posterior in posteriors]).mean(0).cpu()
    center, variance = means.mean(0), means.var(0, correction=0)
    variance = variance / vae.prior.unit_std().double().cpu().square()
    places = places_of(vae)
    whole = _Whole(vae, means.float(), center.float(), held)
    reasons = _reasons(whole, variance, active_variance, places)
    for unit, what in _put_back(whole, [k for k, (goes, _) in enumerate(reasons) if goes]).items():
        reasons[unit] = (False, PUT_BACK.format(what))
    removed = [unit for unit, (goes, _) in enumerate(reasons) if goes]
    units = tuple(
        PrunedUnit(unit, float(center[unit]), float(variance[unit]), float(kl[unit]), goes, why)
        for unit, (goes, why) in enumerate(reasons)
    )
    if not removed:
        return Pruning(vae, units, n_stamps, 0.0)
    pruned = _without(vae, removed, center, places)
    _refuse_other(whole, pruned, removed)
    largest, share = whole.change_without(removed)
    return Pruning(pruned, units, n_stamps, largest, share)


def _parts_of(batch: Batch, device: torch.device) -> Iterator[Batch]:
    """What pruning looks at of a batch, at most `BATCH` stamps at a time."""
    names = ("image", "mask", "noise")
    pieces = (batch[name].to(device).split(BATCH) for name in names)
    return (dict(zip(names, part, strict=True)) for part in zip(*pieces, strict=True))


@dataclass(frozen=True)
class _Whole:
    """The model before, and the stamps that it is judged by.

    Attributes
    ----------
    vae : VAE
    means : Tensor, shape (N, Z), float32
        Posterior means of all stamps.
    center : Tensor, shape (Z,)
        What stands for a unit that goes.
    held : list of dict
        Normalised stamps with their masks and noise.
    """

    vae: VAE
    means: Tensor
    center: Tensor
    held: list[Batch]

    def codes(self) -> Iterator[tuple[Batch, Tensor]]:
        """Stamps and their codes (B, Z), batch by batch."""
        codes = self.means.to(self.vae.device).split([len(part["image"]) for part in self.held])
        return zip(self.held, codes, strict=True)

    def at_center(self, z: Tensor, removed: Sequence[int]) -> Tensor:
        """Codes with the constants in place of the units that go."""
        z = z.clone()
        z[:, list(removed)] = self.center[list(removed)].to(z.device)
        return z

    def change_without(self, removed: Sequence[int], few: bool = False) -> tuple[float, float]:
        """Largest change of a pixel, and `Pruning.share_of_residual`; of one batch with ``few``."""
        largest, most, square, n = 0.0, 0.0, 0.0, 0
        for batch, z in islice(self.codes(), 1 if few else None):
            output = self.vae.network.decode(z)
            before = self.vae.likelihood.location(output)
            change = self.vae.decode(self.at_center(z, removed)) - before
            largest = max(largest, float(change.abs().max()))
            most = max(most, float(change.square().flatten(1).mean(1).max()))
            square += float(self._missed(batch, output).square().sum())
            n += int(batch["mask"].sum())
        return largest, math.sqrt(most / max(square / max(n, 1), 1e-30))

    def _missed(self, batch: Batch, output: Tensor) -> Tensor:
        """Residuals (B, C, H, W), with ``output`` as each stamp lies; 0 where a pixel is bad."""
        image, mask, noise = batch["image"], batch["mask"], batch["noise"]
        likelihood = self.vae.likelihood
        as_it_lies = likelihood.aligned(image, output, mask, noise)
        return (image - likelihood.location(as_it_lies)).where(mask, 0.0)

    def class_change_without(self, removed: Sequence[int]) -> float:
        """Most that a probability of a class of a mixture moves; 0 without one."""
        prior = self.vae.prior
        if not isinstance(prior, MixturePrior) or not prior.started:
            return 0.0
        clustered = prior.clustered.tolist()
        columns = [clustered.index(unit) for unit in removed if unit in clustered]
        if not columns:
            return 0.0
        z = self.means.to(self.vae.device)
        log_var = prior.log_vars[:, columns]
        deviation = z[:, None, [clustered[k] for k in columns]] - prior.means[:, columns]
        of_units = -0.5 * (deviation.square() * torch.exp(-log_var) + log_var).sum(-1)
        with_them = prior.responsibilities(z)
        without = torch.softmax(with_them.clamp(min=1e-30).log() - of_units, dim=1)
        return float((with_them - without).abs().max())


def _put_back(whole: _Whole, removed: Sequence[int]) -> dict[int, str]:
    """Units that stay after all, and what they would move with the others: as few as will do."""
    back: dict[int, str] = {}
    for what, excess, alone in (
        ("classes", lambda units: whole.class_change_without(units) > CLASS_CHANGE,
         lambda unit: whole.class_change_without([unit])),
        ("a reconstruction", lambda units: whole.change_without(units)[1] > TOLERANCE,
         lambda unit: whole.change_without([unit], few=True)[1]),
    ):  # fmt: skip
        left = [unit for unit in removed if unit not in back]
        if not left or not excess(left):
            continue
        ranked = sorted(left, key=alone)  # who moves most comes back first
        goes, stays = 0, len(ranked)  # so many can go; so many cannot
        while stays - goes > 1:
            middle = (goes + stays) // 2
            goes, stays = (goes, middle) if excess(ranked[:middle]) else (middle, stays)
        back |= dict.fromkeys(ranked[goes:], what)
    return back


def _refuse_other(whole: _Whole, pruned: VAE, removed: Sequence[int]) -> None:
    """Refuse a model that says anything else than the whole one at the constants."""
    kept = [unit for unit in range(whole.means.shape[1]) if unit not in removed]
    for batch, z in whole.codes():
        theirs = pruned.network.encode(batch["image"]).mean
        for what, ours, other in (
            ("codes", z[:, kept], theirs),
            ("pixels", whole.vae.decode(whole.at_center(z, removed)), pruned.decode(theirs)),
        ):
            far = float(((ours - other).abs() / ours.abs().clamp(min=1)).max())
            if not far <= AGREEMENT:
                raise InputError(
                    f"prune=true: {what} of the pruned model differ from those of the whole one "
                    f"by {far:.2g}, and {AGREEMENT:g} is allowed; export it with prune=false"
                )


def _reasons(
    whole: _Whole, variance: Tensor, limit: float, places: Places
) -> list[tuple[bool, str]]:
    """For each unit whether it goes, and why."""
    found = []
    for unit, seen in enumerate(variance.tolist()):
        if unit in places.fixed:
            found.append((False, places.fixed[unit]))
        elif seen > limit:
            found.append((False, "active"))
        elif whole.class_change_without([unit]) > CLASS_CHANGE:
            found.append((False, "the components of prior=mixture differ in it"))
        else:
            found.append((True, "inactive"))
    for group in places.never_empty:
        if all(found[unit][0] for unit in group):
            found[group[0]] = (False, "one unit has to stay")
    return found


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
    pruned.set_length(vae.total_steps)
    return pruned.to(vae.device).eval()


def _run_settings(run: Mapping[str, Any] | None, model: dict[str, Any]) -> dict[str, Any] | None:
    return None if run is None else {**copy.deepcopy(dict(run)), "model": model}
