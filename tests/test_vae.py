"""The LightningModule on its own: objective, validation, raw stamps in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.distributions import Normal
from torch.utils.data import DataLoader

from vae_astro import VAE
from vae_astro.checkpoint import RandomState
from vae_astro.data.normalize import Normalizer, Sky
from vae_astro.errors import InputError
from vae_astro.objective.elbo import Elbo
from vae_astro.objective.noise import noise_of_stamps


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """On shared cores, waiting for a second costs small networks more than it saves."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


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
    vae.set_length(10)
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


def test_training_lowers_the_loss() -> None:
    vae = small_vae(likelihood={"name": "gaussian", "std": 1.0}, beta={"name": "constant"})
    vae.set_length(10)
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


def test_evaluation_noise_is_the_stamps_own_and_has_a_number_for_each_unit() -> None:
    assert torch.equal(
        small_vae().evaluation_noise(torch.arange(9)), noise_of_stamps(torch.arange(9), 3)
    )


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


@pytest.mark.parametrize("shape", [(2, 2, 24, 24), (24,), (1, 1, 1, 24, 24)])
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
        ({"model": {"name": "resnet"}}, "choose one of conv, linear, mlp, question"),
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


# -- what moves beside the weights ---------------------------------------------------------------

MOVING: dict[str, Any] = {
    "model": {"name": "conv", "latent_dim": 3, "width": 8, "minimum_rate_nats": 3.0},
    "beta": {"name": "geco", "rate": 0.2},
    "optim": {
        "name": "adamw",
        "weight_decay": 0.1,
        "aggressive": {"max_encoder_steps": 3, "max_fraction": 0.7},
    },
}
"""GECO, aggressive inference and a minimum rate together."""


BATCHES = [
    {name: value[k : k + 8] for name, value in batch_of(40, size=16).items()}
    for k in range(0, 40, 8)
]


def fitted(
    folder: Path,
    vae: VAE,
    n_epochs: int,
    resume: Path | None = None,
    batches: list[dict[str, torch.Tensor]] = BATCHES,
    **options: Any,
) -> VAE:
    """``vae`` after training on ``batches``, each epoch's end saved in ``folder``."""
    # without a generator of its own a loader draws its seed from the global random state
    loader = DataLoader(batches, batch_size=None, generator=torch.Generator())
    keep = ModelCheckpoint(folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    seed_everything(0, verbose=False)
    trainer = Trainer(
        max_epochs=n_epochs, accelerator="cpu", callbacks=[keep, RandomState()], logger=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, **options,
    )  # fmt: skip
    trainer.fit(vae, loader, loader, ckpt_path=resume, weights_only=True)
    return vae


quiet = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:The dirpath has changed", "ignore:.*LeafSpec"
)


@quiet
def test_what_moves_beside_the_weights_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole = fitted(tmp_path / "whole", small_vae(size=16, **MOVING), 4)
    saved = tmp_path / "whole" / "epoch=1.ckpt"
    state = torch.load(saved, weights_only=True)["vae_astro"]["state"]
    assert state["optim"]["active"], "saved within the phase"
    resumed = fitted(tmp_path / "resumed", small_vae(size=16, **MOVING), 4, saved)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    end = [{group: part.state_dict() for group, part in vae._moving_parts().items()}
           for vae in (whole, resumed)]  # fmt: skip
    assert end[0] == end[1]
    assert end[0]["beta"] != state["beta"]
    assert not end[0]["optim"]["active"]
    assert end[0]["optim"]["decoder_steps"] > state["optim"]["decoder_steps"]


@quiet
def test_checkpoint_brings_beta_back_and_old_ones_still_load(tmp_path: Path) -> None:
    vae = fitted(tmp_path, small_vae(size=16, **MOVING), 1, precision="bf16-mixed")
    loaded = VAE.load_from_checkpoint(tmp_path / "epoch=0.ckpt", weights_only=True)
    assert loaded.penalty(0).beta == vae.penalty(0).beta != 1.0
    stamps = np.random.default_rng(0).normal(100, 5, size=(4, 16, 16))
    assert np.array_equal(loaded.embed(stamps), vae.embed(stamps))
    np.testing.assert_allclose(loaded.embed(stamps[:1]), loaded.embed(stamps)[:1], atol=1e-4)
    old = torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)
    del old["vae_astro"]["state"]
    old["vae_astro"]["format"] = 1
    torch.save(old, tmp_path / "old.ckpt")
    assert VAE.load_from_checkpoint(tmp_path / "old.ckpt", weights_only=True).penalty(0).beta == 1.0


