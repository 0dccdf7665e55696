"""Plans on spectra that are made up: the least change that is enough, in its order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vae_astro.collapse.forecast import outlook
from vae_astro.collapse.rescue import (
    MOST_RESCUES,
    Plan,
    changes,
    outlook_set_right,
    plan_rescue,
)
from vae_astro.collapse.spectrum import Spectrum
from vae_astro.model.likelihoods import LIKELIHOODS
from vae_astro.objective.beta import FINAL_BETA, SCHEDULES, RatePenalty
from vae_astro.settings import build

N_STEPS = 1000
EIGENVALUES = np.geomspace(400, 20, 16)
N_PIXELS, NOISE = 1000, 1.0
SETTINGS: dict[str, dict[str, Any]] = {
    "sigma": {"name": "sigma", "learn": "closed_form"},
    "gaussian": {"name": "gaussian", "std": 1.0},
    "pixel_mean_mse": {"name": "pixel_mean_mse", "kl_weight": 1.0},
    "bernoulli": {"name": "bernoulli", "kind": "continuous"},
}


def spectrum_of(likelihood: dict[str, Any], eigenvalues: np.ndarray = EIGENVALUES) -> Spectrum:
    """Stamps of one band with these eigenvalues above a noise of variance 1 in every direction."""
    built = build("likelihood", LIKELIHOODS, likelihood, n_bands=1)
    total = eigenvalues.sum() + NOISE * (N_PIXELS - len(eigenvalues))
    if built.learns_scale:
        s2 = total / N_PIXELS
    else:
        s2 = {"gaussian": likelihood.get("std", 1.0) ** 2, "pixel_mean_mse": N_PIXELS / 2}.get(
            likelihood["name"], 1.0
        )
    return Spectrum(
        eigenvalues=eigenvalues / s2,
        overlap=np.eye(len(eigenvalues))[None],
        variance=np.array([total / s2]),
        fitting_variance=np.array([float(N_PIXELS)]),
        decoder_variance=np.array([s2]),
        learned_scale=built.learns_scale,
        kl_weight=built.kl_weight,
        n_stamps=1000,
        n_pixels=N_PIXELS,
    )


def settings_of(likelihood: str = "sigma", beta: dict[str, Any] | None = None, **extra: Any) -> Any:
    beta = beta or {"name": "linear", "start": 0.0, "end": 1.0, "warmup_fraction": 0.2}
    return {
        "likelihood": SETTINGS[likelihood] | extra,
        "beta": {"free_bits_nats": 0.0} | beta,
        "optim": {"lr": 1e-3},
        "seed": 0,
    }


def plan_of(settings: Any, *tried: str, **kwargs: Any) -> Plan | None:
    spectrum = spectrum_of(settings["likelihood"], **kwargs)
    return plan_rescue(settings, spectrum, 16, N_STEPS, tried)


def planned(settings: Any, *tried: str) -> Plan:
    plan = plan_of(settings, *tried)
    assert plan is not None
    return plan


def linear(end: float) -> dict[str, Any]:
    return {"name": "linear", "start": 0.0, "end": end, "warmup_fraction": 0.2}


def test_too_high_a_beta_is_lowered_and_nothing_else() -> None:
    settings = settings_of(beta=linear(1e4))
    plan = planned(settings)
    assert plan.kind == "lower beta"
    assert list(changes(settings, plan.settings)) == ["beta.end"]
    assert plan.before.active_units == 0
    assert plan.after.active_units == 16
    # well below the bound: with twice as much, all units would still live
    doubled = RatePenalty(1.95 * plan.settings["beta"]["end"])
    assert outlook(spectrum_of(settings["likelihood"]), 16, doubled).active_units == 16
    assert plan.from_healthy


def test_beta_is_not_lowered_below_the_bound_where_the_bound_will_do() -> None:
    few = np.array([400.0, 300.0, 200.0, 2.1])  # the fourth lives at beta = 1, but not at 2
    settings = settings_of(beta=linear(1e4))
    plan = plan_of(settings, eigenvalues=few)
    assert plan is not None
    assert plan.settings["beta"]["end"] == 1.0


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_every_schedule_can_be_lowered_and_still_builds(name: str) -> None:
    group = {"name": name, FINAL_BETA[name]: 1e5}
    if name == "cyclical":
        group["start"] = 500.0
    if name == "capacity":
        group["capacity_nats"] = 0.05
    if name == "geco":
        group |= {"start": 2e4, "minimum": 1e4}
    plan = planned(settings_of(beta=group))
    beta = plan.settings["beta"]
    assert plan.kind == "lower beta"
    assert beta[FINAL_BETA[name]] < 100
    build("beta", SCHEDULES, beta, total_steps=N_STEPS)
    assert all(beta[key] <= beta[FINAL_BETA[name]] for key in ("start", "minimum") if key in beta)


def test_too_wide_a_density_learns_its_width_and_beta_stays() -> None:
    settings = settings_of("gaussian", std=30.0)
    plan = planned(settings)
    assert plan.kind == "learned sigma"
    assert plan.settings["likelihood"] == SETTINGS["sigma"]
    assert plan.settings["beta"] == settings["beta"]
    assert plan.after.active_units == 16


def test_a_beta_below_one_beside_a_given_width_is_no_way_out() -> None:
    """At std 30 a beta of 0.01 would do in training; the bound would prefer the collapsed code."""
    settings = settings_of("gaussian", std=30.0)
    low = RatePenalty(0.01)
    assert outlook(spectrum_of(settings["likelihood"]), 16, low).active_units == 16
    assert planned(settings).kind != "lower beta"
    wide = settings_of("gaussian", std=2.0, beta=linear(1e4))
    plan = planned(wide)  # here the bound itself keeps them
    assert plan.kind == "lower beta"
    assert plan.settings["beta"]["end"] >= 1


def test_a_mean_over_pixels_becomes_a_density() -> None:
    plan = planned(settings_of("pixel_mean_mse", kl_weight=1000.0))
    assert plan.settings["likelihood"] == SETTINGS["sigma"]
    assert plan.after.active_units == 16


def test_a_wide_density_and_a_high_beta_are_both_mended() -> None:
    settings = settings_of("gaussian", std=30.0, beta=linear(1e4))
    plan = planned(settings)
    assert plan.kind == "learned sigma and lower beta"
    assert plan.settings["likelihood"] == SETTINGS["sigma"]
    assert 1 <= plan.settings["beta"]["end"] < 1e4


def test_settings_that_are_sound_get_a_gentler_way_there() -> None:
    constant = settings_of(beta={"name": "constant", "value": 1.0})
    plan = planned(constant)
    assert plan.kind == "free bits and warm-up"
    beta = plan.settings["beta"]
    assert (beta["name"], beta["start"], beta["end"]) == ("linear", 0.0, 1.0)
    assert beta["warmup_fraction"] == 0.5
    assert 0 < beta["free_bits_nats"] <= 0.5
    build("beta", SCHEDULES, beta, total_steps=N_STEPS)
    long = settings_of(beta=linear(1.0) | {"warmup_fraction": 0.6, "start": 3.0})
    assert planned(long).settings["beta"]["warmup_fraction"] == 0.8
    assert planned(long).settings["beta"]["start"] == 0.0
    assert "sound" in plan.reason
    assert not plan.from_healthy  # what lies behind is not to be trusted


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_every_schedule_that_is_sound_can_be_made_gentler_and_still_builds(name: str) -> None:
    plan = planned(settings_of(beta={"name": name}))
    assert plan.kind == "free bits and warm-up"
    build("beta", SCHEDULES, plan.settings["beta"], total_steps=N_STEPS)


def test_what_failed_is_not_tried_again() -> None:
    settings = planned(settings_of(beta=linear(1e4))).settings
    kinds = ["lower beta"]
    while (plan := plan_of(settings, *kinds)) is not None:
        assert plan.kind not in kinds
        kinds.append(plan.kind)
        settings = plan.settings
    assert kinds == ["lower beta", "free bits and warm-up", "learning rate"]
    assert len(kinds) == MOST_RESCUES
    assert settings["optim"]["lr"] == pytest.approx(1e-4)


def test_free_bits_come_last_where_the_settings_are_at_fault() -> None:
    settings = settings_of("gaussian", std=30.0)
    assert planned(settings, "learned sigma", "learned sigma and lower beta").kind == "free bits"
    had = settings_of("gaussian", std=30.0, beta=linear(1.0) | {"free_bits_nats": 0.001})
    plan = planned(had, "learned sigma", "learned sigma and lower beta")
    assert plan.settings["beta"]["free_bits_nats"] > 0.1
    assert plan.after.active_units >= 8


def test_stamps_that_feed_no_unit_cannot_be_rescued() -> None:
    flat = np.full(16, NOISE)
    assert outlook_set_right(spectrum_of(SETTINGS["sigma"], flat), 16).active_units == 0
    assert plan_of(settings_of(beta=linear(1e4)), eigenvalues=flat) is None


def test_half_of_what_the_stamps_feed_is_enough_however_wide_the_code() -> None:
    three = np.array([400.0, 300.0, 200.0])
    plan = plan_of(settings_of(beta=linear(1e4)), eigenvalues=three)
    assert plan is not None
    assert plan.after.active_units == 3


def test_logits_keep_no_meaning_as_pixels() -> None:
    faint = EIGENVALUES / 1e3  # of a score whose own threshold is 1
    settings = settings_of("bernoulli")
    plan = plan_rescue(settings, spectrum_of(settings["likelihood"], faint), 16, N_STEPS)
    assert plan is None or not plan.from_healthy
    settings = settings_of("bernoulli", beta=linear(1e4))
    plan = planned(settings, "lower beta")
    assert plan.kind == "learned sigma and lower beta"
    assert not plan.from_healthy


def test_a_plan_leaves_the_settings_as_they_are() -> None:
    settings = settings_of("gaussian", std=30.0, beta=linear(1e4))
    before = repr(settings)
    planned(settings)
    assert repr(settings) == before


def test_changes_are_listed_by_key_with_old_and_new() -> None:
    old = {"beta": {"name": "constant", "value": 2.0}, "seed": 0, "resume": None}
    new = {"beta": {"name": "linear", "end": 2.0}, "seed": 0, "resume": None}
    assert changes(old, new) == {
        "beta.name": ["constant", "linear"],
        "beta.value": [2.0, None],
        "beta.end": [None, 2.0],
    }
    assert changes({"trainer": {"max_epochs": None}}, {"trainer": {"max_epochs": 9}}) == {
        "trainer.max_epochs": [None, 9]
    }


# -- reasons, and what else a plan holds ---------------------------------------------------------

GIVEN_WIDTH = (
    "likelihood=gaussian takes the width of its density as given; likelihood=sigma learns it"
)


def test_every_plan_gives_its_reason() -> None:
    high, wide = settings_of(beta=linear(1e4)), settings_of("gaussian", std=30.0)
    assert planned(high).reason == "the final beta of 1e+04 leaves 0 of 16 units"
    assert planned(wide).reason == GIVEN_WIDTH
    both = settings_of("gaussian", std=30.0, beta=linear(1e4))
    assert planned(both).reason == (
        f"{GIVEN_WIDTH}, and the final beta of 1e+04 leaves 0 of 16 units"
    )
    last = planned(wide, "learned sigma", "learned sigma and lower beta")
    assert last.reason == "the settings leave 0 of 16 units"


def test_every_plan_for_sound_settings_gives_its_reason() -> None:
    surprise = (
        "the forecast finds the settings sound ({} of 16 units), so the way there was at fault"
    )
    sound = settings_of()
    assert planned(sound).reason == surprise.format(16)
    slower = planned(sound, "free bits and warm-up")
    assert (slower.kind, slower.reason) == (
        "learning rate",
        surprise.format(16) + ": shorter steps",
    )
    given_width = settings_of("gaussian", std=2.0)
    learned = planned(given_width, "free bits and warm-up", "learning rate")
    assert (learned.kind, learned.reason) == ("learned sigma", GIVEN_WIDTH)
    # some directions are lost at 30, but not half of them
    tight = planned(settings_of(beta=linear(30.0)), "free bits and warm-up", "learning rate")
    assert 8 <= tight.before.active_units < tight.after.active_units == 16
    assert tight.kind == "lower beta"
    assert tight.reason == surprise.format(tight.before.active_units) + ": more room"


def test_a_window_on_the_source_outlives_a_change_of_likelihood() -> None:
    settings = settings_of("gaussian", std=30.0)
    spectrum = spectrum_of(settings["likelihood"])
    settings["likelihood"]["focus_radius"] = 5.0
    plan = plan_rescue(settings, spectrum, 16, N_STEPS)
    assert plan is not None
    assert plan.settings["likelihood"] == SETTINGS["sigma"] | {"focus_radius": 5.0}


@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid"])
@pytest.mark.parametrize(
    ("had", "longer"),
    [
        ({}, 0.5),
        ({"warmup_fraction": 0.49}, 0.5),
        ({"warmup_fraction": 0.5}, 0.8),
        ({"warmup_fraction": None, "warmup_steps": 10}, 0.5),
    ],
)
def test_a_warm_up_gets_longer_from_zero(name: str, had: dict[str, Any], longer: float) -> None:
    plan = planned(settings_of(beta={"name": name, "start": 0.5, **had}))
    beta = plan.settings["beta"]
    assert beta["name"] == name
    assert (beta["start"], beta["warmup_steps"], beta["warmup_fraction"]) == (0.0, None, longer)


def test_a_schedule_without_a_rise_gets_free_bits_alone() -> None:
    settings = settings_of(beta={"name": "cyclical", "end": 1.0})
    assert list(changes(settings, planned(settings).settings)) == ["beta.free_bits_nats"]


def test_free_bits_are_half_of_what_a_unit_has_to_say_and_half_a_nat_at_most() -> None:
    # one nat and more for each of 16 units of EIGENVALUES: the cap
    assert planned(settings_of()).settings["beta"]["free_bits_nats"] == 0.5
    assert plan_free_bits(had=0.4) == 0.8
    faint = np.full(16, 3.0)
    right = outlook_set_right(spectrum_of(SETTINGS["sigma"], faint), 16)
    plan = plan_of(settings_of(), eigenvalues=faint)
    assert plan is not None
    each = right.kl_nats / 16
    assert 0.3 < each < 1.0
    assert plan.settings["beta"]["free_bits_nats"] == float(f"{each / 2:.2g}")


def plan_free_bits(had: float) -> float:
    settings = settings_of(beta=linear(1.0) | {"free_bits_nats": had})
    return planned(settings).settings["beta"]["free_bits_nats"]


def test_three_rescues_are_the_most() -> None:
    settings = settings_of(beta=linear(1e4))
    assert plan_of(settings, "one", "two") is not None
    assert plan_of(settings, "one", "two", "three") is None


def test_half_of_an_odd_number_of_units_is_rounded_up() -> None:
    # 4 and more units above beta = 25 would be enough of seven, three are not
    seven = np.array([400.0, 300.0, 200.0, 5.0, 4.0, 3.5, 3.0])
    settings = settings_of("gaussian", beta=linear(25.0))
    plan = plan_of(settings, eigenvalues=seven)
    assert plan is not None
    assert plan.before.active_units == 3
    assert plan.from_healthy  # the settings are at fault
    assert plan.after.active_units >= 4


def test_the_learning_rate_is_a_tenth_and_nothing_else_changes() -> None:
    settings = settings_of()
    settings["optim"]["warmup_steps"] = 7
    plan = planned(settings, "free bits and warm-up")
    assert changes(settings, plan.settings) == {"optim.lr": [1e-3, 1e-4]}


def test_a_bernoulli_run_that_stays_one_goes_on_from_its_healthy_state() -> None:
    settings = settings_of("bernoulli", beta=linear(1e4))
    plan = planned(settings)
    assert plan.kind == "lower beta"
    assert plan.from_healthy
