"""What the axes of each weight mean: units, bands, pixels; so that sizes can differ.

One table for each network of `model.networks`, by the names of its weights. What stands in no table
does not depend on the number of units or bands, nor on the size of the stamps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vae_astro.checkpoint.axes import Axis
from vae_astro.model.blocks import GRID, padded_size

__all__ = ["Sizes", "axes_of"]

FOLD = 16
"""Channels that the first convolution of `ConvEncoder` sees for each band."""
DRAWN = 0.1
"""Share that the decoder keeps of its drawn weights for a new unit. The code of a unit that says
nothing yet is noise, and what is drawn of it should not drown what the others say; with none of
it, no gradient would reach the unit."""


@dataclass(frozen=True)
class Sizes:
    """Ours and theirs, and what corresponds.

    Attributes
    ----------
    coded, units : Axis
        Latent units as the encoder and the decoder of the network within have them: those of a
        pose are no business of the latter.
    bands_in, bands_out : Axis
        Bands where weights are summed over them, and where each has its own.
    size : tuple of int
        H = W, ours and theirs.
    model : tuple of mapping
        Settings of the network, ours and theirs, in full.
    shape_units, rest_units : Axis, optional
        Of ``model=rings``: parts of the units.
    """

    coded: Axis
    units: Axis
    bands_in: Axis
    bands_out: Axis
    size: tuple[int, int]
    model: tuple[Mapping[str, Any], Mapping[str, Any]]
    shape_units: Axis | None = None
    rest_units: Axis | None = None

    @property
    def moments(self) -> Axis:
        """Mean and log-variance of the units, as a head has them."""
        return self.coded.then(self.coded)

    @property
    def pixels(self) -> Axis:
        """Rows and columns of a stamp."""
        rows = Axis.centred(*self.size)
        return rows.times(rows)

    def cells(self, n_channels: int) -> Axis:
        """Channels of the coarsest map, and its rows and columns."""
        rows = Axis.cells(*(padded_size(size) // GRID for size in self.size))
        return Axis.same(n_channels).times(rows.times(rows))

    @property
    def drawn(self) -> Axis:
        """Units where a decoder takes them in."""
        return self.units.keeping(DRAWN)

    def within(self, coded: Axis, units: Axis) -> Sizes:
        """The same for a network within this one, which has other units."""
        return replace(self, coded=coded, units=units)


Axes = Sequence[Axis | None]
"""One for each dimension; None where it does not depend on sizes."""
Table = Mapping[str, Callable[[Sizes], Axes]]


def axes_of(name: str, sizes: Sizes) -> Axes:
    """The axes of weight ``name``, as far as they depend on sizes; empty where none does."""
    table = TABLES[sizes.model[0]["name"]](sizes)
    return table.get(name.removeprefix("network."), ())


def _conv(sizes: Sizes) -> dict[str, Axes]:
    n_channels = 4 * sizes.model[0]["width"]
    cells, moments = sizes.cells(n_channels), sizes.moments
    fold = Axis.same(FOLD)
    turned = sizes.model[0].get("symmetry", "none") != "none"
    encoder: dict[str, Axes] = {
        "encoder.trunk.1.weight": (None, sizes.bands_in.times(fold)),
        "encoder.head.weight": (moments, cells),
        "encoder.head.bias": (moments,),
    }
    if turned:  # one filter for the whole map: none for another size
        encoder = {
            "encoder.trunk.0.weight": (None, sizes.bands_in),
            "encoder.head.weight": (moments,),
            "encoder.head.bias": (moments,),
        }
    out = sizes.bands_out.times(fold)
    return encoder | {
        "decoder.trunk.0.weight": (cells, sizes.drawn),
        "decoder.trunk.0.bias": (cells,),
        "decoder.trunk.10.weight": (out,),
        "decoder.trunk.10.bias": (out,),
    }


def _linear(sizes: Sizes) -> dict[str, Axes]:
    out = sizes.bands_out.times(sizes.pixels)
    return {
        "encoder.mean.weight": (sizes.units, sizes.bands_in.times(sizes.pixels)),
        "encoder.mean.bias": (sizes.units,),
        "encoder.log_var": (sizes.units,),
        "decoder.location.weight": (out, sizes.drawn),
        "decoder.location.bias": (out,),
    }


def _mlp(sizes: Sizes) -> dict[str, Axes]:
    out, last = sizes.bands_out.times(sizes.pixels), len(sizes.model[0]["hidden"])
    return {
        "encoder.trunk.1.0.weight": (None, sizes.bands_in.times(sizes.pixels)),
        "encoder.head.weight": (sizes.moments,),
        "encoder.head.bias": (sizes.moments,),
        "decoder.trunk.0.0.weight": (None, sizes.drawn),
        f"decoder.trunk.{last}.weight": (out,),
        f"decoder.trunk.{last}.bias": (out,),
    }


def _question(sizes: Sizes) -> dict[str, Axes]:
    rows = Axis.centred(*(size - 4 for size in sizes.size))  # two convolutions without padding
    features = Axis.same(8).times(rows.times(rows))
    return {
        "encoder.trunk.0.weight": (None, sizes.bands_in),
        "encoder.trunk.5.weight": (None, features),
        "encoder.mean.weight": (sizes.units,),
        "encoder.mean.bias": (sizes.units,),
        "encoder.log_var.weight": (sizes.units,),
        "encoder.log_var.bias": (sizes.units,),
        "decoder.trunk.0.weight": (features, sizes.drawn),
        "decoder.trunk.0.bias": (features,),
        "decoder.trunk.5.weight": (None, sizes.bands_out),
        "decoder.trunk.5.bias": (sizes.bands_out,),
    }


def _rings(sizes: Sizes) -> dict[str, Axes]:
    shape, rest = sizes.shape_units, sizes.rest_units
    assert shape is not None
    assert rest is not None
    n_rings, orders = (sizes.model[0][key] for key in ("n_rings", "harmonics"))

    def features(bands: Axis) -> Axis:
        return bands.times(Axis.same(n_rings)).then(bands.times(Axis.same(n_rings * orders)))

    seen, drawn = features(sizes.bands_in), sizes.bands_out.times(Axis.same(n_rings))
    levels = Axis.same(1).then(sizes.bands_out)
    told = shape.then(rest) if orders else rest
    table: dict[str, Axes] = {
        "encoder.shape_mean.linear.weight": (shape, seen),
        "encoder.shape_mean.linear.bias": (shape,),
        "encoder.shape_mean.residual.0.weight": (None, seen),
        "encoder.shape_mean.residual.2.weight": (shape,),
        "encoder.shape_log_var.0.weight": (None, seen.then(Axis.same(1))),
        "encoder.shape_log_var.2.weight": (shape,),
        "encoder.shape_log_var.2.bias": (shape,),
        "encoder.gain": (levels,),
        "encoder.level_log_var.weight": (levels, levels),
        "encoder.level_log_var.bias": (levels,),
        "decoder.profile.linear.weight": (drawn, shape.keeping(DRAWN)),
        "decoder.profile.linear.bias": (drawn,),
        "decoder.profile.residual.0.weight": (None, shape.keeping(DRAWN)),
        "decoder.profile.residual.2.weight": (drawn,),
    }
    for part in ("encoder", "decoder"):  # shared by both, and saved with each
        table |= {
            f"{part}.rings.{name}": (sizes.bands_out,)
            for name in ("noise", "level", "background_spread")
        }
        table[f"{part}.rings.center"] = (features(sizes.bands_out),)
    inner = _conv(sizes.within(coded=rest, units=told))
    return table | {
        re.sub(r"^(encoder|decoder)\.", r"\1.rest.", key): axes for key, axes in inner.items()
    }


TABLES: dict[str, Callable[[Sizes], dict[str, Axes]]] = {
    "conv": _conv,
    "linear": _linear,
    "mlp": _mlp,
    "question": _question,
    "rings": _rings,
}
