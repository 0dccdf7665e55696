"""How a run learned: its curves, with the schedule of beta under them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vae_astro.report.history import Curve

__all__ = ["learning_curves"]

TRAIN, VAL, BETA, FORECAST = "#56b4e9", "#0072b2", "#d55e00", "#595959"
SETTLED = 0.1
"""Share of the steps at the beginning that does not set the scale."""


def learning_curves(
    history: Mapping[str, Curve], kl_forecast_nats: float | None, best_step: int | None
) -> Figure | None:
    """ELBO, KL and active units over the steps, and beta under them; None without any of these.

    Parameters
    ----------
    history : mapping of str to Curve
        As `read_history` gives it.
    kl_forecast_nats : float, optional
        Drawn into the panel of the KL.
    best_step : int, optional
        Step of the checkpoint that was kept as the best.
    """
    panels = [panel for panel in _PANELS if any(name in history for name, *_ in panel[1])]
    if not panels:
        return None
    heights = [1.0 if label == "beta" else 1.7 for label, _ in panels]
    figure = Figure(figsize=(5.4, 1.05 * sum(heights) + 0.9), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    for ax, (label, lines) in zip(axes, panels, strict=True):
        drawn = [line for line in lines if line[0] in history]
        for name, words, colour, style in drawn:
            curve = history[name]
            marker = "o" if len(curve.steps) < 3 else None
            ax.plot(curve.steps, curve.values, style, color=colour, label=words, marker=marker)
        if label.startswith("KL") and kl_forecast_nats is not None:
            ax.axhline(kl_forecast_nats, color=FORECAST, ls=(0, (2, 2)), lw=1.2)
            ax.annotate("forecast", (0, kl_forecast_nats), xycoords=("axes fraction", "data"),
                        xytext=(4, 3), textcoords="offset points", fontsize=9,
                        color=FORECAST)  # fmt: skip
        if best_step is not None:
            ax.axvline(best_step, color="0.45", lw=0.8, ls="-.")
        _scale(ax, [history[line[0]] for line in drawn], kl_forecast_nats, label)
        ax.set_ylabel(label)
        ax.ticklabel_format(axis="y", useOffset=False)
        ax.grid(alpha=0.25, lw=0.6)
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
    if len(axes[0].lines) > 1:
        # above the panels: within them it would lie on the curves
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=2, frameon=False, fontsize=9)
    if best_step is not None:
        axes[0].annotate("best", (best_step, 1), xycoords=("data", "axes fraction"), ha="right",
                         va="bottom", fontsize=9, color="0.3")  # fmt: skip
    axes[-1].set_xlabel("optimiser step")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


_PANELS = (
    (
        "ELBO at beta = 1\n[nats per stamp]",
        (("train/elbo_nats", "training batches", TRAIN, "-"),
         ("val/elbo_nats", "validation", VAL, "-")),
    ),
    (
        "KL\n[nats per stamp]",
        (("train/kl_nats", "training batches", TRAIN, "-"),
         ("val/kl_nats", "validation", VAL, "-")),
    ),
    ("active units", (("collapse/active_units", "validation", VAL, "-"),)),
    ("beta", (("beta", "weight of the KL", BETA, "-"),)),
)  # fmt: skip


def _scale(ax: Axes, curves: list[Curve], kl_forecast_nats: float | None, label: str) -> None:
    """Limits from what comes after the first steps: an untrained model is far off every scale."""
    if label in ("beta", "active units"):
        # a run without a single active unit has an axis of units too
        low, high = ax.get_ylim()
        ax.set_ylim(min(0.0, low), high if label == "beta" else max(1.0, high))
        ax.yaxis.set_major_locator(MaxNLocator(integer=label != "beta", nbins=5))
        return
    last = max(int(curve.steps[-1]) for curve in curves)
    late = [curve.values[curve.steps >= SETTLED * last] for curve in curves]
    values = np.concatenate(late)
    values = values[np.isfinite(values)]
    if not values.size:
        return
    low, high = float(values.min()), float(values.max())
    if label.startswith("KL"):
        low = 0.0
        high = max(high, kl_forecast_nats or 0.0)
    margin = 0.06 * (high - low) or 0.5
    ax.set_ylim(low - (margin if low else 0), high + margin)
