"""Classes against a handful of labels, and what can be read from codes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn import metrics

from vae_astro.evaluate.agreement import compare, readable

LABELS = np.array(["star", "star", "star", 'it\'s 100 % "odd"; ü\n', "bogus", "bogus", "", ""])
CLASSES = np.array([0, 0, 1, 1, 1, -1, 0, 2])


def test_confusion_counts_every_label_in_every_class_and_in_none():
    found = compare(CLASSES, LABELS, 3)
    assert found.labels == tuple(sorted(set(LABELS) - {""}))
    assert found.n_labelled == 6
    np.testing.assert_array_equal(found.confusion, [[0, 1, 0, 1], [0, 1, 0, 0], [2, 1, 0, 0]])


def test_mapping_is_the_majority_and_purity_its_share():
    found = compare(CLASSES, LABELS, 3)
    assert found.mapping[0] == "star"
    assert found.mapping[2] is None  # nothing in it has a label
    assert found.purity == (1.0, pytest.approx(1 / 3), None)
    assert found.overall_purity == pytest.approx(3 / 6)


def test_scores_are_those_of_scikit_learn_over_labelled_stamps():
    found, known = compare(CLASSES, LABELS, 3), LABELS != ""
    truth, told = LABELS[known], CLASSES[known]
    assert found.nmi == pytest.approx(metrics.normalized_mutual_info_score(truth, told))
    assert found.ari == pytest.approx(metrics.adjusted_rand_score(truth, told))
    assert found.homogeneity == pytest.approx(metrics.homogeneity_score(truth, told))
    assert found.completeness == pytest.approx(metrics.completeness_score(truth, told))


def test_everything_goes_into_json():
    assert json.loads(json.dumps(compare(CLASSES, LABELS, 3).as_dict(), allow_nan=False))


def test_one_label_has_a_mapping_but_no_score():
    found = compare(CLASSES, np.where(LABELS == "star", "star", ""), 3)
    assert found.mapping == ("star", "star", None)
    assert (found.nmi, found.ari) == (None, None)


def test_without_labels_there_is_nothing_to_compare():
    assert compare(CLASSES, np.full(8, ""), 3) is None


def blobs(apart: float, n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    truth = np.arange(n) % 2
    codes = np.random.default_rng(0).standard_normal((n, 3)) + apart * truth[:, None]
    return codes, np.array(["galaxy", "star"])[truth]


def test_labels_far_apart_are_read_without_error():
    codes, labels = blobs(10)
    found = readable(codes, labels, np.arange(200).astype(str))
    assert found.n_folds == 5
    assert (found.neighbours_balanced_accuracy, found.probe_accuracy) == (1, 1)


def test_an_object_is_never_its_own_neighbour():
    # pure noise, but every object has five stamps in the same place: to know it again is not to
    # know its class
    rng = np.random.default_rng(0)
    objects = np.repeat(np.arange(150), 5)
    codes = rng.standard_normal((150, 3))[objects]
    labels = np.array(["galaxy", "star"])[rng.permutation(np.arange(150) % 2)][objects]
    apart = readable(codes, labels, objects.astype(str))
    together = readable(codes, labels, np.arange(750).astype(str))
    assert together.neighbours_balanced_accuracy > 0.6
    assert apart.neighbours_balanced_accuracy < 0.6


def test_labels_missing_for_most_still_give_folds():
    codes, labels = blobs(10)
    few = np.where(np.arange(200) < 8, labels, "")
    found = readable(codes, few, np.arange(200).astype(str))
    assert found.n_folds == 4
    assert found.probe_accuracy == 1


@pytest.mark.parametrize("kept", [1, 2])
def test_labels_of_single_objects_give_no_fold(kept):
    codes, labels = blobs(10)
    few = np.where(np.arange(200) < kept, labels, "")
    assert readable(codes, few, np.arange(200).astype(str)) is None
