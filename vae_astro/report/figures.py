"""Figures of stamps and latent units, for TensorBoard and for files.

Stamps are drawn as the network sees them (normalised), origin at the bottom, all panels of a figure
on one stated stretch. Residuals are in units of the pixel noise, on a diverging scale centred on
zero. Nothing here touches pyplot's global state.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from vae_astro.collapse.units import FULL_COLLAPSE_NATS
from vae_astro.report.sheet import shared_stretch, tiled

__all__ = [
    "beside",
    "image_grid",
    "kl_history",
    "reconstructions",
    "spectrum",
    "stamp_sheet",
    "traversals",
]

GAP = 2
"""Pixels between stamps of a grid."""
RESIDUAL_LIMIT = 5.0
"""Ends of the residual scale, in units of the noise."""


def image_grid(images: np.ndarray, n_columns: int, blank: float = np.nan) -> np.ndarray:
    """Stamps side by side as one picture: one draw call instead of many.

    Parameters
    ----------
    images : ndarray, shape (N, H, W)
        Drawn row by row from the top; a stamp's own first row stays at its bottom.
    n_columns : int
        Stamps in a row.
    blank : float
        Value of the gaps.

    Returns
    -------
    ndarray, shape (rows, columns)
        For ``imshow(..., origin="lower")``.
    """
    return tiled(images[:, ::-1], n_columns, blank, gap=GAP)[::-1]


def reconstructions(
    image: np.ndarray,
    location: np.ndarray,
    residual: np.ndarray,
    mask: np.ndarray,
    band_names: Sequence[str],
) -> Figure:
    """Stamps above what the model makes of them and the residuals, band by band.

    Parameters
    ----------
    image, location, residual : ndarray, shape (N, C, H, W)
        Normalised stamps, expected pixels, and their difference in units of the pixel noise.
    mask : ndarray, shape (N, C, H, W), bool
        True where good; the rest is drawn blank.
    band_names : sequence of str, length C
    """
    n, n_bands = image.shape[:2]
    figure = Figure(figsize=(1.05 * n + 1.4, 3.4 * n_bands + 0.6), layout="compressed")
    axes = figure.subplots(3 * n_bands, 1, squeeze=False)[:, 0]
    for band, name in enumerate(band_names):
        seen = np.where(mask[:, band], image[:, band], np.nan)
        low, high = shared_stretch(seen)
        off_by = np.where(mask[:, band], residual[:, band], np.nan)
        rows = axes[3 * band : 3 * band + 3]
        sky = _show(rows[0], image_grid(seen, n), f"{name}\nstamp", "viridis", low, high)
        _show(rows[1], image_grid(location[:, band], n), "model", "viridis", low, high)
        off = _show(
            rows[2], image_grid(off_by, n), "residual", "RdBu_r", -RESIDUAL_LIMIT, RESIDUAL_LIMIT
        )
        figure.colorbar(sky, ax=list(rows[:2]), pad=0.01, label="normalised")
        figure.colorbar(off, ax=rows[2], pad=0.01, label="/ noise")
    figure.suptitle("stamp and model on one stretch; residual in units of the pixel noise")
    return figure


def traversals(decoded: np.ndarray, units: Sequence[int], kl_nats: Sequence[float]) -> Figure:
    """What each latent unit does: its code moved from -3 to 3, the others held.

    Parameters
    ----------
    decoded : ndarray, shape (U, S, H, W)
        Expected pixels of one band, for U units at S values.
    units : sequence of int, length U
        Which latent units.
    kl_nats : sequence of float, length U
        Their mean KL.
    """
    n_units, n_steps = decoded.shape[:2]
    low, high = shared_stretch(decoded)
    figure = Figure(figsize=(0.9 * n_steps + 1.9, 0.92 * n_units + 0.9), layout="compressed")
    axes = figure.subplots(n_units, 1, squeeze=False)[:, 0]
    for ax, images, unit, kl in zip(axes, decoded, units, kl_nats, strict=True):
        picture = _show(
            ax, image_grid(images, n_steps), f"unit {unit}\n{kl:.2f} nats", "viridis", low, high
        )
    figure.colorbar(picture, ax=list(axes), pad=0.01, label="expected pixel, normalised")
    figure.suptitle("each unit from −3 to 3, the others held; the strongest first")
    return figure


def stamp_sheet(images: np.ndarray, title: str, n_columns: int = 8) -> Figure:
    """A sheet of stamps of one band, (N, H, W), normalised."""
    low, high = shared_stretch(images)
    n_rows = -(-len(images) // n_columns)
    figure = Figure(figsize=(0.95 * n_columns + 1.1, 0.95 * n_rows + 0.5), layout="compressed")
    ax = figure.subplots()
    picture = _show(ax, image_grid(images, n_columns), "", "viridis", low, high)
    figure.colorbar(picture, ax=ax, pad=0.01)
    figure.suptitle(f"{title}; normalised")
    return figure


def beside(real: np.ndarray, drawn: np.ndarray, band_name: str, n_columns: int = 8) -> Figure:
    """Real stamps (N, H, W) beside those drawn from the prior, normalised, on one stretch."""
    low, high = shared_stretch(real)
    n_rows = -(-max(len(real), len(drawn)) // n_columns)
    figure = Figure(figsize=(1.4 * n_columns, 0.68 * n_rows + 0.5), layout="compressed")
    axes = figure.subplots(1, 2)
    for ax, images, title in (
        (axes[0], real, "real stamps"),
        (axes[1], drawn, "expected pixels of codes from the prior"),
    ):
        filled = np.full((n_rows * n_columns, *images.shape[1:]), np.nan)
        filled[: len(images)] = images
        picture = _show(ax, image_grid(filled, n_columns), "", "viridis", low, high)
        ax.set_title(title, fontsize=10)
    figure.colorbar(picture, ax=list(axes), pad=0.01, label=f"normalised, {band_name}")
    return figure


def kl_history(steps: Sequence[int], kl_per_unit: np.ndarray) -> Figure:
    """KL of every latent unit over training, strongest at the top.

    The colours span what the second half of the training shows: the first steps can be far above.

    Parameters
    ----------
    steps : sequence of int, length T
        Optimiser steps.
    kl_per_unit : ndarray, shape (T, Z)
        In nats.
    """
    order = np.argsort(kl_per_unit[-1])
    height = max(0.17 * kl_per_unit.shape[1] + 1.4, 2.8)  # of two units: the label of the colours
    figure = Figure(figsize=(5.4, height), layout="compressed")
    ax = figure.subplots()
    picture = ax.pcolormesh(
        np.arange(len(steps) + 1),
        np.arange(kl_per_unit.shape[1] + 1),
        kl_per_unit[:, order].T,
        cmap="magma",
        vmin=0,
        # what is next to nothing shall not look like something
        vmax=max(float(kl_per_unit[len(steps) // 2 :].max()), FULL_COLLAPSE_NATS),
    )
    ticks = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), 6)).astype(int))
    ax.set_xticks(ticks + 0.5, [str(steps[tick]) for tick in ticks])
    ax.set_yticks(np.arange(len(order)) + 0.5, [str(unit) for unit in order], fontsize=8)
    ax.set_xlabel("optimiser step")
    ax.set_ylabel("latent unit")
    figure.colorbar(picture, ax=ax, label="KL from the prior [nats]", pad=0.01, extend="max")
    return figure


def spectrum(
    eigenvalues: Sequence[float], threshold: float, latent_dim: int, other: float | None = None
) -> Figure:
    """Variance of the stamps along each direction, against what it takes to survive.

    Parameters
    ----------
    eigenvalues : sequence of float
        Descending, in the units of ``threshold``.
    threshold : float
        ``beta * s2`` where the run ends.
    latent_dim : int
        Latent units, Z.
    other : float, optional
        Threshold at the lowest beta of the schedule, where that differs.
    """
    values = np.asarray(eigenvalues, dtype=float)
    direction = np.arange(1, len(values) + 1)
    survives = values > threshold
    held = direction <= latent_dim
    figure = Figure(figsize=(5.4, 4.3), layout="compressed")
    ax = figure.subplots()
    for chosen, colour, label in (
        (survives & held, "#0072b2", "survives: a latent unit carries it"),
        (survives & ~held, "#9ccbe8", "would survive, but no unit is left"),
        (~survives, "#b0b0b0", "collapses: costs more nats than it saves"),
    ):
        if chosen.any():
            ax.bar(direction[chosen], values[chosen], color=colour, width=0.85, label=label)
    ax.set_yscale("log")
    backed = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    drawn = [value for value in (threshold, other) if value]
    positive = values[values > 0]
    top = max([*positive[:1], *drawn], default=1.0)
    low = min([positive.min(initial=top), *drawn])
    ax.set_ylim(max(0.3 * low, 1e-12 * top), 6 * top)
    edge = len(values) + 0.5
    ax.set_xlim(0.4, edge)
    if threshold > 0:
        ax.axhline(threshold, color="#d55e00", lw=1.8)
        label = f"threshold  beta s$^2$ = {threshold:.3g} "
        ax.text(0.995 * edge, 1.15 * threshold, label, color="#b34700", ha="right", va="bottom",
                bbox=backed)  # fmt: skip
    if other:
        ax.axhline(other, color="#d55e00", lw=1, ls=":")
        label = f"at its lowest beta {other:.3g} "
        ax.text(0.995 * edge, 1.15 * other, label, color="#b34700", ha="right", va="bottom",
                fontsize=9, bbox=backed)  # fmt: skip
    if latent_dim < len(values):
        ax.axvline(latent_dim + 0.5, color="0.3", lw=0.8, ls="--")
        ax.text(latent_dim + 0.7, 3 * top, f"{latent_dim} latent units", color="0.3", fontsize=9)
    ax.set_xlabel("direction of the stamps, strongest first")
    ax.set_ylabel("variance of the stamps along it, as beta s$^2$")
    figure.legend(loc="outside lower center", ncols=1, frameon=False, fontsize=9)
    n = int((survives & held).sum())
    figure.suptitle(
        f"{n} of {latent_dim} latent units have something to say"
        if n
        else "Full collapse: nothing in the stamps is worth its nats"
    )
    return figure


def _show(ax: Axes, grid: np.ndarray, label: str, cmap: str, low: float, high: float) -> AxesImage:
    picture = ax.imshow(
        grid, origin="lower", cmap=cmap, vmin=low, vmax=high, interpolation="nearest"
    )
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_ylabel(label, rotation=0, ha="right", va="center")
    for spine in ax.spines.values():
        spine.set_visible(False)
    return picture
