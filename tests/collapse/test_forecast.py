"""Forecasts against closed forms, and their limits."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from vae_astro.collapse.forecast import forecast, forecast_run, outlook, passed_threshold
from vae_astro.collapse.spectrum import Spectrum
from vae_astro.errors import InputError
from vae_astro.model.likelihoods import FixedGaussian
from vae_astro.objective.beta import SCHEDULES, RatePenalty, capacity, constant, cyclical, linear


def spectrum_of(
    eigenvalues, n_pixels: int = 100, *, rest: float = 0.0, learned: bool = False, s2: float = 1.0
) -> Spectrum:
    """One band; ``eigenvalues`` in image units, ``rest`` the variance of all other directions."""
    eigenvalues = np.asarray(eigenvalues, dtype=float)
    total = eigenvalues.sum() + rest
    if learned:
        s2 = total / n_pixels
    return Spectrum(
        eigenvalues=eigenvalues / s2,
        overlap=np.eye(len(eigenvalues))[None],
        variance=np.array([total / s2]),
        fitting_variance=np.array([float(n_pixels)]),
        decoder_variance=np.array([s2]),
        learned_scale=learned,
        kl_weight=1.0,
        n_stamps=1000,
        n_pixels=n_pixels,
    )


def test_directions_above_the_threshold_survive_with_half_a_log_each() -> None:
    found = outlook(spectrum_of([8.0, 4.0, 1.5, 0.5]), 4, RatePenalty(2.0))
    np.testing.assert_allclose(found.kl_per_unit_nats, [0.5 * math.log(4), 0.5 * math.log(2), 0, 0])
    assert (found.active_units, found.n_surviving, found.threshold) == (2, 2, 2.0)
    assert found.verdict == "none"


def test_threshold_is_beta_times_the_decoder_variance() -> None:
    found = outlook(spectrum_of([8.0, 1.0], s2=0.25), 2, RatePenalty(3.0))
    assert found.threshold == pytest.approx(0.75)
    assert found.eigenvalues == pytest.approx((8.0, 1.0))
    assert found.kl_per_unit_nats[0] == pytest.approx(0.5 * math.log(8 / 0.75))


@pytest.mark.parametrize(
    ("beta", "verdict"), [(0.1, "none"), (3.0, "partial"), (9.0, "full"), (8.0, "full")]
)
def test_verdict_follows_the_number_of_survivors(beta: float, verdict: str) -> None:
    assert outlook(spectrum_of([8.0, 2.0, 1, 1, 1]), 5, RatePenalty(beta)).verdict == verdict


def test_units_beyond_the_directions_stay_empty() -> None:
    found = outlook(spectrum_of([5.0, 3.0]), 6, RatePenalty(1.0))
    assert found.latent_dim == 6
    assert found.kl_per_unit_nats[2:] == (0, 0, 0, 0)
    assert found.verdict == "partial"


def test_learned_variance_is_that_of_probabilistic_pca() -> None:
    """At beta = 1 the fixed point is scikit-learn's noise variance."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 30)) * np.geomspace(5, 0.3, 30)
    pca = PCA(6).fit(x)
    eigenvalues = np.linalg.eigvalsh(np.cov(x, rowvar=False))[::-1]
    found = outlook(spectrum_of(eigenvalues, 30, learned=True), 6, RatePenalty(1.0))
    assert found.decoder_variance == pytest.approx((pca.noise_variance_,), rel=1e-5)
    expected = 0.5 * np.log(pca.explained_variance_ / pca.noise_variance_)
    np.testing.assert_allclose(found.kl_per_unit_nats, expected, rtol=1e-5)


@pytest.mark.parametrize("beta", [0.5, 2.0, 4.0])
def test_learned_variance_is_the_discarded_one_over_what_is_left(beta: float) -> None:
    """s2 = sum of discarded eigenvalues / (D - beta k)."""
    eigenvalues = np.array([50.0, 20.0, 9.0, 0.5])
    found = outlook(spectrum_of(eigenvalues, 100, rest=96.0, learned=True), 3, RatePenalty(beta))
    k = found.active_units
    expected = (eigenvalues[k:].sum() + 96.0) / (100 - beta * k)
    assert found.decoder_variance == pytest.approx((expected,), rel=1e-5)
    assert found.n_surviving >= k


def test_a_learned_scale_in_place_of_a_given_one_is_the_learned_one() -> None:
    eigenvalues = [50.0, 20.0, 9.0, 0.5]
    learned = spectrum_of(eigenvalues, 100, rest=96.0, learned=True)
    heavy = dataclasses.replace(spectrum_of(eigenvalues, 100, rest=96.0, s2=7.0), kl_weight=30.0)
    expected = outlook(learned, 3, RatePenalty(1.0))
    found = outlook(heavy.with_learned_scale(), 3, RatePenalty(1.0))
    assert found.kl_per_unit_nats == pytest.approx(expected.kl_per_unit_nats, rel=1e-5)
    assert found.decoder_variance == pytest.approx(expected.decoder_variance, rel=1e-5)


