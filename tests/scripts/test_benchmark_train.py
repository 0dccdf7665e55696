"""scripts/benchmark_train.py: what its parts compute, and that it runs as it is typed."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vae_astro.errors import InputError

ROOT = Path(__file__).parents[2]
SMALL = ("size=small", "peers=null")


@pytest.fixture(autouse=True)
def script_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the script and its peers find their modules."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "peers"))


def benchmark(folder: Path, *overrides: str, expect: int = 0) -> str:
    """``python scripts/benchmark_train.py`` in a folder of its own; what it printed."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "benchmark_train.py"), *overrides],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_row_is_the_median_over_rounds_of_our_rate_over_theirs() -> None:
    from benchmarks.table import ratio_row

    row = ratio_row("work", [10, 30, 80], [10, 10, 20], (2, 4), "theirs")
    assert (row.value, row.spread) == (3, 1.5)
    assert row.note == "30 against 10 stamps/s"


def test_a_row_without_a_figure_says_so_in_table_and_file(tmp_path: Path) -> None:
    from benchmarks.table import not_measured, table, write_json

    rows = [not_measured("work", (2, None), "theirs", "no such thing")]
    assert table(rows).splitlines()[-1] == "| work | theirs | not measured | 2 |  | no such thing |"
    write_json(tmp_path / "o.json", rows)
    (written,) = json.loads((tmp_path / "o.json").read_text())["rows"]
    assert written["value"] is None
    assert written["note"] == "not measured: no such thing"


def test_only_its_own_section_of_a_page_is_replaced(tmp_path: Path) -> None:
    from benchmarks.table import write_section

    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a: begin -->\nold\n<!-- a: end -->\nafter\n")
    write_section(page, "a", "new")
    assert page.read_text() == "before\n<!-- a: begin -->\nnew\n<!-- a: end -->\nafter\n"
    with pytest.raises(InputError, match="has not the marks"):
        write_section(page, "b", "new")


def test_turns_go_forth_and_back_and_the_first_is_not_counted() -> None:
    from benchmarks.turns import interleave

    taken: list[str] = []

    def turn(name: str) -> float:
        taken.append(name)
        return len(taken)

    found = interleave({"a": lambda: turn("a"), "b": lambda: turn("b")}, n_rounds=2)
    assert "".join(taken) == "ab" + "ab" + "ba"
    assert found == {"a": [3, 6], "b": [4, 5]}


def test_a_side_that_ends_early_is_told_by_its_last_line(tmp_path: Path) -> None:
    from benchmarks.turns import SideError, side

    with (
        side("no_such.py", [], tmp_path / "log") as theirs,
        pytest.raises(SideError, match=r"can't open file .*no_such\.py"),
    ):
        theirs.turn()


def test_slopes_are_those_of_power_laws_and_steeper_than_linear_is_said() -> None:
    from benchmarks.scaling import Point, Series, scaling_table

    def series(power: float) -> Series:
        points = [Point(str(x), x, 0.1 * x**power, "") for x in (10, 100, 1000)]
        return Series(f"power {power}", "s", points)

    assert series(1.0).slope == pytest.approx(1)
    assert series(1.0).steepest == pytest.approx(1)
    assert scaling_table([series(1.0), series(0.2)]).endswith("grows faster than linearly.")
    assert scaling_table([series(1.0), series(1.5)]).endswith("Faster than linearly: power 1.5.")


def test_a_repeated_store_holds_the_same_stamps_again(tmp_path: Path) -> None:
    from benchmarks.stamps import repeated_store, write_array

    from vae_astro.data.datamodule import StampDataModule
    from vae_astro.data.store.store import StampStore

    write_array(tmp_path / "a.npy", 30, 2, 16)
    data = StampDataModule(
        str(tmp_path / "a.npy"), "arrays", axes="NCHW", store_dir=str(tmp_path), progress=False
    )
    store = data.open()
    repeated_store(store, tmp_path / "many", 100)
    many = StampStore.open(tmp_path / "many")
    assert len(many) == 120
    rows = np.array([7, 29])
    np.testing.assert_array_equal(many.gather(rows + 60), np.load(tmp_path / "a.npy")[rows])
    assert len(store) == 30


def test_the_work_of_a_linear_network_is_what_one_counts() -> None:
    from benchmarks.cuda import work_of

    settings: dict[str, Any] = {
        "model": {"name": "linear", "latent_dim": 3},
        **dict.fromkeys(("likelihood", "prior", "beta", "optim")),
        "data": {"size": 16, "normalize": {}},
        "log_every_n_steps": 1,
        "trainer": {"micro_batch_size": None},
    }
    products, n_bytes = work_of(settings)
    pixels, units = 16 * 16, 3
    # two layers forth; back, the first needs no gradient of its input
    assert products == 2 * pixels * units * (2 + 1 + 2)
    assert n_bytes == 2 * 3 * (2 * (pixels + units))


def test_time_is_given_to_the_innermost_part_and_its_operation() -> None:
    from parts import PREFIX, _part_of

    def event(name: str, above: Any = None) -> Any:
        return SimpleNamespace(name=name, cpu_parent=above)

    step = event(f"{PREFIX}loss")
    back = event("autograd::engine: ConvolutionBackward0", event(f"{PREFIX}backward", step))
    assert _part_of(event("aten::mul", step)) == "loss"
    assert _part_of(event("aten::copy_", back)) == "backward: convolutions"
    assert _part_of(event("aten::add", event(f"{PREFIX}encoder", step))) == "encoder: rest"
    assert _part_of(event("aten::mul")) is None


def test_a_row_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "only must be one of start, training" in benchmark(
        tmp_path, *SMALL, "only=[speed]", expect=2
    )


@pytest.mark.slow
def test_training_beside_a_bare_loop(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- training: begin -->\n<!-- training: end -->\n")
    benchmark(tmp_path, *SMALL, "only=[training]", "out=o.json", "docs=page.md")
    rows = json.loads((tmp_path / "o.json").read_text())["rows"]
    loop, pythae, tax, ms = rows
    assert loop["value"] > 0
    assert pythae["value"] is None
    assert 0 < tax["value"] < 10
    assert math.isfinite(ms["value"])
    assert all(row["against"] in page.read_text() for row in rows)


@pytest.mark.slow
def test_every_row_with_peers(tmp_path: Path) -> None:
    benchmark(tmp_path, "size=small", "out=o.json", f"peers={tmp_path / 'peers'}")
    rows = json.loads((tmp_path / "o.json").read_text())["rows"]
    assert len(rows) == 13
    missing = {row["note"] for row in rows if row["value"] is None}
    assert missing <= {"not measured: no CUDA GPU"}
    assert all(row["value"] > 0 for row in rows if row["value"] is not None and row["unit"] != "ms")


@pytest.mark.slow
def test_where_the_time_goes_and_how_cost_grows(tmp_path: Path) -> None:
    told = benchmark(tmp_path, *SMALL, "profile=true")
    for part in ("backward: convolutions", "encoder: convolutions", "optimiser", "gather"):
        assert f"| {part} |" in told
    told = benchmark(tmp_path, *SMALL, "scaling=true", "figure=f.png")
    assert told.count("x^") == 2 * 2 * 4  # each series as it is measured, and all together
    assert (tmp_path / "f.png").stat().st_size > 10_000
