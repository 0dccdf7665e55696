"""The noise of the sampling against the log-variance, with noise whose size is exact."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hand_made import Sample, Weights, bench_of, column, fixed, passes_of, sampled, signs_like, told
from torch import Tensor, nn

from vae_astro.collapse.audit.bench import Bench, Evidence
from vae_astro.collapse.audit.findings import Untestable
from vae_astro.collapse.audit.noise import noise_follows_log_var
from vae_astro.collapse.audit.outputs import STD_OF, Reading

DOUBLE = torch.float64


def following(meaning: str, scale: float = 1.0, centre: float = 0.0) -> Sample:
    """Noise of exactly this size and average, in units of the standard deviation."""
    width = math.sqrt(1 - centre**2)

    def sample(mean: Tensor, spread: Tensor) -> Tensor:
        std = torch.ones_like(spread) if meaning == "constant" else STD_OF[meaning](spread)
        return mean + scale * std * (centre + width * signs_like(mean))

    return sample


@pytest.mark.parametrize(
    ("meaning", "words"),
    [
        ("log_var", "exp(0.5 log_var)"),
        ("log_std", "exp(log_var)"),
        ("std", "log_var itself"),
        ("var", "the root of log_var"),
        ("constant", "a constant"),
    ],
)
def test_formula_of_the_noise_is_found_by_moving_the_log_variance(meaning, words):
    bench = sampled(following(meaning), (0.5, 0.5))
    assert noise_follows_log_var(bench) == []
    measured = f"over log-variances from -3 to 3 the noise is 1 times {words}"
    assert bench.noise == Evidence(meaning, measured, is_positive=False)
    assert bench.module.w.tolist() == [0.5, 0.5]
    assert not bench.module.training


def test_log_variances_are_taken_to_the_same_levels_whatever_a_weight_does_to_them():
    bench = sampled(following("log_var"), (0.1, 0.1), make=lambda w: 5 * w)
    assert noise_follows_log_var(bench) == []
    assert bench.noise is not None
    assert bench.noise.measured.startswith("over log-variances from -3 to 3 the noise is 1 times")


def test_weights_that_move_the_mean_too_stay_where_they_are():
    module = Weights(0.3, 0.0)
    follow = following("log_var")

    def answer(x: Tensor, code: Tensor | None) -> Reading:
        mean = (x % 2 - 0.5) * module.w[0]
        spread = module.w.sum().expand_as(mean)
        return Reading(mean=mean, spread=spread, code=follow(mean, spread))

    bench = bench_of(answer, column(40), module, 1)
    assert noise_follows_log_var(bench) == []
    assert bench.noise is not None
    assert bench.noise.measured.startswith("over log-variances from -3 to 3 the noise is 1 times")


@pytest.mark.parametrize(("make", "is_positive"), [(nn.Softplus(), True), (lambda w: w, False)])
def test_spread_that_was_positive_wherever_it_was_moved_is_said_to_be(make, is_positive):
    bench = sampled(following("std"), (0.5, 0.5), make=make)
    assert noise_follows_log_var(bench) == []
    assert bench.noise is not None
    assert (bench.noise.meaning, bench.noise.is_positive) == ("std", is_positive)


@pytest.mark.parametrize(("n_units", "n_passes"), [(1, 20), (2, 20), (4, 10), (8, 5), (40, 4)])
def test_some_640_numbers_are_drawn_at_each_level(n_units, n_passes):
    bench = sampled(following("log_var", 2.0), (0.0,) * n_units)
    (finding,) = noise_follows_log_var(bench)
    n_draws = 5 * 16 * n_passes * n_units
    assert finding.measured == (
        f"over {n_draws} draws in training mode the noise is 2 times exp(0.5 log_var)"
    )
    # six settings of the weights, and twice the posterior to find those weights
    assert passes_of(bench).count((16, True)) == 6 * n_passes + 2
    assert {n for n, _ in passes_of(bench)} == {16}


@pytest.mark.parametrize(
    ("scale", "is_found"), [(0.79, True), (0.81, False), (1.24, False), (1.26, True)]
)
def test_noise_may_be_off_by_a_quarter(scale, is_found):
    bench = sampled(following("log_var", scale))
    measured = f"over 3200 draws in training mode the noise is {scale:.3g} times exp(0.5 log_var)"
    assert told(noise_follows_log_var(bench)) == [("noise-scale", measured)] * is_found
    assert bench.noise == Evidence(
        "log_var",
        f"over log-variances from -3 to 3 the noise is {scale:.3g} times exp(0.5 log_var)",
    )


@pytest.mark.parametrize("centre", [0.19, 0.21, -0.19, -0.21])
def test_noise_may_be_off_centre_by_a_fifth_of_its_size(centre):
    measured = (
        f"in units of exp(0.5 log_var) the noise averages {1.1 * centre:.3g}, with a root mean "
        "square of 1.1"
    )
    found = told(noise_follows_log_var(sampled(following("log_var", 1.1, centre))))
    assert found == [("noise-biased", measured)] * (abs(centre) > 0.2)


def test_noise_off_centre_and_of_another_size_is_told_twice():
    names = [each.name for each in noise_follows_log_var(sampled(following("log_var", 3.0, 0.5)))]
    assert names == ["noise-biased", "noise-scale"]


def scatter(tilt: float) -> float:
    """Of noise exp((0.5 + tilt) s) against exp(0.5 s), at the start, 0, and the four levels."""
    spreads = np.repeat([-3.0, -1.0, 0.0, 1.0, 3.0], 640)
    bins = np.array_split(np.exp(tilt * spreads), 8)
    return float(np.std([np.log(np.sqrt((each**2).mean())) for each in bins], ddof=1))


def tilted(tilt: float) -> Bench:
    return sampled(lambda mean, s: mean + torch.exp((0.5 + tilt) * s) * signs_like(mean))


@pytest.mark.parametrize("off", [0.2499, 0.2501])
def test_noise_follows_a_formula_up_to_a_scatter_of_a_quarter(off):
    tilt = 0.125
    for _ in range(20):  # the scatter grows nearly in proportion
        tilt *= off / scatter(tilt)
    names = [each.name for each in noise_follows_log_var(tilted(tilt))]
    assert names == ["noise-formula"] * (off > 0.25)


def test_noise_of_no_formula_is_told_with_the_nearest():
    bench = tilted(-0.25)  # exp(0.25 log_var): as far from exp(0.5 log_var) as from a constant
    bench_near = tilted(-0.2)
    off = 100 * scatter(-0.2)
    assert told(noise_follows_log_var(bench_near)) == [
        (
            "noise-formula",
            "over log-variances from -3 to 3 the noise follows none of exp(0.5 log_var), "
            "exp(log_var), log_var itself, the root of log_var, a constant; the nearest is "
            f"exp(0.5 log_var), off by {off:.0f} %",
        )
    ]
    assert bench_near.noise is None
    assert [each.name for each in noise_follows_log_var(bench)] == ["noise-formula"]


@pytest.mark.parametrize(("start", "seen"), [(0.0, "-3 to 3"), (5.0, "-3 to 5"), (-4.0, "-4 to 3")])
def test_code_that_equals_the_mean_has_no_noise(start, seen):
    bench = sampled(lambda mean, s: mean, (start, start))
    assert told(noise_follows_log_var(bench)) == [
        (
            "noise-missing",
            f"in training mode, at log-variances from {seen}, the code equals the mean",
        )
    ]


def test_what_rounding_leaves_between_code_and_mean_is_no_noise():
    (finding,) = noise_follows_log_var(sampled(lambda mean, s: mean * (1 + 2.9e-6)))
    assert finding.name == "noise-missing"
    reason = "the code is not mean plus noise: something acts on it, as a flow does"
    with pytest.raises(Untestable, match=f"^{reason}$"):
        noise_follows_log_var(sampled(lambda mean, s: mean * (1 + 3.1e-6)))
    # one unit with noise is enough
    bench = sampled(
        lambda mean, s: mean + torch.tensor([0.0, 1.0]) * torch.exp(0.5 * s) * signs_like(mean)
    )
    assert "noise-missing" not in [each.name for each in noise_follows_log_var(bench)]


def shifting(shift: float) -> Sample:
    noise = following("log_var")
    return lambda mean, s: noise(mean, s) + shift


def rms_of_levels() -> float:
    return math.sqrt(sum(math.exp(s) for s in (0, -3, -1, 1, 3)) / 5)


@pytest.mark.parametrize(("share", "is_shifted"), [(0.0099, False), (0.0101, True)])
def test_code_that_stays_off_the_mean_where_noise_should_vanish_is_no_mean_plus_noise(
    share, is_shifted
):
    # the shift adds to the noise of the levels, not much at a hundredth of it
    bench = sampled(shifting(share * rms_of_levels()))
    if is_shifted:
        with pytest.raises(Untestable, match="something acts on it"):
            noise_follows_log_var(bench)
    else:
        assert noise_follows_log_var(bench) == []


def test_noise_that_does_not_vanish_but_is_new_each_time_is_no_shift():
    bench = sampled(following("constant"))
    assert noise_follows_log_var(bench) == []
    assert bench.noise is not None
    assert bench.noise.meaning == "constant"


@pytest.mark.parametrize(("fresh", "is_shifted"), [(0.005, True), (0.02, False)])
def test_shift_is_the_same_to_a_hundredth_at_every_pass(fresh, is_shifted):
    noise = following("log_var")
    bench = sampled(lambda mean, s: noise(mean, s) + 0.1 * (1 + fresh * signs_like(mean)))
    if is_shifted:
        with pytest.raises(Untestable, match="something acts on it"):
            noise_follows_log_var(bench)
    else:
        assert noise_follows_log_var(bench) == []


def test_shift_is_not_told_where_the_noise_cannot_vanish():
    bench = sampled(shifting(0.1), make=lambda w: w.clamp(min=-15))
    assert noise_follows_log_var(bench) == []
    with pytest.raises(Untestable, match="something acts on it"):
        noise_follows_log_var(sampled(shifting(0.1), make=lambda w: w.clamp(min=-15.1)))
    # a log-variance of one unit that stays is enough not to tell
    one = sampled(shifting(0.1), make=lambda w: torch.stack([w[0], w[1].clamp(min=-5)]))
    assert noise_follows_log_var(one) == []


def test_levels_at_which_the_code_is_not_finite_are_left_out():
    follow = following("log_var")
    bench = sampled(lambda mean, s: torch.where(s > 2, torch.inf, follow(mean, s)))
    assert noise_follows_log_var(bench) == []
    assert bench.noise is not None
    assert bench.noise.measured.startswith("over log-variances from -3 to 1 the noise is 1 times")


# Where no weight moves the log-variance


def two_units(first: float, second: float) -> Tensor:
    return torch.tensor([[first, second]], dtype=DOUBLE).repeat(16, 1)


@pytest.mark.parametrize(
    ("claim", "kl", "words"),
    [
        ("std", "log_std", "log_var itself"),
        (None, "log_std", "exp(log_var)"),
        (None, None, "exp(0.5 log_var)"),
    ],
)
def test_noise_of_a_fixed_log_variance_is_judged_by_its_name_or_by_the_kl(claim, kl, words):
    bench = fixed(following("constant", 9.0), two_units(1.0, 1.0), claim=claim)
    bench.kl = kl and Evidence(kl, "")
    size = {"log_var itself": 9, "exp(log_var)": 9 / math.e, "exp(0.5 log_var)": 9 / math.exp(0.5)}
    assert told(noise_follows_log_var(bench)) == [
        (
            "noise-scale",
            f"over 640 draws in training mode the noise is {size[words]:.3g} times {words}",
        )
    ]
    assert bench.noise is None
    assert passes_of(bench).count((16, True)) == 21
    assert passes_of(bench)[-1] == (2, False)


@pytest.mark.parametrize(("width", "is_told"), [(1.0, False), (1.01, True)])
def test_log_variances_more_than_one_apart_tell_a_formula(width, is_told):
    bench = fixed(following("log_var"), two_units(0.0, width))
    assert noise_follows_log_var(bench) == []
    assert (bench.noise is not None) == is_told


@pytest.mark.parametrize(
    ("mean", "spread", "is_near"),
    [(29.9, 1.0, True), (30.0, 1.0, False), (-29.9, 1.0, True), (-31.0, 1.0, False),
     (0.0, 5.9, True), (0.0, 6.0, False), (0.0, -5.9, True), (0.0, -6.1, False)],
)  # fmt: skip
def test_means_and_log_variances_far_out_are_left_out(mean, spread, is_near):
    means, spreads = torch.zeros(16, 2, dtype=DOUBLE), torch.ones(16, 2, dtype=DOUBLE)
    means[3, 0], spreads[3, 0] = mean, spread
    (finding,) = noise_follows_log_var(fixed(following("std", 3.0), spreads, means, "log_var"))
    assert finding.measured.startswith(f"over {640 if is_near else 620} draws")


@pytest.mark.parametrize(("n_near", "is_enough"), [(10, True), (9, False)])
def test_noise_is_judged_from_four_hundred_numbers_on(n_near, is_enough):
    means = torch.full((16, 2), 99.0, dtype=DOUBLE)
    means[:n_near] = 0
    bench = fixed(following("log_var", 2.0), two_units(0.0, 0.0), means)
    if is_enough:
        (finding,) = noise_follows_log_var(bench)
        assert finding.measured.startswith("over 400 draws")
    else:
        with pytest.raises(
            Untestable,
            match=r"^means and log-variances lie too far out to tell the noise from rounding$",
        ):
            noise_follows_log_var(bench)


def test_code_that_cannot_be_seen_cannot_be_judged():
    bench = bench_of(lambda x, code: Reading(mean=x, spread=x), column(9), Weights(0.0))
    with pytest.raises(Untestable, match=r"^the code cannot be seen between encoder and decoder$"):
        noise_follows_log_var(bench)
