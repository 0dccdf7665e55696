"""Tables and picture of a comparison, and the command that writes them."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from vae_astro.errors import InputError
from vae_astro.report.compare.command import compare
from vae_astro.report.compare.figure import draw_comparison
from vae_astro.report.compare.rows import compare_runs
from vae_astro.report.compare.table import as_csv, as_json, as_text, time_taken
from vae_astro.report.history import read_run

ROOT = Path(__file__).parents[3]
CURVES = {
    "val/elbo_nats": {10: -300.0, 20: -110.0},
    "val/kl_nats": {10: 9.0, 20: 4.0},
    "val/reconstruction_nats": {10: -291.0, 20: -106.0},
}


@pytest.fixture
def comparison(write_run):
    folders = [
        write_run("a", -110.0, CURVES, beta__end=0.5),
        write_run("b", -105.5, CURVES, nmi=None, beta__end=2.0),
        write_run("c", None, likelihood__name="student_t"),
    ]
    return compare_runs([read_run(folder) for folder in folders])


def test_the_table_tells_figures_differences_and_what_does_not_compare(comparison) -> None:
    lines = as_text(comparison).splitlines()
    assert lines[0].split()[:3] == ["run", "group", "verdict"]
    assert lines[1].split()[:6] == ["1", "b", "A", "no", "collapse", "-105.5"]
    assert "3/4" in lines[1].split()
    assert any(
        line.startswith("beta.end") and line.split()[1:] == ["2.0", "0.5", "1.0"] for line in lines
    )
    assert any("within a group only" in line for line in lines)
    assert any("no validation yet" in line for line in lines)


def test_many_runs_are_told_a_line_each(write_run) -> None:
    runs = [read_run(write_run(f"r{k}", -k, seed=k)) for k in range(8)]
    text = as_text(compare_runs(runs))
    assert "  8 seed=7" in text


def test_csv_and_json_hold_every_figure_and_difference(comparison) -> None:
    lines = list(csv.DictReader(as_csv(comparison).splitlines()))
    assert [line["name"] for line in lines] == ["b", "a", "c"]
    assert [line["beta.end"] for line in lines] == ["2.0", "0.5", "1.0"]
    assert (float(lines[0]["elbo_nats"]), lines[0]["nmi"]) == (-105.5, "")
    content = json.loads(as_json(comparison))
    assert content["runs"][0]["settings"]["beta.end"] == 2.0
    assert content["runs"][2]["elbo_nats"] is None
    assert list(content["groups"]) == ["A", "B"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-"), (42, "42 s"), (120, "2 min"), (7200, "2.0 h")]
)
def test_times_are_told_in_the_unit_that_fits(seconds: float | None, text: str) -> None:
    assert time_taken(seconds) == text


def test_the_picture_labels_each_run_with_its_beta_and_joins_a_sweep(comparison) -> None:
    figure = draw_comparison(comparison)
    panel = next(ax for ax in figure.axes if ax.get_xlabel() == "rate: KL [nats]")
    assert [text.get_text() for text in panel.texts] == ["β=0.5, β=2"]  # they lie on each other
    joined = [line for line in panel.lines if len(line.get_xdata()) == 2]
    assert len(joined) == 1


def test_more_runs_than_can_be_drawn_are_counted(
    write_run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vae_astro.report.compare.figure.MOST_RUNS", 2)
    figure = draw_comparison(compare_runs([read_run(write_run("a"))] * 5))
    assert "3 more not drawn" in figure.get_suptitle()


def test_runs_of_which_nothing_is_known_are_drawn_too(write_run) -> None:
    figure = draw_comparison(compare_runs([read_run(write_run("a", None))]))
    assert any(text.get_text() == "not known" for ax in figure.axes for text in ax.texts)


def test_nothing_is_replaced_unasked(
    write_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "vae_astro.report.compare.command.draw_comparison", lambda _: Figure(figsize=(1, 1))
    )
    settings = {"runs": str(write_run("a")), "out": str(tmp_path / "out"), "overwrite": False}
    compare(settings)
    with pytest.raises(InputError, match="overwrite=true"):
        compare(settings)
    (tmp_path / "out" / "compare.csv").write_text("old")
    compare({**settings, "overwrite": True})
    assert (tmp_path / "out" / "compare.csv").read_text() != "old"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "compare.csv",
        "compare.json",
        "compare.png",
    ]


def test_an_out_that_is_a_file_is_refused(write_run, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(InputError, match="out="):
        compare({"runs": [str(write_run("a"))], "out": str(tmp_path / "out"), "overwrite": False})


def run_script(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "compare.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_plain_paths_are_taken_from_the_shell(write_run, tmp_path: Path) -> None:
    for name in ("it's", "b=1"):
        write_run(name)
    done = run_script(tmp_path, "it's", "out=o", "b=1")
    assert done.returncode == 0, done.stderr
    assert "1 it's" in done.stdout
    picture = matplotlib.image.imread(tmp_path / "o" / "compare.png")
    assert np.ptp(picture[..., :3]) == 1
    assert not (tmp_path / ".hydra").exists()


def test_a_mistake_ends_in_one_line_and_exit_status_2(tmp_path: Path) -> None:
    done = run_script(tmp_path, "runs='nowhere/*'")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: runs=nowhere/*: no run is there; give run folders, such as runs/NAME, the folder "
        "of a sweep, or a pattern, such as 'runs/*'"
    ]
