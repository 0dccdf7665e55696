"""Several clusterings put together, and what is said of classes that seeds do not share."""

from __future__ import annotations

import numpy as np
import pytest

from vae_astro.evaluate.clusters import hard_classes
from vae_astro.evaluate.consensus import agree, voted

N = 120


def hot(classes: np.ndarray, n_classes: int | None = None) -> np.ndarray:
    """Shares of stamps that are sure of their class; -1 is none."""
    return np.vstack([np.eye(n_classes or classes.max() + 1), np.zeros(classes.max() + 1)])[classes]


TRUTH = np.repeat([0, 1, 2], [60, 40, 20])


def relabelled(order: list[int]) -> np.ndarray:
    return hot(np.array(order)[TRUTH])


def test_the_same_classes_under_other_numbers_agree_in_full():
    found = agree([relabelled(order) for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0])], [0] * 3, 0.6)
    assert found.ari == pytest.approx(1)
    np.testing.assert_array_equal(hard_classes(found.shares), TRUTH)
    for each, occupancy in zip(found.classes, (1 / 2, 1 / 3, 1 / 6), strict=True):
        assert (each.stability, each.jaccard) == (pytest.approx(1), pytest.approx(1))
        assert each.occupancy == pytest.approx(occupancy)
        assert (each.found_in, each.verdict) == (3, "stable")
    assert found.strays == ()
    assert found.unsure == 0


def test_classes_come_in_falling_order_of_their_stamps():
    found = agree([relabelled([2, 0, 1])], [0], 0.6)
    assert [each.occupancy for each in found.classes] == pytest.approx([1 / 2, 1 / 3, 1 / 6])


def test_one_clustering_has_no_stability():
    found = agree([relabelled([0, 1, 2])], [0], 0.6)
    assert found.ari is None
    assert {each.stability for each in found.classes} == {None}
    assert "one clustering only" in found.classes[0].verdict


def test_a_class_of_one_seed_only_is_voted_out_and_told():
    split = TRUTH.copy()
    split[:20] = 3  # a third of the first class is one of its own
    found = agree([relabelled([0, 1, 2]), hot(split), relabelled([1, 0, 2])], [0] * 3, 0.6)
    assert found.n_classes == 3
    assert [stray.found_in for stray in found.strays] == [1]
    assert found.strays[0].occupancy == pytest.approx(20 / N)
    np.testing.assert_array_equal(hard_classes(found.shares), TRUTH)


def test_a_class_that_seeds_cut_differently_is_called_unstable():
    rng = np.random.default_rng(0)
    runs = []
    for _ in range(5):
        cut = TRUTH.copy()
        cut[:60] = rng.choice([0, 3], 60)  # the same kind of stamps, halved at random
        runs.append(hot(cut))
    found = agree(runs, [0] * 5, 0.6)
    told = {each.verdict.split(":")[0] for each in found.classes if each.stability < 0.5}
    assert told == {"unstable"}
    assert sum(each.verdict == "stable" for each in found.classes) == 2
    assert 0.1 < found.unsure < 0.5


def test_seeds_with_different_numbers_of_classes_vote_together():
    merged = np.where(TRUTH == 2, 1, TRUTH)
    found = agree([relabelled([0, 1, 2]), relabelled([0, 1, 2]), hot(merged)], [0] * 3, 0.6)
    assert found.n_classes == 3
    by_share = [each.found_in for each in found.classes]
    assert by_share == [3, 3, 2]
    assert found.classes[2].verdict == "unstable: found in 2 of 3 seeds"


def test_votes_give_the_same_shares_to_the_same_stamps_later():
    runs = [relabelled([0, 1, 2]), relabelled([2, 1, 0]), relabelled([1, 0, 2])]
    found = agree(runs, [0] * 3, 0.6)
    np.testing.assert_allclose(voted([run[5:9] for run in runs], found.votes), found.shares[5:9])


def test_stamps_in_no_class_stay_there():
    left = TRUTH.copy()
    left[:10] = -1
    found = agree([hot(left), hot(left)], [0, 0], 0.6)
    assert set(hard_classes(found.shares)[:10]) == {-1}
    assert sum(each.occupancy for each in found.classes) == pytest.approx(110 / N)


def test_all_stamps_in_one_class():
    found = agree([np.ones((N, 1))] * 3, [0] * 3, 0.6)
    assert found.n_classes == 1
    assert found.classes[0].occupancy == 1
    assert found.classes[0].verdict == "stable"


def test_agreement_between_networks_is_told_apart():
    shuffled = np.random.default_rng(0).permutation(TRUTH)
    runs = [relabelled([0, 1, 2]), relabelled([1, 2, 0]), hot(shuffled), hot(shuffled)]
    found = agree(runs, [0, 0, 1, 1], 0.6)
    assert found.ari_between_networks == pytest.approx(0, abs=0.05)
    assert 0.3 < found.ari < 0.4


def test_soft_shares_count_as_unsure_below_the_threshold():
    soft = np.full((N, 3), 0.25)
    soft[np.arange(N), TRUTH] = 0.5
    assert agree([soft], [0], 0.6).unsure == 1
    assert agree([soft], [0], 0.4).unsure == 0


def test_probability_of_a_cluster_that_wins_no_stamp_is_not_lost():
    rng = np.random.default_rng(0)
    shares = rng.dirichlet([1, 1, 1, 1], N)
    weak = shares * [1, 1, 1, 0.05]  # never the most probable
    weak /= weak.sum(axis=1, keepdims=True)
    found = agree([shares, weak, rng.dirichlet([0.3, 3, 3], N)], [0] * 3, 0.6)
    np.testing.assert_allclose(found.shares.sum(axis=1), 1)
    assert (hard_classes(found.shares) >= 0).all()


def test_one_clustering_whose_components_are_never_sure_still_has_classes():
    shares = np.tile([0.21, 0.6, 0.03, 0.16], (N, 1))
    found = agree([shares], [0], 0.6)
    assert found.n_classes == 1
    np.testing.assert_allclose(found.shares, 1)
