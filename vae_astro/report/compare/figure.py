"""A comparison as one picture.

Above, a line for each run and a panel for each figure; below, rate against distortion and the
curves, each run in the colour, dash and marker that stands beside its name. Colours are those of
Okabe & Ito (2008), which colour-blind readers tell apart; the dash changes where they repeat.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.layout_engine import ConstrainedLayoutEngine

from vae_astro.report.compare.rows import Comparison, Row
from vae_astro.report.compare.table import time_taken, verdict_in_words
from vae_astro.report.history import Curve
from vae_astro.report.words import shortened

__all__ = ["draw_comparison"]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#e69f00", "#56b4e9")
DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
MOST_RUNS = 40
"""Runs drawn at most."""
LONGEST_NAME = 30
LABEL = (0.05, 0.04)
"""Share of a panel, in width and height, within which markers lie on each other."""
SYMBOLS = {"none": "● ", "partial": "◐ ", "full": "○ "}
"""Before the words of a verdict."""


def draw_comparison(comparison: Comparison) -> Figure:
    """All figures and curves of the runs side by side.

    Parameters
    ----------
    comparison : Comparison
        The first `MOST_RUNS` of its rows are drawn.
    """
    rows = comparison.rows[:MOST_RUNS]
    above, below = 0.42 * max(len(rows), 4) + 0.9, 4.2
    layout = ConstrainedLayoutEngine(hspace=0.06, wspace=0.04)
    figure = Figure(figsize=(17, above + below + 0.7), layout=layout)
    grid = GridSpec(2, 1, figure, height_ratios=[above, below])
    top, bottom = grid[0], grid[1]
    upper = top.subgridspec(1, 7, width_ratios=[0.9, 1.3, 1.1, 1, 1, 1, 1])
    axes = [figure.add_subplot(upper[k]) for k in range(7)]
    _draw_figures(axes, rows)
    _draw_names(axes[0], rows, _differences(comparison))
    panels = bottom.subgridspec(1, 4)
    _draw_rate_distortion(figure.add_subplot(panels[0]), comparison, rows)
    _draw_curves(figure.add_subplot(panels[1]), rows, "val/elbo_nats", "validation ELBO", best=True)
    _draw_curves(figure.add_subplot(panels[2]), rows, "val/kl_nats", "validation KL [nats]")
    _draw_curves(figure.add_subplot(panels[3]), rows, "collapse/active_units", "active units")
    left = len(comparison.rows) - len(rows)
    title = f"{len(rows)} runs" + (f", {left} more not drawn" if left else "")
    if len(comparison.groups) > 1:
        title += f"; ELBO compares within each of the groups {', '.join(comparison.groups)} only"
    figure.suptitle(title, fontsize=11)
    return figure


def _style(k: int) -> dict[str, Any]:
    colour = COLOURS[k % len(COLOURS)]
    again = k // len(COLOURS)
    return {"color": colour, "ls": DASHES[again % len(DASHES)]}


def _marker(k: int) -> dict[str, Any]:
    """The marker changes with the colour, and its filling with the dash."""
    colour = COLOURS[k % len(COLOURS)]
    filled = k // len(COLOURS) % 2 == 0
    return {
        "marker": MARKERS[k % len(MARKERS)],
        "color": colour,
        "markerfacecolor": colour if filled else "white",
        "ls": "none",
        "ms": 7,
    }


# -- a line for each run -------------------------------------------------------------------------


def _draw_figures(axes: Sequence[Axes], rows: Sequence[Row]) -> None:
    for ax in axes:
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.set_yticks(range(len(rows)), [])
        ax.grid(axis="y", color="0.9", lw=0.8)
        ax.set_axisbelow(True)
        ax.tick_params(labelsize=8, length=2)
        for k in _first_of_groups(rows):
            ax.axhline(k - 0.5, color="0.4", lw=0.8)
    best = _best_of_groups(rows)
    _draw_dots(
        axes[1],
        rows,
        lambda row: None if row.elbo_nats is None else row.elbo_nats - best[row.group],
        "ELBO below the best" + (" of the group" if len(best) > 1 else "") + " [nats]",
    )
    if len(best) == 1:
        axes[1].set_title(f"0 is {next(iter(best.values())):.1f} nats per stamp", fontsize=8)
    _draw_dots(
        axes[2], rows, lambda row: row.kl_nats, "KL [nats]", lambda row: row.kl_forecast_nats
    )
    axes[2].set_title("| forecast", fontsize=8)
    _draw_dots(
        axes[3], rows, lambda row: row.active_units, "active units", lambda row: row.latent_dim
    )
    axes[3].set_title("| latent units", fontsize=8)
    _draw_dots(axes[4], rows, lambda row: row.nmi, "NMI with the labels", lambda row: row.nmi_pca)
    axes[4].set_title("| NMI of PCA", fontsize=8)
    _draw_dots(axes[5], rows, lambda row: row.ari, "ARI with the labels", lambda row: row.ari_pca)
    axes[5].set_title("| ARI of PCA", fontsize=8)
    _draw_dots(axes[6], rows, lambda row: row.stamps_per_second, "training stamps / s")
    axes[6].set_title("at the right: the whole run", fontsize=8)
    for k, row in enumerate(rows):
        if row.seconds_total is not None:
            axes[6].text(
                1.05, k, time_taken(row.seconds_total),
                transform=axes[6].get_yaxis_transform(), va="center", fontsize=8,
            )  # fmt: skip
    for ax, is_count in zip(axes[2:], (False, True, False, False, True), strict=True):
        ax.set_xlim(left=0 if ax.get_xlim()[0] >= 0 or is_count else None)


def _differences(comparison: Comparison) -> list[str]:
    """What is special of each run, by the last part of the settings' names; as much as fits."""
    texts = []
    for k in range(len(comparison.rows)):
        text = ""
        for name, values in comparison.differing.items():
            more = f"{'  ' if text else ''}{_last_part(name)}={values[k]}"
            if values[k] is None or len(text + more) > LONGEST_NAME + 4:
                continue
            text += more
        texts.append(text)
    return texts


