"""Weights from another run, where parts belong together: all of a part, or nothing of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer

from vae_astro.checkpoint import warm_start
from vae_astro.vae import VAE

RINGS = {"name": "rings", "latent_dim": 8, "shape_units": 4, "hidden": 8, "width": 8}
SIZE = 17


def vae_of(model: dict[str, Any] | None = None, **groups: Any) -> VAE:
    torch.manual_seed(0)
    model = model or {"name": "conv", "latent_dim": 4, "width": 8}
    return VAE((1, SIZE, SIZE), model=model, **groups)


def saved(vae: VAE, folder: Path) -> Path:
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.strategy.connect(vae)
    trainer.save_checkpoint(folder / "run.ckpt")
    return folder / "run.ckpt"


@pytest.mark.parametrize("n_components", [3, 5])
def test_a_learned_prior_is_taken_whole_or_not_at_all(tmp_path: Path, n_components: int) -> None:
    given = vae_of(prior={"name": "mixture", "n_components": 3})
    with torch.no_grad():
        given.prior.started.fill_(True)
        given.prior.epoch.fill_(7)
    vae = vae_of(prior={"name": "mixture", "n_components": n_components})
    warm_start(vae, saved(given, tmp_path))
    assert bool(vae.prior.started) == (n_components == 3)
    assert int(vae.prior.epoch) == -1  # how far the earlier run had come is its own affair


@pytest.mark.parametrize(("keys", "radius"), [({}, 7.0), ({"outer_radius": 5.0}, 5.0)])
def test_rings_are_those_of_the_checkpoint_unless_a_radius_is_given(
    tmp_path: Path, keys: dict[str, float], radius: float
) -> None:
    given = vae_of({**RINGS, "outer_radius": 7.0})
    given.network.encoder.rings.reach(7.0)
    vae = vae_of({**RINGS, **keys})
    if keys:
        vae.network.encoder.rings.reach(keys["outer_radius"])
    warm_start(vae, saved(given, tmp_path))
    rings = vae.network.encoder.rings
    assert float(rings.outer_radius) == radius
    assert rings.members.sum() + rings.outside.sum() == SIZE**2  # every pixel lies in or out


def test_a_window_that_is_given_stays(tmp_path: Path) -> None:
    given = vae_of(likelihood={"name": "sigma", "focus_radius": 8.0})
    vae = vae_of(likelihood={"name": "sigma", "focus_radius": 3.0})
    before = vae.likelihood.weight.clone()
    warm_start(vae, saved(given, tmp_path))
    torch.testing.assert_close(vae.likelihood.weight, before)
