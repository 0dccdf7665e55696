"""Experiments on the encoder, on models whose every figure is known: words, numbers, thresholds."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hand_made import Table, Weights, bench_of, column, passes_of, told
from torch import Tensor, nn

from vae_astro.collapse.audit.bench import Bench, Evidence
from vae_astro.collapse.audit.encoder import (
    encoder_tells_stamps_apart,
    log_var_is_free,
    posterior_reaches_prior,
    stamps_keep_apart,
)
from vae_astro.collapse.audit.findings import Untestable
from vae_astro.collapse.audit.outputs import Reading

DOUBLE = torch.float64


def nothing(x: Tensor, code: Tensor | None) -> Reading:
    return Reading(recon=x)


# Does it tell stamps apart?


def apart(mean: Tensor, spread: Tensor | None = None, *, n: int | None = None) -> Bench:
    """A model that gives stamp k row k of these."""

    def answer(x: Tensor, code: Tensor | None) -> Reading:
        rows = x[:, 0].long()
        return Reading(mean=mean[rows], spread=None if spread is None else spread[rows])

    return bench_of(answer, column(n or len(mean)))


def pair_apart(change: float) -> Tensor:
    """Two stamps whose numbers differ, root mean square, by this share of their size."""
    return torch.tensor([[1.0], [1 + math.sqrt(2) * change]], dtype=DOUBLE)


def test_encoder_that_tells_64_stamps_apart_is_asked_in_both_modes():
    bench = apart(column(70))
    assert encoder_tells_stamps_apart(bench) == []
    assert passes_of(bench) == [(64, False), (64, True)]


def test_fewer_stamps_are_all_taken():
    bench = apart(torch.ones(10, 3))
    assert told(encoder_tells_stamps_apart(bench)) == [
        (
            "encoder-ignores-input",
            "10 stamps in evaluation mode: their posteriors differ by 0.0e+00 of their size",
        )
    ]
    assert passes_of(bench) == [(10, False)]


def test_posteriors_that_differ_by_less_than_rounding_are_called_the_same():
    assert told(encoder_tells_stamps_apart(apart(pair_apart(0.9e-7)))) == [
        (
            "encoder-ignores-input",
            "2 stamps in evaluation mode: their posteriors differ by 9.0e-08 of their size",
        )
    ]
    assert encoder_tells_stamps_apart(apart(pair_apart(1.1e-7))) == []


def test_mean_or_log_variance_that_differs_is_enough():
    same, different = torch.ones(5, 2), torch.arange(10.0).view(5, 2)
    assert encoder_tells_stamps_apart(apart(same, different)) == []
    assert encoder_tells_stamps_apart(apart(different, same)) == []
    (finding,) = encoder_tells_stamps_apart(apart(pair_apart(2e-8), pair_apart(7e-8)))
    assert finding.measured.endswith("differ by 7.0e-08 of their size")


def test_encoder_that_is_deaf_in_training_only_is_found_there():
    module = nn.Module()
    bench = bench_of(
        lambda x, code: Reading(mean=torch.ones_like(x) if module.training else x),
        column(6),
        module,
    )
    assert told(encoder_tells_stamps_apart(bench)) == [
        (
            "encoder-ignores-input",
            "6 stamps in training mode: their posteriors differ by 0.0e+00 of their size",
        )
    ]


def test_log_variance_that_is_the_mean_up_to_rounding_is_a_copy():
    mean = 1 + column(70)
    assert told(encoder_tells_stamps_apart(apart(mean, mean * (1 + 0.9e-6)))) == [
        ("log-var-copies-mean", "mean and log-variance of 64 stamps are the same numbers")
    ]
    assert encoder_tells_stamps_apart(apart(mean, mean * (1 + 1.1e-6))) == []


@pytest.mark.parametrize(
    "experiment", [encoder_tells_stamps_apart, stamps_keep_apart, posterior_reaches_prior]
)
def test_model_without_a_posterior_is_said_to_have_none(experiment):
    with pytest.raises(Untestable, match=r"^the model hands out no posterior$"):
        experiment(bench_of(nothing, column(8)))


# Are the stamps of a batch kept apart?


def neighbourly(pull: Callable[[Tensor], Tensor], stamps: Tensor) -> Bench:
    return bench_of(lambda x, code: Reading(mean=x + pull(x)), stamps)


def test_stamps_that_pull_at_each_other_are_told_by_how_much():
    # means 1 + 8 c beside four ones, 1 - 4 c beside four times -2
    bench = neighbourly(lambda x: 0.05 * x.sum(), torch.ones(20, 1, dtype=DOUBLE))
    percent = 100 * 0.6 / math.sqrt((1.4**2 + 0.8**2) / 2)
    assert told(stamps_keep_apart(bench)) == [
        (
            "stamps-mixed",
            "in evaluation mode, beside other stamps the means of the same 4 stamps differ by "
            f"{percent:.3g} % of their size",
        )
    ]
    assert passes_of(bench) == [(8, False), (8, False)]


def test_neighbours_come_in_another_order():
    stamps = torch.tensor([[1.0], [1.0], [5.0], [3.0]], dtype=DOUBLE)
    (finding,) = stamps_keep_apart(neighbourly(lambda x: x[-1], stamps))
    percent = 100 * 13 / math.sqrt((4**2 + 9**2) / 2)  # 1 + 3 against 1 - 2 * 5
    assert finding.measured.endswith(f"the same 2 stamps differ by {percent:.3g} % of their size")


def test_of_five_stamps_two_are_compared():
    (finding,) = stamps_keep_apart(neighbourly(lambda x: x.sum(), 1 + column(5)))
    assert "the means of the same 2 stamps" in finding.measured


@pytest.mark.parametrize(("change", "is_found"), [(0.99e-4, False), (1.01e-4, True)])
def test_a_ten_thousandth_of_their_size_is_where_mixing_begins(change, is_found):
    bench = neighbourly(lambda x: change / 12 * x.sum(), torch.ones(8, 1, dtype=DOUBLE))
    assert [each.name for each in stamps_keep_apart(bench)] == ["stamps-mixed"] * is_found


def test_noise_in_the_means_does_not_pass_for_mixing():
    bench = neighbourly(torch.randn_like, 1 + column(8))
    assert stamps_keep_apart(bench) == []


def test_means_that_come_only_beside_some_stamps_cannot_be_compared():
    bench = bench_of(lambda x, code: Reading(mean=x if bool((x >= 0).all()) else None), column(8))
    with pytest.raises(Untestable, match=r"^the model hands out no posterior$"):
        stamps_keep_apart(bench)


# Can the posterior go where it must?


def bounded(
    mean: tuple[float, float] = (-9, 9),
    spread: tuple[float, float] | None = None,
    claim: str | None = None,
    start: float = 0.0,
) -> Bench:
    """A model whose mean is its first weight between two bounds, the spread its second."""
    module = Weights(0.0, start)
    module.of_the_decoder = nn.Parameter(torch.ones(3))

    def answer(x: Tensor, code: Tensor | None) -> Reading:
        mean_of_all = module.w[0].clamp(*mean).expand(len(x), 1)
        if spread is None:
            return Reading(mean=mean_of_all)
        made = module.w[1].clamp(*spread).expand(len(x), 1)
        return Reading(mean=mean_of_all, spread=made, claim=claim)  # type: ignore[arg-type]

    return bench_of(answer, column(9), module, 1)


@pytest.mark.parametrize(
    ("bounds", "reached"),
    [
        ((-1.5, 1.5), None),
        ((-1.49, 1.49), "-1.49 to 1.49"),
        ((-1.4, 9), "-1.4 to 1.97"),  # 1.97 is where the growing steps first pass 1.5
        ((-9, 1.25), "-1.97 to 1.25"),
    ],
)
def test_means_must_reach_one_and_a_half_both_ways(bounds, reached):
    bench = bounded(bounds)
    measured = f"with all weights pushed, the posterior means reach {reached}"
    assert told(posterior_reaches_prior(bench)) == ([("mean-range", measured)] if reached else [])
    assert bench.module.w.tolist() == [0, 0]
    assert set(passes_of(bench)) == {(4, False)}


@pytest.mark.parametrize(
    ("claim", "lowest", "narrowest"),
    [
        ("std", 0.37, None),
        ("std", 0.38, "0.38"),
        ("var", 0.37**2, None),
        ("var", 0.16, "0.4"),
        ("log_std", -1.0, None),
        ("log_std", math.log(0.4), "0.4"),
        ("log_var", -2.0, None),
        ("log_var", 2 * math.log(0.4), "0.4"),
        (None, -2.0, None),
        (None, 2 * math.log(0.4), "0.4"),
    ],
)
def test_posterior_must_get_as_narrow_as_half_a_nat_asks(claim, lowest, narrowest):
    bench = bounded(spread=(lowest, 9), claim=claim, start=1.0)
    measured = (
        "with all weights pushed, the posterior's standard deviation gets no smaller than "
        f"{narrowest}"
    )
    expected = [("log-var-range", measured)] if narrowest else []
    assert told(posterior_reaches_prior(bench)) == expected
    assert bench.module.w.tolist() == [0, 1]
    assert set(passes_of(bench)) == {(4, False)}


@pytest.mark.parametrize(
    ("claim", "noise", "kl", "std"),
    [
        ("std", "log_std", "log_std", 0.5),
        (None, "std", "log_std", 0.5),
        (None, None, "var", math.sqrt(0.5)),
        (None, "var", None, math.sqrt(0.5)),
        (None, None, None, math.exp(0.25)),
        (None, "constant", None, math.exp(0.25)),
    ],
)
def test_spread_is_read_by_its_name_then_by_the_noise_then_by_the_kl(claim, noise, kl, std):
    bench = bounded(spread=(0.5, 9), claim=claim, start=1.0)
    bench.noise, bench.kl = (each and Evidence(each, "") for each in (noise, kl))
    (finding,) = posterior_reaches_prior(bench)
    assert finding.measured.endswith(f"gets no smaller than {std:.3g}")


def test_both_ranges_are_told():
    bench = bounded((-1, 1), spread=(0.0, 9), start=1.0)
    names = [each.name for each in posterior_reaches_prior(bench)]
    assert names == ["mean-range", "log-var-range"]


def test_log_variance_at_its_clamp_is_left_to_its_own_experiment():
    bench = bounded((-1, 1), spread=(0.0, 9), start=-1.0)
    assert [each.name for each in posterior_reaches_prior(bench)] == ["mean-range"]


def test_log_variance_that_no_weight_sets_has_a_range_of_one_value():
    module = Weights(0.0)
    bench = bench_of(
        lambda x, code: Reading(mean=module.w.expand(len(x), 1), spread=torch.zeros_like(x)),
        column(9),
        module,
    )
    (finding,) = posterior_reaches_prior(bench)
    assert finding.measured.endswith("standard deviation gets no smaller than 1")


# Is the log-variance free to move?


def free(rows: Tensor, low: float = -4.0, high: float = 4.0, *, n: int | None = None) -> Bench:
    """Log-variances of a table, clamped: no gradient beyond the bounds."""
    table = Table(rows.to(DOUBLE))
    table.of_the_decoder = nn.Parameter(torch.ones(3))
    return bench_of(
        lambda x, code: Reading(mean=x, spread=table(x).clamp(low, high)),
        column(n or len(rows)),
        table,
    )


def some_beyond(n_beyond: int, n: int, where: float = -5.0) -> Tensor:
    """Two units that differ from stamp to stamp; the first is beyond a bound for some."""
    rows = torch.linspace(-1, 1, 2 * n).view(n, 2)
    rows[:n_beyond, 0] = where
    return rows


@pytest.mark.parametrize(
    ("n_beyond", "n", "percent"),
    [(10, 10, 100), (9, 10, None), (19, 20, 95), (18, 20, None), (64, 70, 100)],
)
def test_unit_at_the_clamp_for_nine_stamps_of_ten_is_stuck(n_beyond, n, percent):
    bench = free(some_beyond(n_beyond, n))
    measured = (
        f"the log-variances of 1 of 2 units are exactly -4 for {percent} % of {min(n, 64)} stamps, "
        "and no weight moves them"
    )
    assert told(log_var_is_free(bench)) == ([("log-var-stuck", measured)] if percent else [])
    assert passes_of(bench) == [(min(n, 64), False)]


def test_both_ends_of_a_clamp_are_looked_at():
    rows = torch.cat([some_beyond(20, 20), some_beyond(19, 20, 5.0)], 1)
    found = sorted(each.measured for each in log_var_is_free(free(rows)))
    assert found == [
        "the log-variances of 1 of 4 units are exactly -4 for 100 % of 20 stamps, and no weight "
        "moves them",
        "the log-variances of 1 of 4 units are exactly 4 for 95 % of 20 stamps, and no weight "
        "moves them",
    ]


def test_stamps_of_other_units_at_the_clamp_do_not_hide_those_that_are_stuck():
    rows = some_beyond(20, 20)
    rows[:3, 1] = -4.0  # at the bound itself, where the gradient passes
    (finding,) = log_var_is_free(free(rows))
    assert "the log-variances of 1 of 2 units are exactly -4 for 100 %" in finding.measured


def test_log_variances_that_are_the_same_and_free_are_not_stuck():
    assert log_var_is_free(free(torch.zeros(10, 2))) == []


def test_all_log_variances_at_one_value_are_told_once():
    (finding,) = log_var_is_free(free(torch.full((10, 2), -5.0)))
    assert "of 2 of 2 units are exactly -4 for 100 % of 10 stamps" in finding.measured


def test_an_end_that_is_free_does_not_hide_the_other():
    rows = torch.full((10, 2), -5.0)
    rows[:, 1] = 3.0
    for turned in (1, -1):
        (finding,) = log_var_is_free(free(turned * rows))
        assert f"are exactly {-4 * turned} for" in finding.measured
    rows[:, 1] = torch.linspace(0, 1, 10)
    for turned in (1, -1):
        assert len(log_var_is_free(free(turned * rows))) == 1


def test_one_stamp_cannot_show_that_log_variances_are_stuck():
    assert log_var_is_free(free(torch.full((1, 2), -5.0))) == []
    assert len(log_var_is_free(free(torch.full((2, 2), -5.0)))) == 1


def test_log_variance_that_no_weight_sets_cannot_be_stuck():
    bench = bench_of(lambda x, code: Reading(mean=x, spread=x), column(9), Weights(0.0))
    with pytest.raises(Untestable, match=r"^no weight moves the log-variance$"):
        log_var_is_free(bench)
