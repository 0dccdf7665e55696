"""The monitor during validation: what it logs, keeps, says and does."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vae_astro import VAE
from vae_astro.collapse.information import measure_information
from vae_astro.collapse.monitor import CollapseMonitor, rescues_in
from vae_astro.collapse.rescue import Plan
from vae_astro.errors import InputError
from vae_astro.model.posterior import DiagonalGaussian
from vae_astro.objective.elbo import Elbo
from vae_astro.objective.kl import gaussian_kl_per_unit
from vae_astro.parts import StampScores

N_STEPS = 1000


class Run:
    """A run without training: validations are handed in."""

    def __init__(self, monitor: CollapseMonitor, **beta: Any) -> None:
        self.monitor = monitor
        self.logged: dict[str, float] = {}
        self.saved: list[tuple[int, Path]] = []
        beta = beta or {"name": "constant"}
        self.vae = VAE([1, 16, 16], model={"name": "linear", "latent_dim": 3}, beta=beta)
        self.vae.set_length(N_STEPS)
        self.vae.log = lambda name, value, **kwargs: self.logged.update({name: value})
        self.vae.log_dict = lambda values, **kwargs: self.logged.update(values)
        self.trainer = SimpleNamespace(
            global_step=0,
            should_stop=False,
            strategy=SimpleNamespace(broadcast=lambda value: value),
            save_checkpoint=lambda path, weights_only: self.saved.append(
                (self.trainer.global_step, path)
            ),
        )
        monitor.on_train_start(self.trainer, self.vae)

    def validate(
        self, step: int, mean: torch.Tensor, log_var: torch.Tensor, chi2: float = 1.0
    ) -> str:
        """One validation over two batches; the state after it."""
        self.trainer.global_step = step
        kl = gaussian_kl_per_unit(mean, log_var)
        index = torch.arange(len(mean))
        for part in index.split(len(mean) // 2):
            posterior = DiagonalGaussian(mean[part], log_var[part])
            elbo = Elbo(torch.zeros(len(part)), kl[part])
            scores = StampScores(posterior, elbo, mean[part], torch.full((len(part),), chi2))
            self.monitor.on_validation_batch_end(self.trainer, self.vae, scores, {"index": part}, 0)
        self.monitor.on_validation_epoch_end(self.trainer, self.vae)
        self.monitor.on_train_epoch_end(self.trainer, self.vae)
        return self.monitor.validations[-1].state

    def alive(self, step: int, chi2: float = 1.0) -> str:
        mean = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
        return self.validate(step, mean, torch.full_like(mean, -3.0), chi2)

    def dead(self, step: int) -> str:
        return self.validate(step, torch.zeros(40, 3), torch.zeros(40, 3))

    def few(self, step: int) -> str:
        """One of three units alive."""
        mean, log_var = torch.zeros(40, 3), torch.zeros(40, 3)
        mean[:, 0], log_var[:, 0] = torch.linspace(-2, 2, 40), -3.0
        return self.validate(step, mean, log_var)


def plan() -> Plan:
    return Plan("lower beta", {}, "", None, None, True)  # type: ignore[arg-type]


def test_units_whose_mean_varies_are_active_and_the_history_is_kept() -> None:
    run = Run(CollapseMonitor())
    mean = torch.zeros(10, 3)
    mean[:, 1] = torch.arange(10.0)
    run.validate(5, mean, torch.full_like(mean, -1.0), chi2=1.2)
    assert run.logged["collapse/active_units"] == 1
    run.validate(9, torch.zeros(10, 3), torch.full_like(mean, -1.0), chi2=1.3)
    assert run.logged["collapse/active_units"] == 0
    assert run.monitor.steps == [5, 9]
    # KL at mean 0 and log-variance -1: (e^-1 + 1 - 1) / 2
    assert run.monitor.kl_per_unit[1] == pytest.approx([0.18394] * 3, abs=1e-5)
    assert run.monitor.kl_per_unit[0][1] == pytest.approx(0.18394 + 28.5 / 2, abs=1e-4)
    history = run.monitor.summary()["history"]
    assert history["kl_nats"][1] == pytest.approx(3 * 0.18394, abs=1e-4)
    assert history["chi2_per_pixel"] == pytest.approx([1.2, 1.3])


def test_information_and_mismatch_are_those_of_the_same_stamps() -> None:
    run = Run(CollapseMonitor())
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(60, 3)).astype(np.float32)
    log_var = np.full_like(mean, -2.0)
    run.validate(5, torch.from_numpy(mean), torch.from_numpy(log_var))
    kl = gaussian_kl_per_unit(torch.from_numpy(mean), torch.from_numpy(log_var)).numpy()
    eps = run.vae.evaluation_noise(torch.arange(60)).numpy()
    expected = measure_information(mean, log_var, kl, eps)
    assert expected is not None
    assert run.logged["collapse/mutual_information_nats"] == expected.mutual_information_nats
    assert run.logged["collapse/aggregate_mismatch_nats"] == expected.aggregate_mismatch_nats
    assert expected.mutual_information_nats > 1


def test_too_few_stamps_for_information_leave_a_gap_and_no_number() -> None:
    run = Run(CollapseMonitor())
    run.validate(5, torch.randn(4, 3), torch.full((4, 3), -2.0))
    assert "collapse/mutual_information_nats" not in run.logged
    assert run.monitor.summary()["history"]["mutual_information_nats"] == [None]


def test_the_history_and_the_state_travel_in_the_checkpoint_as_plain_python() -> None:
    run = Run(CollapseMonitor(rescues=[{"kind": "lower beta"}]))
    run.alive(100)
    run.alive(200)
    run.dead(300)
    state = run.monitor.state_dict()
    torch.save({"callbacks": {"CollapseMonitor": state}}, buffer := io.BytesIO())
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True)
    assert rescues_in(loaded) == [{"kind": "lower beta"}]
    assert rescues_in({"callbacks": {}}) == []
    resumed = CollapseMonitor()
    resumed.load_state_dict(loaded["callbacks"]["CollapseMonitor"])
    assert resumed.validations == run.monitor.validations
    assert resumed.summary() == run.monitor.summary()
    assert Run(resumed).dead(400) == run.dead(400) == "collapsed"


def test_a_change_of_state_is_said_once_with_its_step(caplog: pytest.LogCaptureFixture) -> None:
    run = Run(CollapseMonitor())
    with caplog.at_level(logging.WARNING):
        for step in (100, 200):
            run.alive(step)
        for step in (300, 400, 500, 600):
            run.dead(step)
        for step in (700, 800):
            run.alive(step)
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "collapse: collapsed at step 400, since step 300: 0 of 3 units active, KL 0 nats per "
        "stamp; 2 would be enough",
        said[1],
    ]
    assert said[1].startswith("collapse: healthy again at step 800: 3 of 3 units active")
    assert not run.trainer.should_stop
    assert run.monitor.summary()["state"] == "healthy"
    assert run.logged["collapse/state"] == 0


def test_the_forecast_decides_how_many_units_are_expected() -> None:
    monitor = CollapseMonitor()
    monitor.expect(1, may_live=True)
    run = Run(monitor)
    assert [run.few(step) for step in (100, 200, 300)] == ["starting", "healthy", "healthy"]
    run = Run(CollapseMonitor())  # without one, all three
    assert [run.few(step) for step in (100, 600, 700)][-1] == "collapsing"


def test_a_capacity_that_still_rises_holds_units_down() -> None:
    capacity = {"name": "capacity", "capacity_nats": 25.0, "warmup_fraction": 0.8}
    run = Run(CollapseMonitor(), **capacity)
    states = [run.few(step) for step in (100, 550, 650, 750, 900, 1000)]
    assert states == ["starting"] * 5 + ["collapsing"]


def test_stop_ends_the_fit_where_the_code_collapses_and_only_there() -> None:
    run = Run(CollapseMonitor("stop"))
    for step in (100, 200):
        run.alive(step)
    for step in (300, 400):
        run.few(step)
    assert not run.trainer.should_stop  # collapsing is not collapsed
    run.dead(500)
    run.dead(600)
    assert run.trainer.should_stop
    run.trainer.should_stop = False  # resumed all the same
    run.dead(700)
    assert not run.trainer.should_stop


def test_rescue_asks_for_a_plan_when_the_code_has_collapsed() -> None:
    monitor = CollapseMonitor("rescue")
    monitor.planner = plan
    run = Run(monitor)
    for step in (100, 200):
        run.alive(step)
    run.dead(300)
    assert monitor.plan is None
    run.dead(400)
    assert run.trainer.should_stop
    assert monitor.plan == plan()
    finding = monitor.finding()
    assert (finding["step"], finding["state"], finding["began_at_step"]) == (400, "collapsed", 300)


def test_rescue_does_not_wait_for_the_last_unit() -> None:
    monitor = CollapseMonitor("rescue")
    monitor.planner = plan
    run = Run(monitor)
    for step in (100, 200):
        run.alive(step)
    for step in (300, 350, 380):
        run.few(step)
        assert not run.trainer.should_stop
    run.few(400)  # a tenth of the run after it began
    assert run.trainer.should_stop


def test_rescue_goes_on_where_nothing_is_left_to_try_and_asks_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked = []
    monitor = CollapseMonitor("rescue")
    monitor.planner = lambda: asked.append(1)  # type: ignore[func-returns-value, return-value]
    run = Run(monitor)
    for step in (100, 200, 300, 400):
        run.dead(step)
    assert not run.trainer.should_stop
    assert len(asked) == 1
    assert caplog.text.count("nothing is left to try") == 1


def test_a_run_that_was_killed_before_its_rescue_stops_at_once_when_it_is_resumed() -> None:
    run = Run(CollapseMonitor("rescue"))
    for step in (100, 200):
        run.dead(step)
    for action, stops in (("rescue", True), ("warn", False), ("stop", False)):
        monitor = CollapseMonitor(action)
        monitor.planner = plan
        monitor.load_state_dict(run.monitor.state_dict())
        assert Run(monitor).trainer.should_stop == stops


def test_the_last_healthy_state_is_kept_and_no_other(tmp_path: Path) -> None:
    monitor = CollapseMonitor("rescue", tmp_path / "healthy.ckpt")
    run = Run(monitor)
    run.alive(100)
    run.alive(200)
    run.alive(300)
    run.alive(400, chi2=2.5)  # a code that lives, beside a decoder that draws nothing
    run.few(500)
    run.dead(600)
    assert [step for step, _ in run.saved] == [200, 300]
    assert {path for _, path in run.saved} == {tmp_path / "healthy.ckpt"}
    run = Run(CollapseMonitor("warn"))
    run.alive(100)
    run.alive(200)
    assert run.saved == []


def test_an_action_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match=r"collapse.action must be one of warn, stop, rescue"):
        CollapseMonitor("panic")


# -- in full -------------------------------------------------------------------------------------


def test_every_curve_is_logged_for_all_processes() -> None:
    run = Run(CollapseMonitor())
    kwargs: dict[str, dict[str, Any]] = {}
    run.vae.log = lambda name, value, **given: kwargs.update({name: given})  # type: ignore[method-assign]
    values: dict[str, float] = {}

    def log_dict(given: dict[str, float], **how: Any) -> None:
        values.update(given)
        kwargs["the others"] = how

    run.vae.log_dict = log_dict  # type: ignore[method-assign, assignment]
    mean = torch.zeros(40, 3)
    mean[:, 0], mean[:, 2] = torch.linspace(-2, 2, 40), 1.0
    run.validate(100, mean, torch.zeros(40, 3))
    assert kwargs == {
        "collapse/active_units": {"prog_bar": True, "sync_dist": True},
        "the others": {"sync_dist": True},
    }
    assert set(values) == {
        "collapse/state",
        "collapse/strongest_unit_nats",
        "collapse/weakest_unit_nats",
        "collapse/mutual_information_nats",
        "collapse/aggregate_mismatch_nats",
    }
    # half the mean square of the first unit; the second is the prior
    strongest = float(mean[:, 0].square().mean()) / 2
    assert values["collapse/strongest_unit_nats"] == pytest.approx(strongest)
    assert values["collapse/weakest_unit_nats"] == 0.0
    assert values["collapse/state"] == -1.0


def test_the_history_holds_all_figures_of_all_validations() -> None:
    run = Run(CollapseMonitor(rescues=[{"kind": "learning rate"}]))
    run.alive(100, chi2=1.5)
    run.alive(200)
    summary = run.monitor.summary()
    first, second = run.monitor.validations
    assert summary == {
        "state": "healthy",
        "began_at_step": None,
        "history": {
            "step": [100, 200],
            "state": ["starting", "healthy"],
            "active_units": [3, 3],
            "kl_nats": [sum(first.kl_per_unit_nats), sum(second.kl_per_unit_nats)],
            "mutual_information_nats": [
                first.mutual_information_nats,
                second.mutual_information_nats,
            ],
            "aggregate_mismatch_nats": [
                first.aggregate_mismatch_nats,
                second.aggregate_mismatch_nats,
            ],
            "chi2_per_pixel": [1.5, 1.0],
        },
        "rescues": [{"kind": "learning rate"}],
    }
    assert first.mutual_information_nats + first.aggregate_mismatch_nats == pytest.approx(
        first.kl_nats
    )


def test_a_monitor_of_no_run_has_nothing_to_tell() -> None:
    monitor = CollapseMonitor()
    assert monitor.action == "warn"
    summary = monitor.summary()
    assert (summary["state"], summary["began_at_step"]) == ("starting", None)
    assert set(summary["history"].values().__iter__().__next__()) == set()
    assert monitor.state_dict() == {"validations": [], "health": None, "rescues": []}
    again = CollapseMonitor("rescue")
    again.load_state_dict(monitor.state_dict())
    assert again.health is None


def test_the_finding_is_that_of_the_last_validation() -> None:
    run = Run(CollapseMonitor())
    run.alive(100)
    run.few(250)
    last = run.monitor.validations[-1]
    assert run.monitor.finding() == {
        "step": 250,
        "state": "starting",
        "began_at_step": None,
        "active_units": 1,
        "kl_nats": last.kl_nats,
    }


def test_a_stop_is_said_with_its_step(caplog: pytest.LogCaptureFixture) -> None:
    run = Run(CollapseMonitor("stop"))
    with caplog.at_level(logging.WARNING):
        for step in (100, 200):
            run.dead(step)
    assert caplog.records[-1].getMessage() == "collapse.action=stop: the fit ends at step 200"
    assert run.trainer.should_stop


def test_a_first_validation_after_a_resume_can_stop_the_fit() -> None:
    # the state is known from the checkpoint, the history is not
    seasoned = Run(CollapseMonitor())
    seasoned.dead(100)
    monitor = CollapseMonitor("stop")
    monitor.load_state_dict(seasoned.monitor.state_dict() | {"validations": []})
    run = Run(monitor)
    assert run.dead(200) == "collapsed"
    assert run.trainer.should_stop


def test_recovery_and_giving_up_are_said_in_full(caplog: pytest.LogCaptureFixture) -> None:
    run = Run(CollapseMonitor("rescue"))
    with caplog.at_level(logging.WARNING):
        for step in (100, 200):
            run.dead(step)
        for step in (300, 400):
            run.alive(step)
    said = [record.getMessage() for record in caplog.records]
    kl = run.monitor.validations[-1].kl_nats
    assert said == [
        "collapse: collapsed at step 200, since step 0: 0 of 3 units active, KL 0 nats per stamp; "
        "2 would be enough",
        "collapse.action=rescue: nothing is left to try, the run goes on as it is",
        f"collapse: healthy again at step 400: 3 of 3 units active, KL {kl:.3g} nats per stamp",
    ]


def test_a_plan_ends_the_fit_and_the_one_that_is_resumed() -> None:
    monitor = CollapseMonitor("rescue")
    monitor.planner = plan
    run = Run(monitor)
    for step in (100, 200):
        run.dead(step)
    assert run.trainer.should_stop
    assert Run(monitor).trainer.should_stop  # a fit that starts with a plan in hand
    assert not Run(CollapseMonitor("rescue")).trainer.should_stop


def test_states_are_kept_with_the_optimiser_and_at_their_own_step(tmp_path: Path) -> None:
    run = Run(CollapseMonitor("rescue", tmp_path / "healthy.ckpt"))
    how: list[bool] = []
    run.trainer.save_checkpoint = lambda path, weights_only: how.append(weights_only)
    run.monitor.on_train_epoch_end(run.trainer, run.vae)  # an epoch without a validation
    run.alive(100)
    run.alive(200)
    run.trainer.global_step = 250
    run.monitor.on_train_epoch_end(run.trainer, run.vae)
    assert how == [False]


def test_chi2_twice_the_lowest_is_still_worth_keeping(tmp_path: Path) -> None:
    run = Run(CollapseMonitor("warn", tmp_path / "healthy.ckpt"))
    for step, chi2 in ((100, 1.0), (200, 2.0), (300, 2.01), (400, 1.5)):
        run.alive(step, chi2)
    assert [step for step, _ in run.saved] == [200, 400]


def test_the_median_stamp_tells_the_chi2() -> None:
    run = Run(CollapseMonitor())
    mean = torch.randn(5, 3)
    columns = {
        "index": torch.arange(5),
        "mean": mean,
        "log_var": torch.zeros(5, 3),
        "kl": mean.square() / 2,
        "chi2": torch.tensor([1.0, 9.0, 1.2, 50.0, 0.5]),
    }
    found = run.monitor._judged(run.trainer, run.vae, columns)
    assert found.chi2_per_pixel == pytest.approx(1.2)
