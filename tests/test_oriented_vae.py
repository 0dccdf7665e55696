"""A model that does not know how a stamp lies, from training step to reconstruction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vae_astro import VAE
from vae_astro.acceleration import compile_parts
from vae_astro.collapse.spectrum import measure_spectrum
from vae_astro.data.augment import apply_symmetries
from vae_astro.model.likelihoods import LIKELIHOODS
from vae_astro.parts import weights_at

WAYS = [
    {"symmetry": "d4"},
    {"pose": "rotation_shift"},
    {"symmetry": "d4", "pose": "rotation_shift"},
]
every_way = pytest.mark.parametrize("way", WAYS, ids=["d4", "pose", "d4-pose"])


def vae_of(way: dict[str, Any], likelihood: str = "sigma", size: int = 17) -> VAE:
    torch.manual_seed(0)
    model = {"name": "conv", "latent_dim": 3, "width": 8, **way}
    return VAE([2, size, size], model=model, likelihood={"name": likelihood})


def batch_of(n: int = 6, size: int = 17) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    mask = torch.rand(n, 2, size, size, generator=rng) > 0.1
    image = torch.rand(n, 2, size, size, generator=rng)
    noise = 0.5 + torch.rand(n, 2, size, size, generator=rng)
    return {
        "image": image.where(mask, torch.zeros(())),
        "mask": mask,
        "noise": noise.where(mask, torch.ones(())),
        "index": torch.arange(n),
    }


def turned(batch: dict[str, torch.Tensor], turns: torch.Tensor) -> dict[str, torch.Tensor]:
    pixels = {name: apply_symmetries(batch[name], turns) for name in ("image", "mask", "noise")}
    return {**batch, **pixels}


def step_of(vae: VAE, batch: dict[str, torch.Tensor]) -> Any:
    weights = weights_at(0, vae.schedule, 1.0, torch.device("cpu"))
    eps = torch.randn(len(batch["image"]), vae.latent_dim, generator=torch.manual_seed(2))
    pixels = batch["image"], batch["mask"], batch["noise"]
    return vae.parts.train(*pixels, eps, weights, 0.0, None, True)


@pytest.mark.parametrize("likelihood", [name for name in LIKELIHOODS if name != "pixel_mean_mse"])
def test_every_figure_of_a_stamp_is_that_of_the_stamp_turned(likelihood: str) -> None:
    vae, batch = vae_of({"symmetry": "d4"}, likelihood).eval(), batch_of(8)
    turns = torch.arange(8)
    eps = torch.randn(8, 3)
    as_is, after = vae.score(batch, eps), vae.score(turned(batch, turns), eps)
    torch.testing.assert_close(as_is.posterior.mean, after.posterior.mean)
    torch.testing.assert_close(as_is.elbo.reconstruction, after.elbo.reconstruction)
    torch.testing.assert_close(as_is.elbo.kl_per_unit, after.elbo.kl_per_unit, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(as_is.chi2_per_pixel, after.chi2_per_pixel)
    # the picture turns with the stamp, though the code does not
    torch.testing.assert_close(apply_symmetries(as_is.location, turns), after.location)


def test_raw_stamps_are_reconstructed_as_they_lie() -> None:
    vae = vae_of({"symmetry": "d4"})
    raw = np.random.default_rng(0).normal(100, 3, (4, 2, 17, 17)).astype(np.float32)
    torch.testing.assert_close(vae.embed(np.rot90(raw, axes=(2, 3))), vae.embed(raw), atol=1e-6,
                               rtol=1e-5)  # fmt: skip
    made = vae.reconstruct(raw)
    np.testing.assert_allclose(
        vae.reconstruct(np.rot90(raw, axes=(2, 3))), np.rot90(made, axes=(2, 3)), rtol=1e-5
    )


@every_way
def test_bound_rises_when_it_is_climbed(way: dict[str, Any]) -> None:
    vae, batch = vae_of(way), batch_of(16)
    optimizer = torch.optim.Adam(vae.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = step_of(vae, batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[1] - 1


@every_way
def test_weights_can_lie_channels_last(way: dict[str, Any]) -> None:
    plain, last = vae_of(way), vae_of(way).to(memory_format=torch.channels_last)
    batch = batch_of()
    torch.testing.assert_close(step_of(last, batch).loss, step_of(plain, batch).loss)


@every_way
def test_micro_batches_change_nothing(way: dict[str, Any]) -> None:
    gradients = []
    for n_training in (None, 2):
        vae = vae_of(way)
        vae.micro_batches.n_training = n_training
        step_of(vae, batch_of()).loss.backward()
        gradients.append([p.grad.clone() for p in vae.parameters() if p.grad is not None])
    for whole, in_parts in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, in_parts, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@every_way
def test_step_is_traced_as_a_whole(way: dict[str, Any]) -> None:
    """Nothing in it depends on numbers in Python: one graph, and the same loss."""
    plain, traced = vae_of(way), vae_of(way)
    compile_parts(traced, backend="eager")
    explained = torch._dynamo.explain(traced.parts._train.__wrapped__)  # type: ignore[attr-defined]
    weights = weights_at(0, traced.schedule, 1.0, torch.device("cpu"))
    batch, eps = batch_of(), torch.randn(6, traced.latent_dim)
    found = explained(batch["image"], batch["mask"], batch["noise"], eps, weights, 0.0, None, False)
    assert found.graph_break_count == 0
    torch.testing.assert_close(step_of(traced, batch).loss, step_of(plain, batch).loss)


@every_way
def test_checkpoint_brings_the_symmetry_with_it(way: dict[str, Any], tmp_path: Path) -> None:
    vae, batch = vae_of(way).eval(), batch_of()
    saved: dict[str, Any] = {
        "state_dict": vae.state_dict(),
        "hyper_parameters": dict(vae.hparams),
        "pytorch-lightning_version": "2.0.0",
    }
    vae.on_save_checkpoint(saved)
    torch.save(saved, tmp_path / "one.ckpt")
    loaded = VAE.load_from_checkpoint(tmp_path / "one.ckpt", weights_only=True).eval()
    eps = torch.randn(6, vae.latent_dim)
    torch.testing.assert_close(loaded.score(batch, eps).elbo.nats, vae.score(batch, eps).elbo.nats)
    assert loaded.clustered_units == vae.clustered_units == (0, 1, 2)


def test_model_of_settings_that_knew_no_symmetry_is_what_it_was() -> None:
    before = vae_of({})  # as an older checkpoint has them
    now = vae_of({"symmetry": "none", "pose": "none", "shift_px": 1.0})
    assert list(before.state_dict()) == list(now.state_dict())
    assert not [key for key in now.state_dict() if "given" in key or key.endswith("encoder.mean")]
    now.load_state_dict(before.state_dict())


def test_forecast_weighs_the_stamps_as_they_lie() -> None:
    batch = batch_of(20)
    plain, symmetric = vae_of({}).likelihood, vae_of({"symmetry": "d4"}).likelihood
    np.testing.assert_array_equal(
        measure_spectrum([batch], symmetric).eigenvalues,
        measure_spectrum([batch], plain).eigenvalues,
    )
