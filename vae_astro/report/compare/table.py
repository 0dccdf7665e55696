"""A comparison as text: for a terminal, for a spreadsheet, for a program."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from typing import Any

from vae_astro.collapse.units import VERDICT_WORDS
from vae_astro.progress import duration
from vae_astro.report.compare.rows import Comparison, Row
from vae_astro.report.words import shortened

__all__ = ["as_csv", "as_json", "as_text", "time_taken"]

LONGEST_NAME = 32
LONGEST_VALUE = 24
MOST_SETTINGS = 12
"""Settings that differ, shown on a terminal at most; the files have all."""


def time_taken(seconds: float | None) -> str:
    """A time for a person; a dash where it is not known."""
    return "-" if seconds is None else duration(seconds)


def _figure(value: float | None, form: str) -> str:
    """With a plain minus and dash, which every terminal has and programs read."""
    return "-" if value is None else format(value, form)


def verdict_in_words(row: Row) -> str:
    """What became of the code, in words."""
    if row.verdict is None:
        return "not judged" if row.is_finished else "not over"
    return VERDICT_WORDS.get(row.verdict, row.verdict)


def _active(row: Row) -> str:
    if row.active_units is None:
        return "-"
    return f"{row.active_units:.0f}/{'?' if row.latent_dim is None else f'{row.latent_dim:.0f}'}"


COLUMNS: dict[str, Callable[[Row], str]] = {
    "verdict": verdict_in_words,
    "ELBO": lambda row: _figure(row.elbo_nats, ".1f"),
    "reconstr.": lambda row: _figure(row.reconstruction_nats, ".1f"),
    "KL": lambda row: _figure(row.kl_nats, ".2f"),
    "forecast": lambda row: _figure(row.kl_forecast_nats, ".2f"),
    "active": _active,
    "chi2": lambda row: _figure(row.chi2_per_pixel, ".3f"),
    "beta": lambda row: _figure(row.beta, ".4g"),
    "NMI": lambda row: _figure(row.nmi, ".3f"),
    "ARI": lambda row: _figure(row.ari, ".3f"),
    "stamps/s": lambda row: _figure(row.stamps_per_second, ".0f"),
    "fit": lambda row: time_taken(row.seconds_fit),
    "total": lambda row: time_taken(row.seconds_total),
}


def as_text(comparison: Comparison) -> str:
    """Figures of all runs, in what they differ, and what is to be known of them.

    Nats are per validation stamp, at beta = 1.
    """
    rows = comparison.rows
    names = [f"{k} {shortened(row.run.name, LONGEST_NAME)}" for k, row in enumerate(rows, 1)]
    several = len(comparison.groups) > 1
    head = ["run", *(["group"] if several else []), *COLUMNS]
    cells = [
        [name, *([row.group] if several else []), *(show(row) for show in COLUMNS.values())]
        for name, row in zip(names, rows, strict=True)
    ]
    parts = [_aligned([head, *cells])]
    if several:
        parts.append("\n".join(f"group {name}: {of}" for name, of in comparison.groups.items()))
    parts.append(_differences(comparison))
    notes = [f"{name}: {row.note}" for name, row in zip(names, rows, strict=True) if row.note]
    notes += [f"note: {text}" for text in comparison.warnings]
    if notes:
        parts.append("\n".join(notes))
    return "\n\n".join(parts)


def _differences(comparison: Comparison) -> str:
    differing = comparison.differing
    if not differing:
        return "The runs have the same settings." if len(comparison.rows) > 1 else "One run."
    shown = dict(list(differing.items())[:MOST_SETTINGS])
    lines = [
        [name, *(shortened(_value(value), LONGEST_VALUE) for value in values)]
        for name, values in shown.items()
    ]
    head = ["what differs", *(str(k) for k in range(1, len(comparison.rows) + 1))]
    text = _aligned([head, *lines]) if len(comparison.rows) <= 6 else _by_run(comparison, shown)
    left = len(differing) - len(shown)
    return text + (f"\n... and {left} more: see compare.csv" if left else "")


def _by_run(comparison: Comparison, shown: dict[str, list[Any]]) -> str:
    """A line for each run: many columns would not fit."""
    lines = ["what differs"]
    for k in range(len(comparison.rows)):
        values = (
            f"{name}={shortened(_value(column[k]), LONGEST_VALUE)}"
            for name, column in shown.items()
            if column[k] is not None
        )
        lines.append(f"{k + 1:>3} {' '.join(values)}")
    return "\n".join(lines)


def _value(value: Any) -> str:
    return "-" if value is None else str(value)


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns two blanks apart: the first from the left, the others from the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if k == 0 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def as_csv(comparison: Comparison) -> str:
    """One line a run: its figures, then every setting that differs. Unknown is empty."""
    figures = [row.figures() for row in comparison.rows]
    for k, record in enumerate(figures):
        record |= {name: values[k] for name, values in comparison.differing.items()}
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(figures[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(figures)
    return text.getvalue()


def as_json(comparison: Comparison) -> str:
    """Everything, with the settings that differ below ``settings`` of each run."""
    runs = [
        row.figures()
        | {"settings": {name: values[k] for name, values in comparison.differing.items()}}
        for k, row in enumerate(comparison.rows)
    ]
    content = {"runs": runs, "groups": comparison.groups, "warnings": comparison.warnings}
    return json.dumps(content, indent=2, default=str) + "\n"
