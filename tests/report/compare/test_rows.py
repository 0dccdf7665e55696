"""Figures of runs: which are there, which compare, what differs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vae_astro.report.compare.rows import Comparison, compare_runs, own_beta
from vae_astro.report.history import read_run


def compared(*folders: Path) -> Comparison:
    return compare_runs([read_run(folder) for folder in folders])


def test_runs_are_sorted_by_their_elbo(write_run) -> None:
    found = compared(*(write_run(str(-elbo), elbo) for elbo in (-120, -90, -100)))
    assert [row.elbo_nats for row in found.rows] == [-90, -100, -120]
    assert [row.verdict for row in found.rows] == ["none"] * 3
    assert found.warnings == []


def test_only_settings_that_differ_are_listed_with_a_value_for_each_run(write_run) -> None:
    found = compared(
        write_run("a", -90, seed=1),
        write_run("b", -100, beta={"name": "geco", "target_chi2": 1.0}),
    )
    assert found.differing == {
        "seed": [1, 0],
        "beta.name": ["linear", "geco"],
        "beta.end": [1.0, None],
        "beta.target_chi2": [None, 1.0],
    }


def test_one_typed_as_a_whole_number_is_no_difference(write_run) -> None:
    found = compared(write_run("a", data__size=32, seed=1), write_run("b", data__size=32.0, seed=1))
    assert found.differing == {}
    assert list(found.groups) == ["A"]
    assert "seed" in compared(write_run("c", seed=1), write_run("d", seed=True)).differing


@pytest.mark.parametrize(
    "other",
    [
        {"likelihood__name": "student_t"},
        {"data__size": 63},
        {"data__normalize": {"stretch": "log"}},
        {"data__root": "elsewhere"},
    ],
)
def test_another_likelihood_scale_or_sky_is_another_group_and_told(write_run, other: dict) -> None:
    found = compared(write_run("a", -100), write_run("b", -50, **other))
    assert [row.group for row in found.rows] == ["A", "B"]
    assert len(found.groups) == 2
    (told,) = found.warnings
    assert next(iter(other)).split("__")[1] in told


@pytest.mark.parametrize(
    "other",
    [{"seed": 3}, {"data__batch_size": 7}, {"likelihood__learn": "gradient"}, {"model__name": "x"}],
)
def test_what_leaves_the_density_of_the_pixels_alone_stays_in_the_group(
    write_run, other: dict
) -> None:
    assert len(compared(write_run("a"), write_run("b", **other)).groups) == 1


def test_another_number_of_validation_stamps_is_told(write_run) -> None:
    first, second = write_run("a"), write_run("b")
    metrics = json.loads((second / "metrics.json").read_text())
    metrics["data"]["n_val"] = 40
    (second / "metrics.json").write_text(json.dumps(metrics))
    (told,) = compared(first, second).warnings
    assert "30, 40" in told


CURVES = {
    "val/elbo_nats": {10: -300.0, 20: -110.0, 30: -150.0},
    "val/kl_nats": {10: 9.0, 20: 4.0, 30: 1.0},
    "val/reconstruction_nats": {10: -291.0, 20: -106.0, 30: -149.0},
    "collapse/active_units": {10: 4.0, 20: 3.0, 30: 1.0},
    "epoch": {10: 0.0, 20: 1.0, 30: 2.0},
    "train/kl_weight": {0: 0.0, 25: 8.0},
}


def test_a_run_that_is_not_over_shows_its_best_validation_so_far(write_run) -> None:
    folder = write_run("a", None, CURVES)
    (folder / "train.log").write_text("[10:00:00] INFO x\n[10:00:01] WARNING told to stop\n")
    (row,) = compared(folder).rows
    assert not row.is_finished
    assert (row.elbo_nats, row.kl_nats, row.active_units) == (-110, 4, 3)
    assert (row.verdict, row.seconds_total) == (None, None)
    assert "3 of 4 epochs" in row.note
    assert "told to stop" in row.note


def test_the_finished_come_before_what_is_not_over(write_run) -> None:
    found = compared(write_run("going", None, CURVES), write_run("done", -900))
    assert [row.run.name for row in found.rows] == ["done", "going"]


def test_rate_and_distortion_are_those_at_the_end_where_beta_is_the_run_s_own(write_run) -> None:
    (row,) = compared(write_run("a", -110, CURVES, kl=4.0)).rows
    assert (row.beta, row.rate_nats, row.distortion_nats) == (8.0, 1.0, 149.0)
    assert row.kl_nats == 4.0  # the best checkpoint's


def test_beta_is_read_from_the_settings_where_nothing_was_logged(write_run) -> None:
    assert own_beta(read_run(write_run("a", beta__end=3.0))) == 3.0
    assert own_beta(read_run(write_run("b", beta={"name": "constant", "value": 0.5}))) == 0.5
    assert own_beta(read_run(write_run("c", beta={"name": "geco"}))) is None
    assert own_beta(read_run(write_run("d", beta={"name": "capacity", "gamma": 9.0}))) == 9.0
    assert own_beta(read_run(write_run("e", beta__end=0.0))) == 0.0


def test_runs_that_differ_in_beta_alone_are_one_line_by_rising_beta(write_run) -> None:
    sweep = [write_run(f"b{beta}", -100 - beta, beta__end=beta) for beta in (4.0, 0.5, 1.0)]
    found = compared(*sweep, write_run("other", beta__end=2.0, model__latent_dim=8))
    (line,) = found.lines_of_beta
    assert [found.rows[k].beta for k in line] == [0.5, 1.0, 4.0]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"val": 3, "collapse": "none"}',
        '{"val": {"elbo_nats": "NaN"}, "collapse": {"verdict": 7}}',
        '{"val": {"elbo_nats": NaN}}',
    ],
)
def test_damaged_metrics_leave_a_row_with_what_is_known(write_run, text: str) -> None:
    folder = write_run("a")
    (folder / "metrics.json").write_text(text)
    row = compared(folder, write_run("b")).rows[-1]
    assert row.run.name == "a"
    assert (row.elbo_nats, row.verdict) == (None, None)
    assert "metrics.json" in row.note
    assert row.latent_dim == 4


def test_a_run_of_unknown_settings_stands_last_and_alone(write_run) -> None:
    lost = write_run("lost", -1.0)
    (lost / ".hydra" / "config.yaml").write_text("- broken")
    found = compared(lost, write_run("b", -100))
    assert [row.run.name for row in found.rows] == ["b", "lost"]
    assert found.groups["B"] == "settings not known"
    assert ".hydra" in found.rows[1].note
    assert found.differing == {}
