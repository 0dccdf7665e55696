"""Fitted classes: bad input, several networks, and the same answer after they were kept."""

from __future__ import annotations

import numpy as np
import pytest

from vae_astro.errors import InputError
from vae_astro.evaluate.class_model import ClassModel, Network, Search, fit_classes
from vae_astro.evaluate.clusters import hard_classes

LEAST = 0.01
Z = 3
NETWORK = Network((0, 1, 2))


def posteriors(n: int = 120, seed: int = 0, turn: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Codes of three groups; ``turn`` moves the units around, as another network might."""
    mean = np.random.default_rng(seed).standard_normal((n, Z)) * 0.3
    mean += 2 * np.eye(3)[np.arange(n) % 3]
    return np.roll(mean, turn, axis=1).astype("f4"), np.full((n, Z), 0.2, "f4")


def search(**keys: object) -> Search:
    return Search(**{"n_classes": 3, "n_seeds": 2, "n_draws": 4, **keys})


@pytest.mark.parametrize("method", ["mixture", "kmeans", "hdbscan"])
def test_two_networks_agree_on_clear_groups_and_the_kept_model_says_the_same(method, tmp_path):
    both = [posteriors(), posteriors(seed=1, turn=1)]
    wanted = search(method=method, n_classes="auto" if method == "hdbscan" else 3)
    model, consensus, _ = fit_classes(both, [NETWORK] * 2, wanted, LEAST)
    assert (model.n_classes, len(consensus.votes)) == (3, 4)
    assert consensus.ari_between_networks > 0.95
    told = hard_classes(consensus.shares)
    assert len({(k, c) for k, c in zip(np.arange(120) % 3, told, strict=True) if c >= 0}) == 3
    model.save(tmp_path / "kept.npz")
    again = ClassModel.load(tmp_path / "kept.npz", [NETWORK] * 2)
    np.testing.assert_array_equal(again.shares(both), consensus.shares)
    assert again.digest == model.digest


def test_the_same_seed_gives_the_same_classes_and_another_another_model():
    one, other, moved = (
        fit_classes([posteriors()], [NETWORK], search(seed=seed), LEAST)[0] for seed in (0, 0, 1)
    )
    assert one.digest == other.digest != moved.digest


def test_the_number_of_classes_is_found_by_its_curve():
    model, _, curve = fit_classes([posteriors()], [NETWORK], search(n_classes="auto"), LEAST)
    assert curve.best("icl") == model.n_classes == 3


def components(z: np.ndarray) -> np.ndarray:
    return np.eye(3)[z.argmax(axis=1)]


def test_components_of_a_prior_are_taken_as_they_are(tmp_path):
    network = Network((0, 1, 2), components)
    wanted = search(method="prior", n_classes="auto", n_draws=1)
    model, consensus, _ = fit_classes([posteriors()], [network], wanted, LEAST)
    np.testing.assert_array_equal(hard_classes(consensus.shares), np.arange(120) % 3)
    model.save(tmp_path / "kept.npz")
    again = ClassModel.load(tmp_path / "kept.npz", [network])
    np.testing.assert_array_equal(again.shares([posteriors()]), consensus.shares)


def test_a_prior_without_components_is_refused():
    with pytest.raises(InputError, match="method=prior needs"):
        fit_classes([posteriors()], [NETWORK], search(method="prior", n_classes="auto"), LEAST)


@pytest.mark.parametrize("method", ["mixture", "kmeans"])
def test_one_class_takes_all(method):
    model, consensus, _ = fit_classes(
        [posteriors()], [NETWORK], search(method=method, n_classes=1), LEAST
    )
    assert model.n_classes == 1
    np.testing.assert_allclose(consensus.shares, 1)


def test_as_many_classes_as_stamps_is_the_limit():
    few = posteriors(12)
    _, consensus, _ = fit_classes([few], [NETWORK], search(n_classes=12), LEAST)
    assert np.isfinite(consensus.shares).all()
    with pytest.raises(InputError, match="n_classes=13 is more than the 12 stamps"):
        fit_classes([few], [NETWORK], search(n_classes=13), LEAST)


def test_two_stamps_are_too_few():
    with pytest.raises(InputError, match="2 stamps are too few"):
        fit_classes([posteriors(2)], [NETWORK], search(), LEAST)


def test_identical_stamps_are_refused():
    same = np.zeros((30, Z), "f4"), np.ones((30, Z), "f4")
    with pytest.raises(InputError, match="the same code"):
        fit_classes([same], [NETWORK], search(), LEAST)


def test_two_different_stamps_repeated_are_two_classes_at_most():
    mean, std = posteriors(2)
    twice = np.repeat(mean, 20, axis=0), np.repeat(std, 20, axis=0)
    model, consensus, _ = fit_classes([twice], [NETWORK], search(n_classes="auto"), LEAST)
    assert model.n_classes <= 2
    assert np.isfinite(consensus.shares).all()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"method": "birch"}, "method"),
        ({"n_classes": 0}, "n_classes"),
        ({"n_classes": "many"}, "n_classes must be auto"),
        ({"n_classes": 2.5}, "n_classes"),
        ({"method": "hdbscan"}, "leave n_classes=auto"),
        ({"max_classes": 0}, "max_classes"),
        ({"covariance": "round"}, "covariance"),
        ({"criterion": "aic"}, "criterion"),
        ({"min_class_size": 1}, "min_class_size"),
        ({"n_seeds": 0}, "n_seeds"),
        ({"seed": -1}, "seed"),
        ({"subsample": 0}, "subsample"),
        ({"subsample": 1.5}, "subsample"),
        ({"n_draws": 0}, "n_draws"),
        ({"unsure_below": 2}, "unsure_below"),
    ],
)
def test_settings_out_of_range_name_their_key(keys, message):
    with pytest.raises(InputError, match=message):
        search(**keys)


def test_a_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "kept.npz").write_bytes(b"nothing")
    with pytest.raises(InputError, match="classes: cannot read"):
        ClassModel.load(tmp_path / "kept.npz", [NETWORK])
    np.savez(tmp_path / "kept.npz", other=np.zeros(3))
    with pytest.raises(InputError, match="classes: cannot read"):
        ClassModel.load(tmp_path / "kept.npz", [NETWORK])


def test_another_number_of_networks_is_refused(tmp_path):
    fit_classes([posteriors()], [NETWORK], search(), LEAST)[0].save(tmp_path / "kept.npz")
    with pytest.raises(InputError, match="names 2 networks"):
        ClassModel.load(tmp_path / "kept.npz", [NETWORK] * 2)
