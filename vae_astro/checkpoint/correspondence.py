"""Which units, bands and pixels of two models are the same, and in what their runs differ."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vae_astro.checkpoint.axes import Axis
from vae_astro.checkpoint.layouts import Sizes
from vae_astro.model.networks import with_defaults
from vae_astro.model.poses import N_POSE_UNITS
from vae_astro.vae import VAE

__all__ = ["Correspondence", "correspondence"]

GENERIC_BAND = re.compile(r"band\d+")
ENCODER = "network.encoder."


@dataclass(frozen=True)
class Correspondence:
    """Of a model and a checkpoint of the same network.

    Attributes
    ----------
    sizes : Sizes
        What corresponds along the axes of weights.
    other : dict of str to str
        Beginnings of names whose weights mean something else there, and why.
    rings_alike : bool
        Whether rings, where there are any, are as many, and as many of their harmonics measured.
    remarks : tuple of str
        What differs, for the user.
    """

    sizes: Sizes
    other: dict[str, str]
    rings_alike: bool
    remarks: tuple[str, ...]

    def why_new(self, name: str) -> str:
        """Why weight ``name`` is not taken although it may have the shape; empty if it is."""
        return next((why for start, why in self.other.items() if name.startswith(start)), "")


def correspondence(vae: VAE, checkpoint: Mapping[str, Any]) -> Correspondence:
    """Compare ``vae`` with a checkpoint of the same network."""
    ours, theirs = dict(vae.hparams), checkpoint["hyper_parameters"]
    models = with_defaults(ours["model"]), with_defaults(theirs.get("model"))
    shape = tuple(theirs["stamp_shape"])
    remarks: list[str] = []
    bands_in, bands_out = _bands(
        vae.band_names,
        list(theirs.get("band_names") or (f"band{band}" for band in range(shape[0]))),
        remarks,
    )
    if shape[1] != vae.stamp_shape[1]:
        remarks.append(
            f"stamps: {shape[1]}x{shape[1]} in the checkpoint, {vae.stamp_shape[1]}x"
            f"{vae.stamp_shape[1]} here: their middles on one another, and nothing beyond an edge"
        )
    costs = _kl_per_unit(checkpoint)
    sections = _sections(models[0], vae.stamp_shape[0]), _sections(models[1], shape[0])
    first = 0
    axes = {}
    for section, n in sections[1].items():
        axes[section] = _units(sections[0][section], n, costs[first : first + n], section, remarks)
        first += n
    pose = Axis.of(
        [k if sections[1]["pose"] else None for k in range(sections[0]["pose"])],
        sections[1]["pose"],
    ).keeping(1.0)
    sizes = Sizes(
        coded=axes["units"].then(pose),
        units=axes["units"],
        bands_in=bands_in,
        bands_out=bands_out,
        size=(vae.stamp_shape[1], shape[1]),
        model=models,
        shape_units=axes["shape units"],
        rest_units=axes["rest units"],
    )
    other = _differences(ours, theirs, remarks)
    if models[0].get("symmetry") != models[1].get("symmetry"):
        other[ENCODER] = "an encoder of another symmetry"
    if not bands_out.is_same:
        other["likelihood."] = "of other bands"
        other["prior.pseudo_inputs"] = "of other bands"
    alike = all(models[0].get(key) == models[1].get(key) for key in ("n_rings", "harmonics"))
    return Correspondence(sizes, other, alike, tuple(remarks))


def _sections(model: Mapping[str, Any], n_bands: int) -> dict[str, int]:
    """Units by what they are for, in the order of the code."""
    n_units, sections = model["latent_dim"], dict.fromkeys(
        ("units", "shape units", "levels", "rest units", "pose"), 0
    )  # fmt: skip
    if model["name"] == "rings":
        shape = model["shape_units"]
        levels = 1 + n_bands
        return sections | {
            "shape units": shape, "levels": levels, "rest units": n_units - shape - levels
        }  # fmt: skip
    posed = model.get("pose", "none") != "none"  # not every network can have one
    return sections | {"units": n_units, "pose": N_POSE_UNITS * posed}


def _kl_per_unit(checkpoint: Mapping[str, Any]) -> list[float]:
    """What each unit cost at the last validation, in nats; empty where nobody watched."""
    watched = checkpoint["callbacks"].get("CollapseMonitor") or {}
    validations = watched.get("validations") or [{}]
    return [float(nats) for nats in validations[-1].get("kl_per_unit_nats", ())]


def _units(n: int, n_theirs: int, costs: Sequence[float], what: str, remarks: list[str]) -> Axis:
    """As many units as there are in both; of theirs, those that say most."""
    chosen: list[int | None] = list(range(min(n, n_theirs)))
    by_cost = n < n_theirs and len(costs) == n_theirs
    if by_cost:
        ranked = sorted(range(n_theirs), key=lambda unit: -costs[unit])
        chosen = sorted(ranked[:n])  # type: ignore[assignment]
    if what != "levels" and n != n_theirs:
        which = "those of the largest KL" if by_cost else "the first"
        remarks.append(
            f"latent {what}: {n_theirs} in the checkpoint, {n} here: {len(chosen)} taken"
            + (
                f", {which}: {', '.join(map(str, chosen))}"
                if n < n_theirs
                else f", {n - len(chosen)} new"
            )
        )
    return Axis.of([*chosen, *[None] * (n - len(chosen))], n_theirs).keeping(1.0)


def _bands(ours: Sequence[str], theirs: Sequence[str], remarks: list[str]) -> tuple[Axis, Axis]:
    """Bands where weights are summed over them, and where each has its own; by their names."""
    n, n_theirs = len(ours), len(theirs)
    if list(ours) == list(theirs):
        return Axis.same(n), Axis.same(n)
    there, here = ", ".join(theirs), ", ".join(ours)
    named = [name for name in ours if name in theirs and not GENERIC_BAND.fullmatch(name)]
    if named:
        seen = [[float(name == other) for other in theirs] for name in ours]
        drawn = [row if any(row) else [1 / n_theirs] * n_theirs for row in seen]
        remarks.append(
            f"bands: {there} in the checkpoint, {here} here: {', '.join(named)} by name"
            + (
                "; what is new is drawn as their mean, and seen by nobody yet"
                if len(named) < n
                else ""
            )
        )
        return Axis.summed(seen), Axis.summed(drawn)
    if n == n_theirs:
        remarks.append(f"bands: {there} in the checkpoint, {here} here: taken in their order")
        return Axis.same(n), Axis.same(n)
    remarks.append(f"bands: {there} in the checkpoint, {here} here: each is the mean of theirs")
    # stamps of n bands shall move the first layer as far as those of n_theirs did
    return Axis.summed([[1 / n] * n_theirs] * n), Axis.summed([[1 / n_theirs] * n_theirs] * n)


def _differences(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], remarks: list[str]
) -> dict[str, str]:
    """Parts that the settings make something else of; told in ``remarks``."""
    other: dict[str, str] = {}
    defaults = {"likelihood": {"name": "sigma"}, "prior": {"name": "standard"}, "normalize": {}}
    for group, default in defaults.items():
        here, there = (dict(settings.get(group) or default) for settings in (ours, theirs))
        keys = [key for key in {**there, **here} if key in there and key in here]
        different = [key for key in keys if here[key] != there[key]]
        if not different:
            continue
        shown = ", ".join(f"{key}={there[key]}" for key in different)
        now = ", ".join(f"{key}={here[key]}" for key in different)
        if group == "normalize":
            remarks.append(
                f"data.normalize: {shown} in the checkpoint, {now} here: the weights know pixels "
                "of another scale, and have to learn this one"
            )
            other["likelihood."] = "of pixels on another scale"
        elif "name" in different or group == "likelihood":
            remarks.append(f"{group}: {shown} in the checkpoint, {now} here: it starts anew")
            other[f"{group}."] = f"another {group}"
    return other
