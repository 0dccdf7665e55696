"""The columns of a catalogue: names, types, units, descriptions and UCDs.

A UCD (Unified Content Descriptor, IVOA) tells software what a column is, whatever its name:
TOPCAT finds the positions of a table by ``pos.eq.ra;meta.main``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from vae_astro.catalogue import names

__all__ = [
    "CLASSES",
    "IDENTITY",
    "LATENT",
    "OUTLIERS",
    "PROVENANCE",
    "QUALITY",
    "SCORES",
    "Column",
    "schema_of",
]

PROVENANCE = b"vae_astro"
"""Key of the schema's metadata under which the settings stand, as JSON."""

TEXT, NUMBER, NATS, FRACTION = pa.string(), pa.float64(), pa.float32(), pa.float32()


@dataclass(frozen=True)
class Column:
    """One column of a catalogue.

    Attributes
    ----------
    name : str
        As tables show it.
    type : pyarrow.DataType
        Of an entry; for a vector, of its elements.
    unit : str
        As the FITS standard writes it, ``nat`` beside those; empty for what has none.
    description : str
        One line.
    vector : bool
        Whether an entry is a list of fixed length.
    ucd : str
        Of UCD1+; empty where that list has no word for it.
    per : {"unit", "class"}
        What a vector has an element for: each latent unit, or each class.
    """

    name: str
    type: pa.DataType
    unit: str
    description: str
    vector: bool = False
    ucd: str = ""
    per: Literal["unit", "class"] = "unit"

    def field(self, latent_dim: int, n_classes: int = 0) -> pa.Field:
        """As Arrow has it; unit, description and UCD in its metadata.

        Raises
        ------
        ValueError
            A vector without elements.
        """
        kind = self.type
        if self.vector:
            length = latent_dim if self.per == "unit" else n_classes
            if length < 1:
                raise ValueError(f"{self.name} has an element per {self.per}, of which there are 0")
            kind = pa.list_(kind, length)
        about = {"unit": self.unit, "description": self.description, "ucd": self.ucd}
        return pa.field(self.name, kind, metadata=about)


IDENTITY = (
    Column(names.INDEX, pa.int64(), "", "row of the stamp store", ucd="meta.record"),
    Column(names.ID, TEXT, "", "name of the stamp", ucd="meta.id;meta.main"),
    Column(names.OBJECT_ID, TEXT, "", "name of the object", ucd="meta.id"),
    Column(names.SOURCE, TEXT, "", "file below the root, with [hdu] or [hdu][plane]",
           ucd="meta.id;meta.file"),
    Column(names.RA, NUMBER, "deg", "right ascension, ICRS; NaN where unknown",
           ucd="pos.eq.ra;meta.main"),
    Column(names.DEC, NUMBER, "deg", "declination, ICRS; NaN where unknown",
           ucd="pos.eq.dec;meta.main"),
    Column(names.LABEL, TEXT, "", "given label, never trained on; null where unknown",
           ucd="meta.code.class"),
)  # fmt: skip
"""Which stamp a row is of."""
LATENT = (
    Column(names.LATENT_MEAN, pa.float32(), "", "mean of the posterior of each latent unit", True,
           ucd="stat.fit.param"),
    Column(names.LATENT_STD, pa.float32(), "", "its standard deviation", True,
           ucd="stat.error;stat.fit.param"),
    Column(names.KL_NATS, NATS, "nat", "divergence of the posterior from the prior, all units"),
)  # fmt: skip
"""What the encoder says."""
SCORES = (
    Column(names.RECONSTRUCTION_NATS, NATS, "nat", "log-density of the good pixels, one code drawn",
           ucd="stat.likelihood"),
    Column(names.ELBO_NATS, NATS, "nat", "evidence lower bound at beta = 1", ucd="stat.likelihood"),
    Column(names.CHI2_PER_PIXEL, NATS, "", "mean squared residual in units of the pixel noise",
           ucd="stat.fit.chi2"),
)  # fmt: skip
"""What the decoder adds."""
CLASSES = (
    Column(names.CLASS, TEXT, "", "most probable class", ucd="src.class"),
    Column(names.CLASS_PROBABILITIES, FRACTION, "", "probability of each class", True,
           ucd="stat.probability;src.class", per="class"),
    Column(names.CLASS_STABILITY, FRACTION, "", "agreement of the seeds on its class, 1 is full"),
    Column(names.UNSURE, pa.bool_(), "", "no class is probable enough", ucd="meta.code.qual"),
)  # fmt: skip
"""What the clusters say."""
OUTLIERS = (
    Column(names.LOG_LIKELIHOOD_NATS, NATS, "nat", "importance-weighted log-likelihood",
           ucd="stat.likelihood"),
    Column(names.P_VALUE, FRACTION, "", "share of calibration stamps at least as odd",
           ucd="stat.probability"),
    Column(names.LATENT_LOG_DENSITY, NATS, "nat", "log-density of the code among normal ones",
           ucd="stat.likelihood"),
    Column(names.NEIGHBOUR_DISTANCE, FRACTION, "", "distance of the nearest codes"),
)  # fmt: skip
"""How odd a stamp is."""
QUALITY = (Column(names.GOOD_FRACTION, FRACTION, "", "share of its pixels that are good"),)
"""What there was to see."""


def schema_of(
    columns: Sequence[Column],
    latent_dim: int,
    provenance: Mapping[str, Any],
    n_classes: int = 0,
) -> pa.Schema:
    """Arrow schema of a catalogue.

    Parameters
    ----------
    columns : sequence of Column
        In their order.
    latent_dim : int
        Z, the length of vectors of latent units.
    provenance : mapping
        What the catalogue was made from, in plain Python; kept as JSON in the metadata.
    n_classes : int
        K, the length of vectors of classes.
    """
    about = {PROVENANCE: json.dumps(dict(provenance)).encode()}
    return pa.schema([column.field(latent_dim, n_classes) for column in columns], metadata=about)
