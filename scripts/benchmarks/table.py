"""Rows of figures: the table, the file and the section of a page that all benchmarks write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vae_astro.command.files import write_whole
from vae_astro.errors import InputError

__all__ = [
    "NOT_MEASURED",
    "Row",
    "not_measured",
    "ratio_row",
    "table",
    "value_row",
    "write_json",
    "write_section",
]

NOT_MEASURED = "not measured"
FASTER = "times as fast"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes
    ----------
    name : str
        The work.
    value, spread : float or None
        Median over rounds and half the range of them; None where it was not measured.
    unit : str
        Of both.
    base : float or None
        What is to be reached, or what the value is compared with.
    hard : float, str or None
        What would be better still.
    against : str
        The yardstick.
    note : str
        What was measured on the way, or why nothing was.
    """

    name: str
    value: float | None
    spread: float | None
    unit: str
    base: float | None
    hard: float | str | None
    against: str
    note: str


def ratio_row(
    name: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    goals: tuple[float | None, float | None],
    against: str,
    unit: str = FASTER,
) -> Row:
    """Our rates over theirs, round by round; both in stamps/s."""
    ratios = np.asarray(ours) / np.asarray(theirs)
    note = f"{np.median(ours):,.0f} against {np.median(theirs):,.0f} stamps/s"
    return Row(name, float(np.median(ratios)), _spread(ratios), unit, *goals, against, note)


def value_row(
    name: str,
    values: Sequence[float],
    unit: str,
    goals: tuple[float | None, float | None],
    against: str,
    note: str,
) -> Row:
    """Something measured in itself, once a round."""
    return Row(name, float(np.median(values)), _spread(values), unit, *goals, against, note)


def not_measured(
    name: str, goals: tuple[float | None, float | None], against: str, reason: str
) -> Row:
    """A row without its figure."""
    return Row(name, None, None, FASTER, *goals, against, f"{NOT_MEASURED}: {reason}")


def _spread(values: Sequence[float] | np.ndarray) -> float:
    return float(np.ptp(np.asarray(values))) / 2


def table(rows: Sequence[Row], measured: str = FASTER) -> str:
    """The rows in Markdown; ``measured`` heads their figures, and other units stand beside them."""
    lines = [
        f"| work | against | {measured} | base | hard | rates |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        figure = NOT_MEASURED
        if row.value is not None and row.spread is not None:
            unit = "" if row.unit == measured else f" {row.unit}"
            figure = f"{_number(row.value)} ± {row.spread:.2g}{unit}"
        note = row.note.removeprefix(f"{NOT_MEASURED}: ")
        goals = " | ".join(map(_goal, (row.base, row.hard)))
        lines.append(f"| {row.name} | {row.against} | {figure} | {goals} | {note} |")
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _goal(goal: float | str | None) -> str:
    if goal is None or isinstance(goal, str):
        return goal or ""
    return f"{goal:,g}"


def write_json(path: Path, rows: Sequence[Row], **others: Any) -> None:
    """What ``out=`` names: the rows, and what else there is, in JSON."""
    content = {"rows": [asdict(row) for row in rows], **others}
    write_whole(path, json.dumps(content, indent=2) + "\n")


def write_section(page: Path, mark: str, text: str) -> None:
    """Replace what stands between ``<!-- mark: begin -->`` and ``<!-- mark: end -->`` of a page."""
    begin, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
    content = page.read_text()
    if content.count(begin) != 1 or end not in content.partition(begin)[2]:
        raise InputError(f"docs={page} has not the marks {begin} and {end}")
    before, _, rest = content.partition(begin)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}")
