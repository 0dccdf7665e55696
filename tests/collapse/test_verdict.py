"""Where none, partial and full collapse begin, and what the paragraph says."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from vae_astro.collapse.forecast import Forecast, forecast
from vae_astro.collapse.meaning import explain_code
from vae_astro.collapse.spectrum import Spectrum
from vae_astro.collapse.units import ACTIVE_VARIANCE, FULL_COLLAPSE_NATS, verdict_of
from vae_astro.collapse.verdict import (
    Change,
    Circumstances,
    CollapseVerdict,
    _round_down,
    explain,
    judge,
    still_rising,
)
from vae_astro.errors import InputError
from vae_astro.objective.beta import SCHEDULES, linear
from vae_astro.settings import build


def means_of_variance(*variances: float, n_stamps: int = 10) -> np.ndarray:
    """Posterior means (N, Z) that vary by exactly this much around 3, one unit each."""
    signs = np.where(np.arange(n_stamps) % 2, 1.0, -1.0)
    return 3 + signs[:, None] * np.sqrt(variances)


def kl(*nats: float, n_stamps: int = 10) -> np.ndarray:
    """The same KL per unit for every stamp, (N, Z)."""
    return np.tile(nats, (n_stamps, 1))


def judged_plainly(means: np.ndarray, kl_per_unit: np.ndarray) -> CollapseVerdict:
    """What `judge` says under a prior of unit width."""
    return judge(means, kl_per_unit, np.ones(means.shape[1]))


def test_unit_is_active_if_its_mean_varies_over_stamps_more_than_the_threshold():
    variances = (0.0, 0.99 * ACTIVE_VARIANCE, 1.01 * ACTIVE_VARIANCE, 1.0)
    judged = judged_plainly(means_of_variance(*variances), kl(1, 1, 1, 1))
    assert (judged.active_units, judged.latent_dim) == (2, 4)


def test_unit_whose_mean_is_far_from_zero_but_constant_is_not_active():
    means = np.full((300_000, 2), 123.456, dtype=np.float32)
    assert judged_plainly(means, np.ones_like(means)).active_units == 0


def test_active_variance_is_that_of_burda():
    assert ACTIVE_VARIANCE == 0.01


@pytest.mark.parametrize(
    ("active_units", "latent_dim", "verdict"),
    [
        (0, 4, "full"),
        (1, 4, "partial"),
        (2, 4, "none"),
        (4, 4, "none"),
        (1, 3, "partial"),
        (2, 3, "none"),
        (1, 1, "none"),
        (0, 1, "full"),
        (7, 16, "partial"),
        (8, 16, "none"),
    ],
)
def test_collapse_is_partial_below_half_of_the_units_and_full_without_any(
    active_units, latent_dim, verdict
):
    variances = [1.0] * active_units + [0.0] * (latent_dim - active_units)
    judged = judged_plainly(means_of_variance(*variances), kl(*[1.0] * latent_dim))
    assert judged.verdict == verdict


@pytest.mark.parametrize(
    ("total", "verdict"), [(0.99 * FULL_COLLAPSE_NATS, "full"), (1.01 * FULL_COLLAPSE_NATS, "none")]
)
def test_code_of_almost_no_nats_is_fully_collapsed_though_its_units_vary(total, verdict):
    assert judged_plainly(means_of_variance(1, 1), kl(total / 2, total / 2)).verdict == verdict


def test_kl_is_averaged_over_stamps_and_summed_over_units():
    judged = judged_plainly(means_of_variance(1, 1, n_stamps=2), np.array([[1.0, 4.0], [3.0, 6.0]]))
    assert judged.kl_per_unit_nats == (2.0, 5.0)
    assert judged.kl_nats == 7.0


def test_float32_kl_is_averaged_in_double_precision():
    kl_per_unit = np.full((300_000, 1), 0.1, dtype=np.float32)
    judged = judged_plainly(means_of_variance(1, n_stamps=300_000), kl_per_unit)
    assert judged.kl_nats == pytest.approx(float(np.float32(0.1)), rel=1e-12)


def test_judged_numbers_are_plain_python():
    judged = judged_plainly(means_of_variance(1, 0).astype(np.float32), kl(1, 2).astype(np.float32))
    assert type(judged.active_units) is int
    assert {type(nats) for nats in judged.kl_per_unit_nats} == {float}


def spectrum_of(*eigenvalues: float, s2: float = 1.0, learned: bool = False) -> Spectrum:
    """One band of 100 pixels whose other directions have a variance of 0.5 each."""
    total = sum(eigenvalues) + 0.5 * (100 - len(eigenvalues))
    s2 = total / 100 if learned else s2
    return Spectrum(
        eigenvalues=np.array(eigenvalues) / s2,
        overlap=np.eye(len(eigenvalues))[None],
        variance=np.array([total / s2]),
        fitting_variance=np.array([100.0]),
        decoder_variance=np.array([s2]),
        learned_scale=learned,
        kl_weight=1.0,
        n_stamps=1000,
        n_pixels=100,
    )


def foreseen(spectrum: Spectrum, latent_dim: int, beta: float, start: float = 0.0) -> Forecast:
    schedule = linear(total_steps=100, start=start, end=beta)
    return forecast(spectrum, latent_dim, schedule, 100)


def judged_as(*kl_per_unit: float) -> CollapseVerdict:
    """A verdict in which every unit with a KL is active."""
    active = sum(nats > 0.01 for nats in kl_per_unit)
    return CollapseVerdict(
        verdict_of(active, len(kl_per_unit), sum(kl_per_unit)),
        active,
        len(kl_per_unit),
        kl_per_unit,
    )


RUN = Circumstances(total_steps=1000)


def test_a_run_that_came_as_forecast_needs_no_cause() -> None:
    told = explain(judged_as(1.0, 0.7), foreseen(spectrum_of(8.0, 4.0), 2, 1.0), None, RUN)
    assert told.cause is None
    assert told.change is None
    assert told.paragraph == (
        "No collapse: 2 of 2 latent units are active and carry 1.7 nats per stamp. Forecast before "
        "training: no collapse, 1.73 nats in 2 units; the KL came within 2 %."
    )


def test_too_large_a_sigma_is_named_and_a_learned_one_offered() -> None:
    far = foreseen(spectrum_of(8.0, 4.0, s2=50.0), 2, 1.0)
    told = explain(judged_as(0.0, 0.0), far, None, RUN)
    assert "beta * s2 is 50, and the stamps vary by 8" in str(told.cause)
    assert str(told.change).startswith("likelihood=sigma")
    assert told.change.settings == ("likelihood=sigma",)
    assert "It was forecast before training." in told.paragraph


def test_too_high_a_beta_is_named_and_the_change_is_enough() -> None:
    spectrum = spectrum_of(8.0, 4.0, learned=True)
    told = explain(judged_as(0.0, 0.0), foreseen(spectrum, 2, 40.0), None, RUN)
    change = str(told.change)
    assert change.startswith("a lower final beta, beta.end=")
    lowered = float(change.rpartition("=")[2])
    assert foreseen(spectrum, 2, lowered).verdict == "none"


def test_a_constant_schedule_is_told_its_own_key() -> None:
    spectrum = spectrum_of(8.0, 4.0, learned=True)
    run = Circumstances(1000, beta={"name": "constant", "value": 40.0})
    told = explain(judged_as(0.0, 0.0), foreseen(spectrum, 2, 40.0, start=40.0), None, run)
    assert "beta.value=" in str(told.change)


@pytest.mark.parametrize(
    ("beta", "keys"),
    [
        ({"name": "linear", "start": 40.0, "end": 40.0}, ["end", "start"]),
        ({"name": "capacity", "gamma": 40.0}, ["gamma"]),
        ({"name": "geco", "start": 40.0, "maximum": 100.0}, ["maximum", "start"]),
    ],
)
def test_a_lower_beta_is_told_in_the_keys_of_the_schedule_and_can_be_built(
    beta: dict[str, Any], keys: list[str]
) -> None:
    of = foreseen(spectrum_of(8.0, 4.0, learned=True), 2, 40.0, start=40.0)
    change = explain(judged_as(0.0, 0.0), of, None, Circumstances(1000, beta=beta)).change
    assert change is not None
    told = dict(word.removeprefix("beta.").split("=") for word in change.settings)
    assert list(told) == keys
    assert str(change) == f"a lower final beta, {' '.join(change.settings)}"
    made = build("beta", SCHEDULES, beta | {k: float(v) for k, v in told.items()}, total_steps=100)
    assert made(0).beta < 40


def test_a_collapse_against_the_forecast_is_laid_on_the_network() -> None:
    told = explain(judged_as(0.0, 0.0), foreseen(spectrum_of(8.0, 4.0), 2, 1.0), None, RUN)
    assert "it did not come so" in told.paragraph
    assert "the network does not use it" in str(told.cause)
    assert "scripts/audit.py" in str(told.change)


def test_a_run_that_was_still_learning_was_too_short() -> None:
    young = Circumstances(total_steps=40, still_rising=True)
    told = explain(judged_as(0.04, 0.0), foreseen(spectrum_of(8.0, 4.0), 2, 1.0), None, young)
    assert "too short" in str(told.cause)
    assert "trainer.max_epochs" in str(told.change)


def test_a_checkpoint_from_before_the_collapse_is_told_from_the_end() -> None:
    early = Circumstances(total_steps=1000, judged_step=150)
    told = explain(judged_as(1.0, 0.7), foreseen(spectrum_of(8.0, 4.0), 2, 90.0), None, early)
    assert "step 150 of 1000" in told.paragraph


def test_more_units_than_directions_are_too_many() -> None:
    few = foreseen(spectrum_of(8.0, 0.0, 0.0, 0.0, 0.0), 5, 1.0)
    told = explain(judged_as(1.0, 0, 0, 0, 0), few, None, RUN)
    assert str(told.change) == "fewer latent units, model.latent_dim=1"
    assert told.change.settings == ("model.latent_dim=1",)
    assert "directions that exceed it: 1" in str(told.cause)


def test_fewer_units_than_forecast_are_no_fault_of_the_loss() -> None:
    wide = foreseen(spectrum_of(20.0, 9.0, 8.0, 6.0, 5.0), 5, 1.0)
    told = explain(judged_as(3.0, 2.0, 0, 0, 0), wide, None, RUN)
    assert "fewer units than it has" in str(told.cause)
    assert "model.latent_dim=2" in str(told.change)
    assert told.change.settings == ("model.latent_dim=2",)


def test_without_a_forecast_there_is_still_a_verdict() -> None:
    told = explain(judged_as(0.0, 0.0), None, None, RUN)
    assert told.paragraph.startswith("Full collapse")
    assert told.change


def test_a_moved_beta_is_not_held_against_the_forecast() -> None:
    moved = Circumstances(1000, beta_moves=True)
    told = explain(judged_as(1.0, 0.7), foreseen(spectrum_of(8.0, 4.0), 2, 90.0), None, moved)
    assert "has moved beta since" in told.paragraph


def test_what_the_units_follow_closes_the_paragraph() -> None:
    rng = np.random.default_rng(0)
    means = rng.normal(size=(200, 2))
    properties = {"flux": means[:, 0] + 0.01 * rng.normal(size=200), "size": rng.normal(size=200)}
    meaning = explain_code(means, np.array([1.0, 0.7]), np.array([True, True]), properties)
    told = explain(judged_as(1.0, 0.7), None, meaning, RUN)
    assert "Unit 0 (1 nats) follows the flux of the source" in told.paragraph


@pytest.mark.parametrize(
    ("history", "rising"),
    [
        ([], False),
        ([3.0], False),
        ([0.01, 0.02, 0.05, 0.2], True),
        ([0.1, 1.0, 5.0, 9.0, 9.5, 9.6], False),
        ([500.0, 100.0, 40.0, 30.0], False),
        ([1e-9, 1e-8, 1e-7, 1e-6], False),
    ],
)
def test_a_kl_that_grows_at_the_end_is_still_rising(history, rising) -> None:
    assert still_rising(history) == rising


def test_rescues_and_a_collapsed_end_are_told() -> None:
    run = Circumstances(1000, 150, end_state="collapsed", rescues=("lower beta, beta.end=8",))
    told = explain(judged_as(1.0, 0.7), foreseen(spectrum_of(8.0, 4.0), 2, 1.0), None, run)
    assert "Rescued on the way: lower beta, beta.end=8." in told.paragraph
    assert "The run itself ended collapsed" in told.paragraph
    assert "(step 150 of 1000)" in told.paragraph


# -- the words, in full --------------------------------------------------------------------------


def paragraph(*kl_per_unit: float, of: Forecast | None = None, **run: object) -> str:
    return explain(judged_as(*kl_per_unit), of, None, Circumstances(1000, **run)).paragraph


SOUND = foreseen(spectrum_of(8.0, 4.0), 2, 1.0)  # 0.5 ln 32 = 1.73 nats
LOST = foreseen(spectrum_of(8.0, 4.0), 2, 90.0)
NO_COLLAPSE = "No collapse: 2 of 2 latent units are active and carry 1.7 nats per stamp."
DEAD = (
    "Full collapse: 0 of 2 latent units are active and carry 0 nats per stamp; the code says "
    "nothing about the stamps."
)
FORECAST_SOUND = "Forecast before training: no collapse, 1.73 nats in 2 units"
FORECAST_LOST = "Forecast before training: full collapse, 0 nats in 0 units"


def test_a_sigma_too_large_is_told_in_full() -> None:
    # learned: s2 = 98 * 0.5 / (100 - 2), so 0.5 ln(16) + 0.5 ln(8) = 2.43 nats
    assert paragraph(0.0, 0.0, of=foreseen(spectrum_of(8.0, 4.0, s2=50.0), 2, 1.0)) == (
        f"{DEAD} It was forecast before training. Cause: beta * s2 is 50, and the stamps vary by 8 "
        "along their strongest direction. Most useful change: likelihood=sigma, which learns s2 "
        "(forecast: 2.43 nats in 2 units)."
    )


def test_a_network_that_does_not_use_its_code_is_told_in_full() -> None:
    assert paragraph(0.0, 0.0, of=SOUND) == (
        f"{DEAD} {FORECAST_SOUND}; it did not come so. Cause: not the weight of the KL, which "
        "leaves room for a code; the network does not use it. Most useful change: an audit of the "
        "network, python scripts/audit.py checkpoint=RUN."
    )


def test_a_run_of_a_few_steps_is_not_called_a_broken_network() -> None:
    told = explain(judged_as(0.0, 0.0), SOUND, None, Circumstances(14))
    assert told.cause == "14 steps are too few to tell."
    assert told.change == Change("a longer run, trainer.max_epochs", "longer")


def test_the_audit_is_asked_of_this_run() -> None:
    told = explain(judged_as(0.0, 0.0), SOUND, None, Circumstances(1000, run="'my runs/1'"))
    assert str(told.change).endswith("scripts/audit.py checkpoint='my runs/1'")
    assert (told.change.kind, told.change.settings) == ("audit", ())


def test_a_run_too_short_is_told_in_full() -> None:
    assert paragraph(0.0, 0.0, of=SOUND, still_rising=True) == (
        f"{DEAD} {FORECAST_SOUND}; it did not come so. Cause: the run was too short: after 1000 "
        "steps the KL was still rising. Most useful change: a longer run, trainer.max_epochs."
    )


def test_fewer_units_than_forecast_are_told_in_full() -> None:
    wide = foreseen(spectrum_of(20.0, 9.0, 8.0, 6.0, 5.0), 5, 1.0)
    assert paragraph(3.0, 2.0, 0, 0, 0, of=wide) == (
        "Partial collapse: only 2 of 5 latent units are active and carry 5 nats per stamp. "
        "Forecast before training: no collapse, 5.34 nats in 5 units; the KL came within 6 %. "
        "Cause: the network gathers what the loss pays for in fewer units than it has; their KL is "
        "what counts. Most useful change: fewer latent units, model.latent_dim=2, or a longer run."
    )


def test_too_few_directions_are_told_in_full() -> None:
    few = foreseen(spectrum_of(8.0, 0.0, 0.0, 0.0, 0.0), 5, 1.0)
    assert paragraph(1.0, 0, 0, 0, 0, of=few) == (
        "Partial collapse: only 1 of 5 latent units is active and carries 1 nats per stamp. "
        "Forecast before training: partial collapse, 1.04 nats in 1 unit; the KL came within 4 %. "
        "Cause: beta * s2 is 1, and the stamps vary by 8 along their strongest direction; "
        "directions that exceed it: 1; the stamps have no more directions. Most useful change: "
        "fewer latent units, model.latent_dim=1."
    )


@pytest.mark.parametrize(
    ("nats", "told"),
    [
        ((3.0, 0.7), "the run carries 114 % more"),
        ((0.5, 0.3), "the run carries 54 % less"),
        ((1.0, 1.3), "the KL came within 33 %"),
        ((0.7, 0.5), "the KL came within 31 %"),
    ],
)
def test_the_kl_is_compared_with_its_forecast(nats: tuple[float, float], told: str) -> None:
    assert paragraph(*nats, of=SOUND).endswith(f"{FORECAST_SOUND}; {told}.")


def test_what_cannot_be_compared_is_told_so() -> None:
    free = foreseen(spectrum_of(8.0, 4.0), 2, 0.0)
    assert paragraph(1.0, 0.7, of=free) == (
        f"{NO_COLLAPSE} Without a weight on the KL nothing was forecast of it."
    )
    assert paragraph(1.0, 0.7, of=LOST, beta_moves=True) == (
        f"{NO_COLLAPSE} {FORECAST_LOST} at the beta where it starts; the run has moved beta since."
    )
    assert paragraph(1.0, 0.7, of=LOST, judged_step=150) == (
        f"{NO_COLLAPSE} {FORECAST_LOST}; the judged checkpoint is that of step 150 of 1000, and "
        "the code at the end of the schedule is another."
    )
    assert paragraph(1.0, 0.7, of=LOST) == f"{NO_COLLAPSE} {FORECAST_LOST}; it did not come so."
    assert paragraph(0.0, 0.0, of=SOUND, judged_step=9).count("it did not come so") == 1


def test_the_way_of_a_run_is_told_before_its_forecast() -> None:
    ended = "The run itself ended collapsed; this is its best checkpoint, from before"
    assert paragraph(1.0, 0.7, end_state="collapsed") == f"{NO_COLLAPSE} {ended}."
    assert paragraph(1.0, 0.7, end_state="collapsed", judged_step=150, rescues=("a", "b")) == (
        f"{NO_COLLAPSE} Rescued on the way: a; b. {ended} (step 150 of 1000)."
    )
    assert ended not in paragraph(0.0, 0.0, end_state="collapsed")
    assert ended not in paragraph(1.0, 0.7, end_state="collapsing")


def test_a_lower_beta_is_half_of_what_keeps_half_of_the_units() -> None:
    spectrum = spectrum_of(8.0, 4.0, 2.0, learned=True)
    of = foreseen(spectrum, 3, 40.0)
    room = of.largest_beta(2)  # half of three, rounded up
    change = explain(judged_as(0.0, 0.0, 0.0), of, None, RUN).change
    lower = f"beta.end={math.floor(10 * room / 2) / 10}"
    assert 1 < room / 2 < 10
    assert change == Change(f"a lower final beta, {lower}", "settings", (lower,))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (12.34, "12"),
        (0.0567, "0.056"),
        (3.999, "3.9"),
        (999.9, "9.9e+02"),
        (1e-3, "0.001"),
        (0.29, "0.29"),  # stored as a little less
        (0.000979, "0.00097"),
        (4.99e-7, "4.9e-07"),
    ],
)
def test_a_beta_for_people_has_two_digits_and_is_never_larger(value: float, told: str) -> None:
    assert _round_down(value) == told
    assert float(told) <= value


# -- limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mean", "nats"), [(np.nan, 1.0), (1.0, np.nan), (np.inf, 1.0), (1.0, np.inf)]
)
def test_a_code_that_is_not_finite_is_refused_with_what_helps(mean: float, nats: float) -> None:
    means, kl_per_unit = means_of_variance(1.0, 1.0), kl(1.0, 1.0)
    means[3, 1], kl_per_unit[4, 0] = mean, nats
    with pytest.raises(InputError) as refused:
        judged_plainly(means, kl_per_unit)
    assert str(refused.value) == (
        "posteriors are not finite: the run diverged; lower optim.lr, or look for extreme pixels "
        "and set data.normalize.saturation"
    )


def test_a_unit_is_active_in_units_of_its_own_prior() -> None:
    means = means_of_variance(0.03, 0.03)
    assert judge(means, kl(1, 1), np.array([1.0, 2.0])).active_units == 1  # 0.03 < 0.01 * 2^2
    assert judged_plainly(means, kl(1, 1)).active_units == 2


@pytest.mark.parametrize(("last", "rising"), [(2.4, False), (2.5, False), (2.6, True)])
def test_the_last_fifth_of_a_run_decides_whether_it_was_learning(last: float, rising: bool) -> None:
    # ten validations: the last against the third from the end, 2.0
    assert still_rising([1.0] * 7 + [2.0, 2.2, last]) is rising


def test_figures_round_to_three_digits() -> None:
    assert judged_as(1.23456, 0.0).figures == (
        "1 of 2 latent units is active and carries 1.23 nats per stamp"
    )
