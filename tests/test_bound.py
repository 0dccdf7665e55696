"""The importance-weighted bound, against evidence that is known exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from vae_astro import VAE
from vae_astro.bound import importance_weighted
from vae_astro.errors import InputError

SIZE, Z, SIGMA = 16, 3, 0.7


def linear_vae(orthogonal: bool, latent_dim: int = Z) -> VAE:
    """x = W z + b + noise, with the posterior that it has as its encoder.

    A diagonal posterior is exact where the columns of W are orthogonal, and the best of its kind
    where they are not.
    """
    torch.manual_seed(1)
    vae = VAE(
        (1, SIZE, SIZE),
        model={"name": "linear", "latent_dim": latent_dim},
        likelihood={"name": "gaussian", "std": SIGMA},
    ).eval()
    loading = torch.randn(SIZE**2, latent_dim, dtype=torch.float64)
    if orthogonal:
        loading = torch.linalg.qr(loading)[0] * torch.tensor([4.0, 2.0, 1.0])
    else:
        loading = 0.1 * loading
    offset = torch.randn(SIZE**2, dtype=torch.float64)
    precision = torch.eye(latent_dim, dtype=torch.float64) + loading.T @ loading / SIGMA**2
    to_mean = torch.linalg.solve(precision, loading.T / SIGMA**2)
    encoder, decoder = vae.network.encoder, vae.network.decoder.location
    with torch.no_grad():
        encoder.mean.weight.copy_(to_mean)
        encoder.mean.bias.copy_(-to_mean @ offset)
        encoder.log_var.copy_(-precision.diagonal().log())
        decoder.weight.copy_(loading)
        decoder.bias.copy_(offset)
    return vae


def stamps_of(vae: VAE, n: int, bad_share: float = 0.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(n, vae.latent_dim, generator=generator)
    with torch.no_grad():
        clean = vae.network.decode(z)
    image = clean + SIGMA * torch.randn(clean.shape, generator=generator)
    mask = torch.rand(image.shape, generator=generator) >= bad_share
    return {
        "image": image * mask,
        "mask": mask,
        "noise": torch.ones_like(image),
        "index": torch.arange(n),
    }


def exact_evidence(vae: VAE, batch: dict[str, torch.Tensor]) -> np.ndarray:
    """``ln N(x; b, W W^T + sigma^2)`` of the good pixels, by scipy in float64."""
    with torch.no_grad():
        offset = vae.network.decode(torch.zeros(1, vae.latent_dim))
        columns = vae.network.decode(torch.eye(vae.latent_dim)) - offset
    loading = columns.flatten(1).T.double().numpy()
    covariance = loading @ loading.T + SIGMA**2 * np.eye(SIZE**2)
    mean = offset.flatten().double().numpy()
    image, mask = batch["image"].flatten(1).double().numpy(), batch["mask"].flatten(1).numpy()
    if mask.all():
        return multivariate_normal(mean, covariance).logpdf(image)
    return np.array(
        [
            multivariate_normal(mean[good], covariance[np.ix_(good, good)]).logpdf(x[good])
            for x, good in zip(image, mask, strict=True)
        ]
    )


@pytest.mark.parametrize("n_samples", [1, 7])
def test_with_the_exact_posterior_every_weight_is_the_evidence(n_samples):
    vae = linear_vae(orthogonal=True)
    batch = stamps_of(vae, 5)
    bound = importance_weighted(vae, batch, n_samples)
    # rounding of float32 sums of 256 pixels
    np.testing.assert_allclose(bound, exact_evidence(vae, batch), atol=2e-3)


@pytest.mark.parametrize("bad_share", [0.0, 0.3])
def test_with_another_posterior_it_comes_to_the_evidence_within_monte_carlo_error(bad_share):
    vae = linear_vae(orthogonal=False)
    batch = stamps_of(vae, 6, bad_share)
    exact = exact_evidence(vae, batch)
    runs = np.stack(
        [
            importance_weighted(vae, batch, 1000, torch.Generator().manual_seed(seed)).numpy()
            for seed in range(6)
        ]
    )
    error = runs.std(0, ddof=1) / np.sqrt(len(runs))
    assert error.max() < 0.2
    assert (np.abs(runs.mean(0) - exact) < 5 * error + 2e-3).all()


def test_it_rises_with_the_number_of_samples_up_to_the_evidence():
    vae = linear_vae(orthogonal=False)
    with torch.no_grad():
        vae.network.encoder.log_var.add_(0.7)  # twice too wide
    batch = stamps_of(vae, 200)
    exact = exact_evidence(vae, batch).mean()
    means = [float(importance_weighted(vae, batch, k).mean()) for k in (1, 4, 16, 64)]
    assert means == sorted(means)
    assert means[0] < exact - 0.3
    assert exact - 0.1 < means[-1] < exact + 0.05


def test_one_sample_is_the_elbo_of_the_same_noise_on_average():
    vae = linear_vae(orthogonal=False)
    batch = stamps_of(vae, 2000)
    scores = vae.score(batch, vae.evaluation_noise(batch["index"]))
    weights = importance_weighted(vae, batch, 1)
    off = weights - scores.elbo.nats
    # the KL is exact there and drawn here
    assert abs(off.mean()) < 5 * off.std() / len(off) ** 0.5 + 1e-3


@pytest.mark.parametrize("n_pixels", [1, SIZE**2, 3 * SIZE**2, 11 * SIZE**2, 1000 * SIZE**2])
def test_chunks_change_nothing(n_pixels):
    vae = linear_vae(orthogonal=False)
    batch = stamps_of(vae, 5, 0.1)
    whole = importance_weighted(vae, batch, 8)
    np.testing.assert_allclose(importance_weighted(vae, batch, 8, n_pixels=n_pixels), whole, 1e-6)


def test_memory_does_not_grow_with_samples(monkeypatch):
    vae = linear_vae(orthogonal=False)
    batch = stamps_of(vae, 4)
    decoded: list[int] = []
    decode = vae.network.decode
    monkeypatch.setattr(vae.network, "decode", lambda z: decoded.append(len(z)) or decode(z))
    importance_weighted(vae, batch, 50, n_pixels=8 * SIZE**2)
    assert max(decoded) == 8
    assert sum(decoded) == 4 * 50


def test_a_stamp_has_the_same_bound_in_whatever_company():
    vae = linear_vae(orthogonal=False)
    batch = stamps_of(vae, 6)
    whole = importance_weighted(vae, batch, 5)
    alone = importance_weighted(vae, {name: rows[4:5] for name, rows in batch.items()}, 5)
    np.testing.assert_allclose(alone, whole[4:5], rtol=1e-6)
    assert len(set(whole.tolist())) == 6


def test_far_from_everything_it_is_finite_and_low():
    vae = linear_vae(orthogonal=True)
    batch = stamps_of(vae, 2)
    batch["image"][0] += 1e4  # exp(-1e10) is no float
    bound = importance_weighted(vae, batch, 20)
    assert torch.isfinite(bound).all()
    assert bound[0] < -1e9 < bound[1]


def test_masked_pixels_say_nothing():
    vae = linear_vae(orthogonal=True)
    batch = stamps_of(vae, 2)
    batch["mask"][:] = False
    # the posterior is still that of the pixels; the weights undo it, on the average of many
    batch["image"][:] = 0.0
    assert torch.isfinite(importance_weighted(vae, batch, 100)).all()


def test_the_questions_sampling_does_not_break_the_weights():
    vae = VAE(
        (1, SIZE, SIZE),
        model={"name": "question", "latent_dim": 2, "eps_std": 0.1, "exp_full_log_var": True},
        likelihood={"name": "gaussian"},
    ).eval()
    stamps = stamps_of(linear_vae(orthogonal=True), 4)
    few, many = (importance_weighted(vae, stamps, k) for k in (100, 400))
    assert (few - many).abs().max() < 2.0


@pytest.mark.parametrize("n_samples", [0, -1, 2.5, True])
def test_a_number_of_samples_that_is_none_is_refused(n_samples):
    vae = linear_vae(orthogonal=True)
    with pytest.raises(InputError, match="n_samples"):
        importance_weighted(vae, stamps_of(vae, 1), n_samples)


@pytest.mark.parametrize("likelihood", ["sigma", "noise", "student_t", "bernoulli"])
def test_every_likelihood_gives_a_bound(likelihood):
    torch.manual_seed(0)
    vae = VAE((2, SIZE, SIZE), likelihood={"name": likelihood}).eval()
    shape = (3, 2, SIZE, SIZE)
    batch = {
        "image": torch.rand(shape),
        "mask": torch.rand(shape) > 0.1,
        "noise": torch.full(shape, 0.1),
        "index": torch.arange(3),
    }
    bound = importance_weighted(vae, batch, 3)
    assert bound.shape == (3,)
    assert torch.isfinite(bound).all()
