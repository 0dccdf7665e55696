"""Pictures of the answer: the paths of repair, the weight of the KL, the classes."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from vae_astro.collapse.units import VERDICT_WORDS
from vae_astro.report.palette import PALETTE
from vae_astro.report.question.faults import FAULTS, PATHS
from vae_astro.report.question.measure import Answer, ClassMap, Outcome
from vae_astro.report.sheet import shared_stretch

__all__ = ["TITLES", "draw_classes", "draw_paths", "draw_weights"]

TITLES = {"simulated": "simulated stamps", "ztf": "ZTF science cutouts"}
STRETCH_WORDS = {"minmax": "min-max"}
"""Normalisations that are called otherwise in words."""
VERDICT_COLOURS = {"full": "#c8c8c8", "partial": "#f6d58a", "none": "#a9d3ee"}
MARKERS = "os^Dv*PX"
LETTERS = "ABCDEFGH"
GRID = 13
"""Stamps along each side of the picture of classes."""


def draw_paths(answer: Answer) -> Figure:
    """One strip for each order of repair: what came to life when."""
    figure = Figure(figsize=(13, 0.4 + 4.8 * len(answer.data)), layout="constrained")
    axes = figure.subplots(len(answer.data), 1, squeeze=False)[:, 0]
    for ax, data in zip(axes, answer.data, strict=True):
        for row, path in enumerate(PATHS.values()):
            for done in range(len(path) + 1):
                outcome = answer.at(data, path[done:])
                _cell(ax, done, -row, outcome, None if done == 0 else path[done - 1])
        ax.set(xlim=(-0.52, len(FAULTS) + 0.52), ylim=(-len(PATHS) + 0.5, 0.5))
        ax.set_yticks(-np.arange(len(PATHS)), list(PATHS))
        ax.set_xticks(range(len(FAULTS) + 1), range(len(FAULTS) + 1))
        ax.set(xlabel="repairs made", ylabel="order of repair", title=TITLES[data])
        ax.tick_params(length=0)
        for spine in ax.spines.values():
            spine.set_visible(False)
    shown = {outcome.verdict for outcome in answer.outcomes.values() if outcome.weight is None}
    handles = [
        Rectangle((0, 0), 1, 1, color=VERDICT_COLOURS[verdict], label=word)
        for verdict, word in reversed(VERDICT_WORDS.items())
        if verdict in shown
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False)
    return figure


def _cell(ax: Axes, x: float, y: float, outcome: Outcome, repaired: int | None) -> None:
    """One state of the network: what was repaired last, and what it came to."""
    colour = VERDICT_COLOURS[outcome.verdict]
    ax.add_patch(Rectangle((x - 0.48, y - 0.45), 0.96, 0.9, color=colour, lw=0))
    what = "all six faults" if repaired is None else f"repair {repaired}:\n{FAULTS[repaired].name}"
    ax.text(x, y + 0.23, what, ha="center", va="center", fontsize=9, weight="bold")
    chi2 = f"{outcome.chi2_per_pixel:,.{0 if outcome.chi2_per_pixel >= 100 else 1}f}"
    figures = (
        f"KL {short(outcome.kl_nats)}, {outcome.active_units} of {outcome.latent_dim} units\n"
        f"ELBO {outcome.elbo_nats:,.0f}\n"
        f"$\\chi^2$ per pixel {chi2}"
    )
    ax.text(x, y - 0.2, figures, ha="center", va="center", fontsize=8.5)


def short(nats: float) -> str:
    """Few digits, and zero for what is none."""
    return "0" if nats < 5e-4 else f"{nats:.3f}" if nats < 0.1 else f"{nats:.3g}"


def draw_weights(answer: Answer) -> Figure:
    """KL, and what is lost against a learned sigma, at every weight tried."""
    figure = Figure(figsize=(11, 7.4), layout="constrained")
    axes = figure.subplots(2, len(answer.data), squeeze=False, sharex=True, sharey="row")
    for column, data in zip(axes.T, answer.data, strict=True):
        for colour, marker, (stretch, (runs, sigma)) in zip(
            PALETTE, MARKERS, answer.sweeps(data).items(), strict=False
        ):
            _sweep(column, runs, sigma, stretch, colour, marker)
        column[0].set(title=TITLES[data], xscale="log")
        column[0].set_yscale("symlog", linthresh=1)
        column[1].set_yscale("symlog", linthresh=10)
        column[1].axhline(0, color="0.7", lw=1, zorder=0)
        column[1].set_xlabel("weight of the KL beside a mean over pixels")
    highest = max(run.kl_nats for run in answer.outcomes.values())
    axes[0, 0].set(ylabel="KL [nat]", ylim=(-0.3, 2 * max(highest, 1)))
    axes[1, 0].set_ylabel("ELBO less that of learned sigma [nat]")
    axes[0, 0].legend(fontsize=9)
    extra = [
        Line2D([], [], color="0.3", ls=":", label="forecast"),
        Line2D([], [], color="0.3", marker="*", ms=14, ls="", label="learned sigma, at its weight"),
    ]
    figure.legend(handles=extra, loc="outside upper center", ncols=2, frameon=False)
    return figure


def _sweep(
    column: Any, runs: list[Outcome], sigma: Outcome, stretch: str, colour: str, marker: str
) -> None:
    """One normalisation in both panels of a data set."""
    weights = [run.weight for run in runs]
    style = {"color": colour, "marker": marker, "ms": 6, "lw": 1.5}
    star = {"color": colour, "marker": "*", "ms": 19, "mec": "black", "ls": "", "zorder": 5}
    column[0].plot(weights, [run.forecast_kl_nats for run in runs], color=colour, ls=":", lw=1.2)
    column[0].plot(
        weights, [run.kl_nats for run in runs], label=STRETCH_WORDS.get(stretch, stretch), **style
    )
    column[0].plot(sigma.own_weight, sigma.kl_nats, **star)
    column[1].plot(weights, [run.elbo_nats - sigma.elbo_nats for run in runs], **style)
    column[1].plot(sigma.own_weight, 0, **star)


def draw_classes(found: ClassMap, data: str) -> Figure:
    """Stamps at their place in the latent plane, framed by class; beside it what they are.

    Both axes show ranks, so that the plane is filled evenly.
    """
    width, height = 15.0, 7.9 + 0.28 * len(found.composition)
    side = 6.9  # of either panel, inches as all of these
    figure = Figure(figsize=(width, height))
    left, right = (
        figure.add_axes((x / width, (height - 0.75 - side) / height, side / width, side / height))
        for x in (0.4, 7.8)
    )
    ranks = (np.argsort(np.argsort(found.codes, axis=0), axis=0) + 0.5) / len(found.codes)
    _sheet(left, found, ranks)
    _labels(right, found, ranks)
    for ax in (left, right):
        ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xticks=[], yticks=[],
               xlabel="latent unit 1 (rank)", ylabel="latent unit 2 (rank)")  # fmt: skip
    frames = [
        Line2D([], [], color=PALETTE[k], lw=5, label=class_line(k, table))
        for k, table in enumerate(found.composition)
    ]
    below: dict[str, Any] = {
        "loc": "upper left",
        "bbox_to_anchor": (0, -0.03),
        "frameon": False,
        "fontsize": 11,
    }
    left.legend(handles=frames, **below)
    left.set_title("Stamps where the network puts them; frame: class found without labels")
    if right.get_legend_handles_labels()[1]:
        right.legend(ncols=3, markerscale=1.4, **below)
    figure.suptitle(f"{TITLES[data]} in two latent units", fontsize=15, y=1 - 0.15 / height)
    return figure


def _labels(ax: Axes, found: ClassMap, ranks: np.ndarray) -> None:
    """Each stamp as a dot, by what it is; by the class found where that is unknown."""
    known = found.labels != ""
    if not known.any():
        ax.scatter(ranks[:, 0], ranks[:, 1], s=22, c=[PALETTE[k] for k in found.found])
        ax.set_title("The same plane, every stamp (no labels given)")
        return
    names, counts = np.unique(found.labels[known], return_counts=True)
    for k, name in enumerate(names[np.argsort(-counts, kind="stable")][: len(PALETTE)]):
        here = found.labels == name
        ax.plot(*ranks[here].T, MARKERS[k], color=PALETTE[k], ms=6, alpha=0.85, mec="none",
                label=f"{_spaced(name)} ({here.sum()})")  # fmt: skip
    ax.set_title("The same plane, every stamp by its label, which the network never saw")


def _sheet(ax: Axes, found: ClassMap, ranks: np.ndarray) -> None:
    """In each cell of a grid the stamp that lies nearest to its middle."""
    low, high = shared_stretch(found.images)
    for cell in np.ndindex(GRID, GRID):
        offset = ranks * GRID - cell - 0.5
        inside = (np.abs(offset) < 0.5).all(axis=1)
        if not inside.any():
            continue
        nearest = np.argmin(np.where(inside, np.square(offset).sum(1), np.inf))
        x, y = (np.array(cell) + 0.06) / GRID
        side = 0.88 / GRID
        ax.imshow(found.images[nearest], origin="lower", extent=(x, x + side, y, y + side),
                  vmin=low, vmax=high, cmap="gray", interpolation="nearest")  # fmt: skip
        ax.add_patch(Rectangle((x, y), side, side, fill=False, lw=3,
                               ec=PALETTE[found.found[nearest]]))  # fmt: skip
        ax.text(x + 0.06 * side, y + 0.95 * side, LETTERS[found.found[nearest]], color="white",
                fontsize=7, weight="bold", va="top")  # fmt: skip


def class_line(number: int, table: dict[str, int], most: int = 3) -> str:
    """One class for a person: ``class A, 132 stamps: 72 % asteroid, 15 % star``."""
    total = sum(table.values())
    shares = [f"{n / total:.0%} {_spaced(name)}" for name, n in table.items() if name][:most]
    return f"class {LETTERS[number]}, {total} stamps" + (": " + ", ".join(shares) if shares else "")


def _spaced(name: str) -> str:
    return name.replace("_", " ")
