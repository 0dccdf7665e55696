"""How the cost of training grows with stamps, pixels, bands and latent units."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rates import ENDLESS, ON_CPU, Plan, our_side
from benchmarks.stamps import open_store, repeated_store, write_array

__all__ = ["Point", "Series", "draw", "measure_scaling", "scaling_table"]

MOST_STAMPS_WRITTEN = 1_000_000
"""Beyond, a store stands in that lists the shards of one of so many stamps again and again."""
SMALLEST = 16
"""Pixels of a side where the number of stamps is what grows."""
TOLERANCE = 0.05
"""Above one, of a slope that still counts as linear: what timings vary by."""


@dataclass(frozen=True)
class Point:
    """What was measured at one place: ``x`` is what grows, ``seconds`` what it costs."""

    label: str
    x: float
    seconds: float
    note: str


@dataclass(frozen=True)
class Series:
    """Points where one thing grows.

    Attributes
    ----------
    what : str
        What grows.
    cost : str
        What is paid for it.
    points : list of Point
    """

    what: str
    cost: str
    points: list[Point]

    @property
    def slope(self) -> float:
        """Exponent of the power law through all points: 1 is linear."""
        return _slope(self.points)

    @property
    def steepest(self) -> float:
        """The same of the two neighbours between which the cost grows fastest."""
        return max(_slope(list(pair)) for pair in zip(self.points, self.points[1:], strict=False))


def _slope(points: Sequence[Point]) -> float:
    x, seconds = np.log([point.x for point in points]), np.log([p.seconds for p in points])
    return float(np.polyfit(x, seconds, 1)[0])


@dataclass(frozen=True)
class Extent:
    """How far it is measured."""

    n_stamps: tuple[int, ...]
    sizes: tuple[int, ...]
    n_bands: tuple[int, ...]
    latent_dims: tuple[int, ...]
    n_steps: int
    n_drawn: int


EXTENTS = {
    "full": Extent(
        (10**3, 10**4, 10**5, 10**6, 10**7),
        (32, 64, 96, 128, 192, 256),
        (1, 2, 3, 4, 5, 6),
        (2, 8, 16, 64, 256),
        n_steps=200,
        n_drawn=2048,
    ),
    "small": Extent((300, 600), (16, 32), (1, 2), (2, 4), n_steps=4, n_drawn=150),
}
SIDE = 64
"""Pixels of a side where bands or latent units grow."""


def measure_scaling(plan: Plan, size: str) -> Iterator[Series]:
    """The four series, each point in a process of its own."""
    extent = EXTENTS[size]
    stamps = [_many_stamps(plan, extent, n) for n in extent.n_stamps]
    yield Series("number of stamps", "s for an epoch", stamps)
    sizes = [
        _stamps_of(plan, extent, side, 1, 16, f"{side}x{side}", side**2) for side in extent.sizes
    ]
    yield Series("pixels of a stamp", "ms for a stamp", sizes)
    bands = [_stamps_of(plan, extent, SIDE, n, 16, str(n), n) for n in extent.n_bands]
    yield Series("bands", "ms for a stamp", bands)
    units = [_stamps_of(plan, extent, SIDE, 1, n, str(n), n) for n in extent.latent_dims]
    yield Series("latent units", "ms for a stamp", units)


def _stamps_of(
    plan: Plan, extent: Extent, side: int, n_bands: int, latent_dim: int, label: str, x: float
) -> Point:
    """Cost of a stamp of this shape."""
    path = plan.folder / f"{side}-{n_bands}.npy"
    if not path.exists():
        write_array(path, extent.n_drawn, n_bands, side)
    settings = _settings(plan, path, extent, f"model.latent_dim={latent_dim}")
    _, seconds, n_stamps = _steps(plan, f"{side}-{n_bands}-{latent_dim}", settings)
    rate = f"{n_stamps / seconds:,.0f} stamps/s"
    return Point(label, x, seconds / n_stamps, rate)


def _many_stamps(plan: Plan, extent: Extent, n_stamps: int) -> Point:
    """Cost of an epoch: of its start, with the order drawn, and of all its steps."""
    written = min(n_stamps, MOST_STAMPS_WRITTEN)
    path = plan.folder / f"{written}-stamps.npy"
    if not path.exists():
        write_array(path, written, 1, SMALLEST)
    settings = _settings(plan, path, extent)
    data = open_store(settings)
    rest = "steps of it measured"
    if n_stamps > written:
        store = plan.folder / f"{n_stamps}-store"
        repeated_store(data.store, store, n_stamps)
        settings["data"]["root"] = str(store)
        rest += f"; the shards of {written:,} stamps, listed {n_stamps // written} times"
    settings["trainer"]["limit_train_batches"] = None
    n_steps = open_store(settings).steps_per_epoch()
    settings["trainer"]["limit_train_batches"] = min(extent.n_steps, n_steps)
    first, later, n_batch = _steps(plan, f"{n_stamps}-stamps", settings)
    note = f"{n_batch / later:,.0f} stamps/s, {first:.2g} s for the first step; "
    measured = f"{min(extent.n_steps, n_steps)} of {n_steps:,} {rest}"
    return Point(f"{n_stamps:,}", n_stamps, first + (n_steps - 1) * later, note + measured)


def _settings(plan: Plan, path: Path, extent: Extent, *overrides: str) -> dict[str, Any]:
    return plan.compose(
        [
            "data=arrays",
            f"data.root={path}",
            "data.axes=NCHW",
            f"data.store_dir={plan.folder / 'stores'}",
            f"data.batch_size={plan.settings()['data']['batch_size']}",
            f"trainer.limit_train_batches={extent.n_steps}",
            "trainer.limit_val_batches=1",
            *ENDLESS,
            *overrides,
        ]
    )


def _steps(plan: Plan, name: str, settings: dict[str, Any]) -> tuple[float, float, int]:
    """Median seconds of the first step of an epoch and of a later one, and stamps in a step."""
    first, later = [], []
    settings["trainer"]["limit_train_batches"] = _no_more_than_there_are(settings)
    with our_side(plan, name, settings, ON_CPU) as ours:
        ours.turn()
        for _ in range(plan.n_rounds):
            said = ours.turn()
            first.append(said["first_step"])
            later.append((said["seconds"] - said["first_step"]) / (said["n_steps"] - 1))
    n_batch = said["n_stamps"] // said["n_steps"]
    return statistics.median(first), statistics.median(later), n_batch


def _no_more_than_there_are(settings: dict[str, Any]) -> int:
    return min(settings["trainer"]["limit_train_batches"], open_store(settings).steps_per_epoch())


def scaling_table(measured: Sequence[Series]) -> str:
    """All points in Markdown, and what they say together."""
    lines = [
        "| what grows | | cost | measured | grows as |",
        "| --- | --- | --- | --- | --- |",
    ]
    for series in measured:
        for k, point in enumerate(series.points):
            figure = point.seconds * (1000 if series.cost.startswith("ms") else 1)
            grows = "" if k else f"x^{series.slope:.2f}, at most x^{series.steepest:.2f}"
            cost = f"{figure:.3g} {series.cost}"
            what = "" if k else series.what
            lines.append(f"| {what} | {point.label} | {cost} | {point.note} | {grows} |")
    steep = [series.what for series in measured if series.slope > 1 + TOLERANCE]
    verdict = "Nothing grows faster than linearly."
    if steep:
        verdict = f"Faster than linearly: {', '.join(steep)}."
    return "\n".join([*lines, "", verdict])


def draw(measured: Sequence[Series], path: Path) -> None:
    """One panel for each series, both axes logarithmic, with what linear growth would be."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(measured), figsize=(4 * len(measured), 3.6), squeeze=False)
    for axis, series in zip(axes[0], measured, strict=True):
        x = np.array([point.x for point in series.points])
        factor = 1000 if series.cost.startswith("ms") else 1
        cost = factor * np.array([point.seconds for point in series.points])
        axis.loglog(x, cost, "o-", color="#0072b2", label=f"measured, slope {series.slope:.2f}")
        axis.loglog(x, cost[0] * x / x[0], "--", color="0.5", label="linear")
        axis.set(xlabel=series.what, ylabel=series.cost)
        axis.legend(frameon=False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
