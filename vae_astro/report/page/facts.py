"""What a page says in words and tables: verdict, forecast, units, data, settings, commands."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc

from vae_astro.collapse.meaning import in_words
from vae_astro.collapse.units import VERDICT_WORDS
from vae_astro.data.datamodule import StampDataModule
from vae_astro.progress import duration
from vae_astro.report.history import Run
from vae_astro.report.words import held, known_number, number

__all__ = [
    "Table",
    "data_rows",
    "forecast_table",
    "key_figures",
    "kl_per_unit",
    "labels_table",
    "largest_betas",
    "readable_table",
    "rejects",
    "rescues",
    "units_table",
    "verdict",
    "why_useless",
]  # fmt: skip

MOST_REJECTS = 40
"""Rows of the table of rejects on the page."""
ENOUGH = 100_000
"""Stamps that tell the sky of a store."""
BITS = math.log2(math.e)
VERDICTS = {
    "none": ("good", "The latent code works"),
    "partial": ("fair", "The latent code works in part"),
    "full": ("bad", "The latent code has collapsed"),
}
CHANGE = "Most useful change"
"""What the explanation calls it."""
ONLY_NUISANCES = ("bad", "The latent code follows only nuisances")


@dataclass(frozen=True)
class Table:
    """A table for the page.

    Attributes
    ----------
    caption : str
    columns : tuple of str
    rows : list of list
        Text, numbers, or None.
    """

    caption: str
    columns: tuple[str, ...]
    rows: list[list[Any]]

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Whether a column holds numbers, some of which may not be known."""
        columns = [[row[k] for row in self.rows] for k in range(len(self.columns))]
        return tuple(any(isinstance(value, int | float) for value in each) for each in columns)


def why_useless(run: Run) -> Literal["collapsed", "nuisances"] | None:
    """What keeps the code of a run that was judged from being used; None where nothing does."""
    if held(run.metrics, "collapse.verdict") == "full":
        return "collapsed"
    alone = held(run.metrics, "collapse.meaning.only_nuisances") is True
    return "nuisances" if alone else None


def verdict(run: Run) -> dict[str, Any]:
    """Headline, one plain sentence, and what metrics.json explains."""
    found = held(run.metrics, "collapse", "verdict")
    if found not in VERDICTS:
        return {
            "tone": "unknown",
            "headline": "This run has not been judged",
            "plainly": f"{_why_not_judged(run)} What there is of it is below.",
            "explanation": None,
            "change": None,
        }
    tone, headline = VERDICTS[found]
    active, latent_dim = (held(run.metrics, "collapse", k) for k in ("active_units", "latent_dim"))
    kl = held(run.metrics, "val", "kl_nats")
    said = (
        f"{active} of {latent_dim} latent units carry information about the stamps, "
        f"{number(kl)} nats ({number(_bits(kl))} bits) per stamp"
    )
    if why_useless(run) == "nuisances":
        tone, headline = ONLY_NUISANCES
        plainly = (
            f"{said}, but of all that was measured only how a stamp was taken (its sky, bad "
            "pixels or seeing) can be told from them. Sorted or classified by these codes, stamps "
            "fall apart by that and not by what lies on them."
        )
    else:
        plainly = {
            "none": f"{said}: enough to sort, compare and classify stamps by their codes.",
            "partial": f"{said}. The others are switched off: what is left can be used, but says "
            "less than the network has room for.",
            "full": "Every stamp gets nearly the same code: it cannot tell one from another. Do "
            "not embed or classify with this checkpoint.",
        }[found]
    explanation, change = (held(run.metrics, "collapse", k) for k in ("explanation", "change"))
    return {
        "tone": tone,
        "headline": headline,
        "plainly": plainly,
        # it names the change too, which stands out in a line of its own
        "explanation": explanation and str(explanation).replace(f" {CHANGE}: {change}.", ""),
        "change": change,
    }


def _why_not_judged(run: Run) -> str:
    if run.metrics is not None:
        return "Its metrics.json holds no verdict on the latent code."
    if any(clause.startswith("metrics.json") for clause in run.damaged):
        return "Its metrics.json is damaged and cannot be read."
    return "It has no metrics.json: it is still training, or was stopped before its end."


def _bits(nats: Any) -> Any:
    return None if known_number(nats) is None else nats * BITS


