"""Classes and outliers of a run, where they have been looked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vae_astro.catalogue import PROVENANCE, names
from vae_astro.errors import InputError
from vae_astro.evaluate.anomalies import normally_below
from vae_astro.evaluate.class_model import read_found
from vae_astro.evaluate.class_names import default_name, read_names
from vae_astro.report.page.pictures import Picture, stored

__all__ = ["Classes", "Outliers", "read_classes", "read_outliers", "same_stamps"]

MOST_PICTURES = 24
"""Galleries of classes on the page; the table has all classes."""
N_LISTED = 24
"""Odd stamps on the page."""
FOUND, NAMES, CATALOGUE = "classes.json", "classes.yaml", "catalogue.parquet"
RANKING = "outliers.parquet"


@dataclass(frozen=True)
class Classes:
    """What scripts/classify.py left in a folder.

    Attributes
    ----------
    folder : Path
    n_stamps, n_clusterings : int
        Stamps that were classified, and clusterings that were put together.
    unsure : float
        Share of the stamps without a class that is probable enough.
    labels : dict or None
        Their agreement with labels, as `Agreement` has it.
    rows : list of dict
        For each class: ``number``, ``name``, ``occupancy``, ``stability``, ``verdict``, ``label``
        and ``purity``.
    pictures : list of Picture
        All classes below each other, then each.
    left_out : int
        Galleries that the page has no room for.
    index, of_row : ndarray, shape (N,)
        Row of the store, and the name of its class; empty where they are of other stamps.
    """

    folder: Path
    n_stamps: int
    n_clusterings: int
    unsure: float
    labels: dict[str, Any] | None
    rows: list[dict[str, Any]]
    pictures: list[Picture]
    left_out: int
    index: np.ndarray
    of_row: np.ndarray


@dataclass(frozen=True)
class Outliers:
    """What scripts/outliers.py wrote.

    Attributes
    ----------
    path : Path
    n_stamps : int
    n_below : int
        Stamps with p < 0.01.
    n_calibration : int or None
        Normal stamps that they were compared with.
    top : list of dict
        The oddest: their columns.
    index, p_value : ndarray, shape (N,)
        Row of the store and p-value, the oddest first; empty where they are of other stamps.
    """

    path: Path
    n_stamps: int
    n_below: int
    n_calibration: int | None
    top: list[dict[str, Any]]
    index: np.ndarray
    p_value: np.ndarray

    @property
    def normally(self) -> str:
        """How many of as many normal stamps have p < 0.01; empty where it is not known."""
        return normally_below(self.n_stamps, self.n_calibration) if self.n_calibration else ""


def read_classes(folder: Path, data: Mapping[str, Any] | None) -> Classes:
    """Classes of a folder.

    Parameters
    ----------
    folder : Path
        What ``out=`` was.
    data : mapping or None
        The data group of the run.

    Raises
    ------
    InputError
        It is no folder of classes, or a file in it is damaged.
    """
    found = read_found(folder / FOUND)
    try:
        told = found["found"]["classes"]
        labels = found["labels"]
        rows = [
            {
                "number": k,
                "name": name,
                "occupancy": found["occupancy"][k],
                "stability": each["stability"],
                "verdict": each["verdict"],
                "label": None if labels is None else labels["mapping"][k],
                "purity": None if labels is None else labels["purity"][k],
            }
            for k, (name, each) in enumerate(zip(_names(folder, found), told, strict=True))
        ]
        n_stamps, unsure = int(found["n_stamps"]), float(found["unsure"])
        n_clusterings = int(found["found"]["n_clusterings"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(
            f"classes={folder}: {FOUND} lacks what scripts/classify.py writes ({error!r}); find "
            "the classes again"
        ) from error
    index, of_row = np.empty(0, np.int64), np.empty(0, object)
    catalogue = folder / CATALOGUE
    if catalogue.is_file():
        table = _table(catalogue, "classes", ["index", "class"])
        if same_stamps(table, data):
            index = table["index"].to_numpy()
            of_row = np.array(table["class"].to_pylist(), dtype=object)
    pictures = _pictures(folder / "gallery", rows)
    return Classes(folder, n_stamps, n_clusterings, unsure, labels, rows, pictures,
                   max(0, len(rows) - MOST_PICTURES), index, of_row)  # fmt: skip


def _names(folder: Path, found: Mapping[str, Any]) -> list[str]:
    """Those that a person has given, as far as they can be read."""
    n_classes = len(found["found"]["classes"])
    try:
        return read_names(folder / NAMES, found["clustering"], n_classes)
    except InputError:
        return [default_name(k) for k in range(n_classes)]


def _pictures(gallery: Path, rows: list[dict[str, Any]]) -> list[Picture]:
    wanted = [(gallery / "overview.png", "Most typical stamps of every class, a row for each.", "")]
    for row in rows[:MOST_PICTURES]:
        words = f"Class {row['name']}: typical stamps, those at its boundary, and random ones."
        wanted.append((gallery / f"class_{row['number']}.png", words, row["name"]))
    drawn = [stored(path, alt, caption) for path, alt, caption in wanted]
    return [picture for picture in drawn if picture is not None]


def read_outliers(path: Path, data: Mapping[str, Any] | None) -> Outliers:
    """A ranking of odd stamps.

    Parameters
    ----------
    path : Path
        What ``out=`` was, Parquet.
    data : mapping or None
        The data group of the run.

    Raises
    ------
    InputError
        It cannot be read, or is no such ranking.
    """
    if path.suffix.lower() != ".parquet":
        raise InputError(f"outliers={path} must be the .parquet that scripts/outliers.py writes")
    listed = [
        names.INDEX, names.ID, names.OBJECT_ID, names.RA, names.DEC, names.LABEL, names.P_VALUE,
        names.CHI2_PER_PIXEL,
    ]  # fmt: skip
    table = _table(path, "outliers", listed)
    p_value = table[names.P_VALUE].to_numpy()
    index, p_of_row = np.empty(0, np.int64), np.empty(0)
    if same_stamps(table, data):
        index, p_of_row = table["index"].to_numpy(), p_value
    return Outliers(
        path,
        len(table),
        int((p_value < 0.01).sum()),
        _provenance(table).get("n_calibration"),
        table.slice(0, N_LISTED).to_pylist(),
        index,
        p_of_row,
    )


def same_stamps(table: pa.Table, data: Mapping[str, Any] | None) -> bool:
    """Whether the rows of a catalogue are those of the store that a run was trained on."""
    of_table = _provenance(table).get("data")
    if not of_table or not data:
        return False
    places = [Path(str(each.get("root"))).resolve() for each in (of_table, data)]
    keys = ("format", "size", "hdu", "cutouts")
    return places[0] == places[1] and all(of_table.get(k) == data.get(k) for k in keys)


def _provenance(table: pa.Table) -> dict[str, Any]:
    held = json.loads((table.schema.metadata or {}).get(PROVENANCE, b"{}"))
    return held if isinstance(held, dict) else {}


def _table(path: Path, key: str, columns: list[str]) -> pa.Table:
    try:
        names = pq.read_schema(path).names
        missing = [name for name in columns if name not in names]
        if missing:
            raise ValueError(f"it has no column {missing[0]}")
        return pq.read_table(path, columns=columns)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(
            f"{key}={path} cannot be read ({' '.join(str(error).split())}); give what "
            f"scripts/{'classify' if key == 'classes' else 'outliers'}.py wrote"
        ) from error