def test_largest_beta_keeps_the_units_and_no_larger_one_does() -> None:
    for learned in (False, True):
        spectrum = spectrum_of([50.0, 20.0, 9.0, 4.0], 100, rest=96.0, learned=learned)
        found = forecast(spectrum, 4, constant(value=1.0), 100)
        assert list(found.largest_beta_for) == [1, 2, 4]
        for n, beta in found.largest_beta_for.items():
            assert outlook(spectrum, 4, RatePenalty(0.99 * beta)).active_units >= n
            assert outlook(spectrum, 4, RatePenalty(1.01 * beta)).active_units < n


def test_largest_beta_is_zero_where_the_stamps_lack_the_directions() -> None:
    found = forecast(spectrum_of([50.0, 20.0]), 4, constant(value=1.0), 100)
    assert found.largest_beta_for[4] == 0.0
    assert found.largest_beta_for[2] == pytest.approx(20 * 0.99, rel=2e-3)


def test_weight_of_a_likelihood_multiplies_beta() -> None:
    heavy = dataclasses.replace(spectrum_of([8.0, 2.0]), kl_weight=5.0)
    found = outlook(heavy, 2, RatePenalty(1.0))
    assert found.threshold == 5.0
    assert found.active_units == 1
    bound = forecast(heavy, 2, constant(value=1.0), 10).largest_beta_for[1]
    assert bound == pytest.approx(8 * 0.99 / 5, rel=2e-3)


def test_a_schedule_is_judged_by_where_it_ends() -> None:
    found = forecast(spectrum_of([8.0, 4.0]), 2, linear(total_steps=100, end=10.0), 100)
    assert found.verdict == "full"
    assert found.end.beta == 10.0
    assert (found.lowest.beta, found.lowest.active_units) == (0.0, 2)
    assert "where it ends decides" in found.lines[1]


@pytest.mark.parametrize(("start", "passed"), [(0.0, None), (8.9, 8.9), (9.1, None), (10, None)])
def test_a_threshold_on_the_way_counts_below_nine_tenths_of_the_end(start, passed) -> None:
    found = forecast(spectrum_of([8.0]), 1, linear(total_steps=100, start=start, end=10.0), 100)
    assert found.passed_threshold == (None if passed is None else pytest.approx(passed))


def test_a_threshold_on_the_way_may_be_unknown() -> None:
    assert passed_threshold(10.0, None) is None


def test_a_cyclical_schedule_ends_high() -> None:
    schedule = cyclical(total_steps=100, start=0.5, end=5.0)
    found = forecast(spectrum_of([8.0, 4.0]), 2, schedule, 100)
    assert (found.end.beta, found.end.active_units) == (5.0, 1)
    assert (found.lowest.beta, found.lowest.active_units) == (0.5, 2)


def test_without_a_penalty_the_kl_has_no_bound() -> None:
    found = outlook(spectrum_of([8.0, 4.0]), 2, RatePenalty(0.0))
    assert found.kl_nats == math.inf
    assert found.verdict == "none"
    plain = found.as_dict()
    assert plain["kl_nats"] is None
    json.dumps(plain, allow_nan=False)


def test_free_bits_keep_a_unit_at_its_allowance() -> None:
    found = outlook(spectrum_of([8.0, 0.5]), 2, RatePenalty(1.0, free_bits_nats=0.2))
    assert found.kl_per_unit_nats == pytest.approx((0.5 * math.log(8), 0.2))
    assert found.active_units == 2


def test_capacity_holds_the_kl() -> None:
    schedule = capacity(total_steps=100, gamma=100.0, capacity_nats=3.0)
    found = forecast(spectrum_of([8.0, 4.0]), 2, schedule, 100)
    assert found.end.kl_nats == pytest.approx(3.0, rel=1e-3)
    small = capacity(total_steps=100, gamma=1.0, capacity_nats=0.1)
    assert forecast(spectrum_of([8.0, 4.0]), 2, small, 100).end.kl_nats > 1


