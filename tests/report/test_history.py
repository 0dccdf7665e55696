"""Run folders read back: curves, settings, figures; and what is not there."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.compat.proto.event_pb2 import Event
from torch.utils.tensorboard import SummaryWriter

from vae_astro.errors import InputError
from vae_astro.report.history import read_history, read_run


def log_curve(folder: Path, name: str, points: dict[int, float], wall_time: float = 1e9) -> None:
    """An event file of one scalar; each call makes another file."""
    with SummaryWriter(folder, filename_suffix=f".{time.time_ns()}") as writer:
        for step, value in points.items():
            writer.add_scalar(name, value, step, walltime=wall_time + step)


def test_a_curve_comes_back_as_it_was_logged(tmp_path: Path) -> None:
    log_curve(tmp_path, "val/elbo_nats", {0: -10.5, 20: -8.25, 40: float("nan")})
    curve = read_history(tmp_path)["val/elbo_nats"]
    assert curve.steps.dtype == np.int64
    assert curve.steps.tolist() == [0, 20, 40]
    np.testing.assert_array_equal(curve.values, [-10.5, -8.25, np.nan])
    assert curve.wall_times.tolist() == [1e9, 1e9 + 20, 1e9 + 40]


def test_no_event_files_are_no_curves(tmp_path: Path) -> None:
    assert read_history(tmp_path) == {}


def test_of_a_resumed_run_the_later_value_of_a_step_counts(tmp_path: Path) -> None:
    log_curve(tmp_path, "beta", {20: 2.0, 40: 3.0}, wall_time=2e9)
    log_curve(tmp_path, "beta", {0: 0.0, 20: 1.0}, wall_time=1e9)
    curve = read_history(tmp_path)["beta"]
    assert (curve.steps.tolist(), curve.values.tolist()) == ([0, 20, 40], [0.0, 2.0, 3.0])


def test_of_a_rescued_run_the_fit_that_collapsed_ends_where_the_next_begins(tmp_path: Path) -> None:
    log_curve(tmp_path, "train/kl_nats", {0: 5.0, 20: 4.0, 40: 0.0, 60: 0.0})
    log_curve(tmp_path / "rescue_1", "train/kl_nats", {30: 4.0, 50: 6.0})
    curve = read_history(tmp_path)["train/kl_nats"]
    assert (curve.steps.tolist(), curve.values.tolist()) == ([0, 20, 30, 50], [5, 4, 4, 6])


def test_a_file_that_breaks_off_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    log_curve(tmp_path, "beta", {0: 0.0, 20: 1.0, 40: 2.0})
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    assert read_history(tmp_path)["beta"].steps.tolist() == [0, 20]


def test_what_is_no_event_file_is_no_curve(tmp_path: Path) -> None:
    (tmp_path / "events.out.tfevents.1").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "events.out.tfevents.2").write_bytes(b"")
    assert read_history(tmp_path) == {}


def test_pictures_between_scalars_are_stepped_over_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SummaryWriter(tmp_path) as writer:
        writer.add_scalar("beta", 0.0, 0)
        writer.add_image("picture", torch.rand(3, 64, 64), 10)
        writer.add_scalar("beta", 1.0, 20)
    lengths = []
    parse = Event.FromString
    monkeypatch.setattr(
        "vae_astro.report.history.Event",
        type("Seen", (), {"FromString": lambda data: lengths.append(len(data)) or parse(data)}),
    )
    assert read_history(tmp_path)["beta"].steps.tolist() == [0, 20]
    assert max(lengths) < 200


def test_four_thousand_scalars_are_read_in_well_under_two_seconds(tmp_path: Path) -> None:
    with SummaryWriter(tmp_path) as writer:
        for step in range(500):
            for name in "abcdefgh":
                writer.add_scalar(name, step, step)
    began = time.process_time()
    history = read_history(tmp_path)
    assert time.process_time() - began < 1
    assert [len(curve.steps) for curve in history.values()] == [500] * 8


CONFIG = "seed: 0\nbeta: {name: linear, end: 1.0}\nrun_dir: ${run_folder:${resume}}\nresume: null\n"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A finished run without checkpoints."""
    folder = tmp_path / "mine"
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(CONFIG)
    (folder / ".hydra" / "overrides.yaml").write_text("- beta.end=1.0\n")
    (folder / "metrics.json").write_text(json.dumps({"val": {"elbo_nats": -12.5}}))
    return folder


def test_a_run_says_its_name_figures_settings_and_what_was_typed(run_dir: Path) -> None:
    run = read_run(run_dir)
    assert (run.name, run.dir, run.damaged) == ("mine", run_dir, ())
    assert run.metrics == {"val": {"elbo_nats": -12.5}}
    assert run.config["beta"] == {"name": "linear", "end": 1.0}
    assert run.config["run_dir"] == str(run_dir)
    assert run.overrides == ["beta.end=1.0"]
    assert run.history == {}


def test_what_a_run_was_resumed_with_replaces_its_settings(run_dir: Path) -> None:
    later = run_dir / ".hydra" / "resumed_2026-01-01"
    later.mkdir()
    (later / "config.yaml").write_text(CONFIG.replace("seed: 0", "seed: 7").replace("1.0", "2.5"))
    (later / "overrides.yaml").write_text(f"- resume={run_dir}\n- beta.end=2.5\n")
    run = read_run(run_dir)
    assert run.config["beta"]["end"] == 2.5
    assert run.config["seed"] == 0  # not typed: a resumed run keeps its own
    assert run.overrides == ["beta.end=1.0", "beta.end=2.5"]


def test_a_checkpoint_stands_for_its_run(run_dir: Path) -> None:
    (run_dir / "checkpoints").mkdir()
    assert read_run(run_dir / "checkpoints" / "best.ckpt").name == "mine"


def test_a_run_of_a_sweep_carries_its_name(run_dir: Path) -> None:
    (run_dir.parent / "multirun.yaml").write_text("{}")
    assert read_run(run_dir).name == f"{run_dir.parent.name}/mine"


def test_a_run_that_is_not_over_has_no_metrics(run_dir: Path) -> None:
    (run_dir / "metrics.json").unlink()
    assert read_run(run_dir).metrics is None


@pytest.mark.parametrize("text", ['{"val": ', "[1, 2]", "\x00"])
def test_damaged_metrics_are_named_and_the_rest_is_read(run_dir: Path, text: str) -> None:
    (run_dir / "metrics.json").write_text(text)
    run = read_run(run_dir)
    assert run.metrics is None
    assert "metrics.json" in run.damaged[0]
    assert run.config["seed"] == 0


@pytest.mark.parametrize("text", ["a: [1", "- 1\n", "a: ${nowhere}"])
def test_damaged_settings_are_named_and_the_rest_is_read(run_dir: Path, text: str) -> None:
    (run_dir / ".hydra" / "config.yaml").write_text(text)
    run = read_run(run_dir)
    assert run.config == {}
    assert ".hydra cannot be read" in run.damaged[0]
    assert run.metrics is not None


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_folder_without_a_run_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=f"{name} .*runs/NAME"):
        read_run(tmp_path / name)


def test_a_strangers_folder_learns_nothing_of_this_computer(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "told")
    asking = CONFIG.replace("seed: 0", "seed: ${oc.env:SECRET}")
    (run_dir / ".hydra" / "config.yaml").write_text(asking)
    found = read_run(run_dir)
    assert found.config == {}
    assert "${oc.env:SECRET}" in " ".join(found.damaged)
    assert "told" not in str(found)
