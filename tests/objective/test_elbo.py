"""The bound and its loss: what is summed, what is averaged, what has no gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from vae_astro.model.posterior import DiagonalGaussian
from vae_astro.objective.beta import RatePenalty
from vae_astro.objective.elbo import Elbo
from vae_astro.objective.kl import gaussian_kl_per_unit


def parts() -> Elbo:
    """Three stamps, two units: batch-mean KL 0.3 and 2.0 nats, mean reconstruction -20."""
    return Elbo(
        reconstruction=torch.tensor([-10.0, -20.0, -30.0], dtype=torch.float64),
        kl_per_unit=torch.tensor([[0.1, 1.0], [0.2, 2.0], [0.6, 3.0]], dtype=torch.float64),
    )


def test_kl_is_summed_over_units():
    torch.testing.assert_close(parts().kl, torch.tensor([1.1, 2.2, 3.6], dtype=torch.float64))


def test_nats_are_reconstruction_minus_kl_of_each_stamp():
    expected = torch.tensor([-11.1, -22.2, -33.6], dtype=torch.float64)
    torch.testing.assert_close(parts().nats, expected)


def test_bound_with_the_exact_posterior_averages_to_the_log_evidence():
    # one latent unit and a linear decoder: evidence and posterior are known (probabilistic PCA)
    weight = torch.tensor([0.8, -0.5, 1.2], dtype=torch.float64)
    sigma, n_samples = 0.6, 50_000
    x = torch.tensor([0.3, -1.1, 0.7], dtype=torch.float64)
    precision = 1 + weight @ weight / sigma**2
    mean = (weight @ x / sigma**2 / precision).expand(n_samples, 1)
    posterior = DiagonalGaussian(mean, -precision.log().expand(n_samples, 1))
    eps = torch.randn(n_samples, 1, generator=torch.Generator().manual_seed(0)).double()
    z = posterior.sample(eps)
    bound = Elbo(
        Normal(z * weight, sigma).log_prob(x).sum(1), gaussian_kl_per_unit(mean, posterior.log_var)
    ).nats
    covariance = torch.outer(weight, weight) + sigma**2 * torch.eye(3, dtype=torch.float64)
    evidence = MultivariateNormal(torch.zeros(3).double(), covariance).log_prob(x)
    assert abs(bound.mean() - evidence) < 5 * bound.std() / math.sqrt(n_samples)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 4.0])
def test_loss_is_minus_reconstruction_plus_beta_times_kl(beta):
    assert parts().loss(RatePenalty(beta)).item() == pytest.approx(20 + beta * 2.3)


def test_loss_at_beta_one_is_minus_the_mean_bound():
    torch.testing.assert_close(parts().loss(RatePenalty(1.0)), -parts().nats.mean())


def test_loss_does_not_change_when_the_batch_is_repeated():
    once = parts()
    twice = Elbo(once.reconstruction.repeat(2), once.kl_per_unit.repeat(2, 1))
    for penalty in (RatePenalty(0.7), RatePenalty(0.7, 0.5), RatePenalty(0.7, 0.0, 1.0)):
        torch.testing.assert_close(twice.loss(penalty), once.loss(penalty))


def test_a_kl_that_is_drawn_may_come_out_below_zero():
    # as that of a learned prior; cut off, its mean would be too large
    drawn = Elbo(torch.zeros(2), torch.tensor([[-0.5, 1.0], [-0.1, 1.0]]))
    assert drawn.loss(RatePenalty(1.0)).item() == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("penalty", "loss"),
    [
        (RatePenalty(1.0), 20 + 2.3),  # linear: the mean of the losses is that of the whole batch
        (RatePenalty(1.0, free_bits_nats=0.5), 20 + 1.3 + 3.0),
        (RatePenalty(1.0, capacity_nats=1.0), 20 + 3.3),
    ],
)
def test_what_bends_at_a_rate_looks_at_the_kl_of_all_processes(penalty, loss, monkeypatch):
    monkeypatch.setattr("vae_astro.objective.elbo.mean_over_ranks", lambda own: own + 1.0)
    assert parts().loss(penalty).item() == pytest.approx(loss)


def test_loss_is_not_averaged_over_units():
    once = parts()
    doubled = Elbo(once.reconstruction, once.kl_per_unit.repeat(1, 2))
    gain = doubled.loss(RatePenalty(1.0)) - once.loss(RatePenalty(1.0))
    assert gain.item() == pytest.approx(once.kl.mean().item())


def test_free_bits_raise_the_batch_mean_of_each_unit_to_the_threshold():
    # 0.3 counts as 0.5; single stamps below 0.5 in a unit whose mean is above it stay as they are
    assert parts().loss(RatePenalty(2.0, free_bits_nats=0.5)).item() == pytest.approx(
        20 + 2 * (0.5 + 2.0)
    )


def test_free_bits_clamp_the_mean_and_not_the_stamps():
    kl_per_unit = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    elbo = Elbo(torch.zeros(2, dtype=torch.float64), kl_per_unit)
    assert elbo.loss(RatePenalty(1.0, free_bits_nats=0.4)).item() == pytest.approx(0.5)


def test_free_bits_take_the_gradient_from_units_below_the_threshold_alone():
    elbo = parts()
    kl_per_unit = elbo.kl_per_unit.requires_grad_()
    elbo.loss(RatePenalty(3.0, free_bits_nats=0.5)).backward()
    expected = torch.tensor([0.0, 3.0 / 3], dtype=torch.float64).expand(3, 2)
    torch.testing.assert_close(kl_per_unit.grad, expected)


@pytest.mark.parametrize(
    ("capacity_nats", "distance", "slope"), [(0.0, 2.3, 1), (2.0, 0.3, 1), (5.0, 2.7, -1)]
)
def test_capacity_pulls_the_total_kl_towards_it_from_both_sides(capacity_nats, distance, slope):
    elbo = parts()
    kl_per_unit = elbo.kl_per_unit.requires_grad_()
    loss = elbo.loss(RatePenalty(4.0, capacity_nats=capacity_nats))
    assert loss.item() == pytest.approx(20 + 4 * distance)
    loss.backward()
    torch.testing.assert_close(kl_per_unit.grad, torch.full((3, 2), slope * 4 / 3).double())


def test_capacity_counts_free_bits_as_spent():
    penalty = RatePenalty(1.0, free_bits_nats=0.5, capacity_nats=2.0)
    assert parts().loss(penalty).item() == pytest.approx(20 + abs(0.5 + 2.0 - 2.0))


def test_loss_gradient_is_that_of_finite_differences():
    elbo = parts()
    penalty = RatePenalty(0.7, free_bits_nats=0.5, capacity_nats=1.0)

    def loss(reconstruction: torch.Tensor, kl_per_unit: torch.Tensor) -> torch.Tensor:
        return Elbo(reconstruction, kl_per_unit).loss(penalty)

    inputs = (elbo.reconstruction.requires_grad_(), elbo.kl_per_unit.requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs)
