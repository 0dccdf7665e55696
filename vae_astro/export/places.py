"""Where in the weights of each network a latent unit is written: what pruning has to cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from vae_astro.model.decoders import ConvDecoder, LinearDecoder, MLPDecoder, QuestionDecoder
from vae_astro.model.encoders import LinearEncoder, QuestionEncoder
from vae_astro.model.minimum_rate import MinimumRate
from vae_astro.model.networks import with_defaults
from vae_astro.model.poses import N_POSE_UNITS, PosedDecoder, PosedEncoder
from vae_astro.model.rings import RingsDecoder, RingsEncoder
from vae_astro.vae import VAE

__all__ = ["Inputs", "Places", "Rows", "places_of"]


@dataclass(frozen=True)
class Rows:
    """A weight whose first axis has a row for each of some units, once or (mean, log-variance).

    Attributes
    ----------
    name : str
        Of the weight in the model's state.
    units : tuple of int
        In the order of the rows.
    blocks : int
        2 where the rows of the log-variance follow those of the mean.
    """

    name: str
    units: tuple[int, ...]
    blocks: int = 1

    def kept(self, removed: Sequence[int]) -> list[int]:
        """Rows of the units that stay."""
        stay = [row for row, unit in enumerate(self.units) if unit not in removed]
        return [block * len(self.units) + row for block in range(self.blocks) for row in stay]


@dataclass(frozen=True)
class Inputs:
    """A dense layer that is linear in some units: its first columns, one for each.

    Attributes
    ----------
    name : str
        Of the layer: ``.weight`` and ``.bias``.
    units : tuple of int
        In the order of the columns.
    """

    name: str
    units: tuple[int, ...]

    def columns_of(self, removed: Sequence[int]) -> list[int]:
        """Columns of the units that go, in the order of ``removed``."""
        return [self.units.index(unit) for unit in removed if unit in self.units]


@dataclass
class Places:
    """All that a model knows of its units.

    Attributes
    ----------
    settings : callable
        The settings of ``model`` and the units that go, to those of the model without them.
    rows, inputs : list
        Of the encoder, and of the decoder.
    fixed : dict of int to str
        Units that cannot go, and why.
    never_empty : list of tuple of int
        Groups of units of which one has to stay.
    """

    settings: Callable[[dict[str, Any] | None, Sequence[int]], dict[str, Any]]
    rows: list[Rows] = field(default_factory=list)
    inputs: list[Inputs] = field(default_factory=list)
    fixed: dict[int, str] = field(default_factory=dict)
    never_empty: list[tuple[int, ...]] = field(default_factory=list)


def places_of(vae: VAE) -> Places:
    """Where the units of a model are written."""
    network = vae.network
    encoder, decoder = network.encoder, network.decoder
    if isinstance(encoder, RingsEncoder) and isinstance(decoder, RingsDecoder):
        places = _of_rings(encoder, decoder)
    else:
        places = _of_plain(encoder, decoder, network.latent_dim)
    if isinstance(network.minimum_rate, MinimumRate):
        units = tuple(range(network.latent_dim))
        names = ("running_mean", "running_var")
        places.rows += [Rows(f"network.minimum_rate.{name}", units) for name in names]
    return places


def _of_plain(encoder: Any, decoder: Any, latent_dim: int) -> Places:
    """Networks whose units are alike, and the pose behind them."""
    units = tuple(range(latent_dim))
    to, into, n_pose = "network.encoder", "network.decoder", 0
    fixed: dict[int, str] = {}
    if isinstance(encoder, PosedEncoder) and isinstance(decoder, PosedDecoder):
        encoder, to = encoder.encoder, f"{to}.encoder"
        decoder, into = decoder.decoder, f"{into}.decoder"
        n_pose = N_POSE_UNITS
        fixed = dict.fromkeys(units[-n_pose:], "the decoder turns and moves its picture by it")
    drawn = units[: latent_dim - n_pose]
    places = Places(_of_alike(n_pose, latent_dim), fixed=fixed, never_empty=[drawn])
    if isinstance(encoder, LinearEncoder):
        places.rows = [Rows(f"{to}.mean.{part}", units) for part in ("weight", "bias")]
        places.rows.append(Rows(f"{to}.log_var", units))
    elif isinstance(encoder, QuestionEncoder):
        places.rows = [
            Rows(f"{to}.{head}.{part}", units)
            for head in ("mean", "log_var")
            for part in ("weight", "bias")
        ]
    else:
        places.rows = [Rows(f"{to}.head.{part}", units, 2) for part in ("weight", "bias")]
    places.inputs = [Inputs(f"{into}.{_first_layer(decoder)}", drawn)]
    return places


def _first_layer(decoder: Any) -> str:
    """The dense layer through which a decoder reads its code."""
    names = {
        LinearDecoder: "location",
        MLPDecoder: "trunk.0.0",
        ConvDecoder: "trunk.0",
        QuestionDecoder: "trunk.0",
    }
    return names[type(decoder)]


def _of_alike(n_pose: int, n_units: int) -> Callable[..., dict[str, Any]]:
    def settings(model: dict[str, Any] | None, removed: Sequence[int]) -> dict[str, Any]:
        found = with_defaults(model)
        found["latent_dim"] = n_units - n_pose - len(removed)
        return _same_floor(found, n_units, removed)

    return settings


def _same_floor(model: dict[str, Any], n_units: int, removed: Sequence[int]) -> dict[str, Any]:
    """The same least rate for each unit that stays."""
    model["minimum_rate_nats"] *= (n_units - len(removed)) / n_units
    return model


def _of_rings(encoder: RingsEncoder, decoder: RingsDecoder) -> Places:
    """``model=rings``: the shape and the rest can lose units, flux and background cannot."""
    n_shape, n_flux, n_background, n_rest = decoder.units
    n_units = sum(decoder.units)
    shape, rest = tuple(range(n_shape)), tuple(range(n_units - n_rest, n_units))
    between = range(n_shape, n_shape + n_flux + n_background)
    fixed = dict.fromkeys(between, "model=rings draws flux and background by it")

    def settings(model: dict[str, Any] | None, removed: Sequence[int]) -> dict[str, Any]:
        found = with_defaults(model)
        found["latent_dim"] = n_units - len(removed)
        found["shape_units"] = n_shape - len(set(removed) & set(shape))
        return _same_floor(found, n_units, removed)

    to, into = "network.encoder", "network.decoder"
    heads = [
        "shape_mean.linear.weight",
        "shape_mean.linear.bias",
        "shape_mean.residual.2.weight",
        "shape_log_var.2.weight",
        "shape_log_var.2.bias",
    ]
    places = Places(settings, fixed=fixed, never_empty=[shape])
    places.rows = [Rows(f"{to}.{name}", shape) for name in heads]
    places.inputs = [
        Inputs(f"{into}.profile.linear", shape),
        Inputs(f"{into}.profile.residual.0", shape),
    ]
    if encoder.rest is not None:
        places.never_empty.append(rest)
        places.rows += [Rows(f"{to}.rest.head.{part}", rest, 2) for part in ("weight", "bias")]
        told = (*shape, *rest) if decoder.rings.harmonics else rest
        places.inputs.append(Inputs(f"{into}.rest.trunk.0", told))
    return places
