"""Schedules: where they start, how they rise, where they stay, and what they refuse."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from vae_astro.errors import InputError
from vae_astro.objective.beta import (
    FINAL_BETA,
    SCHEDULES,
    RatePenalty,
    Schedule,
    constant,
    final_beta,
    lowered,
)
from vae_astro.settings import build

RAMPS = ("linear", "cosine", "sigmoid")


def schedule(name: str, *, total_steps: int = 1000, **keys: object) -> Schedule:
    """A schedule as the config builds it."""
    return build("beta", SCHEDULES, {"name": name, **keys}, total_steps=total_steps)


def betas(made: Schedule, n_steps: int) -> list[float]:
    return [made(step).beta for step in range(n_steps)]


# -- constant ------------------------------------------------------------------------------------


def test_constant_beta_is_its_value_at_every_step():
    assert {schedule("constant", value=0.25)(step).beta for step in (0, 1, 10**9)} == {0.25}


def test_constant_beta_without_settings_is_the_plain_elbo():
    assert constant()(0) == RatePenalty(beta=1.0, free_bits_nats=0.0, capacity_nats=None)


# -- ramps ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RAMPS)
def test_ramp_passes_through_start_middle_and_end_and_stays_there(name):
    made = schedule(name, start=0.2, end=1.0, warmup_steps=10)
    assert made(0).beta == 0.2
    assert made(5).beta == pytest.approx(0.6)
    assert [made(step).beta for step in (10, 11, 10**9)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("linear", lambda t: t),
        ("cosine", lambda t: np.sin(0.5 * np.pi * t) ** 2),
        (
            "sigmoid",
            lambda t: (expit(10 * (t - 0.5)) - expit(-5.0)) / (expit(5.0) - expit(-5.0)),
        ),
    ],
)
def test_ramp_follows_its_formula(name, shape):
    t = np.arange(21) / 20
    np.testing.assert_allclose(
        betas(schedule(name, end=2.0, warmup_steps=20), 21), 2 * shape(t), atol=1e-14
    )


@pytest.mark.parametrize("steepness", [1e-6, 0.5, 10, 1e6])
def test_sigmoid_reaches_both_ends_exactly_for_any_steepness(steepness):
    made = schedule("sigmoid", start=0.3, end=0.7, warmup_steps=100, steepness=steepness)
    assert made(0).beta == 0.3
    assert made(100).beta == 0.7
    assert made(99).beta == pytest.approx(0.7, abs=0.01)  # no jump at the end


def test_sigmoid_of_little_steepness_is_a_straight_line():
    made = schedule("sigmoid", warmup_steps=100, steepness=1e-3)
    np.testing.assert_allclose(betas(made, 101), np.arange(101) / 100, atol=1e-6)


def test_sigmoid_of_great_steepness_is_a_step_in_the_middle():
    made = schedule("sigmoid", warmup_steps=100, steepness=1e4)
    assert betas(made, 101) == [0.0] * 50 + [0.5] + [1.0] * 50


@pytest.mark.parametrize("name", RAMPS)
def test_warmup_fraction_is_counted_in_steps_of_the_run(name):
    by_fraction = schedule(name, total_steps=400, warmup_fraction=0.25)
    by_steps = schedule(name, total_steps=400, warmup_steps=100)
    assert betas(by_fraction, 400) == betas(by_steps, 400)
    assert by_fraction(99).beta < by_fraction(100).beta == 1.0


@pytest.mark.parametrize("name", RAMPS)
def test_warmup_steps_win_over_the_fraction(name):
    made = schedule(name, total_steps=400, warmup_steps=10, warmup_fraction=0.9)
    assert made(9).beta < made(10).beta == 1.0


@pytest.mark.parametrize("name", RAMPS)
def test_warmup_steps_do_not_depend_on_the_length_of_the_run(name):
    short, long = (schedule(name, total_steps=n, warmup_steps=50) for n in (10, 10_000))
    assert betas(short, 60) == betas(long, 60)


@pytest.mark.parametrize("name", RAMPS)
def test_ramp_of_a_run_of_one_step_is_over_after_that_step(name):
    made = schedule(name, total_steps=1, start=0.1)
    assert (made(0).beta, made(1).beta) == (0.1, 1.0)


@given(
    name=st.sampled_from(RAMPS),
    start=st.floats(0, 10),
    end=st.floats(0, 10),
    total_steps=st.integers(1, 10**6),
    fraction=st.floats(0, 1),
    steps=st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)),
)
@settings(deadline=None)
def test_ramp_moves_one_way_and_never_leaves_its_ends(
    name, start, end, total_steps, fraction, steps
):
    made = schedule(name, total_steps=total_steps, start=start, end=end, warmup_fraction=fraction)
    earlier, later = (made(step).beta for step in sorted(steps))
    slack = 1e-12  # rounding of start + (end - start) t
    assert (later - earlier) * math.copysign(1, end - start) >= -slack
    assert min(start, end) - slack <= earlier <= max(start, end) + slack
    assert made(max(total_steps, 1)).beta == end


# -- cyclical ------------------------------------------------------------------------------------


def test_cyclical_rises_holds_and_starts_again():
    made = schedule("cyclical", total_steps=80, start=0.2, end=1.0, n_cycles=4, ramp_fraction=0.5)
    cycle = [0.2 + 0.8 * min(step / 10, 1.0) for step in range(20)]
    np.testing.assert_allclose(betas(made, 80), cycle * 4, rtol=1e-12)


def test_cyclical_stays_at_the_end_after_the_last_cycle():
    made = schedule("cyclical", total_steps=80, end=0.9)
    assert [made(step).beta for step in (79, 80, 81, 100, 10**9)] == [0.9] * 5


@pytest.mark.parametrize(("n_cycles", "total_steps"), [(1, 100), (3, 100), (7, 1000), (4, 97)])
def test_cyclical_falls_once_between_two_cycles(n_cycles, total_steps):
    values = betas(schedule("cyclical", total_steps=total_steps, n_cycles=n_cycles), total_steps)
    assert sum(after < before for before, after in itertools.pairwise(values)) == n_cycles - 1


def test_cyclical_without_a_hold_is_a_saw():
    made = schedule("cyclical", total_steps=20, n_cycles=2, ramp_fraction=1.0)
    np.testing.assert_allclose(betas(made, 20), [step / 10 for step in range(10)] * 2, atol=1e-12)


# -- capacity and free bits ----------------------------------------------------------------------


def test_capacity_rises_in_a_straight_line_under_a_constant_weight():
    made = schedule("capacity", gamma=30.0, capacity_nats=25.0, warmup_steps=100)
    assert [made(step).capacity_nats for step in (0, 50, 100, 10**6)] == [0.0, 12.5, 25.0, 25.0]
    assert {made(step).beta for step in (0, 50, 100)} == {30.0}


def test_capacity_takes_its_fraction_of_the_run():
    made = schedule("capacity", total_steps=200, capacity_nats=10.0, warmup_fraction=0.5)
    assert made(50).capacity_nats == pytest.approx(5.0)
    assert made(99).capacity_nats < made(100).capacity_nats == 10.0


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "capacity"])
def test_only_capacity_has_a_capacity(name):
    assert schedule(name)(3).capacity_nats is None


@pytest.mark.parametrize("name", SCHEDULES)
def test_free_bits_stay_the_same_at_every_step(name):
    made = schedule(name, free_bits_nats=0.125)
    assert {made(step).free_bits_nats for step in (0, 500, 10**6)} == {0.125}


# -- defaults ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RAMPS)
def test_ramps_rise_from_nothing_to_the_bound_over_a_fifth_of_the_run(name):
    plain = SCHEDULES[name](total_steps=100)
    written = SCHEDULES[name](
        total_steps=100, start=0.0, end=1.0, warmup_steps=20, free_bits_nats=0.0
    )
    assert [plain(step) for step in range(101)] == [written(step) for step in range(101)]
    assert plain(19).beta < plain(20).beta == 1.0


def test_sigmoid_is_ten_scales_wide_unless_told_otherwise():
    plain, written = schedule("sigmoid"), schedule("sigmoid", steepness=10.0)
    assert betas(plain, 200) == betas(written, 200)
    assert plain(50).beta != schedule("sigmoid", steepness=11.0)(50).beta


def test_cyclical_has_four_cycles_that_rise_for_half_of_their_time():
    plain = SCHEDULES["cyclical"](total_steps=80)
    cycle = [min(step / 10, 1.0) for step in range(20)]
    np.testing.assert_allclose(betas(plain, 80), cycle * 4, atol=1e-12)
    assert plain(5).free_bits_nats == 0.0


def test_capacity_reaches_twenty_five_nats_after_four_fifths_of_the_run():
    plain = SCHEDULES["capacity"](total_steps=100)
    assert plain(40) == RatePenalty(1.0, 0.0, 12.5)
    assert [plain(step).capacity_nats for step in (80, 100)] == [25.0, 25.0]
    assert plain(79).capacity_nats < 25.0


def test_cyclical_of_a_run_of_one_step_or_none_ends_after_it():
    for total_steps in (0, 1):
        made = schedule("cyclical", total_steps=total_steps, start=0.1, end=0.7)
        assert (made(0).beta, made(1).beta) == (0.1, 0.7)


@pytest.mark.parametrize("name", SCHEDULES)
def test_free_bits_have_a_bound_that_no_code_reaches(name):
    assert schedule(name, free_bits_nats=1e6)(0).free_bits_nats == 1e6
    with pytest.raises(InputError) as refused:
        schedule(name, free_bits_nats=2e6)
    assert str(refused.value) == "beta.free_bits_nats must be at most 1e+06, got 2e+06"


# -- what all share ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
def test_penalty_depends_on_the_step_alone(name):
    # a run resumed at any step, on a schedule built anew, sees what the uninterrupted run saw
    uninterrupted, resumed = schedule(name, total_steps=50), schedule(name, total_steps=50)
    in_order = [uninterrupted(step) for step in range(60)]
    steps = random.Random(0).sample(range(60), 60)
    assert [resumed(step) for step in steps] == [in_order[step] for step in steps]


@pytest.mark.parametrize("name", [*RAMPS, "cyclical"])
def test_beta_may_fall(name):
    made = schedule(name, total_steps=100, start=4.0, end=1.0)
    assert (made(0).beta, made(100).beta) == (4.0, 1.0)
    assert 1.0 < made(1).beta < 4.0


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("linear", {"warmup_steps": 0}, "beta.warmup_steps must be at least 1, got 0"),
        ("linear", {"warmup_steps": -1}, "beta.warmup_steps must be at least 1, got -1"),
        ("cosine", {"warmup_steps": 2.5}, "beta.warmup_steps must be a whole number, got 2.5"),
        ("capacity", {"warmup_steps": 0}, "beta.warmup_steps must be at least 1, got 0"),
        ("linear", {"warmup_fraction": 1.5}, "beta.warmup_fraction must be at most 1, got 1.5"),
        ("linear", {"warmup_fraction": -0.1}, "beta.warmup_fraction must be at least 0, got -0.1"),
        (
            "sigmoid",
            {"warmup_fraction": None},
            "give beta.warmup_steps (in steps) or beta.warmup_fraction (of the run)",
        ),
        ("constant", {"value": -1}, "beta.value must be at least 0, got -1"),
        (
            "constant",
            {"value": math.nan},
            "beta.value must be a finite number, got nan",
        ),
        ("constant", {"value": "1"}, "beta.value must be a finite number, got '1'"),
        ("linear", {"start": -0.5}, "beta.start must be at least 0, got -0.5"),
        ("cosine", {"end": math.inf}, "beta.end must be a finite number, got inf"),
        ("sigmoid", {"steepness": 0}, "beta.steepness must be greater than 0, got 0"),
        ("sigmoid", {"steepness": math.nan}, "beta.steepness must be a finite number, got nan"),
        ("cyclical", {"start": -1}, "beta.start must be at least 0, got -1"),
        ("cyclical", {"end": -1}, "beta.end must be at least 0, got -1"),
        ("cosine", {"end": -0.5}, "beta.end must be at least 0, got -0.5"),
        ("cyclical", {"end": math.nan}, "beta.end must be a finite number, got nan"),
        ("cyclical", {"n_cycles": 0}, "beta.n_cycles must be at least 1, got 0"),
        ("cyclical", {"n_cycles": True}, "beta.n_cycles must be a whole number, got True"),
        ("cyclical", {"ramp_fraction": 0}, "beta.ramp_fraction must be greater than 0, got 0"),
        ("cyclical", {"ramp_fraction": 1.1}, "beta.ramp_fraction must be at most 1, got 1.1"),
        ("capacity", {"gamma": -1}, "beta.gamma must be at least 0, got -1"),
        ("capacity", {"capacity_nats": -5}, "beta.capacity_nats must be at least 0, got -5"),
        *(
            (name, {"free_bits_nats": -0.1}, "beta.free_bits_nats must be at least 0, got -0.1")
            for name in SCHEDULES
        ),
    ],
)
def test_setting_out_of_range_is_refused_by_its_key(name, keys, message):
    with pytest.raises(InputError) as refused:
        schedule(name, **keys)
    assert str(refused.value) == message


@pytest.mark.parametrize("name", SCHEDULES)
def test_length_of_the_run_cannot_be_set_by_the_user(name):
    with pytest.raises(InputError, match=rf"beta={name} has no setting beta\.total_steps"):
        build("beta", SCHEDULES, {"name": name, "total_steps": 5}, total_steps=100)


# -- the end of a schedule -----------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_final_beta_of_settings_is_that_of_the_schedule_they_make(name):
    for group in ({"name": name}, {"name": name, FINAL_BETA[name]: 3.0}):
        made = build("beta", SCHEDULES, group, total_steps=100)
        expected = None if made.controller is not None else made(100).beta
        assert final_beta(group) == expected


@pytest.mark.parametrize(
    "unknown", [None, "linear", {}, {"name": ["linear"]}, {"name": "linear", "end": "high"}]
)
def test_what_is_no_schedule_has_no_final_beta(unknown):
    assert final_beta(unknown) is None


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("start", [None, 40.0])
def test_a_lowered_schedule_stays_at_or_below_its_new_end(name, start):
    has_start = start is not None and name not in ("constant", "capacity")
    group = {"name": name, FINAL_BETA[name]: 50.0} | ({"start": start} if has_start else {})
    change = lowered(group, 0.005)
    assert change[FINAL_BETA[name]] == 0.005
    assert ("start" in change) == (has_start or name == "geco"), "geco starts at 1 by default"
    assert ("minimum" in change) == (name == "geco")
    made = build("beta", SCHEDULES, group | change, total_steps=100)
    assert max(betas(made, 100)) <= 0.005


def test_a_schedule_that_starts_below_its_new_end_starts_there():
    assert lowered({"name": "linear", "start": 0.1, "end": 4.0}, 2.0) == {"end": 2.0}