def key_figures(run: Run) -> list[tuple[str, str, str]]:
    """The figures of a finished run: value, name, what it means."""
    metrics = run.metrics
    if metrics is None:
        return []
    val, collapse, classes = (held(metrics, k) for k in ("val", "collapse", "classes"))
    found = [
        (number(held(val, "elbo_nats"), ",.1f"), "ELBO, nats per stamp",
         "bound on the log-likelihood of a validation stamp at beta = 1; higher is better"),
        (f"{number(held(collapse, 'active_units'))} of {number(held(collapse, 'latent_dim'))}",
         "active units", "latent units whose posterior mean varies from stamp to stamp"),
        (number(held(val, "kl_nats"), ".2f"), "KL, nats per stamp",
         "what the code of a stamp says, summed over the units"),
        (number(held(val, "chi2_per_pixel"), ".3f"), "chi² per pixel",
         "median over validation stamps; near 1, stamps are explained down to their noise"),
    ]  # fmt: skip
    if held(classes, "nmi") is not None:
        found.append((
            number(held(classes, "nmi"), ".3f"), "NMI with the labels",
            f"k-means on the codes of {held(classes, 'n_labelled')} labelled stamps; "
            f"{number(held(classes, 'nmi_pca'), '.3f')} on principal components of the pixels",
        ))  # fmt: skip
    speed = held(metrics, "timing", "train_stamps_per_second")
    seconds = known_number(held(metrics, "timing", "seconds_total"))
    if seconds is not None:
        found.append((duration(seconds), "for the whole run", f"{number(speed, ',.0f')} stamps "
                      "a second while training"))  # fmt: skip
    return found


def forecast_table(run: Run) -> Table | None:
    """What was foretold of the run beside what it came to; None without a forecast."""
    foreseen = held(run.metrics, "collapse", "forecast")
    if not isinstance(foreseen, Mapping):
        return None
    collapse, val = held(run.metrics, "collapse"), held(run.metrics, "val")
    units = "active units of " + number(held(foreseen, "latent_dim"))
    rows: list[list[Any]] = [
        ["verdict", VERDICT_WORDS.get(str(foreseen.get("verdict")), "–"),
         VERDICT_WORDS.get(str(held(collapse, "verdict")), "–")],
        ["KL, nats per stamp", number(foreseen.get("kl_nats")), number(held(val, "kl_nats"))],
        [units, number(foreseen.get("active_units")), number(held(collapse, "active_units"))],
    ]  # fmt: skip
    return Table("Forecast and outcome", ("what", "forecast before training", "the run"), rows)


def largest_betas(run: Run) -> list[tuple[str, str]]:
    """Largest final beta that keeps so many units."""
    betas = held(run.metrics, "collapse", "forecast", "largest_beta_for")
    return [(n, number(beta)) for n, beta in betas.items()] if isinstance(betas, Mapping) else []


def units_table(run: Run) -> Table | None:
    """Every latent unit: what it costs and what it follows."""
    kl = held(run.metrics, "collapse", "kl_per_unit_nats")
    if not isinstance(kl, Sequence) or not kl:
        return None
    nats = [known_number(each) for each in kl]
    meant = held(run.metrics, "collapse", "meaning", "units") or []
    by_unit = {held(unit, "unit"): unit for unit in meant}
    rows = []
    for k in sorted(range(len(kl)), key=lambda k: -(nats[k] or 0.0)):
        follows = held(by_unit.get(k), "follows")
        r = held(by_unit.get(k), "correlation")
        state = "active" if k in by_unit else "inactive"
        # without a property, r is the largest of what chance gives
        shown = (_named(follows), r) if follows else (None, None)
        rows.append([k, nats[k], *shown, state])
    columns = ("unit", "KL [nats]", "follows", "r", "state")
    return Table("Latent units, the strongest first", columns, rows)


def kl_per_unit(run: Run, latent_dim: int) -> list[float] | None:
    """Mean KL of every unit as the run was judged by, in nats; None where it is not known."""
    kl = held(run.metrics, "collapse", "kl_per_unit_nats")
    if not isinstance(kl, list) or len(kl) != latent_dim:
        return None
    known = [value for value in map(known_number, kl) if value is not None]
    return known if len(known) == latent_dim else None


def rescues(run: Run) -> list[str]:
    """What was changed on the way, a line for each rescue."""
    told = []
    for record in held(run.metrics, "collapse", "rescues") or []:
        change = held(record, "change")
        if isinstance(change, Mapping):
            changed = ", ".join(f"{key}: {old} → {new}" for key, (old, new) in change.items())
            told.append(f"{record.get('kind')} from step {record.get('from_step')}: {changed}")
    return told


def readable_table(run: Run) -> Table | None:
    """How well the active units together predict each property."""
    scores = held(run.metrics, "collapse", "meaning", "readable_r2")
    if not isinstance(scores, Mapping) or not scores:
        return None
    known = {name: known_number(value) for name, value in scores.items()}
    ranked = sorted(known, key=lambda name: -(known[name] or 0.0))
    rows = [[_named(name), known[name]] for name in ranked]
    return Table("Properties that the code predicts", ("property", "R²"), rows)


