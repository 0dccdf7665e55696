"""The Gaussian divergence against closed forms, Monte Carlo and torch.distributions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from vae_astro.objective.kl import gaussian_kl_per_unit, mutual_information


def posteriors(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Means and log-variances (64, 5) in float64, up to a few units away from the prior."""
    generator = torch.Generator().manual_seed(seed)
    mean, log_var = 2 * torch.randn(2, 64, 5, generator=generator, dtype=torch.float64)
    return mean, log_var


def test_kl_is_zero_when_posterior_equals_prior():
    zeros = torch.zeros(4, 3)
    assert torch.equal(gaussian_kl_per_unit(zeros, zeros), zeros)


def test_kl_is_that_of_torch_distributions():
    mean, log_var = posteriors()
    expected = kl_divergence(Normal(mean, torch.exp(0.5 * log_var)), Normal(0.0, 1.0))
    torch.testing.assert_close(
        gaussian_kl_per_unit(mean, log_var), expected, rtol=1e-12, atol=1e-12
    )


def test_kl_is_the_mean_log_ratio_of_posterior_and_prior():
    n_samples = 200_000
    mean, log_var = (row[:1] for row in posteriors(1))
    q, p = Normal(mean, torch.exp(0.5 * log_var)), Normal(0.0, 1.0)
    noise = torch.randn(
        n_samples, *mean.shape[1:], generator=torch.Generator().manual_seed(2), dtype=mean.dtype
    )
    z = q.mean + q.stddev * noise
    log_ratio = q.log_prob(z) - p.log_prob(z)
    error = log_ratio.std(0) / math.sqrt(n_samples)
    assert ((log_ratio.mean(0) - gaussian_kl_per_unit(mean, log_var)).abs() < 5 * error).all()


@given(mean=st.floats(-50, 50), log_var=st.floats(-60, 60))
@settings(deadline=None)
def test_kl_is_never_negative(mean, log_var):
    kl = gaussian_kl_per_unit(*torch.tensor([[[mean]], [[log_var]]], dtype=torch.float64))
    # the last digit of expm1 and log_var may cancel
    assert kl.item() >= -1e-15 * abs(log_var)


def test_kl_keeps_its_digits_next_to_the_prior():
    log_var = torch.logspace(-6, -3, 50)
    exact = log_var.double().square() / 4 + log_var.double() ** 3 / 12
    error = gaussian_kl_per_unit(torch.zeros_like(log_var), log_var).double() - exact
    # exp(l) - 1 - l would round at the size of 1; what is asked here is rounding at the size of l
    assert (error.abs() <= torch.finfo(torch.float32).eps * log_var).all()


def test_kl_of_a_shift_alone_is_half_its_square():
    mean = torch.tensor([[1e-6, 1.0, 30.0]], dtype=torch.float64)
    torch.testing.assert_close(gaussian_kl_per_unit(mean, torch.zeros_like(mean)), mean**2 / 2)


def test_kl_gradient_is_that_of_finite_differences():
    mean, log_var = (row[:6].requires_grad_() for row in posteriors(3))
    assert torch.autograd.gradcheck(gaussian_kl_per_unit, (mean, log_var))


def test_kl_gradient_vanishes_at_the_prior():
    mean, log_var = torch.zeros(2, 3, 4, dtype=torch.float64, requires_grad=True)
    gradients = torch.autograd.grad(gaussian_kl_per_unit(mean, log_var).sum(), (mean, log_var))
    assert all(torch.equal(gradient, torch.zeros(3, 4).double()) for gradient in gradients)


def test_kl_of_a_nan_posterior_is_nan_for_that_unit_alone():
    mean = torch.tensor([[0.0, math.nan]])
    kl = gaussian_kl_per_unit(mean, torch.zeros(1, 2))
    assert kl.isnan().tolist() == [[False, True]]


def test_shapes_that_differ_are_refused_even_where_they_would_broadcast():
    with pytest.raises(ValueError, match=r"mean is \(4, 3\) but log_var is \(1, 3\)"):
        gaussian_kl_per_unit(torch.zeros(4, 3), torch.zeros(1, 3))


# -- mutual information --------------------------------------------------------------------------


def noise(n: int, latent_dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, latent_dim, generator=torch.Generator().manual_seed(seed)).double()


def test_codes_that_are_the_same_for_all_stamps_carry_no_information():
    mean, log_var = torch.full((50, 3), 2.0).double(), torch.full((50, 3), -5.0).double()
    assert mutual_information(mean, log_var, noise(50, 3)).item() == pytest.approx(0, abs=1e-9)


def test_codes_that_tell_every_stamp_apart_carry_the_log_of_their_number():
    mean = torch.arange(40.0).double()[:, None] * 100
    information = mutual_information(mean, torch.zeros(40, 1).double(), noise(40, 1))
    assert information.item() == pytest.approx(math.log(40))


def test_information_of_a_gaussian_channel_is_that_of_the_closed_form():
    # means of variance 3 seen through unit noise: half the log of 1 + 3 nats for each unit
    mean, log_var = math.sqrt(3) * noise(512, 2, seed=1), torch.zeros(512, 2).double()
    information = mutual_information(mean, log_var, noise(512, 2))
    assert information.item() == pytest.approx(math.log(4), abs=0.1)


def test_information_is_that_of_torch_distributions_for_posteriors_of_any_width():
    mean, log_var = posteriors(1)
    eps = noise(64, 5)
    std = (0.5 * log_var).exp()
    density = Normal(mean, std).log_prob((mean + std * eps)[:, None]).sum(2)  # (code, posterior)
    expected = (density.diagonal() - density.logsumexp(1)).mean() + math.log(64)
    torch.testing.assert_close(mutual_information(mean, log_var, eps), expected)


def test_information_adds_up_over_independent_units_and_ignores_constant_ones():
    mean = torch.cat([math.sqrt(3) * noise(512, 1, seed=1), torch.zeros(512, 4)], dim=1)
    information = mutual_information(mean, torch.zeros(512, 5).double(), noise(512, 5))
    assert information.item() == pytest.approx(0.5 * math.log(4), abs=0.1)


def test_information_is_of_the_first_stamps_where_there_are_many():
    many = 100 * noise(600, 2)
    log_var, eps = torch.zeros(600, 2).double(), noise(600, 2, seed=1)
    first = mutual_information(many[:512], log_var[:512], eps[:512])
    assert torch.equal(mutual_information(many, log_var, eps), first)
