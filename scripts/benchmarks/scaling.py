"""How the cost of training grows with stamps, pixels, bands and latent units."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
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
    """How far it is measured, and over how many steps."""

    n_stamps: tuple[int, ...]
    sizes: tuple[int, ...]
    n_bands: tuple[int, ...]
    latent_dims: tuple[int, ...]
    n_steps: int
    n_steps_of_shape: int
    n_drawn: int


EXTENTS = {
    "full": Extent(
        (10**3, 10**4, 10**5, 10**6, 10**7),
        (32, 64, 96, 128, 192, 256),
        (1, 2, 3, 4, 5, 6),
        (2, 8, 16, 64, 256),
        n_steps=200,
        n_steps_of_shape=30,
        n_drawn=2048,
    ),
    "small": Extent(
        (300, 600), (16, 32), (1, 2), (2, 4), n_steps=4, n_steps_of_shape=4, n_drawn=150
    ),
}
SIDE = 64
"""Pixels of a side where bands or latent units grow."""


def measure_scaling(plan: Plan, size: str) -> Iterator[Series]:
    """The four series; the points of each take turns, every one in a process of its own."""
    extent = EXTENTS[size]
    yield _stamps(plan, extent)
    shapes = [
        ("pixels of a stamp", [(side, 1, 16, f"{side}x{side}", side**2) for side in extent.sizes]),
        ("bands", [(SIDE, n, 16, str(n), n) for n in extent.n_bands]),
        ("latent units", [(SIDE, 1, n, str(n), n) for n in extent.latent_dims]),
    ]
    for what, points in shapes:
        settings = {
            label: _settings_of(plan, extent, side, n_bands, latent_dim)
            for side, n_bands, latent_dim, label, _ in points
        }
        paces = _in_turns(plan, what, settings)
        yield Series(
            what,
            "ms for a stamp",
            [
                Point(label, x, pace.later / pace.n_batch, f"{pace.rate:,.0f} stamps/s")
                for pace, (*_, label, x) in zip(paces, points, strict=True)
            ],
        )


def _settings_of(
    plan: Plan, extent: Extent, side: int, n_bands: int, latent_dim: int
) -> dict[str, Any]:
    path = plan.folder / f"{side}-{n_bands}.npy"
    if not path.exists():
        write_array(path, extent.n_drawn, n_bands, side)
    n_steps = extent.n_steps_of_shape
    return _settings(plan, path, n_steps, f"model.latent_dim={latent_dim}")


def _stamps(plan: Plan, extent: Extent) -> Series:
    """Cost of an epoch: of its start, with the order drawn, and of all its steps."""
    what = "number of stamps"
    settings, in_all, notes = {}, [], []
    for n_stamps in extent.n_stamps:
        written = min(n_stamps, MOST_STAMPS_WRITTEN)
        path = plan.folder / f"{written}-stamps.npy"
        if not path.exists():
            write_array(path, written, 1, SMALLEST)
        own = _settings(plan, path, extent.n_steps)
        data = open_store(own)
        note = "steps of it measured"
        if n_stamps > written:
            store = plan.folder / f"{n_stamps}-store"
            repeated_store(data.store, store, n_stamps)
            own["data"]["root"] = str(store)
            note += f"; the shards of {written:,} stamps, listed {n_stamps // written} times"
        own["trainer"]["limit_train_batches"] = None
        n_steps = open_store(own).batches_per_epoch()
        own["trainer"]["limit_train_batches"] = extent.n_steps  # or all there are
        settings[f"{n_stamps:,}"] = own
        in_all.append(n_steps)
        notes.append(f"{min(extent.n_steps, n_steps)} of {n_steps:,} {note}")
    points = []
    paces = _in_turns(plan, what, settings)
    for label, n_steps, note, pace in zip(settings, in_all, notes, paces, strict=True):
        said = f"{pace.rate:,.0f} stamps/s, {pace.first:.2g} s for the first step; {note}"
        seconds = pace.first + (n_steps - 1) * pace.later
        points.append(Point(label, float(label.replace(",", "")), seconds, said))
    return Series(what, "s for an epoch", points)


def _settings(plan: Plan, path: Path, n_steps: int, *overrides: str) -> dict[str, Any]:
    return plan.compose(
        [
            "data=arrays",
            f"data.root={path}",
            "data.axes=NCHW",
            f"data.store_dir={plan.folder / 'stores'}",
            f"data.batch_size={plan.settings()['data']['batch_size']}",
            f"trainer.limit_train_batches={n_steps}",
            "trainer.limit_val_batches=1",
            *ENDLESS,
            *overrides,
        ]
    )


@dataclass(frozen=True)
class Pace:
    """Median seconds of the first step of an epoch and of a later one, and stamps in a step."""

    first: float
    later: float
    n_batch: int

    @property
    def rate(self) -> float:
        """Stamps a second, but for the first step."""
        return self.n_batch / self.later


def _in_turns(plan: Plan, what: str, settings: Mapping[str, dict[str, Any]]) -> list[Pace]:
    """Each of the trainings, an epoch a turn, so that what slows the machine slows all."""
    with ExitStack() as stack:
        sides = []
        for label, own in settings.items():
            own["trainer"]["limit_train_batches"] = _no_more_than_there_are(own)
            name = f"{what}-{label}".replace(",", "").replace(" ", "-")
            sides.append(stack.enter_context(our_side(plan, name, own, ON_CPU)))
            sides[-1].turn()
        rounds = [[side.turn() for side in sides] for _ in range(plan.n_rounds)]
    return [_pace(said) for said in zip(*rounds, strict=True)]


def _pace(turns: Sequence[Mapping[str, Any]]) -> Pace:
    later = [(said["seconds"] - said["first_step"]) / (said["n_steps"] - 1) for said in turns]
    first = statistics.median(said["first_step"] for said in turns)
    return Pace(first, statistics.median(later), turns[0]["n_stamps"] // turns[0]["n_steps"])


def _no_more_than_there_are(settings: dict[str, Any]) -> int:
    return min(settings["trainer"]["limit_train_batches"], open_store(settings).batches_per_epoch())


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
    from matplotlib.ticker import LogLocator

    figure, axes = plt.subplots(1, len(measured), figsize=(4 * len(measured), 3.6), squeeze=False)
    for axis, series in zip(axes[0], measured, strict=True):
        x = np.array([point.x for point in series.points])
        factor = 1000 if series.cost.startswith("ms") else 1
        cost = factor * np.array([point.seconds for point in series.points])
        axis.loglog(x, cost, "o-", color="#0072b2", label=f"measured, slope {series.slope:.2f}")
        axis.loglog(x, cost[0] * x / x[0], "--", color="0.5", label="linear")
        axis.set(xlabel=series.what, ylabel=series.cost)
        axis.set_xticks(x, [point.label for point in series.points], rotation=30)
        axis.minorticks_off()
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(lambda cost, _: f"{cost:g}")
        axis.legend(frameon=False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