def test_bands_learn_their_own_variance() -> None:
    """A loud and useless band beside a quiet one with one strong direction."""
    eigenvalues = np.array([30.0])
    spectrum = Spectrum(
        eigenvalues=eigenvalues,
        overlap=np.array([[[0.0]], [[1.0]]]),
        variance=np.array([50.0, 50.0]),
        fitting_variance=np.array([50.0, 50.0]),
        decoder_variance=np.array([4.0, 1.0]),
        learned_scale=True,
        kl_weight=1.0,
        n_stamps=100,
        n_pixels=100,
    )
    found = outlook(spectrum, 1, RatePenalty(1.0))
    assert found.decoder_variance[0] == pytest.approx(4.0)
    assert found.decoder_variance[1] == pytest.approx((50 - 30) / (50 - 1), rel=1e-4)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_every_schedule_can_be_forecast(name: str) -> None:
    make = SCHEDULES[name]
    takes_length = "total_steps" in make.__code__.co_varnames[: make.__code__.co_kwonlyargcount]
    schedule = make(total_steps=50) if takes_length else make()
    found = forecast(spectrum_of(np.geomspace(50, 0.5, 10)), 4, schedule, 50)
    assert found.verdict in ("none", "partial", "full")
    json.dumps(found.as_dict(), allow_nan=False)


def test_a_negative_beta_is_refused() -> None:
    with pytest.raises(InputError, match="beta must not be negative"):
        outlook(spectrum_of([8.0]), 1, RatePenalty(-1.0))


def test_rank_one_stamps_fill_one_unit() -> None:
    found = outlook(spectrum_of([5.0, 0.0, 0.0]), 3, RatePenalty(1.0, free_bits_nats=0.3))
    assert found.active_units == 1
    assert found.verdict == "partial"


def test_lines_say_what_a_person_needs() -> None:
    first, second = forecast(spectrum_of([8.0, 4.0]), 2, constant(value=100.0), 10).lines
    assert "full collapse" in first
    assert "largest eigenvalue 8" in first
    assert "threshold 100" in first
    assert "largest final beta: 7.9" in second


# -- what is told --------------------------------------------------------------------------------


def test_all_figures_are_told_as_plain_numbers() -> None:
    found = forecast(spectrum_of([8.0, 2.0], s2=0.5), 2, linear(total_steps=10, end=2.0), 10)
    told = found.as_dict()
    lowest, bounds = told.pop("lowest"), told.pop("largest_beta_for")
    nats = [0.5 * math.log(8), 0.5 * math.log(2)]
    assert told.pop("kl_nats") == pytest.approx(sum(nats))
    assert told.pop("kl_per_unit_nats") == pytest.approx(nats)
    assert told == {
        "verdict": "none",
        "active_units": 2,
        "latent_dim": 2,
        "beta": 2.0,
        "threshold": 1.0,
        "largest_eigenvalue": 8.0,
        "decoder_variance": [0.5],
        "n_surviving": 2,
        "eigenvalues": [8.0, 2.0],
        "learned_scale": False,
        "n_stamps": 1000,
        "n_pixels": 100,
    }
    assert (lowest["beta"], lowest["kl_nats"], lowest["kl_per_unit_nats"]) == (0, None, [None] * 2)
    assert bounds == {"1": found.largest_beta(1), "2": found.largest_beta(2)}


@pytest.mark.parametrize(
    ("end", "first"),
    [
        (1.0, "no collapse; KL about 2.77 nats in 5 of 5 units (largest eigenvalue 8, "
         "threshold 1)"),
        (3.0, "partial collapse; KL about 0.634 nats in 2 of 5 units (largest eigenvalue 8, "
         "threshold 3)"),
        (9.0, "full collapse, whatever the network; KL about 0 nats in 0 of 5 units (largest "
         "eigenvalue 8, threshold 9)"),
    ],
)  # fmt: skip
def test_the_first_line_tells_verdict_and_figures(end: float, first: str) -> None:
    found = forecast(spectrum_of([8.0, 4.0, 2, 2, 2]), 5, constant(value=end), 10)
    assert found.lines[0] == f"forecast: {first}"


def test_the_second_line_tells_the_room_that_beta_has() -> None:
    spectrum = spectrum_of([8.0, 4.0, 2, 2, 2])
    one, two, three, five = (
        f"{forecast(spectrum, 5, constant(), 10).largest_beta(n):.3g}" for n in (1, 2, 3, 5)
    )
    room = f"largest final beta: {one} for 1 living unit, {two} for 2, {three} for 3, {five} for 5"
    falls = linear(total_steps=10, start=9.0, end=3.0)
    for schedule in (constant(value=100.0), linear(total_steps=10, end=1.0), falls):
        assert forecast(spectrum, 5, schedule, 10).lines[1] == f"forecast: {room}"
    rises = forecast(spectrum, 5, linear(total_steps=10, start=0.5, end=9.0), 10)
    assert rises.lines[1] == (
        f"forecast: beta passes 0.5, where 5 units live, but where it ends decides; {room}"
    )


