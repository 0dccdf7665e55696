"""A reparameterized draw has the posterior's moments and carries gradients to both of them."""

from __future__ import annotations

import math

import torch

from vae_astro.model.posterior import DiagonalGaussian


def posterior() -> DiagonalGaussian:
    """Two stamps, three units, float64, with gradients asked for."""
    mean = torch.tensor([[0.0, -3.0, 20.0], [1.0, 0.5, -0.5]], dtype=torch.float64)
    log_var = torch.tensor([[0.0, -2.0, 3.0], [-6.0, 0.7, 1.0]], dtype=torch.float64)
    return DiagonalGaussian(mean.requires_grad_(), log_var.requires_grad_())


def test_std_is_the_root_of_the_exponential_of_log_var():
    q = posterior()
    torch.testing.assert_close(q.std, q.log_var.exp().sqrt())


def test_draw_without_noise_is_the_mean():
    q = posterior()
    assert torch.equal(q.sample(torch.zeros(2, 3)), q.mean)


def test_draws_have_the_mean_and_variance_of_the_posterior():
    q, n_samples = posterior(), 200_000
    eps = torch.randn(n_samples, 2, 3, generator=torch.Generator().manual_seed(0)).double()
    draws = q.sample(eps).detach()
    assert draws.shape == (n_samples, 2, 3)
    # five standard errors of a Gaussian's mean and variance
    assert ((draws.mean(0) - q.mean).abs() < 5 * q.std / math.sqrt(n_samples)).all()
    variance = q.log_var.exp()
    assert ((draws.var(0) - variance).abs() < 5 * variance * math.sqrt(2 / n_samples)).all()


def test_draws_of_different_units_are_independent():
    eps = torch.randn(200_000, 2, 3, generator=torch.Generator().manual_seed(1)).double()
    correlations = torch.corrcoef(posterior().sample(eps).detach().flatten(1).T)
    assert (correlations - torch.eye(6)).abs().max() < 5 / math.sqrt(200_000)


def test_gradient_of_a_draw_is_one_to_the_mean_and_half_its_deviation_to_log_var():
    q = posterior()
    eps = torch.tensor([[0.3, -1.0, 2.0], [0.0, 1.5, -0.1]], dtype=torch.float64)
    to_mean, to_log_var = torch.autograd.grad(q.sample(eps).sum(), (q.mean, q.log_var))
    assert torch.equal(to_mean, torch.ones(2, 3).double())
    torch.testing.assert_close(to_log_var, 0.5 * q.std * eps)


def test_gradient_of_a_draw_is_that_of_finite_differences():
    q = posterior()
    eps = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(2)).double()
    assert torch.autograd.gradcheck(
        lambda mean, log_var: DiagonalGaussian(mean, log_var).sample(eps), (q.mean, q.log_var)
    )


def test_gradient_of_an_expectation_comes_through_the_draws():
    # E[z^2] = mean^2 + var, so its gradients are 2 mean and var
    q, n_samples = posterior(), 200_000
    eps = torch.randn(n_samples, 2, 3, generator=torch.Generator().manual_seed(3)).double()
    second_moment = q.sample(eps).square().mean(0).sum()
    to_mean, to_log_var = torch.autograd.grad(second_moment, (q.mean, q.log_var))
    error = q.std / math.sqrt(n_samples)
    assert ((to_mean - 2 * q.mean).abs() < 5 * 2 * error).all()
    # the estimate is the mean of std * eps * z
    spread = q.std * (2 * q.std.square() + q.mean.square()).sqrt() / math.sqrt(n_samples)
    assert ((to_log_var - q.log_var.exp()).abs() < 5 * spread).all()
