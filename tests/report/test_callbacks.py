"""Panels: what is drawn, when, and that it disturbs nothing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vae_astro import VAE
from vae_astro.report.callbacks import StampPanels, draw_panels


@pytest.fixture
def vae() -> VAE:
    torch.manual_seed(0)
    return VAE([2, 16, 16], model={"name": "conv", "latent_dim": 2, "width": 8})


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    image = torch.randn(5, 2, 16, 16)
    return {"image": image, "mask": image > -2, "noise": torch.ones_like(image)}


def test_panels_are_drawn_without_touching_mode_or_random_state(vae: VAE, batch: dict) -> None:
    vae.train()
    state = torch.get_rng_state()
    panels = draw_panels(vae, batch, None)
    assert set(panels) == {"reconstructions", "traversals", "prior_samples"}
    assert vae.training
    assert torch.equal(state, torch.get_rng_state())


def test_traversals_are_in_the_order_of_the_kl_that_was_measured(vae: VAE, batch: dict) -> None:
    kl = [float(unit == vae.latent_dim - 1) for unit in range(vae.latent_dim)]
    drawn = draw_panels(vae, batch, None, 5, kl)["traversals"]
    assert drawn.axes[0].get_ylabel() == f"unit {vae.latent_dim - 1}\n1.00 nats"


def test_drawing_keeps_to_its_share_of_the_time(
    vae: VAE, batch: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("vae_astro.report.callbacks.time.perf_counter", lambda: now[0])
    drawn_at: list[float] = []

    def draw(*args: object) -> dict:
        drawn_at.append(now[0])
        now[0] += 2.0  # a set costs two seconds
        return {}

    monkeypatch.setattr("vae_astro.report.callbacks.draw_panels", draw)
    trainer = SimpleNamespace(is_global_zero=True, callbacks=[], loggers=[], global_step=1)
    panels = StampPanels(n_stamps=3, time_share=0.02)
    panels.on_train_start(trainer, vae)
    panels.on_validation_batch_end(trainer, vae, None, batch, 0)
    while now[0] < 1000:
        now[0] += 10
        panels.on_validation_epoch_end(trainer, vae)
    # from 50 s on (a first guess of one second), then whenever two more seconds fit into 2 %
    assert drawn_at[0] == 50
    assert panels.seconds_spent <= 0.02 * now[0]
    assert len(drawn_at) >= 9


def test_the_last_set_is_written_as_png(vae: VAE, batch: dict, tmp_path: Path) -> None:
    trainer = SimpleNamespace(is_global_zero=True, callbacks=[], loggers=[], global_step=1)
    StampPanels(n_stamps=2).draw_last(trainer, vae, batch, tmp_path / "figures")
    written = sorted(file.name for file in (tmp_path / "figures").iterdir())
    assert written == ["prior_samples.png", "reconstructions.png", "traversals.png"]


@pytest.mark.parametrize(("kl", "order"), [([0.1, 3.0], ["1", "0"]), ([3.0, 0.1], ["0", "1"])])
def test_the_last_set_orders_units_by_the_kl_of_all_that_was_judged(
    vae: VAE, batch: dict, tmp_path: Path, kl: list[float], order: list[str]
) -> None:
    trainer = SimpleNamespace(is_global_zero=True, callbacks=[], loggers=[], global_step=1)
    panels = StampPanels(n_stamps=2)
    drawn = panels._draw(trainer, vae, batch, kl)
    labels = [ax.get_ylabel() for ax in drawn["traversals"].axes if "nats" in ax.get_ylabel()]
    assert [label.split()[1] for label in labels] == order
    panels.draw_last(trainer, vae, batch, tmp_path, kl)
    assert (tmp_path / "traversals.png").is_file()
