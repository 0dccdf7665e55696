"""Catalogues of what a model says of each stamp: Parquet or a FITS table, in bounded memory."""

from vae_astro.catalogue.columns import (
    CLASSES,
    IDENTITY,
    LATENT,
    OUTLIERS,
    PROVENANCE,
    QUALITY,
    SCORES,
    Column,
    schema_of,
)
from vae_astro.catalogue.write import free_path, write_catalogue

__all__ = [
    "CLASSES",
    "IDENTITY",
    "LATENT",
    "OUTLIERS",
    "PROVENANCE",
    "QUALITY",
    "SCORES",
    "Column",
    "free_path",
    "schema_of",
    "write_catalogue",
]