# -- limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("latent_dim", "counts"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (5, [1, 2, 3, 5]),
                               (16, [1, 2, 8, 16])]
)  # fmt: skip
def test_room_is_told_for_one_two_half_and_all_of_the_units(latent_dim, counts) -> None:
    found = forecast(spectrum_of(np.geomspace(50, 5, 16)), latent_dim, constant(), 10)
    assert list(found.largest_beta_for) == counts


def test_a_bound_beyond_any_sense_is_not_looked_for() -> None:
    found = forecast(spectrum_of([1e15, 1e-15]), 2, constant(), 10)
    assert 1e12 <= found.largest_beta(1) < 1e13
    assert found.largest_beta(2) == 0.0


def test_a_direction_at_the_threshold_does_not_survive() -> None:
    found = outlook(spectrum_of([9.0, 4.0]), 2, RatePenalty(4.0))
    assert (found.n_surviving, found.active_units, found.kl_per_unit_nats[1]) == (1, 1, 0.0)
    barely = outlook(spectrum_of([2 / 0.98, 2 / 0.995]), 2, RatePenalty(2.0))
    assert (barely.n_surviving, barely.active_units) == (2, 1)  # the second varies by 0.005


def test_without_a_penalty_what_the_stamps_lack_still_costs_nothing() -> None:
    found = outlook(spectrum_of([8.0, 0.0]), 3, RatePenalty(0.0))
    assert found.kl_per_unit_nats == (math.inf, 0.0, 0.0)
    assert (found.threshold, found.active_units) == (0.0, 1)


def test_a_small_beta_is_no_absent_one() -> None:
    found = outlook(spectrum_of([8.0]), 1, RatePenalty(1e-3))
    assert found.kl_nats == pytest.approx(0.5 * math.log(8000))


def test_free_bits_do_not_lower_what_a_unit_has() -> None:
    found = outlook(spectrum_of([8.0, 4.0]), 2, RatePenalty(1.0, free_bits_nats=0.1))
    assert found.kl_per_unit_nats == pytest.approx((0.5 * math.log(8), 0.5 * math.log(4)))


def test_a_capacity_of_nothing_leaves_the_weight_alone() -> None:
    found = outlook(spectrum_of([8.0, 4.0]), 2, RatePenalty(2.0, capacity_nats=0.0))
    assert found.threshold == 2.0
    assert found.kl_nats == pytest.approx(0.5 * math.log(4) + 0.5 * math.log(2))


def test_capacity_lowers_the_threshold_to_what_holds_it() -> None:
    # with two directions above it, KL = ln(sqrt(8 * 4) / threshold)
    found = outlook(spectrum_of([8.0, 4.0]), 2, RatePenalty(100.0, capacity_nats=3.0))
    assert found.threshold == pytest.approx(math.sqrt(32) * math.exp(-3.0), rel=1e-6)
    assert found.beta == 100.0


def test_the_lowest_beta_is_found_wherever_it_lies() -> None:
    # a ramp that falls below its end in the middle is no schedule of ours, but a cycle starts there
    found = forecast(spectrum_of([8.0]), 1, cyclical(total_steps=1000, start=0.25, end=4.0), 1000)
    assert (found.lowest.beta, found.end.beta) == (0.25, 4.0)
    falls = forecast(spectrum_of([8.0]), 1, linear(total_steps=1000, start=4.0, end=0.5), 1000)
    assert (falls.lowest.beta, falls.end.beta) == (0.5, 0.5)


def test_a_run_is_forecast_from_its_batches() -> None:
    image = 3 * torch.randn(400, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    batch = {
        "image": image,
        "mask": torch.ones_like(image, dtype=torch.bool),
        "noise": torch.ones_like(image),
        "index": torch.arange(400),
    }
    found = forecast_run([batch], FixedGaussian(std=2.0), 2, constant(value=1.5), 100)
    eigenvalues = np.linalg.eigvalsh(np.cov(image.flatten(1).double().numpy().T, bias=True))[::-1]
    assert found.end.eigenvalues == pytest.approx(tuple(eigenvalues), rel=1e-4)
    assert found.end.threshold == pytest.approx(1.5 * 4)
    assert found.end.kl_per_unit_nats == pytest.approx(
        tuple(0.5 * np.log(eigenvalues[:2] / 6)), rel=1e-3
    )
    assert (found.latent_dim, found.spectrum.n_stamps) == (2, 400)


def test_no_more_modes_are_measured_than_a_forecast_needs() -> None:
    image = torch.randn(150, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    batch = {
        "image": image,
        "mask": torch.ones_like(image, dtype=torch.bool),
        "noise": torch.ones_like(image),
        "index": torch.arange(150),
    }
    for latent_dim, n_modes in ((2, 64), (32, 64), (40, 80)):
        found = forecast_run([batch], FixedGaussian(), latent_dim, constant(), 10)
        assert len(found.spectrum.eigenvalues) == n_modes
