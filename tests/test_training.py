"""Fits that collapse: watched, stopped, rescued, and resumed after a rescue."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from vae_astro import VAE
from vae_astro.checkpoint import load_checkpoint
from vae_astro.data.simulate import simulate
from vae_astro.errors import InputError
from vae_astro.folders import register_resolvers
from vae_astro.report.callbacks import StampPanels
from vae_astro.run import train

# what train_command keeps from its user
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:.*{words}")
    for words in ("does not have many workers", "exists and is not empty", "isinstance.treespec")
]

ROOT = Path(__file__).parents[1]
# sigma 50 where the sky noise is 1: alive while beta is next to nothing, dead from the middle on
COLLAPSES = (
    "data=fits", "data.batch_size=16", "model.width=8", "model.latent_dim=4", "trainer=cpu",
    "trainer.max_epochs=10", "trainer.check_val_every_n_epoch=1", "callbacks.progress=false",
    "callbacks.page=false",
    "callbacks.time_share=0", "optim.lr=3e-3", "optim.warmup_steps=0",
    "likelihood=gaussian", "likelihood.std=50",
    "beta=sigmoid", "beta.steepness=40", "beta.warmup_fraction=0.8",
)  # fmt: skip
N_STEPS = 60


class KilledError(Exception):
    """What a test ends a run with."""


@pytest.fixture(scope="module")
def settings_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """Settings of the run that collapses, with overrides, on 120 small simulated stamps."""
    sky = tmp_path_factory.mktemp("sky")
    simulate(sky / "stamps", n_stamps=120, seed=3, size=24, n_processes=1, progress=False)
    register_resolvers()

    def settings(*overrides: str) -> dict[str, Any]:
        data = (f"data.root={sky / 'stamps'}", f"data.store_dir={sky / 'stores'}")
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            cfg = compose("config", [*COLLAPSES, *data, *overrides])
        return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]

    return settings


@pytest.fixture(autouse=True, scope="module")
def no_pictures() -> Any:
    """They take longer than these fits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StampPanels, "draw_last", lambda *args: None)
        yield


