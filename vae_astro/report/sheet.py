"""Many stamps as one picture: the stretch they share, and the tiles side by side."""

from __future__ import annotations

import numpy as np

__all__ = ["shared_stretch", "tiled"]

SHOWN = (0.5, 99.5)
"""Percentiles of all pixels that are drawn darkest and brightest: a cosmic ray sets no scale."""


def shared_stretch(images: np.ndarray, shown: tuple[float, float] = SHOWN) -> tuple[float, float]:
    """Lowest and highest value shown, for all of some stamps.

    Parameters
    ----------
    images : ndarray
        Any shape; pixels that are not finite count for nothing.
    shown : tuple of (float, float)
        Percentiles of the others.

    Returns
    -------
    tuple of (float, float)
        The second above the first: 0 and 1 without a finite pixel, an interval of 1 where all are
        the same.
    """
    finite = images[np.isfinite(images)]
    if not finite.size:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(finite, shown))
    return low, high if high > low else low + 1


def tiled(
    tiles: np.ndarray, n_columns: int, blank: float, n_rows: int | None = None, gap: int = 0
) -> np.ndarray:
    """Tiles row by row from the top, in one array; the first row of each is at its top.

    Parameters
    ----------
    tiles : ndarray, shape (N, H, W)
    n_columns : int
        Tiles in a row.
    blank : float
        Value of gaps and of cells that no tile is left for.
    n_rows : int, optional
        At least as many as are needed, which is what is taken without it.
    gap : int
        Pixels between tiles.

    Returns
    -------
    ndarray, shape (rows, columns)
        Of the type of the tiles.
    """
    n, height, width = tiles.shape
    n_rows = -(-n // n_columns) if n_rows is None else n_rows
    cells = np.full((n_rows * n_columns, height + gap, width + gap), blank, tiles.dtype)
    cells[:n, :height, :width] = tiles
    rows = cells.reshape(n_rows, n_columns, height + gap, width + gap).swapaxes(1, 2)
    sheet = rows.reshape(n_rows * (height + gap), n_columns * (width + gap))
    return sheet[: len(sheet) - gap, : sheet.shape[1] - gap]