def _last_part(name: str) -> str:
    """``latent_dim`` for ``model.latent_dim``; a name that is short stays whole."""
    name = name.removesuffix(".name")
    return name if len(name) <= len("model.width") else name.rpartition(".")[2]


def _draw_names(ax: Axes, rows: Sequence[Row], differences: Sequence[str]) -> None:
    several = len({row.group for row in rows}) > 1
    names = [
        f"{f'{row.group}  ' if several else ''}{shortened(row.run.name, LONGEST_NAME)}  {k}\n"
        f"{special}"
        for k, (row, special) in enumerate(zip(rows, differences, strict=False), 1)
    ]
    ax.set_yticks(range(len(rows)), names, fontsize=8, linespacing=1.25)
    for k, row in enumerate(rows):
        ax.plot([0.02, 0.14], [k, k], lw=2, **_style(k))
        ax.plot(0.08, k, **_marker(k))
        verdict = SYMBOLS.get(row.verdict or "", "") + verdict_in_words(row)
        ax.text(0.2, k, verdict, va="center", fontsize=8.5)
    ax.set_xlim(0, 1)
    ax.set_xticks([])
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _draw_dots(
    ax: Axes,
    rows: Sequence[Row],
    figure_of: Callable[[Row], float | None],
    label: str,
    yardstick: Callable[[Row], float | None] | None = None,
) -> None:
    """A figure of each run, and what it is to be seen against as an upright bar."""
    drawn = False
    for k, row in enumerate(rows):
        value = figure_of(row)
        beside = None if yardstick is None else yardstick(row)
        if beside is not None:
            ax.plot(beside, k, marker="|", color="0.3", ms=13, mew=1.6, ls="none")
        if value is not None:
            ax.plot(value, k, clip_on=False, zorder=3, **_marker(k))
            drawn = True
    ax.set_xlabel(label, fontsize=9)
    ax.margins(x=0.12)
    if not drawn:
        _say_none(ax)


def _first_of_groups(rows: Sequence[Row]) -> list[int]:
    return [k for k in range(1, len(rows)) if rows[k].group != rows[k - 1].group]


def _best_of_groups(rows: Sequence[Row]) -> dict[str, float]:
    best: dict[str, float] = {}
    for row in rows:
        if row.elbo_nats is not None:
            best[row.group] = max(best.get(row.group, -np.inf), row.elbo_nats)
    return best


# -- rate against distortion, curves -------------------------------------------------------------


