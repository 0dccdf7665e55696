"""Probabilities of oddness: what they promise of normal stamps, and what they find."""

from __future__ import annotations

import numpy as np
import pytest

from vae_astro.errors import InputError
from vae_astro.evaluate.anomalies import (
    FEWEST,
    Signs,
    calibrate,
    expected_below,
    normally_below,
)


def signs(n: int, seed: int, *, brighter: float = 0.0, away: float = 0.0) -> Signs:
    """Signs of normal stamps, skewed as those of stars are; or of odd ones."""
    rng = np.random.default_rng(seed)
    return Signs(
        log_likelihood_nats=-1000 - 20 * rng.normal(size=n) - 40 * brighter,
        n_good=np.full(n, 700.0),
        chi2_per_pixel=np.exp(0.3 * rng.normal(size=n)) + brighter,
        residual=np.exp(rng.normal(size=(n, 4))) + 30 * brighter,
        mean=rng.normal(size=(n, 3)) + away,
    )


def test_p_below_a_happens_to_that_share_of_fresh_normal_stamps():
    p = np.concatenate(
        [calibrate(signs(1000, seed)).p_values(signs(1000, 100 + seed)) for seed in range(3)]
    )
    for alarms in (0.01, 0.05, 0.5):
        # the spread of 3 calibrations with 1000 stamps each
        error = np.sqrt(alarms * (1 - alarms) * (1 / 3000 + 1 / 3000))
        assert abs(np.mean(p <= alarms) - alarms) < 4 * error


def test_the_share_is_marginal_and_a_calibration_has_its_own():
    """On average over calibrations it is what is promised; one by one it scatters as foretold."""
    n, fresh, alarms = 100, 400, 0.1
    below = np.array(
        [
            (calibrate(signs(n, k)).p_values(signs(fresh, 10_000 + k)) < alarms).sum()
            for k in range(25)
        ]
    )
    mean, (low, high) = expected_below(alarms, fresh, n)
    assert mean == pytest.approx(alarms * fresh, rel=0.02)
    assert below.mean() == pytest.approx(mean, abs=4 * below.std() / 25**0.5)
    # far more than the 6 of stamps that are flagged one by one with a probability that is known
    assert below.std() > 1.5 * (fresh * alarms * (1 - alarms)) ** 0.5
    assert np.mean((low <= below) & (below <= high)) > 0.8


def test_the_expected_number_is_that_of_ranks_among_independent_numbers():
    rng = np.random.default_rng(0)
    n, fresh, alarms = 150, 300, 0.05
    normal, new = np.sort(rng.normal(size=(4000, n)), axis=1), rng.normal(size=(4000, fresh))
    below = np.array(
        [
            ((n - np.searchsorted(a, b) + 1) / (n + 1) < alarms).sum()
            for a, b in zip(normal, new, strict=True)
        ]
    )
    mean, (low, high) = expected_below(alarms, fresh, n)
    assert below.mean() == pytest.approx(mean, rel=0.03)
    assert np.mean((low <= below) & (below <= high)) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(("n", "possible"), [(98, False), (99, False), (100, True)])
def test_few_calibration_stamps_flag_nothing(n, possible):
    assert (expected_below(0.01, 10_000, n)[0] > 0) is possible
    if not possible:
        assert "it would be 0 on average over calibrations, 0 to 0" in normally_below(10_000, n)


@pytest.mark.parametrize("odd", [{"brighter": 3.0}, {"away": 9.0}])
def test_odd_pixels_and_odd_codes_are_found(odd):
    p = calibrate(signs(500, 0)).p_values(signs(50, 1, **odd))
    assert np.median(p) < 0.01


def test_with_few_stamps_no_p_value_is_smaller_than_they_can_tell():
    calibration = calibrate(signs(30, 0))
    p = calibration.p_values(signs(5, 1, brighter=100.0))
    np.testing.assert_allclose(p, 1 / 31)
    assert calibration.smallest_p_value == pytest.approx(1 / 31)


def test_fewer_than_it_takes_are_refused_with_the_key_to_change():
    with pytest.raises(InputError, match=r"1 normal stamps .*data.val_fraction"):
        calibrate(signs(1, 0))
    assert calibrate(signs(FEWEST, 0)).n_stamps == FEWEST


def test_identical_stamps_are_not_odd_to_each_other_and_all_others_are():
    one = signs(1, 0)
    same = Signs.joined([one] * 40)
    calibration = calibrate(same)
    np.testing.assert_array_equal(calibration.p_values(same), 1.0)
    other = signs(1, 1, brighter=1.0)
    assert calibration.p_values(other)[0] == pytest.approx(calibration.smallest_p_value)


def test_ties_never_make_a_p_value_too_small():
    def few_values(n: int, seed: int) -> Signs:
        drawn = np.random.default_rng(seed).integers(3, size=n).astype(float)
        one = np.ones(n)
        return Signs(-drawn, one, one, drawn[:, None], np.zeros((n, 2)))

    p = calibrate(few_values(300, 0)).p_values(few_values(2000, 1))
    # the value in the middle and the one below it are both not odd
    assert len(np.unique(p)) == 2
    assert p.max() == 1.0
    assert p.min() >= np.mean(p == p.min()) - 0.1


def test_what_is_not_finite_has_no_p_value_and_does_not_calibrate():
    broken = signs(60, 0)
    broken.log_likelihood_nats[:10] = np.nan
    broken.n_good[10:20] = 0
    calibration = calibrate(broken)
    assert calibration.n_stamps == 40
    p = calibration.p_values(broken)
    assert np.isnan(p[:20]).all()
    assert np.isfinite(p[20:]).all()
    assert np.isnan(calibration.oddness(broken)[:20]).all()


def test_one_stamp_and_none_can_be_asked_for():
    calibration = calibrate(signs(50, 0))
    assert calibration.p_values(signs(1, 1)).shape == (1,)
    assert calibration.p_values(signs(0, 1)).shape == (0,)


def test_oddness_ranks_what_shares_the_smallest_p_value():
    calibration = calibrate(signs(200, 0))
    odd = Signs.joined([signs(1, 1, brighter=b) for b in (5.0, 50.0, 500.0)])
    assert len(set(calibration.p_values(odd))) == 1
    assert (np.diff(calibration.oddness(odd)) > 0).all()


def test_latent_density_is_that_of_the_codes_and_distance_grows_away_from_them():
    calibration = calibrate(signs(3000, 0))
    here = signs(200, 1)
    exact = -0.5 * (here.mean**2 + np.log(2 * np.pi)).sum(axis=1)
    assert np.abs(calibration.latent_log_density(here) - exact).mean() < 0.15
    far = calibration.neighbour_distance(signs(20, 2, away=8.0))
    assert far.min() > calibration.neighbour_distance(here).max()


def test_the_same_stamps_give_the_same_numbers():
    one, two = (calibrate(signs(100, 0)).oddness(signs(20, 1)) for _ in range(2))
    np.testing.assert_array_equal(one, two)
