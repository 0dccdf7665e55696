"""A minimum rate: its promise holds, what lies above it is left alone, stamps stay apart."""

from __future__ import annotations

import io
import math

import pytest
import torch

from vae_astro.errors import InputError
from vae_astro.model.minimum_rate import MinimumRate
from vae_astro.model.networks import NETWORKS, Network
from vae_astro.model.posterior import DiagonalGaussian
from vae_astro.objective.kl import gaussian_kl_per_unit
from vae_astro.settings import build

every_network = pytest.mark.parametrize("name", NETWORKS)


def posterior(
    mean_std: float = 1e-3, log_var: float = 0.0, *, n: int = 64, latent_dim: int = 4, seed: int = 0
) -> DiagonalGaussian:
    """Means of about this spread around 0.3, one log-variance, float64."""
    draws = torch.randn(n, latent_dim, generator=torch.Generator().manual_seed(seed)).double()
    mean = 0.3 + mean_std * draws
    return DiagonalGaussian(mean, torch.full_like(mean, log_var))


def kl_per_unit(given: DiagonalGaussian) -> torch.Tensor:
    """Mean over stamps, shape (Z,)."""
    return gaussian_kl_per_unit(given.mean, given.log_var).mean(0)


def network(name: str, **keys: object) -> Network:
    torch.manual_seed(0)
    narrow = {
        "conv": {"width": 8},
        "mlp": {"hidden": [24, 12]},
        "question": {"bottleneck_units": 9},
        "rings": {"shape_units": 2, "hidden": 8, "width": 8},
    }
    settings = {"name": name, "latent_dim": 4, **narrow.get(name, {}), **keys}
    return build("model", NETWORKS, settings, n_bands=1, size=17)


def stamps(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 1, 17, 17, generator=torch.Generator().manual_seed(seed))


# -- the promise ---------------------------------------------------------------------------------


@pytest.mark.parametrize("nats", [0.01, 1.0, 8.0, 60.0])
@pytest.mark.parametrize(("mean_std", "log_var"), [(1e-3, 0.0), (1e-5, 9.0), (0.3, -1.0), (4, 3)])
def test_mean_kl_of_a_training_batch_is_at_least_what_was_promised(nats, mean_std, log_var):
    made = MinimumRate(4, nats).double()(posterior(mean_std, log_var))
    assert (kl_per_unit(made) >= nats / 4 - 1e-9).all()


def test_promise_is_kept_exactly_by_a_unit_that_gives_as_little_as_it_can():
    # no offset, means of no spread, and a variance as large as it may be
    given = posterior(1e-4, log_var=60.0)
    centred = DiagonalGaussian(given.mean - given.mean.mean(0), given.log_var)
    made = MinimumRate(4, 6.0).double()(centred)
    torch.testing.assert_close(kl_per_unit(made), torch.full((4,), 1.5).double())


def test_a_code_at_the_floor_has_the_moments_of_the_prior_in_the_aggregate():
    given = posterior(1e-4, log_var=60.0)
    centred = DiagonalGaussian(given.mean - given.mean.mean(0), given.log_var)
    made = MinimumRate(4, 6.0).double()(centred)
    aggregate = made.mean.var(0, correction=0) + made.log_var.exp().mean(0)
    torch.testing.assert_close(aggregate, torch.ones(4).double())


def test_two_stamps_are_enough_for_the_promise():
    made = MinimumRate(4, 8.0).double()(posterior(n=2))
    assert (kl_per_unit(made) >= 2.0).all()


def test_means_keep_their_average_and_their_order():
    given = posterior(1e-3)
    made = MinimumRate(4, 8.0).double()(given)
    torch.testing.assert_close(made.mean.mean(0), given.mean.mean(0))
    assert torch.equal(made.mean.argsort(0), given.mean.argsort(0))


def test_units_that_vary_more_keep_their_means():
    given = posterior(2.0)
    made = MinimumRate(4, 8.0).double()(given)
    torch.testing.assert_close(made.mean, given.mean)


