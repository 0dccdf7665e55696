"""A new model from the weights of another run, also of other sizes: what fits is taken.

Whole tensors where nothing differs. Where the number of latent units, the bands or the size of the
stamps do, `layouts` says what each axis means, and what corresponds is taken: convolutions do not
depend on sizes at all. The rest is new.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vae_astro.checkpoint.axes import Axis
from vae_astro.checkpoint.correspondence import Correspondence, correspondence
from vae_astro.checkpoint.layouts import axes_of
from vae_astro.checkpoint_file import load_checkpoint
from vae_astro.errors import InputError
from vae_astro.model.networks import with_defaults
from vae_astro.vae import VAE

__all__ = ["Taken", "WarmStart", "warm_start"]

GEOMETRY = re.compile(r"rings\.(outer_radius|members|basis|projector|outside|n_pixels)$")
RINGS = re.compile(r"network\.\w+\.rings\.")
SHAPE = re.compile(r"network\.(encoder\.shape_|decoder\.profile)")
PROGRESS = re.compile(r"prior\.(epoch|occupied|n_batches|n_reseeded)$")
WHOLE = ("prior.", "network.minimum_rate.")
"""Parts of which a half is worth nothing."""
MOST_LINES = 12
"""Weights that are told one by one; beyond, they are counted by their part."""


@dataclass(frozen=True)
class Taken:
    """What became of one weight.

    Attributes
    ----------
    name : str
    how : {"whole", "in part", "new"}
    theirs, ours : tuple of int or None
        Shapes; None where one does not have it.
    why : str
        Of what is not taken whole.
    """

    name: str
    how: str
    theirs: tuple[int, ...] | None
    ours: tuple[int, ...] | None
    why: str = ""

    def __str__(self) -> str:
        if self.theirs is None:
            return f"{self.name}: not in the checkpoint, new"
        if self.ours is None:
            return f"{self.name}: not in this model"
        if self.theirs == self.ours:
            return f"{self.name}: {self.how}, {self.why}"
        shapes = f"{self.theirs} in the checkpoint, {self.ours} here"
        return f"{self.name}: {shapes}, {self.how}"


@dataclass(frozen=True)
class WarmStart:
    """What a warm start took over.

    Attributes
    ----------
    weights : tuple of Taken
        Of this model, and those of the checkpoint that it lacks.
    remarks : tuple of str
        In what the two runs differ.
    """

    weights: tuple[Taken, ...]
    remarks: tuple[str, ...]

    @property
    def taken(self) -> int:
        """Weight tensors that were taken over, whole or in part."""
        return sum(weight.how in ("whole", "in part") for weight in self.weights)

    def lines(self) -> list[str]:
        """A table of parts, what differs, and the weights that are not taken whole."""
        names = ("network.encoder", "network.decoder")

        def part(name: str) -> str:
            return next((each for each in names if name.startswith(each)), name.split(".")[0])

        counts = Counter((part(each.name), each.how) for each in self.weights if each.ours)
        columns = ("whole", "in part", "new")
        parts = dict.fromkeys(part(each.name) for each in self.weights if each.ours)
        table = [f"{'weights':<16}" + "".join(f"{column:>9}" for column in columns)] + [
            f"{each:<16}" + "".join(f"{counts[each, column]:>9}" for column in columns)
            for each in parts
        ]
        others = [each for each in self.weights if each.how != "whole"]
        told = [str(each) for each in others[:MOST_LINES]]
        if len(others) > MOST_LINES:
            told.append(f"and {len(others) - MOST_LINES} more")
        return [*table, *self.remarks, *told]


def warm_start(vae: VAE, path: Path, checkpoint: dict[str, Any] | None = None) -> WarmStart:
    """Copy what fits of a checkpoint's weights into ``vae``; leave the rest as it is.

    A learned prior, and what a minimum rate has measured, are taken whole or not at all; so are the
    rings that stamps are measured in, with the weights that go by them. The width of the likelihood
    is taken where all before it is, and starts anew otherwise: it would be that of other residuals.
    How far the earlier run had come is not taken.

    Parameters
    ----------
    vae : VAE
        Before its first step; changed in place.
    path : Path
        Checkpoint.
    checkpoint : dict, optional
        What `load_checkpoint` made of it, where that is at hand.

    Raises
    ------
    InputError
        As `load_checkpoint`; another network; if nothing of the network fits.
    """
    checkpoint = load_checkpoint(path) if checkpoint is None else checkpoint
    name, asked = _network_name(checkpoint["hyper_parameters"]), _network_name(dict(vae.hparams))
    if name != asked:
        raise InputError(
            f"init_from={path} is of model={name}, whose weights have no meaning in model={asked}; "
            f"choose model={name}, or leave init_from away"
        )
    same = correspondence(vae, checkpoint)
    theirs = {_without_pose(name): value for name, value in checkpoint["state_dict"].items()}
    with_rings = _take_rings(vae, theirs, same)
    ours = vae.state_dict()
    values: dict[str, Tensor] = {}
    found: dict[str, Taken] = {}
    for name, value in ours.items():
        plain = _without_pose(name)
        if plain not in theirs:
            found[name] = Taken(name, "new", None, tuple(value.shape))
            continue
        shapes = tuple(theirs[plain].shape), tuple(value.shape)
        why = same.why_new(plain)
        if PROGRESS.match(plain):
            why = "how far the earlier run had come"
        elif not with_rings and _by_rings(plain):
            why = "measured in other rings"
        fitted = None if why else _fitted(plain, theirs[plain], value, same)
        if fitted is None:
            found[name] = Taken(name, "new", *shapes, why)
            continue
        values[name], is_whole = fitted
        found[name] = Taken(name, "whole" if is_whole else "in part", *shapes, "" if is_whole else
                            "as units and bands correspond")  # fmt: skip
    _keep_together(values, found)
    if not any(name.startswith("network.") and not RINGS.match(name) for name in values):
        told = "; ".join(str(each) for each in list(found.values())[:3])
        raise InputError(
            f"init_from={path}: no weight fits this network ({told}); give it the settings of the "
            "checkpoint's, or leave init_from away"
        )
    vae.load_state_dict(values, strict=False)
    here = {_without_pose(name) for name in ours}
    left = [Taken(name, "unused", tuple(value.shape), None) for name, value in theirs.items()
            if name not in here]  # fmt: skip
    return WarmStart((*found.values(), *left), same.remarks)


def _network_name(settings: Mapping[str, Any]) -> str:
    return str(with_defaults(settings.get("model"))["name"])


def _without_pose(name: str) -> str:
    """The name of a weight as it is without a pose around its encoder or decoder."""
    return re.sub(r"^network\.(encoder|decoder)\.\1\.", r"network.\1.", name)


def _by_rings(name: str) -> bool:
    return bool(RINGS.match(name) or SHAPE.match(name))


def _take_rings(vae: VAE, theirs: Mapping[str, Tensor], same: Correspondence) -> bool:
    """Whether the rings of the checkpoint can be those of ``vae``; they are laid out so then."""
    radius = theirs.get("network.encoder.rings.outer_radius")
    if radius is None:
        return False
    wanted, size = getattr(vae.network, "outer_radius", None), vae.stamp_shape[1]
    reach = float(radius)
    other = wanted is not None and abs(wanted - reach) > 1e-6 * reach
    if other or reach > 0.5 * size or not same.rings_alike:
        return False
    vae.network.encoder.rings.reach(reach)  # type: ignore[operator, union-attr]
    return True


def _fitted(
    name: str, theirs: Tensor, ours: Tensor, same: Correspondence
) -> tuple[Tensor, bool] | None:
    """Ours as far as theirs has it, and whether that is all; None if it does not fit."""
    if GEOMETRY.search(name) and theirs.shape != ours.shape:
        return ours, True  # laid out anew to the same radius
    if theirs.dim() != ours.dim():
        return None
    known = axes_of(name, same.sizes) if name.startswith("network.") else ()
    axes = [known[d] if d < len(known) else None for d in range(ours.dim())]
    for axis, n, n_theirs in zip(axes, ours.shape, theirs.shape, strict=True):
        if (n, n_theirs) != ((n, n) if axis is None else (len(axis), axis.n_theirs)):
            return None
    chosen = [(d, axis) for d, axis in enumerate(axes) if axis is not None and not axis.is_same]
    if not chosen:
        return theirs, True
    return _put_together(theirs, ours, chosen), False


def _put_together(theirs: Tensor, ours: Tensor, axes: list[tuple[int, Axis]]) -> Tensor:
    """What corresponds from theirs; elsewhere what the axes keep of ours."""
    taken, kept, known = theirs, torch.ones_like(ours), torch.ones_like(ours, dtype=torch.bool)
    for dim, axis in axes:
        taken = axis.take(taken, dim)
        kept = kept * axis.kept(ours, dim)
        known = known & axis.keeping(0.0).kept(ours, dim).bool()
    return torch.where(known, taken.to(ours.dtype), kept * ours)


def _keep_together(values: dict[str, Tensor], found: dict[str, Taken]) -> None:
    """Take back what is worth nothing by itself."""

    def leave(name: str, why: str) -> None:
        values.pop(name, None)
        taken = found[name]
        if taken.how != "new":
            found[name] = Taken(name, "new", taken.theirs, taken.ours, why)

    for name in found:  # the bias of a layer whose weight is new
        layer, _, what = name.rpartition(".")
        if what == "bias" and found.get(f"{layer}.weight", found[name]).how == "new":
            leave(name, "its weight is new")
    for group in WHOLE:
        names = [name for name in found if name.startswith(group) and not PROGRESS.search(name)]
        if any(found[name].how != "whole" for name in names):
            for name in names:
                leave(name, "taken whole or not at all")
    network = [each for name, each in found.items() if name.startswith("network.")]
    if any(each.how != "whole" for each in network):
        for name in [name for name in found if name.startswith("likelihood.")]:
            leave(name, "its width is that of other residuals")
