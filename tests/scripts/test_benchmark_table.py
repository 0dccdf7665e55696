"""What all benchmarks write: one kind of row, one file, the same keys."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
BENCHMARKS = sorted((ROOT / "scripts").glob("benchmark_*.py"))


@pytest.fixture(autouse=True)
def script_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a script finds its modules."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))


def module(name: str) -> Any:
    return importlib.import_module(name)


def test_goals_may_be_numbers_or_words_and_the_file_holds_more_than_rows(tmp_path: Path) -> None:
    lib = module("benchmarks.table")
    row = lib.Row("work", 1.5, 0.1, lib.FASTER, 1200.0, "within 2 %", "others", "as measured")
    assert lib.table([row]).splitlines()[-1] == (
        "| work | others | 1.5 ± 0.1 | 1,200 | within 2 % | as measured |"
    )
    lib.write_json(tmp_path / "a.json", [row], runs=[1, 2])
    written = json.loads((tmp_path / "a.json").read_text())
    assert written["runs"] == [1, 2]
    assert list(written["rows"][0]) == [
        "name", "value", "spread", "unit", "base", "hard", "against", "note"
    ]  # fmt: skip


@pytest.mark.parametrize("script", BENCHMARKS, ids=lambda path: path.stem)
def test_every_benchmark_writes_its_file_in_the_one_way(script: Path) -> None:
    source = script.read_text("utf-8")
    assert "write_json(Path(cfg.out), " in source
    assert "json.dumps" not in source


@pytest.mark.parametrize("conf", sorted((ROOT / "conf").glob("benchmark*.yaml")), ids=str)
def test_the_folder_of_stamps_has_one_key(conf: Path) -> None:
    keys = yaml.safe_load(conf.read_text("utf-8"))
    assert not {"stamps", "stamp_dir", "stamps_folder"} & set(keys)


def test_figures_of_forecasts_and_rescues_are_rows() -> None:
    row_type = module("benchmarks.table").Row
    linear = module("benchmark_forecast_linear")
    learned = dict.fromkeys(
        ("elbo", "pca_score", "sigma", "pca_sigma", "sigma_forecast", "kl", "kl_forecast"), 2.0
    )
    pair = linear.Pair("digits", 1.0, 4.0, 5.0, 3, 3, 0.5, 10.0)
    found = linear.results([pair], [{"data": "digits", **learned}])
    assert [type(row) for row in found] == 3 * [row_type]
    assert found[0].value == 1.25
    outcome = SimpleNamespace(state="healthy", active_units=4, kl_nats=9.0, changes=("beta",))
    fault = SimpleNamespace(name="large beta", typed="beta.end=9")
    trial = SimpleNamespace(
        fault=fault, alone=outcome, rescued=outcome, right=outcome, share=1.0, is_rescued=True,
        collapses=True,
    )  # fmt: skip
    rescued = module("benchmark_rescue").results([trial])
    assert [type(row) for row in rescued] == 2 * [row_type]
    assert rescued[-1].value == 1.0
