"""Codes of stamps on the disk, and passes over them in bounded memory.

Every network writes its codes to a Parquet file; classes are looked for in a sample of the rows,
and then given to all of them, some thousand at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vae_astro.catalogue import CLASSES, IDENTITY, LATENT, PROVENANCE, schema_of
from vae_astro.catalogue.names import (
    CLASS,
    CLASS_PROBABILITIES,
    CLASS_STABILITY,
    ID,
    INDEX,
    LABEL,
    LATENT_MEAN,
    LATENT_STD,
    OBJECT_ID,
    UNSURE,
)
from vae_astro.errors import InputError
from vae_astro.evaluate.class_model import ClassModel
from vae_astro.evaluate.clusters import hard_classes

__all__ = ["CatalogueOfClasses", "Sample", "provenance_of", "renamed", "sample_of"]

AT_ONCE = 8192
"""Rows that are classified together."""
CODES = [LATENT_MEAN, LATENT_STD]


@dataclass(frozen=True)
class Sample:
    """Some stamps as several networks see them.

    Attributes
    ----------
    index : ndarray, shape (N,), int64
        Rows of the store, ascending.
    posteriors : list of (mean, std), shape (N, Z) each
        One pair for each network.
    labels, objects : ndarray, shape (N,), str
        Given labels, empty where unknown, and names of the objects.
    n_all : int
        Stamps that these were drawn from.
    """

    index: np.ndarray
    posteriors: list[tuple[np.ndarray, np.ndarray]]
    labels: np.ndarray
    objects: np.ndarray
    n_all: int


def sample_of(files: Sequence[Path], most: int, seed: int) -> Sample:
    """Read the codes of a random choice of rows, the same from all files.

    Raises
    ------
    InputError
        The files are not of the same stamps.
    """
    n_all = pq.read_metadata(files[0]).num_rows
    rows = np.arange(n_all)
    if n_all > most:
        rows = np.sort(np.random.default_rng(seed).choice(n_all, most, replace=False))
    tables = [_rows_of(file, rows) for file in files]
    for table in tables[1:]:
        if not table["id"].equals(tables[0]["id"]):
            raise InputError(
                "checkpoint names networks of other stamps than the first: their classes cannot "
                "be put together; give networks that were trained on the same stamps, or data.root"
            )
    first = tables[0]
    labels = [label or "" for label in first["label"].to_pylist()]
    return Sample(
        first["index"].to_numpy(),
        [(_matrix(table[CODES[0]]).copy(), _matrix(table[CODES[1]]).copy()) for table in tables],
        np.array(labels, dtype=str),
        np.array(first[OBJECT_ID].to_pylist(), dtype=str),
        n_all,
    )


def provenance_of(file: Path) -> dict[str, Any]:
    """What a catalogue says it was made from."""
    held = (pq.read_schema(file).metadata or {}).get(PROVENANCE)
    return json.loads(held) if held else {}


class CatalogueOfClasses:
    """The catalogue of stamps with their classes, made while it is read.

    Parameters
    ----------
    files : sequence of Path
        Codes of the same stamps by each network; names and codes of the first are kept.
    model : ClassModel
    stability : sequence of (float or None), length K
        Of each class.
    names : sequence of str, length K
    unsure_below : float
    provenance : mapping
        What is added to that of the codes.
    """

    def __init__(
        self,
        files: Sequence[Path],
        model: ClassModel,
        stability: Sequence[float | None],
        names: Sequence[str],
        unsure_below: float,
        provenance: Mapping[str, Any],
    ) -> None:
        self.files, self.model, self.unsure_below = files, model, unsure_below
        self.stability = np.array([np.nan if s is None else s for s in stability] + [np.nan], "f4")
        self.names = names
        latent_dim = pq.read_schema(files[0]).field(CODES[0]).type.list_size
        self.schema = schema_of(
            (*IDENTITY, *LATENT, *CLASSES),
            latent_dim,
            {**provenance_of(files[0]), **provenance},
            n_classes=model.n_classes,
        )
        self.counts = np.zeros(model.n_classes + 1, int)
        """Stamps of each class so far, and of none."""
        self.n_unsure = 0

    def __iter__(self) -> Iterator[pa.Table]:
        kept = [column.name for column in (*IDENTITY, *LATENT)]
        passes = [_chunks(self.files[0], kept)]
        passes += [_chunks(file, ["id", *CODES]) for file in self.files[1:]]
        for tables in zip(*passes, strict=True):
            if any(not table["id"].equals(tables[0]["id"]) for table in tables[1:]):
                raise InputError(
                    "checkpoint names networks of other stamps than the first; give data.root"
                )
            posteriors = [(_matrix(t[CODES[0]]), _matrix(t[CODES[1]])) for t in tables]
            yield self._classified(tables[0], self.model.shares(posteriors))

    def _classified(self, table: pa.Table, shares: np.ndarray) -> pa.Table:
        told = hard_classes(shares)
        unsure = shares.max(axis=1) < self.unsure_below
        self.counts += np.bincount(told % len(self.counts), minlength=len(self.counts))
        self.n_unsure += int(unsure.sum())
        kind = self.schema.field(CLASS_PROBABILITIES).type
        flat = pa.array(shares.astype("f4").reshape(-1))
        columns = {
            CLASS: _named(told, self.names),
            CLASS_PROBABILITIES: pa.FixedSizeListArray.from_arrays(flat, type=kind),
            CLASS_STABILITY: pa.array(self.stability[told]),
            UNSURE: pa.array(unsure),
        }
        for name, values in columns.items():
            table = table.append_column(name, values)
        return table


def renamed(file: Path, names: Sequence[str]) -> tuple[pa.Schema, Iterator[pa.Table]]:
    """A catalogue of classes under other names, by the most probable class of each row."""
    schema = pq.read_schema(file)
    held = provenance_of(file)
    held["classes"] = {**held.get("classes", {}), "names": list(names)}
    schema = schema.with_metadata({**schema.metadata, PROVENANCE: json.dumps(held).encode()})

    def tables() -> Iterator[pa.Table]:
        for table in _chunks(file, schema.names):
            told = hard_classes(_matrix(table[CLASS_PROBABILITIES]).astype(float))
            position = table.schema.get_field_index("class")
            yield table.set_column(position, CLASS, _named(told, names))

    return schema, tables()


def _named(told: np.ndarray, names: Sequence[str]) -> pa.Array:
    """Names of classes (N,), null for -1."""
    at = pa.array(np.maximum(told, 0), mask=told < 0)
    return pa.array(names, pa.string()).take(at)


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    """A column of lists of one length as an array (N, length)."""
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), -1)


def _rows_of(file: Path, rows: np.ndarray) -> pa.Table:
    """Some rows of a file, ascending, with what a `Sample` holds."""
    parts, first = [], 0
    for table in _chunks(file, [INDEX, ID, OBJECT_ID, LABEL, *CODES]):
        low, high = np.searchsorted(rows, [first, first + len(table)])
        parts.append(table.take(rows[low:high] - first))
        first += len(table)
    return pa.concat_tables(parts)


def _chunks(file: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The rows of a file in tables of `AT_ONCE`, wherever its row groups end."""
    waiting: list[pa.RecordBatch] = []
    with pq.ParquetFile(file) as parquet:
        for batch in parquet.iter_batches(AT_ONCE, columns=list(columns)):
            while (room := AT_ONCE - sum(map(len, waiting))) <= len(batch):
                yield pa.Table.from_batches([*waiting, batch.slice(0, room)])
                waiting, batch = [], batch.slice(room)
            if len(batch):
                waiting.append(batch)
    if waiting:
        yield pa.Table.from_batches(waiting)