def test_state_of_a_part_that_is_switched_off_now_is_passed_over() -> None:
    moving, plain = small_vae(size=16, **MOVING), small_vae(size=16)
    checkpoint: dict[str, Any] = {}
    moving.on_save_checkpoint(checkpoint)
    plain.on_load_checkpoint(checkpoint)
    assert plain.inference is None
    assert plain.schedule.controller is None


@quiet
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_only_the_encoder_moves_while_it_runs_ahead(tmp_path: Path, precision: str) -> None:
    # the first step moves everything, the four that follow the encoder alone
    optim = {**MOVING["optim"], "aggressive": {"max_encoder_steps": 9, "max_fraction": 1.0}}
    parts = MOVING | {"optim": optim, "likelihood": {"name": "sigma"}}
    after_one, after_five = (
        fitted(tmp_path / str(n), small_vae(size=16, **parts), 1, limit_train_batches=n,
               gradient_clip_val=1.0, precision=precision)
        for n in (1, 5)
    )  # fmt: skip
    moved = {
        name
        for name, value in after_five.state_dict().items()
        if not torch.equal(value, after_one.state_dict()[name])
    }
    assert {name.split(".")[1] for name in moved} == {"encoder", "minimum_rate"}
    assert moved >= {
        f"network.encoder.{name}" for name, _ in after_five.network.encoder.named_parameters()
    }
    assert after_five.penalty(0) == after_one.penalty(0)
    assert after_five.inference is not None
    assert after_five.inference.decoder_steps == 1


@quiet
def test_phase_ends_where_validation_sees_no_climb(tmp_path: Path) -> None:
    frozen = {"lr": 1e-12, "aggressive": {"patience": 2, "max_fraction": 1.0}}
    vae = small_vae(size=16, optim=frozen)
    fitted(tmp_path, vae, 2)
    assert vae.inference is not None
    assert vae.inference.active, "the first validation is a climb from nothing"
    fitted(tmp_path / "on", vae, 2)
    assert not vae.inference.active


def test_beta_is_moved_by_the_median_chi2_of_the_sampled_code() -> None:
    vae = small_vae(
        size=16, beta={"name": "geco", "tolerance": 100.0, "momentum": 0.0, "rate": 1.0}
    )
    batch = batch_of(9, size=16)
    torch.manual_seed(3)
    _quiet_step(vae, batch)
    torch.manual_seed(3)
    with torch.no_grad():
        posterior = vae.network.encode(batch["image"])
        location = vae.decode(posterior.sample(torch.randn_like(posterior.mean)))
        residual = vae.normalizer.residual(batch["image"], location, batch["noise"])
    good = batch["mask"]
    chi2 = torch.stack([residual[k][good[k]].square().mean() for k in range(9)]).median()
    assert vae.penalty(0).beta == pytest.approx(math.exp(-(float(chi2) - 1) / 100), rel=1e-6)
    assert vae.penalty(0).beta != 1.0


def test_a_length_makes_the_schedules_and_is_of_a_step_at_least() -> None:
    vae = small_vae(size=16, beta={"name": "linear", "warmup_fraction": 0.5})
    assert vae.penalty(1).beta == 1.0, "a run of one step ends where any does"
    vae.set_length(1000)
    assert vae.total_steps == 1000
    assert vae.penalty(250).beta == 0.5
    for unusable in (0, 2.5):
        with pytest.raises(InputError, match="total_steps must be"):
            vae.set_length(unusable)  # type: ignore[arg-type]
    assert vae.total_steps == 1000


def test_a_checkpoint_brings_the_length_of_its_run_back() -> None:
    beta = {"name": "linear", "warmup_fraction": 0.5}
    trained, loaded = small_vae(size=16, beta=beta), small_vae(size=16, beta=beta)
    trained.set_length(200)
    checkpoint: dict[str, Any] = {}
    trained.on_save_checkpoint(checkpoint)
    loaded.on_load_checkpoint(checkpoint)
    assert [loaded.penalty(step).beta for step in (0, 50, 100)] == [0.0, 0.5, 1.0]


