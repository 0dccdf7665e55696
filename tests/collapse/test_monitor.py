"""The monitor during validation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vae_astro.collapse.monitor import CollapseMonitor
from vae_astro.model.posterior import DiagonalGaussian
from vae_astro.objective.elbo import Elbo
from vae_astro.objective.kl import gaussian_kl_per_unit
from vae_astro.vae import StampScores


def validate(monitor: CollapseMonitor, step: int, means: torch.Tensor) -> dict[str, float]:
    """One validation over two batches; what it logged."""
    logged: dict[str, float] = {}

    def log(name: str, value: float, **kwargs: Any) -> None:
        logged[name] = value

    module = SimpleNamespace(log=log, log_dict=lambda values, **kwargs: logged.update(values))
    trainer = SimpleNamespace(world_size=1, global_step=step)
    for part in means.split(len(means) // 2):
        posterior = DiagonalGaussian(part, torch.full_like(part, -1.0))
        kl = gaussian_kl_per_unit(posterior.mean, posterior.log_var)
        scores = StampScores(posterior, Elbo(torch.zeros(len(part)), kl), part, part)
        monitor.on_validation_batch_end(trainer, module, scores, None, 0)
    monitor.on_validation_epoch_end(trainer, module)
    return logged


def test_units_whose_mean_varies_are_active_and_the_history_is_kept() -> None:
    monitor = CollapseMonitor()
    means = torch.zeros(10, 3)
    means[:, 1] = torch.arange(10.0)
    assert validate(monitor, 5, means)["collapse/active_units"] == 1
    logged = validate(monitor, 9, torch.zeros(10, 3))
    assert logged["collapse/active_units"] == 0
    assert monitor.steps == [5, 9]
    # KL at mean 0 and log-variance -1: (e^-1 + 1 - 1) / 2
    assert monitor.kl_per_unit[1] == pytest.approx([0.18394] * 3, abs=1e-5)
    assert monitor.kl_per_unit[0][1] == pytest.approx(0.18394 + 28.5 / 2, abs=1e-4)


def test_the_history_travels_in_the_checkpoint_as_plain_python() -> None:
    monitor = CollapseMonitor()
    validate(monitor, 5, torch.randn(10, 3))
    resumed = CollapseMonitor()
    resumed.load_state_dict(monitor.state_dict())
    validate(resumed, 6, torch.randn(10, 3))
    assert resumed.steps == [5, 6]
    assert resumed.kl_per_unit[0] == monitor.kl_per_unit[0]
    assert all(type(value) is float for row in resumed.kl_per_unit for value in row)