def test_small_variances_are_left_alone_and_large_ones_capped():
    cap = -2 * 8.0 / 4
    log_var = torch.tensor([-40.0, -8.0, cap, 0.0, 50.0]).double()[:, None]
    made = MinimumRate(1, 2.0).double()(DiagonalGaussian(torch.randn(5, 1).double(), log_var))
    assert made.log_var[0].item() == pytest.approx(-40.0)
    assert (made.log_var <= cap + 1e-12).all()
    assert (made.log_var.diff(dim=0) > 0).all()


def test_gradient_reaches_means_and_variances_above_the_cap():
    given = posterior(1e-3, log_var=3.0)
    mean, log_var = given.mean.requires_grad_(), given.log_var.requires_grad_()
    made = MinimumRate(4, 8.0).double()(DiagonalGaussian(mean, log_var))
    weights = torch.randn(64, 4, generator=torch.Generator().manual_seed(1)).double()
    to_mean, to_log_var = torch.autograd.grad(
        (weights * made.mean).sum() + made.log_var.sum(), (mean, log_var)
    )
    assert (to_mean.abs().amax(0) > 0).all()
    assert (to_log_var > 0).all()
    # a widened unit does not answer to the scale of its means: that way out is closed
    along_scale = (to_mean * (mean - mean.mean(0))).sum(0).detach()
    assert along_scale.abs().max() < 1e-6 * (to_mean * mean).abs().sum()


def test_gradient_is_that_of_finite_differences():
    given = posterior(0.1, n=5, latent_dim=2)
    made = MinimumRate(2, 4.0).double()

    def out(mean: torch.Tensor, log_var: torch.Tensor) -> torch.Tensor:
        raised = made(DiagonalGaussian(mean, log_var))
        return torch.cat([raised.mean, raised.log_var])

    assert torch.autograd.gradcheck(
        out, (given.mean.requires_grad_(), given.log_var.requires_grad_())
    )


def test_means_that_are_all_the_same_stay_finite():
    mean = torch.full((8, 4), 0.25)
    made = MinimumRate(4, 8.0)(DiagonalGaussian(mean, torch.zeros(8, 4)))
    torch.testing.assert_close(made.mean, mean)


# -- evaluation, and one stamp at a time ---------------------------------------------------------


def test_promise_holds_in_evaluation_for_stamps_like_those_of_training():
    made = MinimumRate(4, 8.0)
    for seed in range(40):
        given = posterior(1e-3, seed=seed)
        made(DiagonalGaussian(given.mean.float(), given.log_var.float()))
    held_out = posterior(1e-3, n=2000, seed=99)
    raised = made.eval()(DiagonalGaussian(held_out.mean.float(), held_out.log_var.float()))
    # the running variance of 20 batches of 64 is good to a few per cent
    assert (kl_per_unit(raised) > 0.95 * 2.0).all()


def test_in_evaluation_a_stamp_does_not_see_its_batch():
    made = MinimumRate(4, 8.0).double()
    made(posterior(1e-3))
    given = posterior(1e-3, seed=1)
    together = made.eval()(given)
    alone = made(DiagonalGaussian(given.mean[:1], given.log_var[:1]))
    torch.testing.assert_close(alone.mean, together.mean[:1])
    assert made.training is False


def test_evaluation_moves_nothing():
    made = MinimumRate(4, 8.0).double()
    made(posterior())
    before = {name: value.clone() for name, value in made.state_dict().items()}
    made.eval()(posterior(2.0, seed=3))
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


def test_running_figures_are_those_of_all_stamps_while_there_are_few():
    made = MinimumRate(4, 8.0).double()
    batches = [posterior(0.1 * (k + 1), seed=k) for k in range(6)]
    for batch in batches:
        made(batch)
    everything = torch.cat([batch.mean for batch in batches])
    torch.testing.assert_close(made.running_mean, everything.mean(0))
    torch.testing.assert_close(made.running_var, everything.var(0, correction=0))


