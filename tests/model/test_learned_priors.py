"""Priors that are learned: exact densities, divergences that are what they say, what is refused."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from vae_astro import VAE
from vae_astro.errors import InputError
from vae_astro.model.posterior import DiagonalGaussian
from vae_astro.model.priors import PRIORS, MixturePrior, StandardNormal, VampPrior
from vae_astro.model.priors.components import cost_per_unit
from vae_astro.model.priors.fit import Components, fit_components
from vae_astro.settings import build

Z, K = 3, 4
RNG = np.random.default_rng(0)
PARTS = Components(
    np.array([0.4, 0.3, 0.2, 0.1]), 2 * RNG.normal(size=(K, Z)), RNG.uniform(0.1, 1.5, size=(K, Z))
)


def mixture(parts: Components = PARTS, **settings: Any) -> MixturePrior:
    prior = MixturePrior(Z, n_components=len(parts.weights), **settings)
    prior.set_components(parts)
    return prior.double()


def vamp(n_pseudo_inputs: int = 5) -> VampPrior:
    torch.manual_seed(0)
    vae = VAE(
        [1, 16, 16],
        model={"name": "linear", "latent_dim": Z},
        prior={"name": "vamp", "n_pseudo_inputs": n_pseudo_inputs},
    ).double()
    assert isinstance(vae.prior, VampPrior)
    with torch.no_grad():
        vae.network.encoder.log_var.copy_(torch.tensor([-2.0, -0.5, -1.0]))
    vae.prior.begin_epoch(0, 1, 3 * torch.randn(n_pseudo_inputs, 1, 16, 16).double())
    return vae.prior


def posteriors(n: int = 6) -> DiagonalGaussian:
    generator = torch.Generator().manual_seed(1)
    mean, log_var = torch.randn(2, n, Z, generator=generator, dtype=torch.float64)
    return DiagonalGaussian(1.5 * mean, log_var - 1)


def from_scipy(z: np.ndarray, parts: Components) -> np.ndarray:
    each = [
        math.log(weight) + multivariate_normal(mean, np.diag(variance)).logpdf(z)
        for weight, mean, variance in zip(*parts, strict=True)
    ]
    return logsumexp(each, axis=0)


def components_of(prior: VampPrior) -> Components:
    parts = prior.components()
    uniform = np.full(prior.n_pseudo_inputs, 1 / prior.n_pseudo_inputs)
    return Components(uniform, parts.mean.detach().numpy(), parts.log_var.exp().detach().numpy())


# -- densities and draws ------------------------------------------------------------------------


def test_log_density_of_each_prior_is_that_of_scipy() -> None:
    z = torch.randn(2, 50, Z, dtype=torch.float64) * 2
    unit = Components(np.ones(1), np.zeros((1, Z)), np.ones((1, Z)))
    learned = vamp()
    for prior, parts in (
        (StandardNormal(Z), unit),
        (MixturePrior(Z), unit),  # in its warm-up
        (mixture(), PARTS),
        (learned, components_of(learned)),
    ):
        density = prior.log_density(z)
        assert density.shape == (2, 50)
        np.testing.assert_allclose(density.detach(), from_scipy(z.numpy(), parts), rtol=1e-6)


def test_draws_have_the_moments_of_the_density_and_follow_the_generator() -> None:
    learned = vamp()
    for prior, parts in ((mixture(), PARTS), (learned, components_of(learned))):
        draws = prior.sample(100_000, torch.Generator().manual_seed(0))
        mean = parts.weights @ parts.means
        variance = parts.weights @ (parts.variances + (parts.means - mean) ** 2)
        np.testing.assert_allclose(draws.mean(0), mean, atol=0.03)
        np.testing.assert_allclose(draws.var(0), variance, rtol=0.03)
        np.testing.assert_allclose(prior.unit_std().square(), variance, rtol=1e-5)
        again = prior.sample(100_000, torch.Generator().manual_seed(0))
        assert torch.equal(draws, again)


def test_responsibilities_are_those_of_bayes_and_sum_to_one() -> None:
    z = torch.randn(2, 7, Z, dtype=torch.float64)
    found = mixture().responsibilities(z).detach().numpy()
    joint = np.stack([
        weight * multivariate_normal(mean, np.diag(variance)).pdf(z.numpy())
        for weight, mean, variance in zip(*PARTS, strict=True)
    ], -1)  # fmt: skip
    np.testing.assert_allclose(found, joint / joint.sum(-1, keepdims=True), rtol=1e-5)
    assert vamp().responsibilities(z).shape == (2, 7, 5)


# -- divergences --------------------------------------------------------------------------------


@pytest.mark.parametrize("n_components", [1, 5])
def test_mixture_of_unit_gaussians_is_the_standard_prior(n_components: int) -> None:
    same = Components(
        np.full(n_components, 1 / n_components),
        np.zeros((n_components, Z)),
        np.ones((n_components, Z)),
    )
    prior, standard, q = mixture(same), StandardNormal(Z), posteriors()
    torch.testing.assert_close(prior.kl_per_unit(q), standard.kl_per_unit(q))
    z = q.sample(torch.randn(6, Z).double())
    torch.testing.assert_close(prior.log_density(z), standard.log_density(z))


def test_mixture_costs_what_the_standard_prior_costs_while_it_warms_up() -> None:
    prior, standard, q = MixturePrior(Z), StandardNormal(Z), posteriors()
    assert torch.equal(prior.kl_per_unit(q), standard.kl_per_unit(q))
    draws = prior.sample(9, torch.Generator().manual_seed(0))
    assert torch.equal(draws, standard.sample(9, torch.Generator().manual_seed(0)))
    alike = torch.full((6, 10), 0.1).double()
    torch.testing.assert_close(prior.responsibilities(q.mean), alike)


def test_units_sum_to_the_least_bound_that_any_class_probabilities_give() -> None:
    prior, q = mixture(), posteriors()
    found = prior.kl_per_unit(q).sum(1)
    gamma = prior.categories(q)
    to_each = prior._costs(q).sum(2)  # (B, K)

    def bound(gamma: torch.Tensor) -> torch.Tensor:
        return (gamma * (to_each + gamma.log() - prior.log_weights)).sum(1)

    torch.testing.assert_close(found, bound(gamma))
    nudged = torch.softmax(gamma.log() + 0.3 * torch.randn_like(gamma), 1)
    assert (bound(nudged) > found).all()


def test_vade_bound_lies_above_the_monte_carlo_divergence_and_near_it_where_classes_part() -> None:
    apart = PARTS._replace(means=10 * PARTS.means, variances=np.full((K, Z), 0.5))
    generator = torch.Generator().manual_seed(0)
    for parts, gap in ((PARTS, math.inf), (apart, 1e-3)):
        prior = mixture(parts)
        q = DiagonalGaussian(torch.tensor(parts.means) + 0.2, posteriors(K).log_var)
        eps = torch.randn(20_000, K, Z, generator=generator, dtype=torch.float64)
        z = q.sample(eps)
        log_q = torch.distributions.Normal(q.mean, q.std).log_prob(z).sum(2)
        ratio = log_q - prior.log_density(z)
        exact, error = ratio.mean(0), ratio.std(0) / math.sqrt(len(eps))
        bound = prior.kl_per_unit(q).sum(1)
        assert (bound > exact - 4 * error).all()
        assert (bound < exact + 4 * error + gap).all()


def test_vamp_divergence_is_the_log_ratio_of_its_draw_and_lies_below_the_closed_form() -> None:
    prior, q = vamp(), posteriors()
    eps = torch.randn(6, Z, dtype=torch.float64)
    z = q.sample(eps)
    log_q = torch.distributions.Normal(q.mean, q.std).log_prob(z).sum(1)
    torch.testing.assert_close(prior.divergence(q, eps).sum(1), log_q - prior.log_density(z))
    noise = torch.randn(400, 6, Z, dtype=torch.float64)
    with torch.no_grad():
        draws = torch.stack([prior.divergence(q, e).sum(1) for e in noise])
    error = draws.std(0) / math.sqrt(len(draws))
    assert (draws.mean(0) < prior.kl_per_unit(q).sum(1) + 4 * error).all()


def test_unit_that_says_nothing_of_the_class_has_no_share_in_what_the_class_costs() -> None:
    means = np.zeros((2, Z))
    means[:, 0] = [-4, 4]
    prior = mixture(Components(np.array([0.5, 0.5]), means, np.full((2, Z), 0.3)))
    q = DiagonalGaussian(
        torch.tensor([[4.0, 0, 0]]).double(), torch.full((1, Z), math.log(0.3)).double()
    )
    kl = prior.kl_per_unit(q)
    # the posterior is a component itself: what is left is ln 2, which class it is
    assert kl[0].tolist() == pytest.approx([math.log(2), 0, 0], abs=1e-6)


def test_a_far_code_gives_finite_costs_and_gradients() -> None:
    for prior in (mixture(), vamp(), MixturePrior(Z)):
        mean = torch.tensor([[1e4] * Z, [0.0] * Z]).double().requires_grad_()
        log_var = torch.tensor([[-40.0] * Z, [3.0] * Z]).double().requires_grad_()
        cost = prior.divergence(DiagonalGaussian(mean, log_var), torch.ones(2, Z).double())
        cost.sum().backward()
        assert torch.isfinite(cost).all()
        learned = [p.grad for p in prior.parameters()]
        for gradient in (mean.grad, log_var.grad, *learned):
            assert gradient is not None
            assert torch.isfinite(gradient).all()


def test_cost_of_the_whole_code_has_the_right_gradient() -> None:
    cost = torch.randn(3, K, Z, dtype=torch.float64, requires_grad=True)
    weights = torch.log_softmax(torch.randn(K, dtype=torch.float64), 0).requires_grad_()
    direct = -(weights - cost.sum(2)).logsumexp(1).sum()
    expected = torch.autograd.grad(direct, (cost, weights))
    told, _ = cost_per_unit(cost, weights)
    found = torch.autograd.grad(told.sum(), (cost, weights))
    torch.testing.assert_close(told.sum(), direct)
    torch.testing.assert_close(found, expected)


def test_units_that_are_not_clustered_keep_a_unit_gaussian() -> None:
    prior = MixturePrior(Z, n_components=2, clustered_units=(0, 2))
    parts = Components(np.array([0.7, 0.3]), RNG.normal(size=(2, 2)), np.full((2, 2), 0.4))
    prior.set_components(parts)
    q, z = posteriors(), torch.randn(9, Z, dtype=torch.float64)
    own = StandardNormal(Z).kl_per_unit(q)[:, 1]
    torch.testing.assert_close(prior.kl_per_unit(q)[:, 1], own)
    expected = from_scipy(z[:, [0, 2]].numpy(), parts) - 0.5 * (
        z[:, 1].numpy() ** 2 + math.log(2 * math.pi)
    )
    np.testing.assert_allclose(prior.log_density(z).detach(), expected, rtol=1e-5)
    assert prior.unit_std()[1] == 1
    assert prior.sample(20_000, torch.Generator().manual_seed(0))[:, 1].std() == pytest.approx(
        1, abs=0.02
    )


# -- components ---------------------------------------------------------------------------------


def test_widths_of_components_stay_above_their_floor() -> None:
    prior = MixturePrior(Z, n_components=2, min_std=0.1)
    with torch.no_grad():
        prior.raw_log_vars.fill_(-1e3)
    assert torch.exp(0.5 * prior.log_vars).min() >= 0.1 * (1 - 1e-6)
    identical = np.zeros((30, Z))
    fitted = fit_components(identical, 2, 0.1)
    prior.set_components(fitted)
    assert torch.exp(0.5 * prior.log_vars).min() >= 0.1
    assert np.isfinite(fitted.means).all()


def test_a_component_that_holds_nothing_is_said_and_gets_half_of_the_largest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    blobs = np.array([[-5.0, 0, 0], [5, 0, 0]])
    codes = torch.tensor(
        blobs.repeat(100, 0) + 0.3 * np.random.default_rng(0).normal(size=(200, Z))
    )
    start = Components(
        np.array([0.98, 0.02]), np.array([[0.0, 0, 0], [900, 0, 0]]), np.full((2, Z), 20.0)
    )
    for on_dead, alive in (("leave", 1), ("reseed", 2)):
        prior = mixture(start, on_dead=on_dead, dead_fraction=0.01)
        tight = DiagonalGaussian(codes, torch.full_like(codes, -4))
        prior.observe(tight)
        assert prior.dead == [1]
        assert prior.figures()["prior/components_alive"] == 1
        n_wanted = prior.n_wanted(3, 10)
        assert (n_wanted > 0) == (on_dead == "reseed")
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            changed = prior.begin_epoch(3, 10, codes if n_wanted else None)
        assert "components 1 hold less than 1 %" in caplog.text
        assert changed == (on_dead == "reseed")
        prior.observe(tight)
        assert prior.figures()["prior/components_alive"] == alive
        assert int(prior.n_reseeded) == alive - 1
        assert prior.n_wanted(9, 10) == 0, "so late nothing would come of it"


# -- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "mixture", "n_components": 0}, "prior.n_components must be at least 1"),
        ({"name": "mixture", "n_components": 2.5}, "prior.n_components must be a whole number"),
        ({"name": "mixture", "min_std": 0}, "prior.min_std must be greater than 0"),
        ({"name": "mixture", "on_dead": "bury"}, "prior.on_dead must be one of reseed, leave"),
        ({"name": "mixture", "warmup_epochs": -1}, "prior.warmup_epochs must be at least 0"),
        ({"name": "mixture", "clustered_units": [0]}, "no setting prior.clustered_units"),
        ({"name": "vamp", "n_pseudo_inputs": 0}, "prior.n_pseudo_inputs must be at least 1"),
        ({"name": "vamp", "n_components": 4}, "prior=vamp has no setting prior.n_components"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        build(
            "prior", PRIORS, settings, latent_dim=Z, stamp_shape=(1, 16, 16), clustered_units=None
        )


@pytest.mark.parametrize("name", ["mixture", "vamp"])
def test_a_floor_under_the_rate_does_not_go_with_a_prior_that_moves(name: str) -> None:
    model = {"name": "linear", "latent_dim": Z, "minimum_rate_nats": 2.0}
    with pytest.raises(InputError, match=r"set model.minimum_rate_nats=0 or prior=standard"):
        VAE([1, 16, 16], model=model, prior={"name": name})


def test_what_the_run_cannot_give_is_said_before_it(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InputError, match=r"prior.n_components=10, but there are 9 training"):
        MixturePrior(Z).check_run(9, 10)
    with pytest.raises(InputError, match=r"prior.n_pseudo_inputs=5, but there are 4 training"):
        vamp().check_run(4, 10)
    MixturePrior(Z).check_run(100, 10)
    assert not caplog.records
    MixturePrior(Z, warmup_epochs=12).check_run(100, 10)
    assert "prior.warmup_epochs=12, and the run has 10: the mixture never starts" in caplog.text
    MixturePrior(Z, n_components=1).check_run(100, 10)
    assert "a single Gaussian, which sorts nothing" in caplog.text
