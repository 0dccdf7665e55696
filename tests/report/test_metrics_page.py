"""docs/run-page.md names every key of ``metrics.json``, and none that is not there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from vae_astro.collapse.meaning import explain_code

PAGE = Path(__file__).parents[2] / "docs" / "run-page.md"


def keys_on_the_page() -> dict[str, set[str]]:
    """Keys in the second column of the table, by the blocks in its first."""
    section = PAGE.read_text("utf-8").split("## `metrics.json`")[1].split("\n## ")[0]
    found: dict[str, set[str]] = {}
    blocks: list[str] = []
    for first, second in re.findall(r"^\| ([^|]*)\| ([^|]*)\|", section, re.M):
        blocks = re.findall(r"`(\w+)`", first.split("(")[0]) or blocks
        for block in blocks:
            found.setdefault(block, set()).update(re.findall(r"`(\w+)`", second))
    return found


def test_every_key_of_the_file_is_on_the_page_and_the_other_way_round(run_dir: Path) -> None:
    metrics = json.loads((run_dir / "metrics.json").read_text())
    collapse = metrics["collapse"]
    blocks = {**metrics, "forecast": collapse["forecast"], "meaning": collapse.pop("meaning")}
    told = keys_on_the_page()
    assert told == {name: set(block) for name, block in blocks.items()}


def test_keys_within_lists_are_on_the_page(run_dir: Path) -> None:
    collapse = json.loads((run_dir / "metrics.json").read_text())["collapse"]
    flux = np.arange(60.0)
    followed = explain_code(flux[:, None], np.ones(1), np.array([True]), {"flux": flux}).as_dict()
    rows = PAGE.read_text("utf-8").splitlines()
    (history,) = [row for row in rows if row.startswith("| | `history`")]
    (units,) = [row for row in rows if row.startswith("| `meaning`")]
    assert set(re.findall(r"`(\w+)`", history)) - {"history"} == set(collapse["history"])
    assert set(followed["units"][0]) <= set(re.findall(r"`(\w+)`", units))
