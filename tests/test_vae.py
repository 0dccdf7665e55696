"""The LightningModule on its own: objective, validation, raw stamps in, numbers out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch.distributions import Normal

from vae_astro import VAE
from vae_astro.data.normalize import Normalizer, Sky
from vae_astro.errors import InputError
from vae_astro.objective.elbo import Elbo


def small_vae(n_bands: int = 1, size: int = 24, **parts: Any) -> VAE:
    torch.manual_seed(0)
    model = {"name": "conv", "latent_dim": 3, "width": 8}
    return VAE([n_bands, size, size], **{"model": model} | parts)


def batch_of(n: int, n_bands: int = 1, size: int = 24) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    raw = 100 + 5 * torch.randn(n, n_bands, size, size, generator=generator)
    raw[:, :, 10:14, 10:14] += 200 * torch.rand(n, 1, 1, 1, generator=generator)
    raw[0, :, :3] = torch.nan
    stamps = Normalizer()(raw)
    return {
        "image": stamps.image,
        "mask": stamps.mask,
        "noise": stamps.noise,
        "index": torch.arange(n),
    }


@pytest.fixture
def sky() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(100, 5, size=(5, 24, 24)).astype(np.float32)


def test_scores_are_the_log_density_the_closed_form_kl_and_chi2_of_the_good_pixels() -> None:
    vae = small_vae(likelihood={"name": "gaussian", "std": 2.0}).eval()
    batch = batch_of(6)
    eps = torch.randn(6, 3, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        scores = vae.score(batch, eps)
        posterior = vae.network.encode(batch["image"])
        output = vae.network.decode(posterior.mean + (0.5 * posterior.log_var).exp() * eps)
        density = Normal(output, 2.0).log_prob(batch["image"])
        residual = vae.normalizer.residual(batch["image"], vae(batch["image"]), batch["noise"])
    for k in range(6):
        good = batch["mask"][k]
        assert scores.elbo.reconstruction[k] == pytest.approx(
            density[k][good].sum().item(), rel=1e-5
        )
        chi2 = residual[k][good].square().mean().item()
        assert scores.chi2_per_pixel[k] == pytest.approx(chi2, rel=1e-5)
    q = Normal(posterior.mean, (0.5 * posterior.log_var).exp())
    kl = torch.distributions.kl_divergence(q, Normal(0.0, 1.0))
    torch.testing.assert_close(scores.elbo.kl_per_unit, kl, atol=1e-6, rtol=1e-4)


def test_pixel_mean_mse_is_trained_with_its_own_weight_on_the_kl() -> None:
    vae = small_vae(
        likelihood={"name": "pixel_mean_mse", "kl_weight": 1000.0},
        beta={"name": "constant", "value": 0.5},
    )
    vae.schedule = vae._schedule_of(10)
    assert vae.penalty(3).beta == 500.0
    batch = batch_of(4)
    torch.manual_seed(3)
    loss = _quiet_step(vae, batch)
    torch.manual_seed(3)
    posterior = vae.network.encode(batch["image"])
    output = vae.network.decode(posterior.sample(torch.randn_like(posterior.mean)))
    squared = (batch["image"] - output).square() * batch["mask"]
    mse = (squared.sum((1, 2, 3)) / batch["mask"].sum((1, 2, 3))).mean()
    kl = vae.prior.kl_per_unit(posterior).sum(1).mean()
    assert float(loss.detach()) == pytest.approx(float((mse + 500 * kl).detach()), rel=1e-5)


def _quiet_step(vae: VAE, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """A training step without a trainer to log to."""
    vae.log_dict = vae.log = lambda *args, **kwargs: None  # type: ignore[method-assign,assignment]
    return vae.training_step(batch, 0)


def test_a_loss_that_is_not_finite_stops_the_run_and_says_why() -> None:
    vae = small_vae()
    vae.schedule = vae._schedule_of(10)
    batch = batch_of(4)
    batch["image"][1, 0, 5, 5] = torch.inf
    with pytest.raises(InputError, match=r"the loss is nan at step 0 .*optim.lr"):
        _quiet_step(vae, batch)


def test_training_lowers_the_loss() -> None:
    vae = small_vae(likelihood={"name": "gaussian", "std": 1.0}, beta={"name": "constant"})
    vae.schedule = vae._schedule_of(10)
    batch = batch_of(16)
    optimizer = vae.optim.optimizer(vae)
    losses = []
    for _ in range(30):
        loss = _quiet_step(vae, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_evaluation_noise_belongs_to_the_stamp_and_leaves_the_global_state_alone() -> None:
    vae = small_vae()
    state = torch.get_rng_state()
    index = torch.arange(20_000)
    noise = vae.evaluation_noise(index)
    shuffled = index[torch.randperm(len(index), generator=torch.Generator().manual_seed(0))]
    assert torch.equal(vae.evaluation_noise(shuffled), noise[shuffled])
    assert torch.equal(state, torch.get_rng_state())
    # standard normal and independent between units, within 5 standard errors of 20,000 draws
    assert noise.mean(0).abs().max() < 5 / math.sqrt(len(index))
    covariance = torch.cov(noise.T) - torch.eye(3)
    assert covariance.abs().max() < 5 * math.sqrt(2 / len(index))
    assert kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3
    assert not torch.equal(noise[:-1, 0], noise[1:, 0])


def test_masked_arrays_are_masked(sky: np.ndarray) -> None:
    vae = small_vae()
    masked = np.ma.masked_array(sky, mask=np.zeros(sky.shape, bool))
    masked.mask[:, :4] = True
    blank = sky.copy()
    blank[:, :4] = np.nan
    assert np.array_equal(vae.embed(masked), vae.embed(blank))
    assert not np.array_equal(vae.embed(masked), vae.embed(sky))


# With Poisson noise a perfect model reads a little low: the variance is taken at the noisy pixel.
@pytest.mark.parametrize(("gain", "low"), [(None, 0.99), (5.0, 0.95)])
@pytest.mark.parametrize("stretch", ["asinh", "linear", "log", "minmax"])
def test_chi2_of_a_perfect_model_is_one_after_any_stretch(
    stretch: str, gain: float | None, low: float
) -> None:
    generator = torch.Generator().manual_seed(4)
    rows = torch.arange(48) - 24.0
    source = 400 * torch.exp(-0.5 * (rows[:, None].square() + rows.square()) / 9)
    std = (36 + source / (gain or math.inf)).sqrt()
    truth = (100 + source).expand(60, 1, 48, 48)
    raw = truth + std * torch.randn(truth.shape, generator=generator)
    normalizer = Normalizer(stretch, gain=gain)
    stamps = normalizer(raw, Sky(torch.full((60, 1), 100.0), torch.full((60, 1), 6.0)))
    perfect = (truth - stamps.scale.zero) / stamps.scale.unit
    if stretch == "asinh":
        perfect = 3 * torch.asinh(perfect / 3)
    elif stretch == "log":
        perfect = 3 * torch.log1p(perfect.abs() / 3) * perfect.sign()
    chi2 = normalizer.residual(stamps.image, perfect, stamps.noise).square().mean()
    assert low < float(chi2) < 1.01


@pytest.mark.parametrize("dtype", [">f4", ">i2", "<f8", "uint16"])
def test_embedding_takes_any_byte_order_and_type(dtype: str, sky: np.ndarray) -> None:
    vae = small_vae()
    whole = np.round(sky)
    assert np.array_equal(vae.embed(whole.astype(dtype)), vae.embed(whole.astype(np.float32)))


def test_embedding_does_not_change_what_it_is_given_and_masks_nan(sky: np.ndarray) -> None:
    vae = small_vae()
    sky[2, :4] = np.nan
    before = sky.copy()
    latents = vae.embed(sky, batch_size=2)
    assert np.array_equal(sky, before, equal_nan=True)
    assert np.isfinite(latents).all()
    assert not np.allclose(latents[0], latents[1])


def test_embedding_crops_and_pads_as_the_store_does(sky: np.ndarray) -> None:
    vae = small_vae()
    padded = np.pad(sky, ((0, 0), (4, 4), (4, 4)), constant_values=np.nan)
    np.testing.assert_allclose(vae.embed(padded), vae.embed(sky), atol=1e-6)
    assert vae.embed(sky[:, 2:-2, 2:-2]).shape == (5, 3)


def test_single_stamps_and_bands_are_understood(sky: np.ndarray) -> None:
    assert small_vae().embed(sky[0]).shape == (1, 3)
    three = small_vae(n_bands=3)
    assert three.embed(sky[:3]).shape == (1, 3)
    assert three.embed(np.stack([sky[:3], sky[1:4]])).shape == (2, 3)


@pytest.mark.parametrize("shape", [(2, 2, 24, 24), (0, 24, 24), (24,), (1, 1, 1, 24, 24)])
def test_other_shapes_are_refused_with_what_is_expected(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"this model takes \(N, 1, H, W\) with the bands band0"):
        small_vae().embed(np.zeros(shape))


def test_reconstruction_is_in_raw_units(sky: np.ndarray) -> None:
    vae = small_vae()
    with torch.no_grad():
        for parameter in vae.network.decoder.parameters():
            parameter.zero_()  # the decoder then draws the sky level itself
    made = vae.reconstruct(sky)[:, 0]
    level = np.median(sky, axis=(1, 2))[:, None, None]
    np.testing.assert_allclose(made, np.broadcast_to(level, made.shape), rtol=0.01)


def test_samples_come_from_the_prior_and_follow_the_seed() -> None:
    vae = small_vae()
    a, b, c = vae.sample(4, seed=1), vae.sample(4, seed=1), vae.sample(4, seed=2)
    assert a.shape == (4, 1, 24, 24)
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"model": {"name": "resnet"}}, "choose one of conv, linear, question"),
        (
            {"model": {"name": "conv", "latnet_dim": 2}},
            "model=conv has no setting model.latnet_dim",
        ),
        ({"optim": {"lr": 0}}, "optim.lr must be greater than 0"),
        ({"optim": {"name": "sgd"}}, "optim.name must be one of adam, adamw"),
        ({"optim": {"momentum": 0.9}}, "optim has no setting optim.momentum"),
        ({"normalize": {"strech": "asinh"}}, "data.normalize has no setting data.normalize.strech"),
        ({"beta": {"name": "linear", "end": -1}}, "beta.end must be at least 0"),
        ({"prior": {"name": "flat"}}, "prior.name is 'flat'"),
    ],
)
def test_bad_settings_are_refused_when_the_model_is_made(parts: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        small_vae(**parts)


@pytest.mark.parametrize("shape", [(1, 24, 25), (1, 8, 8)])
def test_stamps_must_be_square_and_not_too_small(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"must be square and at least 16 pixels"):
        VAE(shape)


def test_learning_rate_rises_then_falls_to_a_hundredth() -> None:
    optim = small_vae(optim={"name": "adamw", "warmup_steps": 9}).optim
    assert optim.factor(0, 1000) == pytest.approx(0.1)
    assert optim.factor(9, 1000) == pytest.approx(1.0, abs=1e-3)
    assert optim.factor(1000, 1000) == pytest.approx(0.01)
    flat = small_vae(optim={"schedule": "constant", "warmup_steps": 0}).optim
    assert {flat.factor(step, 1000) for step in (0, 500, 1000)} == {1.0}


def test_elbo_of_a_unit_gaussian_model_of_nothing_is_that_of_its_noise() -> None:
    vae = small_vae(likelihood={"name": "gaussian", "std": 1.0}, normalize={"stretch": "linear"})
    with torch.no_grad():
        for parameter in vae.network.parameters():
            parameter.zero_()
    noise = torch.randn(200, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    batch = {"image": noise, "mask": torch.ones_like(noise, dtype=torch.bool),
             "noise": torch.ones_like(noise), "index": torch.arange(200)}  # fmt: skip
    scores = vae.score(batch, torch.zeros(200, 3))
    assert isinstance(scores.elbo, Elbo)
    # the differential entropy of 576 unit normals, within 4 standard errors of 200 stamps
    expected = -576 * 0.5 * (math.log(2 * math.pi) + 1)
    assert float(scores.elbo.nats.mean()) == pytest.approx(expected, abs=4 * math.sqrt(288 / 200))
    assert float(scores.chi2_per_pixel.mean()) == pytest.approx(1, abs=0.02)