@pytest.fixture(scope="module")
def rescued(
    settings_of: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run that collapsed and was rescued, uninterrupted."""
    run_dir = tmp_path_factory.mktemp("rescued") / "run"
    train(settings_of("collapse.action=rescue"), run_dir)
    return run_dir


def metrics_of(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "metrics.json").read_text())


def last_of(run_dir: Path) -> dict[str, Any]:
    return load_checkpoint(run_dir / "checkpoints" / "last.ckpt")


def assert_same_end(one: Path, other: Path) -> None:
    a, b = last_of(one), last_of(other)
    assert a["global_step"] == b["global_step"]
    for key, value in a["state_dict"].items():
        assert torch.equal(value, b["state_dict"][key]), key
    assert metrics_of(one)["val"] == metrics_of(other)["val"]
    assert metrics_of(one)["collapse"] == metrics_of(other)["collapse"]


def resumed(run_dir: Path) -> dict[str, Any]:
    """What ``resume=`` makes of the settings in the checkpoint."""
    return last_of(run_dir)["vae_astro"]["settings"] | {"resume": str(run_dir)}


def test_a_collapse_is_said_and_dated_and_left_alone_by_default(
    settings_of: Callable[..., dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        train(settings_of(), tmp_path / "run")
    collapse = metrics_of(tmp_path / "run")["collapse"]
    assert (collapse["state"], collapse["rescues"]) == ("collapsed", [])
    assert 0 < collapse["began_at_step"] < N_STEPS
    assert caplog.text.count("collapse: collapsed at step") == 1
    history = collapse["history"]
    assert history["step"] == list(range(6, N_STEPS + 1, 6))
    assert "healthy" in history["state"]
    assert history["kl_nats"][1] > 1 > 0.1 > history["kl_nats"][-1]
    # nine validation stamps, four units
    assert history["mutual_information_nats"][1] <= history["kl_nats"][1]
    assert not (tmp_path / "run" / "checkpoints" / "healthy.ckpt").exists()


def test_too_heavy_a_weight_is_told_in_the_key_of_its_schedule(
    settings_of: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    settings = settings_of("trainer.max_epochs=2")
    settings["likelihood"] = {"name": "sigma", "learn": "closed_form"}
    settings["beta"] = {"name": "capacity", "gamma": 1e5, "capacity_nats": 0.0}
    train(settings, tmp_path / "run")
    (lower,) = metrics_of(tmp_path / "run")["collapse"]["change_settings"]
    assert lower.startswith("beta.gamma=")


def test_a_stopped_run_ends_early_and_is_judged(
    settings_of: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    train(settings_of("collapse.action=stop"), tmp_path / "run")
    metrics = metrics_of(tmp_path / "run")
    assert metrics["collapse"]["state"] == "collapsed"
    assert last_of(tmp_path / "run")["global_step"] == metrics["collapse"]["history"]["step"][-1]
    assert metrics["collapse"]["history"]["step"][-1] < N_STEPS
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").exists()


def test_a_rescued_run_goes_back_to_its_last_healthy_state_and_lives(rescued: Path) -> None:
    metrics = metrics_of(rescued)
    collapse = metrics["collapse"]
    assert (collapse["verdict"], collapse["state"]) == ("none", "healthy")
    assert collapse["active_units"] >= 2
    (record,) = collapse["rescues"]
    assert record["state"] == "collapsed"
    assert 0 < record["from_step"] < record["began_at_step"] < record["step"] < N_STEPS
    assert record["change"] == {
        "likelihood.name": ["gaussian", "sigma"],
        "likelihood.std": [50, None],
        "likelihood.learn": [None, "closed_form"],
    }
    assert record["forecast_before"]["active_units"] == 0
    assert record["forecast_after"]["active_units"] == 4
    assert collapse["forecast"]["verdict"] == "none"  # of the settings it ended with
    history = collapse["history"]
    assert history["step"] == list(range(6, N_STEPS + 1, 6))
    assert set(history["state"][2:]) == {"healthy"}
    saved = last_of(rescued)
    assert saved["vae_astro"]["settings"]["likelihood"]["name"] == "sigma"
    assert saved["global_step"] == N_STEPS
    # all fits count: up to the collapse, and from the healthy state to the end
    n_steps = record["step"] + N_STEPS - record["from_step"]
    timing = metrics["timing"]
    n_stamps = timing["train_stamps_per_second"] * timing["seconds_fit"]
    assert n_stamps == pytest.approx(16 * n_steps)


def test_a_rescued_run_leaves_what_it_came_from_and_a_best_of_its_own(rescued: Path) -> None:
    folder = rescued / "checkpoints"
    collapsed, best = (load_checkpoint(folder / name) for name in ("collapsed_1.ckpt", "best.ckpt"))
    assert collapsed["vae_astro"]["settings"]["likelihood"]["name"] == "gaussian"
    assert best["vae_astro"]["settings"]["likelihood"]["name"] == "sigma"
    vae = VAE.load_from_checkpoint(folder / "rescue_1.ckpt", weights_only=True)
    assert vae.likelihood.learns_scale
    assert list(rescued.glob("events.out.tfevents.*"))
    assert list((rescued / "rescue_1").glob("events.out.tfevents.*"))


def test_a_rescued_run_that_is_stopped_goes_on_bit_for_bit(
    rescued: Path,
    settings_of: Callable[..., dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    training_step = VAE.training_step

    def killed(self: VAE, batch: Any, batch_idx: int) -> Any:
        if self.global_step == 45 and self.likelihood.learns_scale:
            raise KilledError
        return training_step(self, batch, batch_idx)

    monkeypatch.setattr(VAE, "training_step", killed)
    with pytest.raises(KilledError):
        train(settings_of("collapse.action=rescue"), tmp_path / "run")
    monkeypatch.undo()
    monkeypatch.setattr(StampPanels, "draw_last", lambda *args: None)
    train(resumed(tmp_path / "run"), tmp_path / "run")
    assert_same_end(rescued, tmp_path / "run")


def test_a_run_killed_between_collapse_and_rescue_is_rescued_when_it_is_resumed(
    rescued: Path,
    settings_of: Callable[..., dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def killed(*args: Any) -> None:
        raise KilledError

    monkeypatch.setattr("vae_astro.run.rescue", killed)
    with pytest.raises(KilledError):
        train(settings_of("collapse.action=rescue"), tmp_path / "run")
    monkeypatch.undo()
    monkeypatch.setattr(StampPanels, "draw_last", lambda *args: None)
    train(resumed(tmp_path / "run"), tmp_path / "run")
    assert_same_end(rescued, tmp_path / "run")


def test_a_run_that_never_lived_starts_over_as_if_set_so_from_the_start(
    settings_of: Callable[..., dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dead = settings_of("collapse.action=rescue", "trainer.max_epochs=8") | {
        "beta": {"name": "constant", "value": 1.0}
    }
    with caplog.at_level(logging.WARNING):
        train(dead, tmp_path / "rescued")
    assert "rescue 1: back to the start" in caplog.text
    right = dead | {"likelihood": {"name": "sigma", "learn": "closed_form"}}
    train(right, tmp_path / "right")
    assert_same_weights(tmp_path / "rescued", tmp_path / "right")
    (record,) = metrics_of(tmp_path / "rescued")["collapse"]["rescues"]
    assert (record["from_step"], record["began_at_step"]) == (0, 0)
    assert record["step"] <= 48 / 4


def assert_same_weights(one: Path, other: Path) -> None:
    a, b = last_of(one)["state_dict"], last_of(other)["state_dict"]
    for key, value in a.items():
        assert torch.equal(value, b[key]), key


def test_a_late_rescue_makes_the_run_longer(
    settings_of: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    # alive until beta passes the threshold in the last third
    late = settings_of("collapse.action=rescue", "beta.warmup_fraction=1.0")
    late["beta"]["steepness"] = 80.0
    train(late, tmp_path / "run")
    (record,) = metrics_of(tmp_path / "run")["collapse"]["rescues"]
    assert record["from_step"] > N_STEPS / 3
    if record["from_step"] > N_STEPS / 2:
        assert record["change"]["trainer.max_epochs"][1] > 10
    assert last_of(tmp_path / "run")["global_step"] - record["from_step"] >= N_STEPS / 2


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["collapse.action=panic"], "collapse.action must be one of warn, stop, rescue, got"),
        (["collapse.action=rescue", "collapse.forecast_stamps=0"], "set collapse.forecast_stamps"),
        (["collapse.action=rescue", "trainer=ddp", "trainer.accelerator=cpu"], "trainer.devices=1"),
    ],
)
def test_a_rescue_that_cannot_be_is_refused_before_training(
    overrides: list[str],
    words: str,
    settings_of: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        train(settings_of(*overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()
