"""Information and mismatch against linear Gaussian codes, for which both are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import digamma
from scipy.stats import norm, rankdata

from vae_astro import VAE
from vae_astro.collapse.information import (
    MOST_COMPARED,
    Information,
    _of_one_unit,
    _total_correlation,
    choose_stamps,
    information_of,
    measure_information,
)


def gaussian_kl(mean: np.ndarray, log_var: np.ndarray) -> np.ndarray:
    return 0.5 * (mean**2 + np.exp(log_var) - log_var - 1)


def linear_code(
    total_nats: float, n_units: int, *, mixing: float = 0.0, n_stamps: int = 512, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, float]:
    """Posteriors of z | x ~ N(A x, S) with x ~ N(0, 1), and I(x; z) in closed form.

    ``mixing`` makes units depend on each other; without, they have ``total_nats`` in all.
    """
    rng = np.random.default_rng(seed)
    variance = math.exp(-2 * total_nats / n_units)
    a = np.eye(n_units) + mixing * rng.normal(size=(n_units, n_units))
    a *= np.sqrt(1 - variance) / np.linalg.norm(a, axis=1, keepdims=True)
    mean = rng.normal(size=(n_stamps, n_units)) @ a.T
    covariance = a @ a.T + variance * np.eye(n_units)
    truth = 0.5 * (np.linalg.slogdet(covariance)[1] - n_units * math.log(variance))
    return mean, np.full_like(mean, math.log(variance)), float(truth)


def measured(mean: np.ndarray, log_var: np.ndarray, seed: int = 1) -> Information:
    eps = np.random.default_rng(seed).normal(size=mean.shape)
    found = measure_information(mean, log_var, gaussian_kl(mean, log_var), eps)
    assert found is not None
    return found


# One draw for each of 512 stamps: the estimate scatters by about sqrt(Z / 1000) nats, 0.13 for 16
# units; allowed is three times that. Beyond ln(512) = 6.2 nats a joint mixture would be of no use.
@pytest.mark.parametrize("mixing", [0.0, 0.2])
@pytest.mark.parametrize(("total_nats", "n_units"), [(0.5, 1), (0.5, 16), (5, 4), (30, 16)])
def test_information_of_a_linear_code_is_found(
    total_nats: float, n_units: int, mixing: float
) -> None:
    mean, log_var, truth = linear_code(total_nats, n_units, mixing=mixing)
    if mixing and n_units > 1:
        assert truth < total_nats  # units say some of it twice
    found = measured(mean, log_var).mutual_information_nats
    assert found == pytest.approx(truth, abs=3 * math.sqrt(n_units / 1000))


def test_units_that_say_the_same_are_not_counted_twice() -> None:
    mean, log_var, truth = linear_code(2.0, 1)
    alone = measured(mean, log_var).mutual_information_nats
    assert alone == pytest.approx(truth, abs=0.1)
    twice = measured(np.repeat(mean, 2, axis=1), np.repeat(log_var, 2, axis=1))
    # two draws of one number: the mean of both has half the variance
    variance = float(np.exp(log_var[0, 0]))
    together = 0.5 * math.log(1 + 2 * (1 - variance) / variance)
    assert twice.mutual_information_nats == pytest.approx(together, abs=0.15)
    assert twice.mutual_information_nats < 1.5 * alone


def test_an_offset_shared_by_all_stamps_is_mismatch_and_no_information() -> None:
    mean, log_var = np.full((300, 3), 1.5), np.full((300, 3), -1.0)
    found = measured(mean, log_var)
    # what three independent units seem to share by chance scatters by 0.01
    assert found.mutual_information_nats == pytest.approx(0, abs=0.03)
    kl = gaussian_kl(mean, log_var)[0].sum()
    assert found.aggregate_mismatch_nats == pytest.approx(kl, abs=0.03)


def test_parts_add_up_to_the_kl_and_a_matched_code_has_no_mismatch() -> None:
    mean, log_var, _ = linear_code(10, 8)
    found = measured(mean, log_var)
    kl = gaussian_kl(mean, log_var).mean(0).sum()
    assert found.mutual_information_nats + found.aggregate_mismatch_nats == pytest.approx(kl)
    assert found.aggregate_mismatch_nats < 0.3


def test_mismatch_of_a_code_twice_as_wide_is_that_of_two_gaussians() -> None:
    mean, log_var, truth = linear_code(6, 4)
    found = measured(2 * mean, log_var + 2 * math.log(2))
    assert found.mutual_information_nats == pytest.approx(truth, abs=0.2)
    assert found.aggregate_mismatch_nats == pytest.approx(4 * 0.5 * (4 - 1 - math.log(4)), abs=0.5)


def test_a_collapsed_code_has_neither() -> None:
    zero = np.zeros((64, 5))
    assert measured(zero, zero) == Information(0.0, 0.0)


def test_dead_units_add_neither_noise_nor_dependence() -> None:
    mean, log_var, _ = linear_code(4, 2)
    alone = measured(mean, log_var)
    zero = np.zeros((512, 200))
    eps = np.random.default_rng(1).normal(size=mean.shape)
    wide_eps = np.concatenate([eps, np.random.default_rng(2).normal(size=zero.shape)], axis=1)
    wide_mean, wide_log_var = (np.concatenate([a, zero], axis=1) for a in (mean, log_var))
    kl = gaussian_kl(wide_mean, wide_log_var)
    assert measure_information(wide_mean, wide_log_var, kl, wide_eps) == alone


def test_dependence_that_is_chance_is_taken_off() -> None:
    """64 independent units of 128 stamps: by chance alone they seem to share 9 nats."""
    mean, log_var, truth = linear_code(64, 64, n_stamps=128)
    assert measured(mean, log_var).mutual_information_nats == pytest.approx(truth, abs=2.5)


def test_too_few_stamps_are_not_measured() -> None:
    mean, log_var, _ = linear_code(16, 8, n_stamps=15)
    eps = np.zeros_like(mean)
    assert measure_information(mean, log_var, gaussian_kl(mean, log_var), eps) is None


def test_posteriors_far_apart_do_not_overflow() -> None:
    mean = np.random.default_rng(0).normal(size=(256, 2)) * 1e3
    log_var = np.where(np.arange(256)[:, None] % 2, -20.0, 5.0) + np.zeros((256, 2))
    found = measured(mean, log_var)
    assert math.isfinite(found.mutual_information_nats)
    assert found.mutual_information_nats <= 2 * math.log(256)


def test_chosen_stamps_are_spread_evenly_and_bounded() -> None:
    assert choose_stamps(0).tolist() == []
    assert choose_stamps(3).tolist() == [0, 1, 2]
    chosen = choose_stamps(10 * MOST_COMPARED)
    assert chosen.tolist() == list(range(0, 10 * MOST_COMPARED, 10))


# -- closed forms --------------------------------------------------------------------------------


def normal_log_density(z: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    return -0.5 * ((z - mean) / std) ** 2 - np.log(std) - 0.5 * math.log(2 * math.pi)


def test_one_unit_is_compared_with_the_mixture_of_all_posteriors() -> None:
    rng = np.random.default_rng(5)
    mean, std, eps = rng.normal(size=60), rng.uniform(0.2, 2.0, 60), rng.normal(size=60)
    z = mean + std * eps
    density = np.exp(normal_log_density(z[:, None], mean, std))  # code i under the posterior of j
    expected = np.mean(normal_log_density(z, mean, std) - np.log(density.mean(1)))
    arrays = [values.astype(np.float32) for values in (mean, std, eps)]
    assert _of_one_unit(*arrays) == pytest.approx(expected, abs=1e-5)


def test_two_units_share_what_the_correlation_of_their_scores_says() -> None:
    rng = np.random.default_rng(6)
    z = rng.normal(size=(400, 2)) @ np.array([[1.0, 0.8], [0.0, 0.6]])
    scores = norm.ppf((rankdata(z, axis=0) - 0.5) / 400)
    r = np.corrcoef(scores.T)[0, 1]
    # the mean of -0.5 ln(1 - r^2) of independent Gaussians, with degrees 399 and 398
    by_chance = 0.5 * (digamma(399 / 2) - digamma(398 / 2))
    assert _total_correlation(z) == pytest.approx(-0.5 * math.log(1 - r**2) - by_chance, abs=1e-9)


def test_one_unit_shares_nothing() -> None:
    assert _total_correlation(np.random.default_rng(0).normal(size=(50, 1))) == 0.0


def test_the_same_unit_twice_shares_a_finite_number_of_nats() -> None:
    z = np.random.default_rng(0).normal(size=(400, 1))
    by_chance = 0.5 * (digamma(399 / 2) - digamma(398 / 2))
    # eigenvalues of the correlation matrix: 2, and 0 that counts as 1e-6
    expected = -0.5 * math.log(2e-6) - by_chance
    assert _total_correlation(np.hstack([z, z])) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("n_stamps", "measured"), [(15, False), (16, True)])
def test_two_stamps_for_each_living_unit_are_the_fewest(n_stamps: int, measured: bool) -> None:
    mean, log_var, _ = linear_code(16, 8, n_stamps=n_stamps)
    kl = np.full(mean.shape, 1e-3)  # just living
    found = measure_information(mean, log_var, kl, np.zeros_like(mean))
    assert (found is not None) is measured
    barely_dead = measure_information(mean, log_var, 0.99 * kl, np.zeros_like(mean))
    assert barely_dead is not None
    assert barely_dead.mutual_information_nats == 0.0


def test_a_single_stamp_tells_nothing() -> None:
    zero = np.zeros((1, 3))
    assert measure_information(zero, zero, zero, zero) is None


def test_information_lies_between_nothing_and_the_kl() -> None:
    mean, log_var, truth = linear_code(6, 4)
    eps = np.random.default_rng(1).normal(size=mean.shape)
    tiny = np.full(mean.shape, truth / 16)  # a divergence that the codes exceed
    found = measure_information(mean, log_var, tiny, eps)
    assert found is not None
    assert found.mutual_information_nats == pytest.approx(truth / 4)
    assert found.aggregate_mismatch_nats == 0.0


@pytest.mark.parametrize("n_stamps", [512, 513, 1000])
def test_stamps_to_compare_are_bounded_in_order_and_never_out_of_range(n_stamps: int) -> None:
    chosen = choose_stamps(n_stamps)
    assert len(chosen) == 512
    assert (np.diff(chosen) >= 1).all()
    assert (chosen[0], chosen[-1]) == (0, 511 * n_stamps // 512)


# -- of a model ----------------------------------------------------------------------------------


def test_information_of_a_model_is_that_of_its_posteriors() -> None:
    vae = VAE((1, 16, 16), model={"name": "linear", "latent_dim": 3})
    image = torch.randn(40, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    mask, noise = torch.ones_like(image, dtype=torch.bool), torch.ones_like(image)
    parts = [
        {"image": image[part], "mask": mask[part], "noise": noise[part], "index": part}
        for part in torch.arange(40).split(17)
    ]
    vae.train()
    found = information_of(vae, parts)
    assert not vae.training
    with torch.no_grad():
        posterior = vae.network.encode(image)
    mean, log_var = posterior.mean.numpy(), posterior.log_var.detach().numpy()
    eps = vae.evaluation_noise(torch.arange(40)).numpy()
    expected = measure_information(mean, log_var, gaussian_kl(mean, log_var), eps)
    assert found is not None
    assert expected is not None
    assert found.mutual_information_nats == pytest.approx(
        expected.mutual_information_nats, abs=1e-4
    )
    assert found.aggregate_mismatch_nats == pytest.approx(
        expected.aggregate_mismatch_nats, abs=1e-4
    )
