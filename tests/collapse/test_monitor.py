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
from vae_astro.vae import StampScores

N_STEPS = 1000


class Run:
    """A run without training: validations are handed in."""

    def __init__(self, monitor: CollapseMonitor, **beta: Any) -> None:
        self.monitor = monitor
        self.logged: dict[str, float] = {}
        self.saved: list[tuple[int, Path]] = []
        beta = beta or {"name": "constant"}
        self.vae = VAE([1, 16, 16], model={"name": "linear", "latent_dim": 3}, beta=beta)
        self.vae.total_steps = N_STEPS
        self.vae.schedule = self.vae._schedule_of(N_STEPS)
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
