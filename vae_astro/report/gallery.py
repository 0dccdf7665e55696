"""Classes to look at: what is typical of each, where it ends, and what its stamps are like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vae_astro.evaluate.mixtures import Curve
from vae_astro.report.figures import image_grid
from vae_astro.report.sheet import shared_stretch

__all__ = ["KINDS", "Stretch", "choose_rows", "class_figure", "curve_figure", "overview_figure"]

KINDS = ("typical", "boundary", "random")
BIC_COLOUR, ICL_COLOUR = "#0072b2", "#d55e00"
FEWEST_TYPICAL = 0.5
"""Typical stamps are among the more probable half of a class."""


def choose_rows(
    shares: np.ndarray, codes: np.ndarray, n: int, seed: int = 0
) -> list[dict[str, np.ndarray]]:
    """Stamps to show of each class.

    Parameters
    ----------
    shares : ndarray, shape (N, K)
        Class probabilities.
    codes : ndarray, shape (N, D)
        Where the stamps lie; typical are those nearest to the median of their class.
    n : int
        Of each kind, at most.
    seed : int
        Of the random ones.

    Returns
    -------
    list of dict
        For each class, rows by `KINDS`: ``typical``, the nearest first; ``boundary``, the smallest
        lead over another class first; ``random``. All are stamps of the class.
    """
    rng = np.random.default_rng(seed)
    told = shares.argmax(axis=1)
    ranked = np.sort(shares, axis=1)
    lead = ranked[:, -1] - (ranked[:, -2] if shares.shape[1] > 1 else 0)
    chosen = []
    for k in range(shares.shape[1]):
        members = np.flatnonzero(told == k)
        if not len(members):
            chosen.append(dict.fromkeys(KINDS, members))
            continue
        offset = codes[members] - np.median(codes[members], axis=0)
        spread = np.maximum(np.median(np.abs(offset), axis=0), 1e-6)
        far = np.square(offset / spread).sum(axis=1)
        # a stamp in the middle of its class may still be as near to another
        doubted = shares[members, k] < np.quantile(shares[members, k], FEWEST_TYPICAL)
        chosen.append(
            {
                "typical": members[np.lexsort((far, doubted))][:n],
                "boundary": members[np.argsort(lead[members], kind="stable")][:n],
                "random": np.sort(rng.choice(members, min(n, len(members)), replace=False)),
            }
        )
    return chosen


@dataclass(frozen=True)
class Stretch:
    """One stretch for all galleries of a clustering.

    Attributes
    ----------
    limits : tuple of (float, float), length C
        Darkest and brightest shown of each band: all but the faintest and brightest half per cent.
    band_names : tuple of str, length C
    """

    limits: tuple[tuple[float, float], ...]
    band_names: tuple[str, ...]

    @classmethod
    def of(cls, images: np.ndarray, band_names: Sequence[str]) -> Stretch:
        """Of normalised stamps (N, C, H, W), bad pixels NaN."""
        limits = []
        for band in range(images.shape[1]):
            limits.append(shared_stretch(images[:, band]))
        return cls(tuple(limits), tuple(band_names))


def class_figure(
    images: Mapping[str, np.ndarray], stretch: Stretch, title: str, n_columns: int
) -> Figure:
    """The gallery of one class: a block for each of `KINDS`, a row for each band.

    Parameters
    ----------
    images : mapping of str to ndarray, shape (M, C, H, W)
        By `KINDS`: normalised stamps, bad pixels NaN.
    stretch : Stretch
    title : str
    n_columns : int
        Stamps in a row.
    """
    bands = stretch.band_names
    n_rows = len(KINDS) * len(bands)
    figure = Figure(figsize=(0.95 * n_columns + 2.2, 1.02 * n_rows + 0.9), layout="compressed")
    axes = figure.subplots(n_rows, 1, squeeze=False)[:, 0]
    for row, ax in enumerate(axes):
        kind, band = KINDS[row // len(bands)], row % len(bands)
        _band(ax, images[kind][:, band], stretch, band, n_columns)
        label = bands[band] if len(bands) > 1 else ""
        if band == 0:
            label = f"{kind}\n{label}".strip()
        ax.set_ylabel(label, rotation=0, ha="right", va="center")
    _bars(figure, list(axes), stretch)
    figure.suptitle(f"{plain(title)}\nstamps normalised, one stretch a band", fontsize=11)
    return figure


def overview_figure(
    images: Sequence[np.ndarray], stretch: Stretch, titles: Sequence[str], n_columns: int
) -> Figure:
    """All classes below each other, their most typical stamps in every band side by side.

    Parameters
    ----------
    images : sequence of ndarray, shape (M, C, H, W)
        Most typical stamps of each class.
    stretch : Stretch
    titles : sequence of str
        What to write beside each class.
    n_columns : int
        Stamps of a class in a band.
    """
    n_bands = len(stretch.band_names)
    width = 0.72 * n_columns * n_bands + 2.6
    figure = Figure(figsize=(width, 0.78 * len(images) + 1.2), layout="compressed")
    axes = figure.subplots(len(images), n_bands, squeeze=False)
    for row, (stamps, title) in enumerate(zip(images, titles, strict=True)):
        for band, ax in enumerate(axes[row]):
            _band(ax, stamps[:, band], stretch, band, n_columns)
        axes[row, 0].set_ylabel(plain(title), rotation=0, ha="right", va="center", fontsize=9)
    for band, ax in enumerate(axes[0]):
        if n_bands > 1:
            ax.set_title(stretch.band_names[band], fontsize=10)
    for band in range(n_bands):
        figure.colorbar(
            axes[-1, band].images[0], ax=list(axes[:, band]), orientation="horizontal", pad=0.01,
            shrink=0.8, aspect=40,
        )  # fmt: skip
    figure.suptitle("most typical stamps of each class; normalised, one stretch a band")
    return figure


def curve_figure(curve: Curve, chosen: int, criterion: str) -> Figure:
    """What each number of classes costs by BIC and ICL, and which was taken."""
    figure = Figure(figsize=(6.5, 4), layout="compressed")
    ax = figure.subplots()
    for name, colour, marker in (("bic", BIC_COLOUR, "o"), ("icl", ICL_COLOUR, "s")):
        values = np.array(getattr(curve, name))
        used = ", decides" if name == criterion else ""
        ax.plot(curve.n_classes, values, marker=marker, color=colour, label=name.upper() + used)
        best = int(np.argmin(values))
        ax.plot(curve.n_classes[best], values[best], marker=marker, ms=13, mfc="none", color=colour)
    ax.axvline(chosen, color="0.4", ls="--", lw=1)
    ax.annotate(f" {chosen} taken", (chosen, 1), xycoords=("data", "axes fraction"), va="top",
                xytext=(0, -4), textcoords="offset points", color="0.3")  # fmt: skip
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("number of classes")
    ax.set_ylabel("criterion per stamp, lower is better")
    ax.legend(frameon=False)
    figure.suptitle("How many classes the latent codes ask for")
    return figure


def plain(text: str) -> str:
    """Text that matplotlib writes as it is: a dollar sign begins no formula."""
    return text.replace("$", r"\$")


def _band(ax: Axes, images: np.ndarray, stretch: Stretch, band: int, n_columns: int) -> None:
    """One row of stamps (M, H, W), blank where a class has fewer than there is room for."""
    height, width = images.shape[1:]
    filled = np.full((n_columns, height, width), np.nan)
    filled[: len(images)] = images[:n_columns]
    low, high = stretch.limits[band]
    ax.imshow(image_grid(filled, n_columns), origin="lower", cmap="viridis", vmin=low, vmax=high,
              interpolation="nearest")  # fmt: skip
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)


def _bars(figure: Figure, axes: Sequence[Axes], stretch: Stretch) -> None:
    """One colour bar for each band, beside its first rows."""
    n_bands = len(stretch.band_names)
    if n_bands == 1:
        figure.colorbar(axes[0].images[0], ax=list(axes), pad=0.01, fraction=0.03)
        return
    for band in range(n_bands):
        for ax in axes[band::n_bands]:
            figure.colorbar(ax.images[0], ax=ax, pad=0.01)
