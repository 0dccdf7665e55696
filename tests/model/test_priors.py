"""The standard normal prior: its draws and the divergence from it."""

from __future__ import annotations

import math

import torch
from torch.distributions import Normal, kl_divergence

from vae_astro.model.posterior import DiagonalGaussian
from vae_astro.model.priors import PRIORS, StandardNormal
from vae_astro.settings import build


def test_standard_prior_is_built_by_name():
    prior = build("prior", PRIORS, {"name": "standard"}, latent_dim=5)
    assert isinstance(prior, StandardNormal)
    assert prior.latent_dim == 5


def test_kl_of_a_posterior_is_that_of_torch_distributions():
    mean, log_var = torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(0)).double()
    q = DiagonalGaussian(mean, log_var)
    expected = kl_divergence(Normal(mean, q.std), Normal(0.0, 1.0))
    torch.testing.assert_close(StandardNormal(4).kl_per_unit(q), expected)


def test_draws_have_zero_mean_unit_variance_and_no_correlation():
    n = 200_000
    draws = StandardNormal(4).sample(n, torch.Generator().manual_seed(0))
    assert draws.shape == (n, 4)
    assert draws.mean(0).abs().max() < 5 / math.sqrt(n)
    assert (torch.cov(draws.T) - torch.eye(4)).abs().max() < 5 * math.sqrt(2 / n)


def test_draws_from_a_generator_repeat_and_leave_the_global_state_alone():
    prior, state = StandardNormal(3), torch.get_rng_state()
    first, second = (prior.sample(10, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


def test_prior_adds_nothing_to_a_checkpoint():
    assert StandardNormal(3).state_dict() == {}
