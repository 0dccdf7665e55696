"""Clusters are scored against labels, and the baseline is principal components."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA

from vae_astro.evaluate.pca_baseline import ClusterScores, kmeans_scores, pca_codes


def blobs(separation: float, *, n_classes: int = 3, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Codes (N, 4) around one centre per class, ``separation`` standard deviations apart."""
    rng = np.random.default_rng(0)
    classes = np.arange(n) % n_classes
    codes = rng.standard_normal((n, 4)) + separation * np.eye(4)[classes]
    return codes, np.array(["galaxy", "star", "bogus", "asteroid"])[classes]


@pytest.mark.parametrize("n_classes", [2, 3, 4])
def test_perfect_clusters_score_one(n_classes):
    scores = kmeans_scores(*blobs(50, n_classes=n_classes))
    assert scores == ClusterScores(n_classes, 60, pytest.approx(1), pytest.approx(1))


def test_codes_that_know_nothing_of_the_labels_score_near_zero():
    codes, labels = blobs(0, n=400)
    scores = kmeans_scores(codes, labels)
    assert scores.nmi < 0.03
    assert abs(scores.ari) < 0.03


def test_scores_fall_as_classes_overlap():
    apart, close = (kmeans_scores(*blobs(separation, n=150)) for separation in (3, 1.5))
    assert 0.1 < close.nmi < apart.nmi < 1
    assert 0.1 < close.ari < apart.ari < 1


def test_scores_do_not_depend_on_what_the_classes_are_called():
    codes, labels = blobs(2)
    renamed = np.char.add("z", np.char.replace(labels, "galaxy", "zzz"))
    assert kmeans_scores(codes, renamed) == kmeans_scores(codes, labels)


def test_scores_are_the_same_every_time_whatever_the_global_random_state():
    codes, labels = blobs(1)
    np.random.seed(1)  # noqa: NPY002 (the state that scikit-learn falls back on)
    first = kmeans_scores(codes, labels)
    np.random.seed(2)  # noqa: NPY002
    assert kmeans_scores(codes, labels) == first


def test_unlabelled_stamps_are_left_out():
    codes, labels = blobs(2)
    alone = kmeans_scores(codes, labels)
    with_unlabelled = kmeans_scores(
        np.concatenate([np.full((20, 4), np.nan), codes]),
        np.concatenate([np.full(20, ""), labels]),
    )
    assert with_unlabelled == alone
    assert alone.n_labelled == 60


def test_labels_may_be_an_array_of_objects():
    codes, labels = blobs(2)
    assert kmeans_scores(codes, labels.astype(object)) == kmeans_scores(codes, labels)


@pytest.mark.parametrize("label", ["", "galaxy"])
def test_fewer_than_two_classes_have_no_score(label):
    codes, labels = blobs(2)
    assert kmeans_scores(codes, np.full_like(labels, label)) is None


def test_one_class_beside_unlabelled_stamps_has_no_score():
    codes, labels = blobs(2)
    assert kmeans_scores(codes, np.where(labels == "star", "star", "")) is None


def test_fully_collapsed_codes_score_zero_without_a_warning():
    _, labels = blobs(2)
    assert kmeans_scores(np.full((60, 4), 0.3), labels) == ClusterScores(3, 60, 0.0, 0.0)


def pictures(n: int = 40) -> np.ndarray:
    """Stamps (N, 1, 6, 6) made of five patterns of falling strength."""
    rng = np.random.default_rng(1)
    strengths = rng.standard_normal((n, 5)) * [10, 6, 3, 2, 1]
    return (strengths @ rng.standard_normal((5, 36)) + 7).reshape(n, 1, 6, 6)


def test_principal_components_are_those_of_the_full_decomposition_up_to_sign():
    images = pictures()
    expected = PCA(3, svd_solver="full").fit_transform(images.reshape(40, -1))
    np.testing.assert_allclose(np.abs(pca_codes(images, 3)), np.abs(expected), rtol=1e-6, atol=1e-6)


def test_enough_principal_components_keep_all_distances_between_stamps():
    images = pictures()
    codes, flat = pca_codes(images, 5), images.reshape(40, -1)
    distances, exact = (
        np.linalg.norm(rows[:, None] - rows[None], axis=2) for rows in (codes, flat)
    )
    np.testing.assert_allclose(distances, exact, atol=1e-9)


@pytest.mark.parametrize(
    ("n_stamps", "n_components", "expected"), [(40, 16, 16), (40, 100, 36), (9, 16, 9)]
)
def test_components_are_no_more_than_stamps_or_pixels(n_stamps, n_components, expected):
    assert pca_codes(pictures(n_stamps), n_components).shape == (n_stamps, expected)


def test_principal_components_are_the_same_every_time():
    noise = np.random.default_rng(0).standard_normal((50, 1, 6, 6))
    np.testing.assert_array_equal(pca_codes(noise, 4), pca_codes(noise, 4))
