"""Which rows of a catalogue belong to which mosaic."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from vae_astro.data.sources.files import RefusedError
from vae_astro.data.sources.mosaics.catalogue import Catalogue
from vae_astro.data.sources.mosaics.opening import open_grid
from vae_astro.data.sources.mosaics.sky_grid import SkyGrid
from vae_astro.data.sources.root import FileVersion, Root

__all__ = [
    "grid_of",
    "nearest_pixels",
    "overlapping",
    "rows_inside_grid",
    "rows_inside_mosaics",
    "rows_naming",
    "unnamed_mosaics",
]

FAR = 2.0**40
"""Pixels beyond which a position is nowhere."""


@lru_cache(maxsize=4096)
def grid_of(root: Root, file: FileVersion, hdu: int | str | None) -> SkyGrid | None:
    """The celestial WCS of a mosaic, None where it has none; kept for the next catalogue rows.

    Raises
    ------
    RefusedError, OSError
        As `open_images`.
    """
    return open_grid(root, file, hdu)


def nearest_pixels(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of the pixels that positions lie in, int64; far outside for NaN."""
    rows, columns = (
        np.nan_to_num(np.floor(np.clip(axis, -FAR, FAR) + 0.5), nan=-FAR).astype(np.int64)
        for axis in (y, x)
    )
    return rows, columns


@lru_cache(maxsize=64)
def rows_inside_grid(
    root: Root, catalogue: Catalogue, file: FileVersion, hdu: int | str | None
) -> np.ndarray | None:
    """Rows whose position on the sky lies in a mosaic, ascending; kept for its next part.

    None where either has no positions on the sky. Raises as `grid_of`.
    """
    if catalogue.ra is None or catalogue.dec is None:
        return None
    grid = grid_of(root, file, hdu)
    if grid is None:
        return None
    _, dec, radius = grid.cap
    by_dec = catalogue.by_dec
    first, last = np.searchsorted(catalogue.dec, [dec - radius, dec + radius], sorter=by_dec)
    near = by_dec[first:last]
    rows, columns = nearest_pixels(*grid.to_pixels(catalogue.ra[near], catalogue.dec[near]))
    height, width = grid.shape
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return np.sort(near[inside])


def rows_inside_mosaics(
    root: Root, catalogue: Catalogue, files: Sequence[FileVersion], hdu: int | str | None
) -> np.ndarray:
    """Rows that lie in any of several mosaics, ascending; one that cannot be read holds none."""
    inside = np.zeros(len(catalogue), bool)
    for file in files:
        try:
            rows = rows_inside_grid(root, catalogue, file, hdu)
        except (RefusedError, OSError):
            continue
        if rows is not None:
            inside[rows] = True
    return np.flatnonzero(inside)


def overlapping(held: Sequence[np.ndarray], n_rows: int) -> list[list[int]]:
    """Which mosaics share rows with which.

    Parameters
    ----------
    held : sequence of ndarray
        Rows that each mosaic holds, each once.
    n_rows : int
        Rows of the catalogue.

    Returns
    -------
    list of list of int
        For each mosaic the others that hold a row that it holds, ascending.
    """
    n_holders = np.zeros(n_rows, np.int32)
    for rows in held:
        n_holders[rows] += 1
    shared = [rows[n_holders[rows] > 1] for rows in held]
    all_rows = np.concatenate([*shared, np.empty(0, np.int64)])
    holders = np.repeat(np.arange(len(held)), [len(rows) for rows in shared])
    order = np.argsort(all_rows, kind="stable")
    all_rows, holders = all_rows[order], holders[order]
    beside: list[set[int]] = [set() for _ in held]
    for apart in range(1, int(n_holders.max(initial=1))):
        same = all_rows[:-apart] == all_rows[apart:]
        pairs = np.unique(np.stack([holders[:-apart][same], holders[apart:][same]]), axis=1)
        for one, other in pairs.T.tolist():
            beside[one].add(other)
            beside[other].add(one)
    return [sorted(others) for others in beside]


def rows_naming(catalogue: Catalogue, names: tuple[str, ...]) -> np.ndarray:
    """Rows of a catalogue that name one of these files, by its path or its last part, ascending."""
    texts = {*names, *(posixpath.basename(name) for name in names)}
    found = [catalogue.by_file[text] for text in texts if text in catalogue.by_file]
    return np.sort(np.concatenate([*found, np.empty(0, np.int64)]))


def unnamed_mosaics(catalogue: Catalogue, names: set[str]) -> list[str]:
    """Files that a catalogue names and that are none of those listed, sorted."""
    known = names | {posixpath.basename(name) for name in names} | {""}
    return sorted(catalogue.by_file.keys() - known)
