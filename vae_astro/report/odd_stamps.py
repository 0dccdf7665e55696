"""The oddest stamps, what the model makes of them, and where they are odd."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure

from vae_astro.data.datamodule import StampDataModule
from vae_astro.evaluate.residuals import residual_maps
from vae_astro.report.figures import image_grid
from vae_astro.report.sheet import shared_stretch
from vae_astro.vae import VAE

__all__ = ["OddStamp", "draw_odd_stamps", "odd_stamps"]

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
        low, high = shared_stretch(stamp.seen)
        stretch = {"cmap": "viridis", "vmin": low, "vmax": high}
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


@torch.inference_mode()
def draw_odd_stamps(
    vae: VAE, datamodule: StampDataModule, rows: np.ndarray, p_values: np.ndarray
) -> Figure:
    """`odd_stamps` of some rows of the store, in their order.

    Parameters
    ----------
    vae : VAE
        In evaluation mode.
    datamodule : StampDataModule
        Set up.
    rows : ndarray, shape (N,), int64
    p_values : ndarray, shape (N,)
    """
    ascending = np.sort(rows)
    shown: dict[int, OddStamp] = {}
    names = dict(zip(rows.tolist(), p_values.tolist(), strict=True))
    for batch in datamodule.in_order(ascending):
        here = {name: value.to(vae.device) for name, value in batch.items()}
        scores = vae.score(here, vae.evaluation_noise(here["index"]))
        maps = residual_maps(
            vae.normalizer, here["image"], scores.location, here["mask"], here["noise"]
        )
        image = here["image"].where(here["mask"], torch.nan)
        planes = zip(
            here["index"].tolist(),
            image.mean(1).cpu().numpy(),
            scores.location.mean(1).cpu().numpy(),
            maps.smoothed.cpu().numpy(),
            strict=True,
        )
        for row, seen, model, residual in planes:
            name = str(datamodule.store.identity(np.array([row]))["id"][0])
            shown[row] = OddStamp(name, names[row], seen, model, residual)
    return odd_stamps([shown[row] for row in rows.tolist()])
