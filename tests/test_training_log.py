"""What is told of steps and of validations, without a trainer."""

from __future__ import annotations

import pytest
import torch

from vae_astro.model.likelihoods import PixelMeanMSE
from vae_astro.model.posterior import DiagonalGaussian
from vae_astro.objective.beta import capacity
from vae_astro.objective.elbo import Elbo
from vae_astro.parts import StampScores, Trained
from vae_astro.training_log import TrainingLog, ValidationScores


class Kept:
    """A logger that keeps what it is given."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        self.lines.append((step, dict(values)))


def scores_of(nats: list[float], chi2: list[float]) -> StampScores:
    n = len(nats)
    return StampScores(
        DiagonalGaussian(torch.arange(2.0 * n).view(n, 2), torch.zeros(n, 2)),
        Elbo(torch.tensor(nats), torch.tensor([[1.0, 2.0]]).expand(n, 2)),
        torch.ones(n, 1, 16, 16),
        torch.tensor(chi2),
    )


def test_figures_are_of_all_stamps_however_they_were_shared_out() -> None:
    kept = ValidationScores()
    kept.take(scores_of([10.0, 20.0, 30.0], [1.0, 2.0, 3.0]))
    kept.take(scores_of([100.0], [50.0]))
    assert {name: float(value) for name, value in kept.figures().items()} == {
        "val/elbo_nats": 37.0,
        "val/reconstruction_nats": 40.0,
        "val/kl_nats": 3.0,
        "val/chi2_per_pixel": 2.5,
    }
    assert kept.column("posterior.mean").shape == (4, 2)


def test_pictures_are_not_kept_and_a_validation_begins_with_nothing() -> None:
    kept, scores = ValidationScores(), scores_of([1.0], [1.0])
    kept.take(scores)
    assert kept.column("location").numel() == 0
    assert scores.location.shape == (1, 1, 16, 16)
    kept.clear()
    kept.take(scores_of([7.0], [1.0]))
    assert float(kept.figures()["val/reconstruction_nats"]) == 7.0


def test_beta_is_logged_without_the_weight_of_the_likelihood_and_capacity_of_its_step() -> None:
    written, logger = TrainingLog(PixelMeanMSE(n_bands=1, kl_weight=10.0), ["g"]), Kept()
    schedule = capacity(total_steps=100, capacity_nats=8.0, warmup_fraction=0.5)
    one = torch.ones(())
    for step in (0, 25):
        trained = Trained(one, 2 * one, 3 * one, 5 * one, None)
        written.put(step, trained, torch.zeros(1, 1, 16, 16))
    written.write([logger], schedule)
    assert [step for step, _ in logger.lines] == [0, 25]
    assert [values["capacity_nats"] for _, values in logger.lines] == [0.0, pytest.approx(4.0)]
    assert {values["beta"] for _, values in logger.lines} == {0.5}
    assert logger.lines[0][1]["train/reconstruction"] == 2.0
    assert written.shown == {"beta": 0.5}
    written.write([logger], schedule, wait=True)
    assert len(logger.lines) == 2, "each step once"
