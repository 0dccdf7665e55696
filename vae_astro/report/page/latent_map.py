"""The map of the latent code: where stamps lie, what colours them, and their small pictures."""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from vae_astro.errors import InputError
from vae_astro.report.gallery import plain
from vae_astro.report.palette import PALETTE
from vae_astro.report.sheet import shared_stretch, tiled

__all__ = ["Colour", "Layout", "categories", "layouts", "map_figure", "neighbours", "numbers",
           "sprite"]  # fmt: skip

SHAPES = ("circle", "square", "triangle", "diamond", "cross")
MARKERS = ("o", "s", "^", "D", "X")
"""The same for a static figure. Colour and shape go on differently, so that the ninth category is
not the first."""
OTHER = "#8a8a8a"
MOST_CATEGORIES = len(PALETTE) * 2
NO_VALUE = "not known"
N_NEIGHBOURS = 6
FAR = 5.0
BAD_PIXEL = (150, 150, 150)


@dataclass(frozen=True)
class Layout:
    """One way to lay the codes out in a plane.

    Attributes
    ----------
    name : str
        For a person.
    x, y : ndarray, shape (N,)
    axes : tuple of (str, str)
        What they are.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    axes: tuple[str, str]


@dataclass(frozen=True)
class Colour:
    """One way to colour the stamps.

    Attributes
    ----------
    name : str
        For a person, with its unit.
    values : ndarray, shape (N,)
        Numbers, NaN where not known; or the number of the category.
    categories : tuple of str
        Names; empty for numbers.
    limits : tuple of (float, float)
        Of numbers: where the scale begins and ends.
    log : bool
        Whether the scale is logarithmic.
    """

    name: str
    values: np.ndarray
    categories: tuple[str, ...] = ()
    limits: tuple[float, float] = (0.0, 1.0)
    log: bool = False


def layouts(
    mean: np.ndarray,
    kl_per_unit_nats: np.ndarray,
    with_umap: bool,
    units: Sequence[int] | None = None,
) -> list[Layout]:
    """Principal components, the two strongest units and, where asked for, UMAP.

    Parameters
    ----------
    mean : ndarray, shape (N, Z)
        Codes.
    kl_per_unit_nats : ndarray, shape (Z,)
        Which units are strong.
    with_umap : bool
        Whether UMAP (McInnes et al. 2018) lays them out as well.
    units : sequence of int, optional
        Numbers of the units that the columns are of; from 0 without them.

    Raises
    ------
    InputError
        UMAP is asked for and not installed.
    """
    n, latent_dim = mean.shape
    found = None
    if n > 1:
        with np.errstate(invalid="ignore"):  # codes that are all the same have no variance
            found = PCA(n_components=min(2, n, latent_dim)).fit(mean)
    plane = np.zeros((n, 2))
    share = [0.0, 0.0]
    if found is not None:
        placed = found.transform(mean)
        plane[:, : placed.shape[1]] = placed
        shares = np.nan_to_num(found.explained_variance_ratio_)
        share[: len(shares)] = shares.tolist()
    axes = [f"component {k + 1} ({100 * share[k]:.0f} % of the variance)" for k in range(2)]
    laid = [Layout("principal components (PCA)", plane[:, 0], plane[:, 1], (axes[0], axes[1]))]
    if latent_dim > 1:
        first, second = np.argsort(-kl_per_unit_nats, kind="stable")[:2].tolist()
        called = range(latent_dim) if units is None else units
        names = (f"latent unit {called[first]}", f"latent unit {called[second]}")
        laid.append(Layout("the two strongest units", mean[:, first], mean[:, second], names))
    if with_umap:
        x, y = _umap(mean).T
        laid.insert(1, Layout("UMAP", x, y, ("UMAP 1", "UMAP 2")))
    return [replace(each, x=_within(each.x), y=_within(each.y)) for each in laid]


def _within(values: np.ndarray) -> np.ndarray:
    """Values, those far outside moved to the edge: a few odd codes would leave the others no room.

    The edge is as far from the middle half of the stamps as `FAR` times its width.
    """
    if not len(values):
        return values
    low, high = np.percentile(values, [25, 75])
    edge = FAR * (high - low)
    return np.clip(values, low - edge, high + edge) if edge > 0 else values


def _umap(mean: np.ndarray) -> np.ndarray:
    if importlib.util.find_spec("umap") is None:
        raise InputError(
            "umap=true needs umap-learn, which is not installed: pip install 'vae-astro[umap]', or "
            "leave umap away"
        )
    import umap

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a fixed seed means one core
        n_neighbors = max(2, min(15, len(mean) - 1))
        return umap.UMAP(n_neighbors=n_neighbors, random_state=0).fit_transform(mean)


def neighbours(mean: np.ndarray) -> np.ndarray:
    """Rows of the nearest codes of each stamp, the nearest first, without itself: (N, K)."""
    n = min(N_NEIGHBOURS + 1, len(mean))
    found = NearestNeighbors(n_neighbors=n).fit(mean).kneighbors(mean, return_distance=False)
    others = []
    for row, near in enumerate(found):  # with equal codes a stamp need not be its own nearest
        others.append([k for k in near.tolist() if k != row][: n - 1])
    return np.array(others, dtype=int).reshape(len(mean), n - 1)


def numbers(name: str, values: np.ndarray, log: bool = False) -> Colour | None:
    """A scale for numbers over all but the lowest and highest 2 per cent; None without any."""
    values = np.asarray(values, dtype=float)
    if log:
        values = np.where(values > 0, values, np.nan)
    known = values[np.isfinite(values)]
    if not known.size:
        return None
    low, high = (float(value) for value in np.percentile(known, [2, 98]))
    if not high > low:
        return None
    return Colour(name, values, limits=(low, high), log=log)


def categories(name: str, values: Sequence[str | None]) -> Colour | None:
    """Names, the most frequent first; None without any, and the rarest together where many."""
    given = [value or NO_VALUE for value in values]
    counts: dict[str, int] = {}
    for value in given:
        counts[value] = counts.get(value, 0) + 1
    ranked = sorted((value for value in counts if value != NO_VALUE), key=lambda v: (-counts[v], v))
    if not ranked:
        return None
    kept = ranked if len(ranked) <= MOST_CATEGORIES else ranked[: MOST_CATEGORIES - 1]
    names = [*kept]
    if len(kept) < len(ranked):
        names.append("others")
    if NO_VALUE in counts:
        names.append(NO_VALUE)
    place = {value: k for k, value in enumerate(names)}
    rest = place.get("others", 0)
    return Colour(name, np.array([place.get(value, rest) for value in given]), tuple(names))


def style_of(k: int, name: str) -> tuple[str, int]:
    """Colour of category ``k``, and the place of its shape in `SHAPES`."""
    if name in (NO_VALUE, "others"):
        return OTHER, 0
    return PALETTE[k % len(PALETTE)], (k + k // len(PALETTE)) % len(SHAPES)


def map_figure(layout: Layout, colour: Colour | None) -> Figure:
    """The map as it is printed, and shown where no script runs."""
    figure = Figure(figsize=(7.6, 5.4), layout="constrained")
    ax = figure.subplots()
    x, y = layout.x, layout.y
    if colour is None:
        ax.scatter(x, y, s=14, color=PALETTE[0], edgecolor="none", alpha=0.7)
    elif colour.categories:
        for k, name in enumerate(colour.categories):
            here = colour.values == k
            shade, shape = style_of(k, name)
            text = f"{plain(name)} ({here.sum()})"
            ax.scatter(x[here], y[here], s=16, color=shade, marker=MARKERS[shape], alpha=0.85,
                       edgecolor="white", linewidth=0.3, label=text)  # fmt: skip
        ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    else:
        ax.scatter(x, y, s=8, color=OTHER, edgecolor="none")
        shown = np.log10(colour.values) if colour.log else colour.values
        low, high = (math.log10(v) if colour.log else v for v in colour.limits)
        drawn = ax.scatter(x, y, s=16, c=shown, cmap="viridis", vmin=low, vmax=high,
                           edgecolor="white", linewidth=0.2)  # fmt: skip
        label = f"log10 {colour.name}" if colour.log else colour.name
        figure.colorbar(drawn, ax=ax, label=label, pad=0.01)
    ax.set_xlabel(layout.axes[0])
    ax.set_ylabel(layout.axes[1])
    ax.set_aspect("auto")
    ax.ticklabel_format(useOffset=False)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    return figure


def sprite(stamps: np.ndarray, models: np.ndarray) -> tuple[np.ndarray, dict[str, int]]:
    """All small pictures on one sheet: each stamp above what the model makes of it.

    Bands lie side by side, each on one stretch for all stamps and models; a stamp's first row is
    at the bottom of its picture.

    Parameters
    ----------
    stamps, models : ndarray, shape (N, C, S, S)
        Normalised; bad pixels NaN.

    Returns
    -------
    tuple of (ndarray, dict)
        Pixels (H, W, 3) uint8, and how they are laid out: ``columns``, ``width`` and ``height`` of
        a tile.
    """
    n, n_bands = stamps.shape[:2]
    limits = [shared_stretch(stamps[:, band]) for band in range(n_bands)]

    def side_by_side(images: np.ndarray) -> np.ndarray:
        scaled = [(images[:, band] - low) / (high - low) for band, (low, high) in enumerate(limits)]
        return np.concatenate(scaled, axis=2)[:, ::-1]

    tiles = np.concatenate([side_by_side(stamps), side_by_side(models)], axis=1)
    height, width = tiles.shape[1:]
    columns = max(1, min(n, round(math.sqrt(n * height / width))))
    sheet = tiled(tiles.astype(np.float32, copy=False), columns, blank=0)
    table = (255 * np.array(colormaps["viridis"].resampled(256)(range(256)))[:, :3]).astype(
        np.uint8
    )
    # a few hundred rows at a time: the sheet in float64 would be large
    pixels = table[np.clip(np.nan_to_num(255 * sheet), 0, 255).astype(np.uint8)]
    pixels[np.isnan(sheet)] = BAD_PIXEL
    return pixels, {"columns": columns, "width": width, "height": height}


def _shades(n: int) -> np.ndarray:
    """Viridis in ``n`` steps, (n, 3), 0 to 255."""
    return 255 * colormaps["viridis"].resampled(n)(np.arange(n))[:, :3]


def as_json(
    laid: Sequence[Layout],
    colours: Sequence[Colour],
    near: np.ndarray,
    facts: Sequence[Mapping[str, Any]],
    tiles: Mapping[str, int],
) -> dict[str, Any]:
    """What the script of the page reads: plain numbers, None where not known."""
    return {
        "tiles": dict(tiles),
        "layouts": [
            {"name": each.name, "axes": each.axes, "x": _plain(each.x), "y": _plain(each.y)}
            for each in laid
        ],
        "colours": [
            {
                "name": each.name,
                "values": _plain(each.values),
                "categories": [
                    {"name": name, "colour": style_of(k, name)[0],
                     "shape": SHAPES[style_of(k, name)[1]]}
                    for k, name in enumerate(each.categories)
                ],
                "limits": each.limits,
                "log": each.log,
            }
            for each in colours
        ],
        "near": near.tolist(),
        "facts": list(facts),
        "shades": _shades(32).astype(int).tolist(),
    }  # fmt: skip


def _plain(values: np.ndarray) -> list[float | int | None]:
    if values.dtype.kind in "iu":
        return values.tolist()
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in values.tolist()]