def test_a_schedule_is_fitted_to_the_length_of_the_run_and_a_controller_goes_on() -> None:
    class Run:
        estimated_stepping_batches = 1000
        global_step = 0
        optimizers = ()

    linear, steered = small_vae(size=16), small_vae(size=16, beta={"name": "geco"})
    steered.schedule.controller.observe(torch.tensor([9.0]))
    moved = steered.penalty(0)
    for vae in (linear, steered):
        vae._trainer = Run()
        vae.on_train_start()
    assert linear.penalty(100).beta == 0.5
    assert steered.penalty(0) == moved


def one_direction(n: int) -> list[dict[str, torch.Tensor]]:
    """Batches of stamps that differ in one direction, of eigenvalue 20, and in unit noise."""
    generator = torch.Generator().manual_seed(5)
    direction = torch.nn.functional.normalize(torch.ones(1, 1, 16, 16), dim=(2, 3))
    image = math.sqrt(20) * torch.randn(n, 1, 1, 1, generator=generator) * direction
    image = image + torch.randn(n, 1, 16, 16, generator=generator)
    whole = {
        "image": image,
        "mask": torch.ones_like(image, dtype=torch.bool),
        "noise": torch.ones_like(image),
        "index": torch.arange(n),
    }
    return [{name: value[k : k + 64] for name, value in whole.items()} for k in range(0, n, 64)]


# With a standard deviation of 10 a direction lives if its eigenvalue is above 100 beta: none here.
@quiet
@pytest.mark.slow
@pytest.mark.parametrize(
    ("parts", "lives"),
    [
        ({}, False),
        ({"beta": {"name": "linear", "warmup_fraction": 0.5}}, False),
        ({"beta": {"name": "cyclical"}}, False),
        ({"optim": {"lr": 0.01, "aggressive": True}}, False),
        ({"likelihood": {"name": "sigma"}}, True),
        ({"beta": {"name": "constant", "value": 0.01}}, True),
        ({"beta": {"name": "constant", "free_bits_nats": 1.0}}, True),
        ({"beta": {"name": "capacity", "capacity_nats": 2.0}}, True),
        ({"beta": {"name": "geco", "rate": 0.05}}, True),
        ({"model": {"name": "linear", "latent_dim": 1, "minimum_rate_nats": 1.0}}, True),
    ],
)
def test_what_moves_the_end_saves_a_code_and_what_changes_the_way_there_does_not(
    parts: dict[str, Any], lives: bool, tmp_path: Path
) -> None:
    doomed = {
        "model": {"name": "linear", "latent_dim": 1},
        "likelihood": {"name": "gaussian", "std": 10.0},
        "beta": {"name": "constant"},
        "optim": {"lr": 0.01},
        "normalize": {"stretch": "linear"},
    }
    batches = one_direction(640)
    torch.manual_seed(0)
    vae = fitted(tmp_path, VAE([1, 16, 16], **doomed | parts), 3, batches=20 * batches)
    with torch.no_grad():
        vae.eval()
        scores = [vae.score(batch, vae.evaluation_noise(batch["index"])) for batch in batches]
        kl = torch.cat([score.elbo.kl for score in scores]).mean()
        location = torch.cat([score.location for score in scores])
    # what the code carries shows in what is drawn: the direction's variance, 20 if all of it
    drawn = location.sum((1, 2, 3)).var() / 256
    if lives:
        assert kl > 0.7
        assert drawn > 1
    else:
        assert kl < 0.01
        assert drawn < 0.01


def test_large_stamps_are_held_until_the_bound_before_the_first_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = batch_of(32)
    monkeypatch.setattr("vae_astro.parts.PREPARED_BYTES", 2 * batch["image"].nbytes)
    taken: list[int] = []

    def batches() -> Iterator[dict[str, torch.Tensor]]:
        for k in range(9):
            taken.append(k)
            yield batch

    small_vae(model={"name": "rings", "latent_dim": 10, "shape_units": 3, "width": 8}).prepare(
        batches()
    )
    assert taken == [0, 1]


@pytest.mark.parametrize(
    ("shape", "bands", "words"),
    [
        ((1, 32, 32), ["g", "r"], "stamp_shape has 1 bands, band_names 2: g, r"),
        ((0, 32, 32), None, "stamp_shape has 0 bands"),
        ((32, 32), None, r"must be \(bands, height, width\), got \(32, 32\)"),
        (32, None, "must be"),
        (("a", 2, 3), None, "must be"),
    ],
)
def test_bands_must_be_what_the_shape_says(shape: Any, bands: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        VAE(shape, band_names=bands)
