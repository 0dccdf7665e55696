"""Units that were made from a property are said to follow it, and units of noise nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, norm
from sklearn.linear_model import Ridge

from vae_astro.collapse import meaning
from vae_astro.collapse.meaning import (
    CodeMeaning,
    UnitMeaning,
    explain_code,
    in_words,
    is_nuisance,
)

N = 600


def draw_properties(seed: int = 0, n: int = N) -> dict[str, np.ndarray]:
    """Independent properties with the distributions that stamps have."""
    rng = np.random.default_rng(seed)
    return {
        "sky_level": rng.uniform(50, 400, n),
        "good_fraction": np.where(rng.random(n) < 0.3, rng.uniform(0.5, 1, n), 1.0),
        "seeing": rng.choice([1.5, 1.8, 2.1, 2.5, 3.0], n),
        "flux": np.exp(rng.normal(5, 2, n)),
        "size": rng.gamma(3, 1, n),
        "orientation": rng.uniform(0, 180, n),
        "x_offset": rng.normal(0, 1, n),
    }


def noise(k: int = 1, seed: int = 1, n: int = N) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, k))


def explain(means: np.ndarray, properties: dict[str, np.ndarray], **changes) -> CodeMeaning:
    given = {"kl_per_unit": np.linspace(2, 1, means.shape[1]),
             "active": np.ones(means.shape[1], bool)} | changes  # fmt: skip
    return explain_code(means, properties=properties, **given)


def standard(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / values.std()


# One by one


def test_a_unit_follows_the_property_that_it_was_made_from_along_any_curve():
    properties = draw_properties()
    means = noise(3)
    means[:, 1] = -(np.log(properties["flux"]) ** 3)
    found = explain(means, properties)
    unit = {unit.unit: unit for unit in found.units}[1]
    assert unit.follows == "flux"
    assert unit.correlation == pytest.approx(-1.0)
    assert unit.sentence == "Unit 1 (1.5 nats) follows the flux of the source (|r| = 1)."


def test_a_correlation_is_spearmans():
    properties = draw_properties()
    means = noise() + 0.5 * standard(properties["size"])[:, None]
    found = explain(means, properties)
    ranks = [np.argsort(np.argsort(values)) for values in (means[:, 0], properties["size"])]
    expected = np.corrcoef(*ranks)[0, 1]
    k = found.properties.index("size")
    assert found.correlations[0, k] == pytest.approx(expected, abs=1e-12)
    assert 0.3 < expected < 0.7
    assert "leans on" in found.units[0].sentence


def test_ties_share_their_mean_rank():
    ranks = meaning._standard_ranks(np.array([[3.0], [1.0], [3.0], [2.0]]))
    np.testing.assert_allclose(ranks[:, 0], standard(np.array([3.5, 1.0, 3.5, 2.0])))


@pytest.mark.parametrize("phase_deg", [0.0, 30.0, 75.0])
def test_an_orientation_is_found_whatever_angle_the_unit_is_made_for(phase_deg):
    properties = draw_properties()
    theta = np.radians(properties["orientation"] - phase_deg)
    means = np.cos(2 * theta)[:, None] + 0.2 * noise()
    found = explain(means, properties)
    assert found.units[0].follows == "orientation"
    assert found.units[0].correlation > 0.9
    # the next orientation after 180 degrees is 0 again
    turned = properties | {"orientation": (properties["orientation"] + 180 * (noise()[:, 0] > 0))}
    again = explain(means, turned)
    np.testing.assert_allclose(again.correlations, found.correlations, atol=1e-9)


def test_the_multiple_correlation_is_that_of_a_regression_on_both_columns():
    rng = np.random.default_rng(3)
    target = meaning._standardised(rng.normal(size=(200, 2)) @ np.array([[1.0, 0.6], [0.0, 0.8]]))
    unit = meaning._standardised(target @ np.array([[0.3], [-0.5]]) + rng.normal(size=(200, 1)))
    fitted = target @ np.linalg.lstsq(target, unit, rcond=None)[0]
    assert meaning._correlations(unit, target)[0] == pytest.approx(fitted.std(), rel=1e-9)


def test_units_are_told_from_the_most_nats_down_by_their_own_numbers():
    found = explain(noise(4), draw_properties(), kl_per_unit=np.array([0.1, 3.0, 0.5, 2.0]))
    assert [unit.unit for unit in found.units] == [1, 3, 2, 0]
    assert [unit.kl_nats for unit in found.units] == [3.0, 2.0, 0.5, 0.1]


def test_only_active_units_are_explained_however_well_the_others_correlate():
    properties = draw_properties()
    means = noise(2)
    means[:, 0] = 1e-6 * properties["flux"]
    found = explain(means, properties, active=np.array([False, True]))
    assert [unit.unit for unit in found.units] == [1]
    assert found.readable["flux"] < 0.1


# Chance


def test_units_of_noise_follow_nothing():
    n_found = 0
    for seed in range(100):
        found = explain(noise(4, seed=1000 + seed), draw_properties(seed))
        n_found += any(unit.follows for unit in found.units)
        assert max(found.readable.values()) < 0.1
    # one in a hundred by construction; five of them have a chance of 1 in 300
    assert n_found < 5
    assert "follows nothing that was measured" in found.units[0].sentence
    assert "none of the measured properties" in found.sentences[-1]


def test_the_floor_is_what_chance_reaches_as_often_as_is_told(monkeypatch):
    monkeypatch.setattr(meaning, "CHANCE", 0.2)
    n, n_trials = 60, 3000
    rng = np.random.default_rng(0)
    units = meaning._standard_ranks(rng.normal(size=(n, n_trials)))
    plain = meaning._target("size", rng.normal(size=n))
    angle = meaning._target("orientation", rng.uniform(0, 180, n))
    for target in (plain, angle):
        floor = meaning._floor(n, 1, target.shape[1])
        share = np.mean(np.abs(meaning._correlations(units, target)) > floor)
        assert share == pytest.approx(0.2, abs=0.03)  # four standard errors


def test_more_comparisons_raise_the_floor_and_more_stamps_lower_it():
    assert meaning._floor(500, 100, 1) > meaning._floor(500, 1, 1) > meaning._floor(5000, 1, 1)
    assert meaning._floor(500, 100, 2) > meaning._floor(500, 100, 1)


# Together


def test_what_two_units_carry_together_is_read_from_both():
    properties = draw_properties()
    x = standard(properties["x_offset"])
    other = noise(seed=5)[:, 0]
    means = np.stack([x + other, x - other], axis=1)
    found = explain(means, properties)
    assert all(abs(unit.correlation) < 0.8 for unit in found.units)
    assert found.readable["x_offset"] > 0.9
    assert found.readable["size"] < 0.1
    assert "predict (R2) the column of the source (0.9" in " ".join(found.sentences)


def test_an_orientation_is_read_from_the_two_units_of_its_double_angle():
    properties = draw_properties()
    double = 2 * np.radians(properties["orientation"])
    found = explain(np.stack([np.cos(double), np.sin(double)], axis=1), properties)
    assert found.readable["orientation"] > 0.95


def test_many_units_of_noise_predict_nothing_because_it_is_cross_validated():
    found = explain(noise(64, n=200), draw_properties(n=200))
    assert max(found.readable.values()) < 0.1


# Alive, and useless


def test_a_unit_that_follows_the_sky_alone_is_alive_and_useless():
    properties = draw_properties()
    means = standard(properties["sky_level"])[:, None] + 0.1 * noise()
    found = explain(means, properties)
    assert found.is_useless
    assert found.sentences[0].startswith("Unit 0 (2 nats) follows the sky level (|r| = 0.99")
    assert found.sentences[-1].startswith("Alive, and useless")


def test_a_source_that_the_sky_gives_away_does_not_make_the_unit_useful():
    # with minmax the sky lies lower the brighter the source: the unit need know the sky only
    properties = draw_properties()
    properties["normalized_sky"] = -np.log(properties["flux"]) + 0.3 * noise(seed=7)[:, 0]
    means = properties["normalized_sky"][:, None] + 0.05 * noise()
    found = explain(means, properties)
    assert found.readable["flux"] > 0.8
    assert found.beyond_nuisances["flux"] < 0.1
    assert found.is_useless


@pytest.mark.parametrize("other", ["flux", "orientation"])
def test_one_unit_that_knows_the_source_makes_the_code_useful(other):
    properties = draw_properties()
    means = np.stack([properties["sky_level"], np.cos(2 * np.radians(properties[other]))], axis=1)
    if other == "flux":
        means[:, 1] = properties["flux"]
    assert not explain(means, properties).is_useless


def test_a_code_that_turns_the_sky_and_the_source_into_each_other_is_useful():
    properties = draw_properties()
    sky, flux = standard(properties["sky_level"]), standard(np.log(properties["flux"]))
    means = np.stack([1.2 * sky + flux, 1.2 * sky - flux], axis=1)
    found = explain(means, properties)
    assert all(unit.follows == "sky_level" for unit in found.units)
    assert not found.is_useless


def test_units_that_follow_nothing_measured_are_not_called_useless():
    assert not explain(noise(2), draw_properties()).is_useless


# What is left out


def test_stamps_without_a_property_count_for_the_others():
    properties = draw_properties()
    means = standard(np.log(properties["flux"]))[:, None] + 0.2 * noise()
    full = explain(means, properties)
    properties["flux"] = properties["flux"].copy()
    properties["flux"][::3] = np.nan
    found = explain(means, properties)
    flux, size = (found.properties.index(name) for name in ("flux", "size"))
    assert found.units[0].follows == "flux"
    assert found.correlations[0, size] == full.correlations[0, size]
    assert found.correlations[0, flux] == pytest.approx(full.correlations[0, flux], abs=0.02)
    rest = np.arange(N) % 3 != 0
    known = explain(means[rest], {name: values[rest] for name, values in properties.items()})
    assert found.correlations[0, flux] == pytest.approx(known.correlations[0, flux], abs=1e-12)


@pytest.mark.parametrize(
    "values",
    [
        np.full(N, 3.0),
        np.full(N, np.nan),
        np.where(np.arange(N) < 25, np.arange(N), np.nan),  # 25 stamps tell nothing
        np.where(np.arange(N) < 20, np.arange(N), 1e3),  # the same for 580 of 600
        np.full(N, np.inf),
    ],
    ids=["constant", "unknown", "few", "nearly constant", "infinite"],
)
def test_a_property_that_tells_nothing_is_left_out(values):
    found = explain(noise(2), draw_properties() | {"peak": values})
    assert found.left_out == ("peak",)
    assert "peak" not in found.properties
    json.dumps(found.as_dict(), allow_nan=False)


def test_a_nuisance_that_is_unknown_for_some_stamps_costs_no_stamps():
    properties = draw_properties()
    properties["seeing"] = np.where(np.arange(N) % 2, properties["seeing"], np.nan)
    means = standard(np.log(properties["flux"]))[:, None]
    assert explain(means, properties).beyond_nuisances["flux"] > 0.95


def test_without_properties_or_units_there_is_nothing_to_tell():
    nothing = explain(noise(2), {})
    assert [(u.unit, u.follows, u.correlation, u.floor) for u in nothing.units] == [
        (0, None, 0.0, 1.0),
        (1, None, 0.0, 1.0),
    ]
    assert not nothing.is_useless
    dead = explain(noise(2), draw_properties(), active=np.zeros(2, bool))
    assert dead.units == ()
    assert dead.sentences == ()
    for found in (nothing, dead):
        json.dumps(found.as_dict(), allow_nan=False)


def test_a_constant_unit_follows_nothing():
    found = explain(np.zeros((N, 1)), draw_properties())
    assert found.units[0].follows is None
    assert set(found.correlations[0]) == {0.0}


def test_of_many_stamps_a_fixed_draw_is_compared(monkeypatch):
    monkeypatch.setattr(meaning, "MOST_STAMPS", 200)
    properties = draw_properties()
    means = standard(properties["size"])[:, None]
    first, second = explain(means, properties), explain(means, properties)
    assert first.n_stamps == 200
    assert first.units[0].follows == "size"
    assert first.as_dict() == second.as_dict()


@given(scale=st.floats(1e-6, 1e6), shift=st.floats(-1e3, 1e3))
def test_units_of_another_scale_are_told_the_same(scale, shift):
    properties = draw_properties(n=100)
    means = np.round(noise(n=100), 3) + np.round(properties["size"], 3)[:, None]
    one = explain(means, properties).correlations
    np.testing.assert_allclose(explain(scale * (means + shift), properties).correlations, one,
                               atol=1e-3)  # fmt: skip


# For a person and for a file


def test_the_dictionary_is_plain_python_and_holds_every_correlation():
    properties = draw_properties()
    found = explain(standard(properties["flux"])[:, None], properties)
    again = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert again["units"][0]["follows"] == "flux"
    assert set(again["units"][0]["correlations"]) == set(properties)
    assert again["units"][0]["correlations"]["flux"] == pytest.approx(1.0)
    assert again["readable_r2"]["flux"] > 0.99
    assert set(again["r2_beyond_nuisances"]) == {"flux", "size", "orientation", "x_offset"}
    assert again["only_nuisances"] is False


@pytest.mark.parametrize(
    ("name", "words", "nuisance"),
    [
        ("sky_level", "the sky level", True),
        ("sky_level_template", "the sky level (template)", True),
        ("offset_difference", "the distance of the source from the centre (difference)", False),
        ("x_offset", "the column of the source", False),
        ("my_colour", "my colour", False),
    ],
)
def test_a_property_of_another_band_keeps_its_meaning(name, words, nuisance):
    assert in_words(name) == words
    assert is_nuisance(name) is nuisance


@pytest.mark.parametrize(
    "changes",
    [
        {"kl_per_unit": np.ones(3)},
        {"active": np.ones(3, bool)},
        {"properties": {"flux": np.ones(N - 1)}},
        {"means": np.full((N, 2), np.nan)},
    ],
)
def test_what_does_not_fit_is_refused(changes):
    given = {"means": noise(2), "properties": draw_properties()} | changes
    with pytest.raises(ValueError, match=r"units|shape|finite"):
        explain(**given)


# The words, in full


def unit_of(correlation: float, follows: str | None = "size", unit: int = 3) -> UnitMeaning:
    return UnitMeaning(unit, 1.234, follows, correlation, 0.1234)


@pytest.mark.parametrize(
    ("correlation", "told"),
    [
        (0.9, "follows the size of the source (|r| = 0.9)."),
        (-0.7, "follows the size of the source (|r| = 0.7)."),
        (0.699, "leans on the size of the source (|r| = 0.699)."),
        (-0.4, "leans on the size of the source (|r| = 0.4)."),
        (0.39, "hints at the size of the source (|r| = 0.39)."),
    ],
)
def test_a_sentence_is_as_strong_as_its_correlation(correlation, told):
    assert unit_of(correlation).sentence == f"Unit 3 (1.2 nats) {told}"


def test_a_unit_that_follows_nothing_is_told_the_floor_of_chance():
    assert unit_of(0.05, None).sentence == (
        "Unit 3 (1.2 nats) follows nothing that was measured (|r| < 0.12)."
    )


def code_of(*units: UnitMeaning, readable=None, beyond=None) -> CodeMeaning:
    return CodeMeaning(
        units=units,
        properties=("size", "flux"),
        correlations=np.arange(2.0 * len(units)).reshape(-1, 2),
        readable=readable or {},
        beyond_nuisances=beyond or {},
        left_out=("peak",),
        n_stamps=77,
    )


def test_three_units_and_the_three_best_properties_are_told():
    units = [unit_of(0.9, unit=k) for k in range(4)]
    told = code_of(
        *units, readable={"size": 0.2, "flux": 0.91, "peak": 0.3, "seeing": 0.25, "x_offset": 0.1}
    ).sentences
    assert told[:3] == tuple(unit.sentence for unit in units[:3])
    assert told[3:] == (
        "Together the active units predict (R2) the flux of the source (0.91), the brightest pixel "
        "of the source (0.30), the seeing (0.25).",
    )
    only = code_of(units[0], readable={"size": 0.2, "flux": 0.19}).sentences[1:]
    assert only == ("Together the active units predict (R2) the size of the source (0.20).",)
    none = code_of(units[0], readable={"flux": 0.19}).sentences[1:]
    assert none == ("Together the active units predict none of the measured properties.",)
    assert code_of(units[0]).sentences == (units[0].sentence,)


def test_a_useless_code_is_told_what_to_do():
    useless = code_of(unit_of(0.9, "sky_level"), beyond={"flux": 0.199})
    assert useless.sentences[-1] == (
        "Alive, and useless: beyond the sky, the bad pixels and the seeing the code says nothing "
        "of the sources; normalise the sky away (data.normalize.stretch=asinh) or lower the final "
        "beta."
    )


def test_a_code_is_useless_only_if_all_of_it_is():
    sky, size, nothing = unit_of(0.9, "sky_level"), unit_of(0.9, "size"), unit_of(0.0, None)
    assert code_of(sky, sky, beyond={"flux": 0.1, "size": 0.199}).is_useless
    assert not code_of(sky, beyond={"flux": 0.1, "size": 0.2}).is_useless
    assert not code_of(sky, size, beyond={"flux": 0.1}).is_useless
    assert not code_of(sky, nothing, beyond={"flux": 0.1}).is_useless
    assert not code_of(sky).is_useless  # nothing of the source was measured
    assert not code_of(beyond={"flux": 0.1}).is_useless


def test_the_dictionary_has_these_keys():
    found = code_of(unit_of(0.9), readable={"size": 0.5}, beyond={"size": 0.25}).as_dict()
    assert found == {
        "n_stamps": 77,
        "units": [
            {
                "unit": 3,
                "kl_nats": 1.234,
                "follows": "size",
                "correlation": 0.9,
                "chance_floor": 0.1234,
                "correlations": {"size": 0.0, "flux": 1.0},
            }
        ],
        "readable_r2": {"size": 0.5},
        "r2_beyond_nuisances": {"size": 0.25},
        "left_out": ["peak"],
        "only_nuisances": False,
    }


# Closed forms


def test_the_floor_is_that_of_fisher_and_of_the_beta_distribution():
    # scipy's quantiles, 0.01 shared by 5 comparisons
    z = norm.isf(0.01 / 5 / 2) * np.sqrt(1.06 / 97)
    assert meaning._floor(100, 5, 1) == pytest.approx(np.tanh(z), rel=1e-9)
    r2 = beta.isf(0.01 / 5, 1, 97 / 2)
    assert meaning._floor(100, 5, 2) == pytest.approx(np.sqrt(r2), rel=1e-9)


def test_floors_count_all_units_and_properties():
    properties = {name: draw_properties()[name] for name in ("flux", "size", "orientation")}
    found = explain(noise(4), properties)
    floors = {
        name: meaning._floor(N, 4 * 3, 2 if name == "orientation" else 1) for name in properties
    }
    for unit, row in zip(found.units, found.correlations, strict=True):
        # nothing passes: the nearest to its floor is told
        margins = [abs(r) - floors[name] for name, r in zip(properties, row, strict=True)]
        nearest = found.properties[int(np.argmax(margins))]
        assert unit.follows is None
        assert unit.floor == floors[nearest]
        assert unit.correlation == row[found.properties.index(nearest)]


def test_what_is_predicted_is_ridge_regression_on_the_other_folds():
    rng = np.random.default_rng(4)
    predictors = meaning._standardised(rng.normal(size=(100, 3)))
    target = meaning._standardised(predictors[:, :1] + rng.normal(size=(100, 1)))
    folds = np.random.default_rng(0).permutation(100) % 5
    error = 0.0
    for k in range(5):
        rest, out = folds != k, folds == k
        ridge = Ridge(alpha=1e-3 * rest.sum(), fit_intercept=False)
        centre = target[rest].mean()
        ridge.fit(predictors[rest], target[rest, 0] - centre)
        error += np.square(target[out, 0] - centre - ridge.predict(predictors[out])).sum()
    found = meaning._predicted(predictors, target)
    assert found == pytest.approx(1 - error / np.square(target).sum(), rel=1e-9)
    assert 0.2 < found < 0.8


def test_a_source_that_is_a_nuisance_by_another_name_leaves_nothing_to_tell():
    properties = draw_properties() | {"flux": draw_properties()["sky_level"]}
    found = explain(standard(properties["flux"])[:, None], properties)
    assert found.readable["flux"] > 0.99
    assert found.beyond_nuisances["flux"] == 0.0


def test_without_nuisances_all_that_is_read_is_of_the_source():
    properties = {name: draw_properties()[name] for name in ("flux", "size")}
    found = explain(standard(properties["size"])[:, None] + noise(), properties)
    assert found.beyond_nuisances == found.readable


@pytest.mark.parametrize(
    ("n_known", "n_same", "varies"),
    [(30, 1, True), (29, 1, False), (100, 95, True), (100, 96, False)],
)
def test_a_property_varies_from_thirty_stamps_and_five_per_cent_on(n_known, n_same, varies):
    values = np.full(200, np.nan)
    values[:n_known] = np.arange(n_known)
    values[:n_same] = -1.0
    assert meaning._varies(values) is varies


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kl_per_unit": np.ones(3)}, "2 units, but (3,) KL, (2,)"),
        ({"active": np.ones(3, bool)}, "2 units, but (2,) KL, (3,)"),
        ({"properties": {"flux": np.ones(9)}}, "flux has shape (9,), expected (600,)"),
        ({"means": np.full((N, 2), np.inf)}, "posterior means must be finite"),
    ],
)
def test_a_refusal_says_what_does_not_fit(changes, message):
    given = {"means": noise(2), "properties": draw_properties()} | changes
    with pytest.raises(ValueError, match=r".") as refused:
        explain(**given)
    assert str(refused.value) == message
