"""Classes in codes: the frame, each method, and averages over posteriors."""

from __future__ import annotations

import numpy as np
import pytest

from vae_astro.errors import InputError
from vae_astro.evaluate.clusters import (
    Centres,
    Members,
    clusters_from,
    fit_clusters,
    frame_of,
    hard_classes,
    posterior_draws,
    posterior_shares,
    units_named,
)
from vae_astro.evaluate.mixtures import Mixture

LEAST = 0.01


def groups(n: int = 150, n_units: int = 3, apart: float = 8.0) -> tuple[np.ndarray, np.ndarray]:
    """Codes (n, D) of three groups of unit spread, and which group each is of."""
    truth = np.arange(n) % 3
    codes = np.random.default_rng(0).standard_normal((n, n_units))
    return codes + apart * np.eye(3, n_units)[truth], truth


def same_partition(one: np.ndarray, other: np.ndarray) -> bool:
    pairs = {(int(a), int(b)) for a, b in zip(one, other, strict=True)}
    return len(pairs) == len(set(one)) == len(set(other))


# Which units, and in which scale


def test_a_frame_has_unit_aggregate_variance():
    rng = np.random.default_rng(0)
    mean = rng.normal(3, [2, 0.5], (4000, 2))
    std = np.full((4000, 2), [0.3, 1.0])
    framed, noise = frame_of(mean, std, (0, 1), LEAST)(mean, std)
    np.testing.assert_allclose(framed.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(framed.var(0) + np.square(noise).mean(0), 1, rtol=1e-6)
    assert framed[:, 1].std() < 0.5  # a weak unit stays weak beside its noise


def test_inactive_units_and_units_that_are_not_clustered_are_left_out():
    mean = np.random.default_rng(0).normal(0, [1, 0.01, 1, 1], (200, 4))
    frame = frame_of(mean, np.ones_like(mean), (0, 1, 3), LEAST)
    assert frame.units == (0, 3)


def test_without_an_active_unit_all_are_used():
    mean = np.random.default_rng(0).normal(0, 0.01, (200, 2))
    assert frame_of(mean, np.ones_like(mean), (0, 1), LEAST).units == (0, 1)


def test_identical_codes_are_refused():
    with pytest.raises(InputError, match="20 stamps have the same code"):
        frame_of(np.full((20, 3), 0.5), np.ones((20, 3)), (0, 1, 2), LEAST)


def test_units_by_name_and_by_number():
    assert units_named("clustered", (0, 2), 4) == (0, 2)
    assert units_named("all", (0, 2), 4) == (0, 1, 2, 3)
    assert units_named([3, 1], (0, 2), 4) == (3, 1)


@pytest.mark.parametrize("wanted", ["some", [], [4], [-1], [0, 0], 3, ["a"]])
def test_units_that_there_are_not_are_refused(wanted):
    with pytest.raises(InputError, match="units"):
        units_named(wanted, (0, 2), 4)


# The methods


@pytest.mark.parametrize("method", ["mixture", "kmeans", "hdbscan"])
def test_groups_far_apart_are_found_and_kept_as_plain_arrays(method):
    codes, truth = groups()
    found = fit_clusters(method, codes, None if method == "hdbscan" else 3, 0)
    assert same_partition(hard_classes(found.at(codes)), truth)
    again = clusters_from(found.arrays())
    assert type(again) is type(found)
    np.testing.assert_array_equal(again.at(codes), found.at(codes))


@pytest.mark.parametrize("method", ["mixture", "kmeans", "hdbscan"])
def test_the_same_seed_finds_the_same(method):
    codes, _ = groups(apart=3)
    one, other = (fit_clusters(method, codes, 3, 7, min_class_size=5) for _ in range(2))
    for name, values in one.arrays().items():
        np.testing.assert_array_equal(values, other.arrays()[name])


def test_hdbscan_leaves_far_codes_in_no_class_and_says_so():
    codes, _ = groups()
    odd = np.array([[40.0, 40, 40], [-40, 40, 0], [0, -40, 40]])
    found = fit_clusters("hdbscan", np.vstack([codes, odd]), None, 0)
    assert set(hard_classes(found.at(odd))) == {-1}
    assert found.at(codes[:1]).sum() == 1


def test_hdbscan_without_classes_is_refused_with_what_to_change():
    codes = np.random.default_rng(0).uniform(size=(40, 8))
    with pytest.raises(InputError, match="min_class_size=39; lower it"):
        fit_clusters("hdbscan", codes, None, 0, min_class_size=39)


def test_kmeans_takes_more_classes_than_different_codes():
    codes = np.repeat(np.eye(2), 10, axis=0)
    found = fit_clusters("kmeans", codes, 4, 0)
    assert len(set(hard_classes(found.at(codes)))) == 2


# Averages over the posterior


def three_classes() -> list:
    means = np.array([[0.0, 0, 0], [2, 0, 0], [0, 2, 1]])
    covariances = np.stack([np.eye(3), 0.5 * np.eye(3), np.diag([0.3, 1, 2])])
    codes, truth = groups()
    return [
        Mixture(np.array([0.5, 0.3, 0.2]), means, covariances),
        Centres(means),
        Members(codes, truth),
    ]


@pytest.mark.parametrize("clusters", three_classes(), ids=["mixture", "kmeans", "hdbscan"])
def test_shares_are_the_average_over_the_posterior_by_brute_force(clusters):
    mean = np.array([[1.0, 0, 0], [0.3, 1.2, 0.4], [2, 0, 0], [4, 3.5, 0]])
    std = np.array([[0.6, 0.3, 1], [1, 1, 1], [0.01, 0.01, 0.01], [1.5, 0.4, 0.8]])
    rng = np.random.default_rng(1)
    drawn = mean[:, None] + std[:, None] * rng.standard_normal((4, 20_000, 3))
    brute = np.stack([clusters.at(z).mean(axis=0) for z in drawn])
    for n_draws, tolerance in ((32, 0.08), (1024, 0.015)):
        shares = posterior_shares(clusters, mean, std, posterior_draws(n_draws, 3))
        np.testing.assert_allclose(shares, brute, atol=tolerance)
        np.testing.assert_allclose(shares.sum(axis=1), 1)


def test_a_sharp_posterior_has_the_class_of_its_mean():
    mixture = three_classes()[0]
    mean = np.random.default_rng(0).normal(size=(30, 3))
    shares = posterior_shares(mixture, mean, np.full((30, 3), 1e-6), posterior_draws(8, 3))
    np.testing.assert_allclose(shares, mixture.at(mean), atol=1e-5)


def test_one_draw_is_the_posterior_mean():
    np.testing.assert_array_equal(posterior_draws(1, 4), np.zeros((1, 4)))


def test_the_class_of_a_stamp_does_not_depend_on_the_others(monkeypatch):
    mixture = three_classes()[0]
    mean = np.random.default_rng(0).normal(size=(50, 3))
    std, draws = np.full((50, 3), 0.7), posterior_draws(16, 3)
    whole = posterior_shares(mixture, mean, std, draws)
    monkeypatch.setattr("vae_astro.evaluate.clusters.CODES_AT_ONCE", 16 * 7)
    np.testing.assert_allclose(posterior_shares(mixture, mean, std, draws), whole, rtol=1e-12)
    np.testing.assert_allclose(
        posterior_shares(mixture, mean[9:10], std[9:10], draws)[0], whole[9], rtol=1e-12
    )


def test_a_share_missing_to_one_may_outweigh_all_classes():
    np.testing.assert_array_equal(
        hard_classes(np.array([[0.6, 0.4], [0.1, 0.3], [0.0, 0.0], [0.5, 0.1]])), [0, -1, -1, 0]
    )
