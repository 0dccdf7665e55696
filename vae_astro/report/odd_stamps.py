"""The oddest stamps, what the model makes of them, and where they are odd."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from vae_astro.report.figures import image_grid

__all__ = ["OddStamp", "odd_stamps"]

RESIDUAL_LIMIT = 8.0
"""Ends of the scale of smoothed residuals, in units of their noise."""
N_COLUMNS = 8


@dataclass(frozen=True)
class OddStamp:
    """One stamp to show.

    Attributes
    ----------
    name : str
        Of the stamp.
    p_value : float
        How odd it is.
    seen, model, residual : ndarray, shape (H, W)
        Normalised stamp, expected pixels (bands averaged), and `ResidualMaps.smoothed`.
    """

    name: str
    p_value: float
    seen: np.ndarray
    model: np.ndarray
    residual: np.ndarray


def odd_stamps(stamps: Sequence[OddStamp]) -> Figure:
    """Columns of stamp, model and residual map, the oddest first; each stamp on its own stretch."""
    n_columns = min(N_COLUMNS, len(stamps))
    n_rows = -(-len(stamps) // n_columns)
    figure = Figure(figsize=(1.35 * n_columns + 0.8, 4.3 * n_rows + 0.5), layout="constrained")
    axes = figure.subplots(3 * n_rows, n_columns, squeeze=False)
    for panel in axes.flat:
        panel.axis("off")
    picture = None
    for k, stamp in enumerate(stamps):
        top, column = 3 * (k // n_columns), k % n_columns
        finite = stamp.seen[np.isfinite(stamp.seen)]
        low, high = np.percentile(finite, (1, 99.7)) if finite.size else (0.0, 1.0)
        stretch = {"cmap": "viridis", "vmin": low, "vmax": max(high, low + 1e-6)}
        for row, image in enumerate((stamp.seen, stamp.model)):
            axes[top + row, column].imshow(image_grid(image[None], 1), origin="lower", **stretch)
        picture = axes[top + 2, column].imshow(
            stamp.residual, origin="lower", cmap="RdBu_r", vmin=-RESIDUAL_LIMIT, vmax=RESIDUAL_LIMIT
        )
        axes[top, column].set_title(f"{stamp.name}\np = {stamp.p_value:.2g}", fontsize=6)
    if picture is not None:
        label = "smoothed residual in units of its noise"
        figure.colorbar(picture, ax=axes, shrink=0.4, pad=0.01, label=label)
    figure.suptitle("Stamp, model, and where it is odd; the oddest first", fontsize=10)
    return figure
