"""A checkpoint carried over to a model whose objective has other settings."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from vae_astro import VAE
from vae_astro.checkpoint import carry_over

GAUSSIAN, SIGMA = {"name": "gaussian", "std": 30.0}, {"name": "sigma"}


def vae_of(likelihood: dict[str, Any], lr: float = 1e-3) -> VAE:
    vae = VAE(
        [1, 16, 16],
        model={"name": "linear", "latent_dim": 2},
        likelihood=likelihood,
        optim={"lr": lr},
    )
    vae.run_settings = {"likelihood": likelihood}
    return vae


@pytest.fixture
def checkpoint() -> dict[str, Any]:
    """Of a model with a given sigma after one step, in mid warm-up of the learning rate."""
    vae = vae_of(GAUSSIAN)
    optimizer = vae.optim.optimizer(vae)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    vae(torch.randn(2, 1, 16, 16)).sum().backward()
    optimizer.step()
    return {
        "global_step": 1,
        "state_dict": copy.deepcopy(vae.state_dict()),
        "hyper_parameters": dict(vae.hparams),
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [scheduler.state_dict()],
        "callbacks": {"BestCheckpoint{'monitor': 'x'}": {"best": 1}, "CollapseMonitor": {"a": 1}},
        "vae_astro": {"settings": vae.run_settings, "total_steps": 10, "state": {}},
    }


def test_weights_stay_and_what_another_likelihood_learns_starts_anew(
    checkpoint: dict[str, Any],
) -> None:
    vae = vae_of(SIGMA)
    carried = carry_over(checkpoint, vae)
    vae.load_state_dict(carried["state_dict"])  # every key is there, and no other
    for name, value in checkpoint["state_dict"].items():
        assert torch.equal(vae.state_dict()[name], value)
    assert carried["state_dict"]["likelihood.scale.n_updates"].item() == 0
    assert carried["global_step"] == 1
    assert carried["vae_astro"]["settings"] == {"likelihood": SIGMA}
    assert carried["hyper_parameters"]["likelihood"] == SIGMA


def test_moments_go_with_the_likelihood_whose_gradients_they_are_of(
    checkpoint: dict[str, Any],
) -> None:
    vae = vae_of(SIGMA)
    carried = carry_over(checkpoint, vae)
    assert carried["optimizer_states"][0]["state"] == {}
    vae.optim.optimizer(vae).load_state_dict(carried["optimizer_states"][0])
    same = carry_over(checkpoint, vae_of(GAUSSIAN))
    assert same["optimizer_states"][0]["state"].keys() == (
        checkpoint["optimizer_states"][0]["state"].keys()
    )


def test_the_learning_rate_becomes_that_of_the_model(checkpoint: dict[str, Any]) -> None:
    vae = vae_of(GAUSSIAN, lr=1e-5)
    carried = carry_over(checkpoint, vae)
    vae.on_load_checkpoint(carried)
    optimizer = vae.optim.optimizer(vae)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    optimizer.load_state_dict(carried["optimizer_states"][0])
    scheduler.load_state_dict(carried["lr_schedulers"][0])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5e-5)
    vae(torch.randn(2, 1, 16, 16)).sum().backward()
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5e-5)


def test_the_best_score_is_forgotten_and_other_callbacks_go_on(checkpoint: dict[str, Any]) -> None:
    assert list(carry_over(checkpoint, vae_of(SIGMA))["callbacks"]) == ["CollapseMonitor"]


def test_the_checkpoint_itself_stays_as_it_is(checkpoint: dict[str, Any]) -> None:
    before = repr(checkpoint)
    carry_over(checkpoint, vae_of(SIGMA, lr=1e-5))
    assert repr(checkpoint) == before