def _named(name: str) -> str:
    """A property at the head of a line: ``flux of the source``, ``seeing (g)``."""
    return in_words(name).removeprefix("the ")


# -- data ----------------------------------------------------------------------------------------


def data_rows(run: Run, datamodule: StampDataModule | None) -> list[tuple[str, str]]:
    """What the run was trained on, as pairs of name and value."""
    data = run.config.get("data") or {}
    rows = [("stamps from", str(data.get("root") or "–"))]
    if data.get("n_stamps") is not None:
        rows.append(("simulated", f"{data['n_stamps']} stamps, "
                     f"simulation_seed={data.get('simulation_seed')}"))  # fmt: skip
    counts = held(run.metrics, "data") or {}
    if datamodule is not None:
        parts = (datamodule.train_rows, datamodule.val_rows, datamodule.test_rows)
        sizes = dict(zip(("n_train", "n_val", "n_test"), map(len, parts), strict=True))
        counts = {"n_rejected": datamodule.store.n_rejected, **sizes, **counts}
    for key, words in (
        ("n_train", "for training"),
        ("n_val", "for validation, which chose the checkpoint"),
        ("n_test", "for the test, which chose nothing"),
        ("n_rejected", "set aside as unusable"),
    ):
        rows.append((words, number(counts.get(key), ",.0f")))
    if datamodule is not None:
        n_bands, height, width = datamodule.store.stamp_shape
        bands = ", ".join(datamodule.store.band_names)
        rows.append(("size", f"{height} × {width} pixels, {n_bands} band"
                     f"{'s' if n_bands > 1 else ''} ({bands})"))  # fmt: skip
        for values, words in (
            (datamodule.store.sky_level, "sky level"),
            (datamodule.store.sky_noise, "sky noise"),
        ):
            some = values[:: max(1, len(values) // ENOUGH)]
            low, middle, high = np.nanpercentile(some, [5, 50, 95], axis=0)
            told = [
                f"{number(m, '.4g')} ({number(lo, '.4g')} to {number(hi, '.4g')})"
                for lo, m, hi in zip(low.tolist(), middle.tolist(), high.tolist(), strict=True)
            ]
            if n_bands > 1:
                names = datamodule.store.band_names
                told = [f"{name}: {value}" for name, value in zip(names, told, strict=True)]
            rows.append((f"{words}, raw units: median (5 to 95 %)", "; ".join(told)))
        good = 100 * float(np.nanmean(datamodule.store.good_fraction))
        rows.append(("good pixels", f"{good:.2f} %"))
        rows.append(("packed store", str(datamodule.store.path)))
    normalize = data.get("normalize") or {}
    if normalize:
        said = ", ".join(f"{key}={value}" for key, value in normalize.items())
        rows.append(("normalised with", said))
    return rows


def labels_table(datamodule: StampDataModule) -> Table | None:
    """How many stamps have each label; None without any."""
    if datamodule.labels_file is None and datamodule.classes is None:
        counted = pc.value_counts(datamodule.store.catalogue["label"]).to_pylist()
        counts = {each["values"] or "": each["counts"] for each in counted}
    else:
        counts = dict(Counter(datamodule.labels.tolist()))
    without = counts.pop("", 0)
    if not counts:
        return None
    rows: list[list[Any]] = [[str(k), n] for k, n in sorted(counts.items(), key=lambda kn: -kn[1])]
    if without:
        rows.append(["without a label", without])
    return Table("Labels; never trained on", ("label", "stamps"), rows)


def rejects(datamodule: StampDataModule) -> tuple[Table, Table, Path] | None:
    """What was set aside: by reason, and the first of it; None where nothing was."""
    path = datamodule.store.rejects
    if not datamodule.store.n_rejected or not path.is_file():
        return None
    counts: Counter[str] = Counter()
    first: list[list[Any]] = []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        for row in csv.DictReader(file):
            counts[row.get("reason") or "–"] += 1
            if len(first) < MOST_REJECTS:
                first.append([row.get(key) or "–" for key in ("source", "reason", "detail")])
    reasons = Table("Set aside, by reason", ("reason", "files or stamps"),
                    [[reason, count] for reason, count in counts.most_common()])  # fmt: skip
    few = f"the first {len(first)} of " if len(first) < sum(counts.values()) else ""
    listed = Table(f"What was set aside: {few}{sum(counts.values())}",
                   ("source", "reason", "detail"), first)  # fmt: skip
    return reasons, listed, path
