"""The section of the latent map: which stamps, where, in which colours, with which pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vae_astro.data.datamodule import StampDataModule
from vae_astro.evaluate.properties import measure_properties
from vae_astro.report.page.galleries import Classes, Outliers
from vae_astro.report.page.latent_map import (
    Colour,
    as_json,
    categories,
    layouts,
    map_figure,
    neighbours,
    numbers,
    sprite,
)
from vae_astro.report.page.pictures import Picture, drawing, encoded
from vae_astro.report.page.stamps import (
    BANDS_SHOWN,
    PARTS,
    Looked,
    Model,
    Seen,
    look_at,
    rows_to_show,
)

if TYPE_CHECKING:
    from vae_astro.report.page.write import PageOptions

__all__ = ["NoMap", "StampMap", "map_of"]

MEASURED = {
    "flux": ("flux [raw units]", True),
    "size": ("size [pixels]", False),
    "ellipticity": ("ellipticity", False),
    "seeing": ("seeing [pixels]", False),
    "sky_level": ("sky level [raw units]", False),
}
"""Properties that stamps can be coloured by: in words with the unit that
`evaluate.properties.PROPERTIES` states, and whether on a logarithmic scale."""


@dataclass(frozen=True)
class StampMap:
    """The latent map.

    Attributes
    ----------
    picture : Picture
        As it is printed, and shown without scripts.
    sprite : Picture
        Small pictures of all stamps.
    data : dict
        What the script reads.
    n_stamps : int
    splits : str
        How many of the stamps are of which part of the data, in words.
    bands : str
        Which bands the small pictures show.
    """

    picture: Picture
    sprite: Picture
    data: dict[str, Any]
    n_stamps: int
    splits: str
    bands: str


@dataclass(frozen=True)
class NoMap:
    """Why there is none."""

    why: str


def map_of(
    model: Model | None,
    datamodule: StampDataModule | None,
    classes: Classes | None,
    outliers: Outliers | None,
    options: PageOptions,
    why_not: str | None,
    kl_per_unit_nats: list[float] | None = None,
) -> StampMap | NoMap:
    """Codes of some stamps by the checkpoint, laid out in a plane.

    Raises
    ------
    InputError
        UMAP is asked for and not installed.
    """
    if model is None or datamodule is None:
        return NoMap(why_not or "the stamps are not there")
    seen = rows_to_show(datamodule, options.n_map)
    looked = look_at(model.vae, datamodule, seen.index)
    if not np.isfinite(looked.mean).all():
        return NoMap("the codes are not finite: the run diverged")
    table = datamodule.store.identity(seen.index)
    labels = [str(label or "") for label in table["label"].to_pylist()]
    if datamodule.labels_file is not None or datamodule.classes is not None:
        labels = [str(label) for label in datamodule.labels[seen.index]]
    properties = measure_properties(datamodule.store, seen.index, datamodule.normalizer)
    colours = _colours(seen, looked, labels, properties, classes, outliers)
    units = list(model.vae.clustered_units)
    codes = looked.mean[:, units]
    # as the run was judged by, where that is known: one order on the whole page
    kl = np.asarray(kl_per_unit_nats or looked.kl_per_unit_nats.mean(0))
    laid = layouts(codes, kl[units], options.umap, units)
    pixels, tiles = sprite(looked.stamps, looked.models)
    facts = [
        {"id": str(name), "object": str(whole), "ra": _rounded(ra), "dec": _rounded(dec)}
        for name, whole, ra, dec in zip(
            *(table[column].to_pylist() for column in ("id", "object_id", "ra", "dec")),
            strict=True,
        )
    ]
    by = f", coloured by {colours[0].name}" if colours else ""
    counts = {part: int((seen.split == part).sum()) for part in PARTS}
    names = model.vae.band_names[:BANDS_SHOWN]
    return StampMap(
        picture=drawing(
            map_figure(laid[0], colours[0] if colours else None),
            f"Map of the codes of {len(seen.index)} stamps in two dimensions by principal "
            f"components{by}.",
        ),
        sprite=encoded(pixels, "Small pictures of all stamps of the map."),
        data=as_json(laid, colours, neighbours(codes), facts, tiles),
        n_stamps=len(seen.index),
        splits=", ".join(f"{n} of the {part}" for part, n in counts.items() if n),
        bands=" | ".join(names) if len(names) > 1 else "",
    )


def _colours(
    seen: Seen,
    looked: Looked,
    labels: list[str],
    properties: Mapping[str, np.ndarray],
    classes: Classes | None,
    outliers: Outliers | None,
) -> list[Colour]:
    """What the stamps can be coloured by; the first is shown."""
    found: list[Colour | None] = []
    if classes is not None and len(classes.index):
        of_row = dict(zip(classes.index.tolist(), classes.of_row.tolist(), strict=True))
        found.append(categories("class", [of_row.get(row) for row in seen.index.tolist()]))
    found.append(categories("label", labels))
    if outliers is not None and len(outliers.index):
        odd = dict(zip(outliers.index.tolist(), outliers.p_value.tolist(), strict=True))
        p_value = np.array([odd.get(row, np.nan) for row in seen.index.tolist()])
        found.append(numbers("p-value", p_value, log=True))
    for name, (words, log) in MEASURED.items():
        found.append(numbers(words, properties[name], log=log))
    found += [
        numbers("KL [nats]", looked.kl_nats),
        numbers("chi² per pixel", looked.chi2_per_pixel, log=True),
        categories("part of the data", [str(part) for part in seen.split]),
    ]
    return [colour for colour in found if colour is not None]


def _rounded(degrees: float | None) -> float | None:
    known = degrees is not None and np.isfinite(degrees)
    return round(float(degrees), 6) if known else None  # type: ignore[arg-type]
