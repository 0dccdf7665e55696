"""What a model does for who holds stamps in Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.nddata import CCDData, StdDevUncertainty

from vae_astro import VAE
from vae_astro.bound import importance_weighted
from vae_astro.errors import InputError

N, SIZE, Z = 6, 24, 3


def small_vae(n_bands: int = 1, **parts: Any) -> VAE:
    torch.manual_seed(0)
    linear = {"name": "linear", "latent_dim": Z}
    vae = VAE([n_bands, SIZE, SIZE], **{"model": linear} | parts)
    torch.nn.init.normal_(vae.network.encoder.mean.weight, std=0.02)
    return vae


@pytest.fixture
def sky() -> np.ndarray:
    rng = np.random.default_rng(0)
    stamps = rng.normal(100, 5, size=(N, SIZE, SIZE))
    stamps[:, 10:14, 10:14] += rng.uniform(50, 200, size=(N, 1, 1))
    return stamps.astype(np.float32)


def with_noise(sky: np.ndarray, std: float) -> list[CCDData]:
    return [
        CCDData(stamp, unit="adu", uncertainty=StdDevUncertainty(np.full(stamp.shape, std)))
        for stamp in sky
    ]


def test_all_forms_of_the_same_stamps_have_the_same_codes(sky: np.ndarray, tmp_path: Path) -> None:
    vae = small_vae()
    for k, stamp in enumerate(sky):
        fits.writeto(tmp_path / f"{k}.fits", stamp.astype(">f4"))
    codes = vae.embed(sky)
    assert codes.shape == (N, Z)
    assert codes.dtype == np.float32
    names = [tmp_path / f"{k}.fits" for k in range(N)]
    for given in (sky[:, None], list(sky), torch.tensor(sky), with_noise(sky, 5.0), tmp_path,
                  names, [str(name) for name in names]):  # fmt: skip
        # files and arrays go through batches of other sizes
        np.testing.assert_allclose(vae.embed(given, batch_size=4), codes, atol=1e-5)


def test_stamps_without_a_good_pixel_are_counted_in_a_warning(
    sky: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    vae = small_vae()
    vae.embed(sky)
    assert not caplog.messages
    sky[[1, 4]] = np.nan
    sky[2, 1:] = np.nan  # a row of it is good
    assert np.isfinite(vae.embed(sky, batch_size=2)).all()
    assert [message.split(":")[0] for message in caplog.messages] == [
        "2 of 6 stamps have no good pixel"
    ]


def test_masked_pixels_of_ccddata_count_as_little_as_nan(sky: np.ndarray) -> None:
    vae = small_vae()
    bad = np.zeros(sky.shape, bool)
    bad[:, :4] = True
    given = [CCDData(each, unit="adu", mask=b) for each, b in zip(sky, bad, strict=True)]
    blank = np.where(bad, np.nan, sky)
    assert np.array_equal(vae.embed(given), vae.embed(blank))
    assert np.array_equal(vae.log_likelihood(given, 2), vae.log_likelihood(blank, 2))


def test_uncertainty_weighs_where_the_likelihood_asks_for_noise(sky: np.ndarray) -> None:
    noisy, fixed = small_vae(likelihood={"name": "noise"}), small_vae(likelihood={"name": "sigma"})
    small, large = with_noise(sky, 5.0), with_noise(sky, 50.0)
    assert (noisy.log_likelihood(large) > noisy.log_likelihood(small)).all()
    assert np.array_equal(fixed.log_likelihood(large), fixed.log_likelihood(small))
    assert np.array_equal(noisy.embed(large), noisy.embed(small))


def test_log_likelihood_is_the_importance_weighted_bound_whatever_the_batches(
    sky: np.ndarray,
) -> None:
    vae = small_vae()
    normalized = vae.normalizer(torch.from_numpy(sky[:, None]))
    batch = {"image": normalized.image, "mask": normalized.mask, "noise": normalized.noise}
    expected = importance_weighted(vae, {**batch, "index": torch.arange(N)}, 8).numpy()
    found = vae.log_likelihood(sky, n_samples=8)
    assert found.shape == (N,)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(vae.log_likelihood(sky, 8, batch_size=4), expected, rtol=1e-6)
    assert vae.log_likelihood(sky, 64).mean() >= vae.log_likelihood(sky, 1).mean()
    with pytest.raises(InputError, match="n_samples must be at least 1"):
        vae.log_likelihood(sky, 0)


def test_every_module_is_left_in_the_mode_it_was_in_and_without_gradients(sky: np.ndarray) -> None:
    vae = small_vae()
    vae.train()
    vae.network.encoder.eval()
    before = {name: module.training for name, module in vae.named_modules()}
    assert set(before.values()) == {True, False}
    for call in (vae.embed, vae.reconstruct, lambda raw: vae.log_likelihood(raw, 2)):
        assert np.array_equal(call(sky), call(sky))
        assert {name: module.training for name, module in vae.named_modules()} == before
    vae.sample(2)
    with pytest.raises(InputError):
        vae.embed(np.zeros(3))
    assert {name: module.training for name, module in vae.named_modules()} == before
    assert all(parameter.grad is None for parameter in vae.parameters())
    assert torch.is_grad_enabled()
    vae.network.encode(torch.zeros(1, 1, SIZE, SIZE)).mean.sum().backward()  # can still be trained


def test_stamps_go_where_the_weights_are_also_in_a_module_of_another() -> None:
    around = torch.nn.Sequential(small_vae()).to("meta")  # tells no LightningModule inside of it
    assert around[0]._place.type == "meta"


def test_reconstructions_are_in_the_units_and_bands_of_the_stamps(sky: np.ndarray) -> None:
    vae = small_vae(n_bands=2)
    both = np.stack([sky, 10 * sky], axis=1)
    made = vae.reconstruct(both)
    assert made.shape == both.shape
    level = np.median(both, axis=(2, 3))
    np.testing.assert_allclose(np.median(made, axis=(2, 3)), level, rtol=0.1)
    assert vae.reconstruct(np.pad(both, ((0, 0), (0, 0), (3, 3), (3, 3)))).shape == both.shape


def test_samples_follow_the_seed_and_not_the_batches() -> None:
    vae = small_vae()
    drawn = vae.sample(5, seed=3)
    assert drawn.shape == (5, 1, SIZE, SIZE)
    np.testing.assert_allclose(vae.sample(5, seed=3, batch_size=2), drawn, atol=1e-5)
    assert not np.allclose(vae.sample(5, seed=4), drawn)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda vae: vae.sample(0), "n must be at least 1, got 0"),
        (lambda vae: vae.sample(2.5), "n must be a whole number"),
        (lambda vae: vae.sample(2, seed=-1), "seed must be at least 0"),
        (lambda vae: vae.sample(2, seed=2**70), "seed must be at most 4294967295"),
        (lambda vae: vae.embed(np.zeros((2, SIZE, SIZE)), batch_size=0), "batch_size must be"),
        (lambda vae: vae.embed(np.zeros((2, 3, SIZE, SIZE))), r"takes \(N, 1, H, W\)"),
    ],
)
def test_what_cannot_be_done_is_refused(call: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call(small_vae())
