"""States on histories that are made up: when a run is called what, and when it is not."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from vae_astro.collapse.health import FAIR_CHANCE, SLOW_CHANCE, Health


def states_of(
    history: Sequence[tuple[int, float]], health: Health | None = None, *, growing: int = 0
) -> list[str]:
    """State after each (active units, KL) of validations spread evenly over a run.

    For the first ``growing`` of them the schedule still holds the KL down.
    """
    health = health or Health(16)
    n = len(history)
    states = []
    for k, (active, kl) in enumerate(history):
        health.update(100 * (k + 1), (k + 1) / n, active, kl, growing=k < growing)
        states.append(health.state)
    return states


ALIVE, FEW, DEAD = (16, 30.0), (3, 2.0), (0, 0.001)


def test_a_healthy_run_is_healthy_from_its_second_validation() -> None:
    assert states_of([ALIVE] * 5) == ["starting"] + ["healthy"] * 4


def test_kl_that_falls_as_beta_rises_is_healthy() -> None:
    falling = [(16, kl) for kl in np.geomspace(500, 30, 10)] + [(12, 30.0)] * 10
    assert set(states_of(falling)[1:]) == {"healthy"}


def test_cycles_of_beta_are_healthy() -> None:
    cycles = [(16, 300.0), (16, 80.0), (14, 40.0), (9, 20.0), (8, 15.0)] * 4
    assert set(states_of(cycles)[1:]) == {"healthy"}


def test_a_run_dead_from_the_start_is_called_so_within_its_first_quarter() -> None:
    for n in (8, 20, 100):
        states = states_of([DEAD] * n)
        first = states.index("collapsed") + 1
        assert FAIR_CHANCE <= first / n <= 0.25
        assert set(states[first:]) <= {"collapsed"}
    health = Health(16)
    states_of([DEAD] * 20, health)
    assert health.began_at_step == 0


def test_a_young_run_that_then_learns_was_never_in_trouble() -> None:
    states = states_of([DEAD, DEAD, (4, 1.0), (9, 5.0), (15, 10.0), *[ALIVE] * 15])
    assert set(states) == {"starting", "healthy"}


def test_a_slow_run_whose_kl_multiplies_is_given_its_time_unless_it_has_no_hope() -> None:
    waking = [(0, 0.0033), (0, 0.0311), (13, 0.996), (15, 3.8), (16, 6.8), *[ALIVE] * 5]
    assert "collapsed" not in states_of(waking)
    assert states_of(waking, Health(16, may_live=False))[1] == "collapsed"
    noise = [(0, kl) for kl in (1e-4, 2e-4, 8e-4, 1e-3, 5e-4) * 4]
    assert states_of(noise)[4] == "collapsed"


def test_a_run_that_gains_its_units_slowly_is_not_collapsing_until_half_of_it_is_over() -> None:
    states = states_of([FEW] * 20)
    assert set(states[: int(20 * SLOW_CHANCE) - 1]) == {"starting"}
    assert states[-1] == "collapsing"


def test_trouble_takes_two_validations_in_a_row_and_began_with_the_first() -> None:
    health = Health(16)
    states = states_of([ALIVE, ALIVE, DEAD, ALIVE, FEW, DEAD, DEAD], health)
    assert states[2:5] == ["healthy"] * 3
    assert states[5:] == ["collapsing", "collapsed"]
    assert health.began_at_step == 500


def test_recovery_takes_two_validations_above_a_higher_threshold() -> None:
    health = Health(16)
    assert health.enough_units == 8
    assert health.enough_again == 10
    states = states_of([ALIVE, ALIVE, FEW, FEW, (9, 5.0), (9, 5.0), (10, 5.0), (10, 5.0)], health)
    assert states[3:] == ["collapsing"] * 4 + ["healthy"]
    assert health.began_at_step is None
    dead = [ALIVE, ALIVE, DEAD, DEAD, (12, 0.15), (12, 0.15), (12, 0.5), (12, 0.5)]
    assert states_of(dead)[3:] == ["collapsed"] * 4 + ["healthy"]


@pytest.mark.parametrize("seed", range(5))
def test_noise_around_a_threshold_does_not_flap(seed: int) -> None:
    rng = np.random.default_rng(seed)
    kl = 0.1 * rng.lognormal(sigma=0.2, size=200)  # around the threshold of a full collapse
    states = states_of([ALIVE, ALIVE, *((16, float(value)) for value in kl)])
    assert n_changes(states[1:]) <= 1
    active = rng.choice([7, 8, 9], size=200)  # around the threshold of too few units
    states = states_of([ALIVE, ALIVE, *((int(value), 5.0) for value in active)])
    assert n_changes(states[1:]) <= 1


def n_changes(states: Sequence[str]) -> int:
    return sum(one != other for one, other in itertools.pairwise(states))


def test_units_that_a_rising_capacity_holds_down_are_no_collapse() -> None:
    rising = [(3, 2.0)] * 12 + [ALIVE] * 8
    assert "collapsing" not in states_of(rising, growing=12)
    assert "collapsing" in states_of(rising)
    assert states_of([DEAD] * 20, growing=20)[5] == "collapsed"


def test_a_run_needs_no_more_units_than_half_of_what_the_stamps_feed() -> None:
    five = [(3, 6.0)] * 20
    assert set(states_of(five, Health(5))[1:]) == {"healthy"}
    assert states_of([(1, 1.0)] * 5, Health(1))[-1] == "healthy"


def test_state_goes_on_as_if_uninterrupted() -> None:
    history = [ALIVE, ALIVE, FEW, FEW, DEAD, DEAD, ALIVE, ALIVE]
    whole = states_of(history)
    for stop in range(1, len(history)):
        health = Health(16)
        states_of(history[:stop], health)
        saved = health.state_dict()
        assert all(type(value) in (int, float, str, bool, type(None)) for value in saved.values())
        health = Health.from_state_dict(saved)
        states = []
        for k, (active, kl) in enumerate(history[stop:], stop + 1):
            health.update(100 * k, k / len(history), active, kl)
            states.append(health.state)
        assert states == whole[stop:]
        assert dataclasses.asdict(health)["began_at_step"] is None


def test_only_a_state_that_two_validations_agree_on_is_one_to_come_back_to() -> None:
    health = Health(16)
    well = []
    for k, (active, kl) in enumerate([ALIVE, ALIVE, DEAD, ALIVE, ALIVE]):
        health.update(k, k / 5, active, kl)
        well.append(health.is_well)
    assert well == [False, True, False, True, True]


# -- at the thresholds ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "enough", "again"),
    [(0, 1, 0), (1, 1, 1), (2, 1, 2), (3, 2, 3), (5, 3, 4), (8, 4, 5), (16, 8, 10), (32, 16, 20)],
)
def test_half_of_the_expected_units_are_enough_and_an_eighth_more_again(
    expected: int, enough: int, again: int
) -> None:
    health = Health(expected)
    assert (health.enough_units, health.enough_again) == (enough, again)


@pytest.mark.parametrize(
    ("validation", "state"),
    [
        ((8, 0.1), "healthy"),
        ((8, 0.0999), "collapsed"),
        ((7, 5.0), "starting"),  # too few, and too early to say so
        ((0, 50.0), "collapsed"),
    ],
)
def test_what_two_validations_show_at_the_thresholds(
    validation: tuple[int, float], state: str
) -> None:
    # KL does not grow, and the second comes after a fair chance
    health = Health(16)
    health.update(10, 0.1, *validation)
    health.update(20, 0.15, *validation)
    assert health.state == state


@pytest.mark.parametrize(("kl", "state"), [(0.2, "healthy"), (0.199, "collapsed")])
def test_a_collapsed_code_has_to_carry_twice_as_much_to_be_alive(kl: float, state: str) -> None:
    health = Health(16, state="collapsed", began_at_step=0)
    health.update(10, 0.5, 16, kl)
    health.update(20, 0.6, 16, kl)
    assert health.state == state


@pytest.mark.parametrize(
    ("before", "after", "state"),
    [
        (0.02, 0.03, "collapsed"),  # not above a factor of 1.5
        (0.02, 0.031, "starting"),
        (1e-5, 1e-3, "collapsed"),  # not above chance
        (1e-5, 1.1e-3, "starting"),
    ],
)
def test_a_code_that_wakes_up_grows_by_half_and_above_chance(
    before: float, after: float, state: str
) -> None:
    health = Health(16)
    health.update(10, 0.3, 0, before)
    health.update(20, 0.4, 0, after)
    assert health.state == state


@pytest.mark.parametrize(("progress", "state"), [(0.1499, "starting"), (0.15, "collapsed")])
def test_a_dead_code_has_its_fair_chance(progress: float, state: str) -> None:
    health = Health(16)
    health.update(1, 0.01, 0, 0.0)
    changed = health.update(2, progress, 0, 0.0)
    assert (health.state, changed) == (state, state == "collapsed")


@pytest.mark.parametrize(("progress", "state"), [(0.4999, "starting"), (0.5, "collapsing")])
def test_a_code_of_few_units_has_half_of_the_run(progress: float, state: str) -> None:
    health = Health(16)
    health.update(1, 0.4, *FEW)
    health.update(2, progress, *FEW)
    assert health.state == state


def test_a_state_gets_worse_only_as_far_as_both_validations_say() -> None:
    health = Health(16)
    for k, validation in enumerate([ALIVE, ALIVE, FEW, DEAD]):
        health.update(10 * k, k / 10, *validation)
    assert (health.state, health.began_at_step) == ("collapsing", 20)
    health.update(40, 0.4, *DEAD)
    assert (health.state, health.began_at_step) == ("collapsed", 20)
    for k, validation in enumerate([ALIVE, FEW], 5):
        health.update(10 * k, k / 10, *validation)
    assert (health.state, health.began_at_step) == ("collapsing", 20)


def test_a_validation_that_a_rising_capacity_explains_leaves_no_trace() -> None:
    health = Health(16)
    health.update(10, 0.1, *ALIVE)
    before = health.state_dict()
    assert health.update(20, 0.2, *FEW, growing=True) is False
    assert health.state_dict() == before