def _draw_rate_distortion(ax: Axes, comparison: Comparison, rows: Sequence[Row]) -> None:
    """KL against reconstruction (Alemi et al. 2018), each run at its own beta."""
    several = len(comparison.groups) > 1
    lowest: dict[str, float] = {}
    for row in rows:
        if row.distortion_nats is not None:
            value = row.distortion_nats
            lowest[row.group] = min(lowest.get(row.group, np.inf), value)
    points = {
        k: (row.rate_nats, row.distortion_nats - (lowest[row.group] if several else 0.0))
        for k, row in enumerate(rows)
        if row.rate_nats is not None and row.distortion_nats is not None
    }
    for line in comparison.lines_of_beta:
        joined = [points[k] for k in line if k in points]
        ax.plot(*zip(*joined, strict=True), color="0.6", lw=1.2, zorder=1)
    for k, (rate, distortion) in points.items():
        ax.plot(rate, distortion, **_marker(k))
    ax.margins(0.18)
    for (x, y), labels in _labels_apart(ax, points, rows).items():
        ax.annotate(", ".join(labels), (x, y), xytext=(6, 5), textcoords="offset points",
                    fontsize=8)  # fmt: skip
    if not points:
        _say_none(ax)
    ax.set_xlabel("rate: KL [nats]", fontsize=9)
    above = " above the lowest of the group" if several else ""
    ax.set_ylabel(f"distortion: - reconstruction{above} [nats]", fontsize=9)
    ax.set_title("rate and distortion, each run at its own beta", fontsize=9)
    ax.tick_params(labelsize=8)


def _labels_apart(
    ax: Axes, points: Mapping[int, tuple[float, float]], rows: Sequence[Row]
) -> dict[tuple[float, float], list[str]]:
    """Where a label goes, and of which runs: those that would lie on each other share one."""
    if not points:
        return {}
    width, height = np.ptp(ax.get_xlim()), np.ptp(ax.get_ylim())
    placed: dict[tuple[float, float], list[str]] = {}
    for k, (x, y) in sorted(points.items(), key=lambda kp: rows[kp[0]].beta or 0.0):
        beta = rows[k].beta
        label = str(k + 1) if beta is None else f"β={beta:.4g}"
        near = (
            at for at in placed
            if abs(at[0] - x) < LABEL[0] * width and abs(at[1] - y) < LABEL[1] * height
        )  # fmt: skip
        labels = placed.setdefault(next(near, (x, y)), [])
        if label not in labels:
            labels.append(label)
    return placed


def _draw_curves(
    ax: Axes, rows: Sequence[Row], name: str, label: str, *, best: bool = False
) -> None:
    """One scalar of all runs over their steps; with ``best``, below the best of its group."""
    top: dict[str, float] = {}
    curves: dict[int, Curve] = {}
    for k, row in enumerate(rows):
        curve = row.run.history.get(name)
        if curve is not None and np.isfinite(curve.values).any():
            curves[k] = curve
            top[row.group] = max(top.get(row.group, -np.inf), float(np.nanmax(curve.values)))
    settled = []
    for k, curve in curves.items():
        values = curve.values - (top[rows[k].group] if best else 0.0)
        ax.plot(curve.steps, values, lw=1.6, **_style(k))
        if len(values) < 3:
            ax.plot(curve.steps, values, **_marker(k))
        settled.append(values[len(values) // 4 :])
    if not curves:
        _say_none(ax)
    elif best:  # the first steps can be far below all that matters
        seen = np.concatenate(settled)
        low = float(np.nanmin(seen[np.isfinite(seen)], initial=0.0))
        ax.set_ylim(1.05 * low - 1, -0.05 * low + 1)
        label += " below the best" + (" of the group" if len(top) > 1 else "") + " [nats]"
    elif name == "collapse/active_units":
        ax.set_ylim(0, 1.08 * max(max(top.values()), 1.0))
    ax.set_xlabel("optimiser step", fontsize=9)
    ax.set_ylabel(label, fontsize=9)
    ax.grid(color="0.92", lw=0.8)
    ax.tick_params(labelsize=8)


def _say_none(ax: Axes) -> None:
    ax.text(0.5, 0.5, "not known", transform=ax.transAxes, ha="center", va="center", color="0.35")
