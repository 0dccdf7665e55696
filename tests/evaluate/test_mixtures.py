"""Gaussian mixtures against scikit-learn and scipy, and the number of classes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from vae_astro.evaluate.mixtures import COVARIANCES, Curve, Mixture, fit_mixture, n_classes_curve


def blobs(n: int = 240, apart: float = 6.0) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (
        rng.standard_normal((n, 2)) + apart * np.array([[0, 0], [1, 0], [0, 1]])[np.arange(n) % 3]
    )


def test_densities_are_those_of_scipy():
    rng = np.random.default_rng(0)
    roots = rng.normal(size=(2, 3, 3))
    mixture = Mixture(
        np.array([0.3, 0.7]), rng.normal(size=(2, 3)), roots @ roots.transpose(0, 2, 1) + np.eye(3)
    )
    z = rng.normal(size=(20, 3))
    parts = [
        weight * multivariate_normal(mean, covariance).pdf(z)
        for weight, mean, covariance in zip(
            mixture.weights, mixture.means, mixture.covariances, strict=True
        )
    ]
    np.testing.assert_allclose(mixture.log_density(z), np.log(sum(parts)), rtol=1e-10)
    np.testing.assert_allclose(mixture.at(z)[:, 0], parts[0] / sum(parts), rtol=1e-10)


def test_far_codes_have_shares_that_sum_to_one():
    mixture = fit_mixture(blobs(), 3, "full", 0)
    np.testing.assert_allclose(mixture.at(np.array([[1e4, -1e4], [1e8, 0]])).sum(axis=1), 1)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_every_kind_of_covariance_finds_the_centres(covariance):
    found = fit_mixture(blobs(1500), 3, covariance, 0)
    order = np.lexsort(found.means.round().T)
    np.testing.assert_allclose(found.means[order], [[0, 0], [6, 0], [0, 6]], atol=0.2)
    np.testing.assert_allclose(found.covariances, np.tile(np.eye(2), (3, 1, 1)), atol=0.25)
    np.testing.assert_allclose(found.weights, 1 / 3, atol=0.02)


@pytest.mark.parametrize("criterion", ["bic", "icl"])
def test_the_number_of_groups_is_found(criterion):
    curve = n_classes_curve([blobs()], 6, "full", 0)
    assert curve.n_classes == (1, 2, 3, 4, 5, 6)
    assert curve.best(criterion) == 3


def test_icl_charges_for_overlap_that_bic_does_not_mind():
    rng = np.random.default_rng(0)
    # a narrow and a wide component around the same place: two for the density, one class
    codes = np.vstack([rng.normal(0, 0.6, (600, 2)), rng.normal(0, 1.6, (600, 2))])
    curve = n_classes_curve([codes], 3, "full", 0)
    assert curve.best("bic") > 1
    assert curve.best("icl") == 1
    assert all(icl >= bic for icl, bic in zip(curve.icl, curve.bic, strict=True))


def test_one_component_costs_the_same_by_both():
    curve = n_classes_curve([blobs(60)], 1, "diag", 0)
    assert curve.bic == pytest.approx(curve.icl)


def test_criteria_are_averaged_over_networks():
    one, two = blobs(), 0.5 * blobs(apart=2)
    both, *each = (n_classes_curve(codes, 2, "tied", 0) for codes in ([one, two], [one], [two]))
    np.testing.assert_allclose(both.bic, np.mean([curve.bic for curve in each], axis=0))


def test_few_stamps_are_not_cut_into_many_classes():
    assert n_classes_curve([blobs(25)], 20, "full", 0).n_classes == (1, 2)


def test_the_best_is_the_lowest():
    assert Curve((1, 2, 3), (3.0, 1.0, 2.0), (1.0, 2.0, 3.0)).best("bic") == 2