def test_running_figures_forget_what_is_long_past():
    made = MinimumRate(4, 8.0).double()
    for k in range(300):
        made(posterior(5.0 if k < 100 else 1.0, n=32, seed=k))
    assert (made.running_var - 1).abs().max() < 0.2


def test_batches_of_one_learn_the_spread_from_one_another():
    made = MinimumRate(4, 8.0).double()
    given = posterior(0.01, n=400)
    for k in range(400):
        raised = made(DiagonalGaussian(given.mean[k : k + 1], given.log_var[k : k + 1]))
        assert raised.mean.isfinite().all()
    assert (made.running_var.sqrt() / 0.01 - 1).abs().max() < 0.5  # of some twenty stamps
    raised = made.eval()(given)
    assert (raised.mean.std(0) > 0.5 * made.least_std).all()


def test_a_late_backward_pass_survives_the_next_batch_of_one():
    made = MinimumRate(2, 2.0)
    mean = torch.randn(1, 2, requires_grad=True)
    first = made(DiagonalGaussian(mean, torch.zeros(1, 2)))
    made(DiagonalGaussian(torch.randn(1, 2), torch.zeros(1, 2)))
    first.mean.sum().backward()
    assert mean.grad is not None


# -- in the networks -----------------------------------------------------------------------------


@every_network
def test_every_network_keeps_the_promise(name):
    made = network(name, minimum_rate_nats=6.0)
    with torch.no_grad():
        raised = made.encode(stamps(32))
    assert (kl_per_unit(raised) >= 1.5 - 1e-4).all()
    with torch.no_grad():
        free = network(name).encode(stamps(32))
    assert (kl_per_unit(free) < 1.5).any()


@every_network
def test_without_a_minimum_rate_a_network_is_what_it_was(name):
    made = network(name)
    assert made.state_dict().keys() == network(name, minimum_rate_nats=0).state_dict().keys()
    assert not [key for key in made.state_dict() if "minimum_rate" in key]
    with torch.no_grad():
        given, encoded = made.encoder(stamps(3)), made.encode(stamps(3))
    assert torch.equal(encoded.mean, given.mean)
    assert torch.equal(encoded.log_var, given.log_var)


def test_running_figures_travel_in_the_weights():
    made, other = (network("conv", minimum_rate_nats=6.0) for _ in range(2))
    with torch.no_grad():
        made.encode(stamps(32))
    file = io.BytesIO()
    torch.save(made.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        one, two = (n.eval().encode(stamps(4, seed=1)) for n in (made, other))
    assert torch.equal(one.mean, two.mean)
    assert made.minimum_rate.n_updates.item() == other.minimum_rate.n_updates.item() == 1


def test_rate_is_raised_in_float32_under_mixed_precision():
    made = network("conv", minimum_rate_nats=6.0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        raised = made.encode(stamps(32))
    assert {raised.mean.dtype, raised.log_var.dtype} == {torch.float32}
    assert (kl_per_unit(raised) >= 1.5 - 1e-4).all()


@every_network
@pytest.mark.parametrize(
    ("nats", "message"),
    [
        (-1, "model.minimum_rate_nats must be at least 0, got -1"),
        (math.nan, "model.minimum_rate_nats must be a finite number, got nan"),
        (1e6, "model.minimum_rate_nats must be at most 10000, got 1e+06"),
        ("some", "model.minimum_rate_nats must be a finite number, got 'some'"),
    ],
)
def test_setting_out_of_range_is_refused_by_its_key(name, nats, message):
    with pytest.raises(InputError) as refused:
        network(name, minimum_rate_nats=nats)
    assert str(refused.value) == message


def test_repr_says_what_is_committed():
    assert "least_std=0.975, highest_log_var=-3" in repr(MinimumRate(4, 6.0))
