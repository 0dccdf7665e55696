"""Experiments on the loss, on losses whose gradients have a closed form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny_subjects import Told, Weighed, bench_of, kl_gradient
from torch import Tensor

from vae_astro.collapse.audit.bench import Bench, Evidence
from vae_astro.collapse.audit.findings import Untestable
from vae_astro.collapse.audit.objective import (
    GRID,
    N_DRAWS,
    POSITIVE,
    TOLERANCE,
    _exponent,
    _largest_eigenvalue,
    _Loss,
    _misfit,
    _terms,
    _tried,
    _word,
    kl_is_that_of_gaussians,
    reductions_agree,
    weight_leaves_code_alive,
)
from vae_astro.collapse.audit.outputs import Reading

DOUBLE = torch.float64


def cross(*strengths: float) -> Tensor:
    """Stamps of 2x2 pixels: plus and minus each strength in a pixel of its own, on a picture."""
    rows = []
    for pixel, strength in enumerate(strengths):
        for sign in (1, -1):
            row = torch.zeros(4, dtype=DOUBLE)
            row[pixel] = sign * strength
            rows.append(row)
    picture = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=DOUBLE)
    return (picture + torch.stack(rows)).view(-1, 1, 2, 2)


STAMPS = cross(4.0, 2.0)  # eigenvalues 16 / 2 and 4 / 2
NOTHING = torch.zeros((), dtype=DOUBLE)


def loss_of(reconstruction: Any = None, kl: Any = None, **flags: Any) -> Weighed:
    """A reconstruction of output and stamps plus a KL of mean and spread."""

    def loss(recon: Tensor, stamps: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
        total = NOTHING if reconstruction is None else reconstruction(recon, stamps)
        return total if kl is None else total + kl(mean, spread)

    return Weighed(loss, **flags)


def half_sse(weight: float | Tensor = 1.0) -> Any:
    return lambda recon, stamps: (0.5 * weight * (recon - stamps).square()).sum()


def a_loss(reconstruction: Any = None, kl: Any = None, **flags: Any) -> _Loss:
    return _Loss(bench_of(STAMPS, loss_of(reconstruction, kl, **flags)))


# -- the form of the KL --------------------------------------------------------------------------


def kl_finding(kl: Any, **flags: Any) -> tuple[list[tuple[str, str]], Bench]:
    bench = bench_of(STAMPS, loss_of(None, kl, **flags))
    return [(each.name, each.measured) for each in kl_is_that_of_gaussians(bench)], bench


EXACT = {
    "log_var": lambda s: 0.5 * (s.exp() - s),
    "log_std": lambda s: 0.5 * (2 * s).exp() - s,
    "std": lambda s: 0.5 * s.square() - s.abs().log(),
    "var": lambda s: 0.5 * (s - s.abs().log()),
}


@pytest.mark.parametrize("meaning", list(EXACT))
@pytest.mark.parametrize("beta", [0.001, 3.0])
def test_closed_form_is_recognised_for_every_meaning_of_the_spread(meaning, beta):
    findings, bench = kl_finding(
        lambda mean, spread: beta * (0.5 * mean.square() + EXACT[meaning](spread)).sum()
    )
    assert findings == []
    assert bench.kl is not None
    assert bench.kl.meaning == meaning
    assert bench.kl.measured.startswith(
        f"the gradient of the loss by the log-variance is that of the KL of a {meaning}, to "
    )
    misfit, unit = bench.kl.measured.split(", to ")[1].split(" ")
    assert float(misfit) < 1e-10
    assert unit == "%"


@pytest.mark.parametrize(("off", "passes"), [(TOLERANCE - 1e-4, True), (TOLERANCE + 1e-4, False)])
def test_a_misfit_passes_up_to_the_tolerance(off, passes):
    findings, bench = kl_finding(kl_gradient(1, 1 + off, 1 + off))
    assert [name for name, _ in findings] == ([] if passes else ["kl-formula"])
    if passes:
        assert bench.kl == Evidence(
            "log_var",
            "the gradient of the loss by the log-variance is that of the KL of a log_var, to 12 %",
        )
    else:
        assert bench.kl is None


def test_another_kl_is_told_by_its_three_factors():
    findings, _ = kl_finding(kl_gradient(2, 1, 0.5))
    assert findings == [
        ("kl-formula",
         "the gradient of the loss is 2 mean for the mean and 0.5 exp(log_var) - 0.25 for the "
         "log-variance; the closed form has one factor for all three, halved for the latter two")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("factors", "named"),
    [
        ((0.01, 1, 1), "no mean^2: the gradient of the loss is 0.01 mean for the mean and 0.5 "
         "exp(log_var) - 0.5 for"),
        ((1, 0.01, 1), "no exp(log_var): the gradient of the loss is 1 mean for the mean and 0.005 "
         "exp(log_var) - 0.5 for"),
        ((1, 1, 0.01), "no log_var: the gradient of the loss is 1 mean for the mean and 0.5 "
         "exp(log_var) - 0.005 for"),
        ((0.01, 1, 0.01), "no mean^2 and no log_var: the gradient of the loss is 0.01 mean for"),
    ],
)  # fmt: skip
def test_a_missing_term_is_named_beside_what_was_measured(factors, named):
    (finding,), _ = kl_finding(kl_gradient(*factors))
    assert finding[0] == "kl-missing-term"
    assert finding[1].startswith(named)


@pytest.mark.parametrize(("share", "name"), [(0.0199, "kl-missing-term"), (0.0201, "kl-formula")])
def test_a_term_is_missing_below_a_fiftieth_of_the_largest_gradient(share, name):
    # the largest is that by the mean: 100
    ((found, _),), _ = kl_finding(kl_gradient(100, 10, share * 100))
    assert found == name
    # the largest is that by the spread, at exp(2): share of (exp(2) f - 1) / 2 is the mean's
    f = 20.0
    largest = 0.5 * (math.exp(2) * f - 1.6)
    ((found, _),), _ = kl_finding(kl_gradient(share * largest, f, 1.6))
    assert found == name


def test_a_kl_that_falls_with_the_mean_has_the_wrong_sign():
    findings, _ = kl_finding(kl_gradient(-2, -2, -2))
    measured = "the loss falls by 2 times the mean as a posterior mean grows"
    assert findings == [("kl-wrong-sign", measured)]


def test_a_kl_that_falls_with_both_terms_of_the_spread_has_the_wrong_sign():
    ((name, measured),), _ = kl_finding(kl_gradient(1, -1, -1))
    assert name == "kl-wrong-sign"
    assert measured.startswith(
        "the gradient of the loss is 1 mean for the mean and -0.5 exp(log_var) - -0.5 for"
    )
    for one_of_both in ((1, -1, 1), (1, 1, -1)):
        ((name, _),), _ = kl_finding(kl_gradient(*one_of_both))
        assert name == "kl-formula"


@pytest.mark.parametrize("kl", [None, lambda mean, spread: mean.detach().sum() + spread.sum() * 0])
def test_a_loss_without_mean_and_spread_has_no_kl(kl):
    findings, _ = kl_finding(kl)
    measured = "the loss changes neither with the mean nor with the log-variance"
    assert findings == [("kl-missing", measured)]


def test_a_kl_of_the_spread_alone_is_no_missing_kl():
    ((name, measured),), _ = kl_finding(lambda mean, spread: kl_gradient(0)(mean, spread))
    assert name == "kl-missing-term"
    assert measured.startswith("no mean^2: ")


def test_a_prior_of_its_own_cannot_be_told_from_a_fault():
    with pytest.raises(Untestable) as refused:
        kl_finding(kl_gradient(2, 1, 0.5), is_function=False)
    assert str(refused.value) == (
        "the KL is not that of a unit Gaussian: a prior of its own, or a flow"
    )


@pytest.mark.parametrize(("samples_code", "names"), [(True, []), (False, ["kl-formula"])])
def test_a_kl_from_draws_is_looked_at_again_where_the_mean_adds_no_scatter(samples_code, names):
    def kl(mean: Tensor, spread: Tensor) -> Tensor:
        return kl_gradient()(mean, spread) + (mean.detach() * spread).sum()

    findings, bench = kl_finding(kl, samples_code=samples_code)
    assert [name for name, _ in findings] == names
    assert (bench.kl is not None) == samples_code


# -- the weight of the KL ------------------------------------------------------------------------


def weight_finding(
    weight: float, kl: float, stamps: Tensor = STAMPS, **flags: Any
) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    bench = bench_of(stamps, loss_of(half_sse(weight), kl_gradient(kl, kl, kl), **flags))
    findings = weight_leaves_code_alive(bench)
    return [(each.name, each.measured) for each in findings], bench.facts


def test_weight_and_eigenvalue_are_those_of_the_stamps():
    findings, facts = weight_finding(2.0, 6.0)
    assert findings == []
    assert facts == {
        "largest_eigenvalue": pytest.approx(8),
        "beta_s2": pytest.approx(3),
        "learned_scale": False,
        "kl_slack_near_prior": False,
    }


def test_a_weight_above_the_largest_eigenvalue_collapses_by_so_much():
    findings, _ = weight_finding(0.5, 5.0)
    assert findings == [
        ("kl-weight-collapses",
         "beta * s2 is 10 in batches of 48 stamps, the largest eigenvalue of the covariance of 4 "
         "stamps 8: the KL weighs 1.25 times too much")
    ]  # fmt: skip


@pytest.mark.parametrize(("kl", "collapses"), [(8 - 1e-6, False), (8 + 1e-6, True)])
def test_collapse_begins_at_the_largest_eigenvalue(kl, collapses):
    assert bool(weight_finding(1.0, kl)[0]) == collapses


def test_a_scale_that_is_learned_lets_any_weight_live():
    findings, facts = weight_finding(1.0, 100.0, learns=True)
    assert (findings, facts["learned_scale"]) == ([], True)


@pytest.mark.parametrize(("share", "slack"), [(0.45, True), (0.55, False)])
def test_a_kl_that_lets_go_near_the_prior_lets_any_weight_live(share, slack):
    def kl(mean: Tensor, spread: Tensor) -> Tensor:
        return 50 * (mean.square() * torch.where(mean.abs() < 1, share, 1.0)).sum()

    bench = bench_of(STAMPS, loss_of(half_sse(), kl))
    assert bool(weight_leaves_code_alive(bench)) != slack
    assert bench.facts["kl_slack_near_prior"] is slack


@pytest.mark.parametrize(
    ("evidence", "spread"),
    [(None, 0.0), ("log_var", 0.0), ("log_std", 0.0), ("std", 1.0), ("var", 1.0)],
)
def test_near_the_prior_the_posterior_is_as_wide_as_the_prior(evidence, spread):
    objective = loss_of(half_sse(), kl_gradient())
    bench = bench_of(STAMPS, objective)
    bench.kl = None if evidence is None else Evidence(evidence, "")
    weight_leaves_code_alive(bench)
    near = [each for each in objective.calls if float(each["mean"].max()) == pytest.approx(0.3)]
    assert [each["spread"].unique().tolist() for each in near] == [[spread]]


def test_a_loss_that_no_output_changes_has_no_reconstruction():
    bench = bench_of(STAMPS, loss_of(None, kl_gradient()))
    (finding,) = weight_leaves_code_alive(bench)
    assert finding.name == "reconstruction-missing"
    assert finding.measured == "no gradient of the loss reaches the output"


def test_a_loss_that_falls_for_ever_on_one_side_has_no_minimum():
    bench = bench_of(STAMPS, loss_of(lambda recon, stamps: -recon.sum(), kl_gradient()))
    (finding,) = weight_leaves_code_alive(bench)
    assert finding.name == "loss-without-minimum"
    assert finding.measured == (
        "for 100 % of the pixels the loss still falls where the output is a thousand times the "
        "stamps' range away"
    )


def test_share_of_the_pixels_without_a_minimum_is_told():
    slope = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=DOUBLE)

    def reconstruction(recon: Tensor, stamps: Tensor) -> Tensor:
        return (slope * recon).sum() + half_sse(1 - slope)(recon, stamps)

    (finding,) = weight_leaves_code_alive(bench_of(STAMPS, loss_of(reconstruction, kl_gradient())))
    assert finding.measured.startswith("for 25 % of the pixels the loss still falls where")


def test_a_loss_that_is_flat_where_it_may_be_looked_at_does_not_hold_the_output():
    def reconstruction(recon: Tensor, stamps: Tensor) -> Tensor:
        if bool((recon.abs() > 100).any()):
            raise ValueError
        return recon.sum()

    (finding,) = weight_leaves_code_alive(bench_of(STAMPS, loss_of(reconstruction, kl_gradient())))
    assert finding.name == "reconstruction-wrong-sign"
    assert "the curvature of the loss by a pixel is 0 on average" in finding.measured


def test_a_loss_that_the_stamps_do_not_enter_weighs_any_kl_infinitely():
    bench = bench_of(STAMPS, loss_of(lambda recon, stamps: recon.square().sum(), kl_gradient()))
    (finding,) = weight_leaves_code_alive(bench)
    assert finding.measured == (
        "beta * s2 is 0.5 in batches of 48 stamps, the largest eigenvalue of the covariance of 4 "
        "stamps 0: the KL weighs inf times too much"
    )
    # a gradient of zero at the mean stamp is not the absence of one
    (finding,) = weight_leaves_code_alive(bench_of(STAMPS, loss_of(quartic, kl_gradient())))
    assert finding.name == "kl-weight-collapses"


@pytest.mark.parametrize(("n_bad", "name"), [(1, None), (2, "loss-without-minimum")])
def test_one_pixel_in_a_hundred_may_run_away(n_bad, name):
    stamps = torch.randn(48, 100, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    is_bad = torch.arange(100) < n_bad

    def reconstruction(recon: Tensor, x: Tensor) -> Tensor:
        return torch.where(is_bad, -100 * recon, 0.5 * (recon - x).square()).sum()

    bench = bench_of(stamps, loss_of(reconstruction, kl_gradient()))
    names = [each.name for each in weight_leaves_code_alive(bench)]
    assert names == ([] if name is None else [name])


def test_a_loss_that_bends_down_has_the_wrong_sign():
    bench = bench_of(STAMPS, loss_of(half_sse(-3.0), kl_gradient()))
    (finding,) = weight_leaves_code_alive(bench)
    assert finding.name == "reconstruction-wrong-sign"
    assert finding.measured == (
        "around the mean stamp the curvature of the loss by a pixel is -3 on average: it falls as "
        "the output moves away"
    )


@pytest.mark.parametrize("kl", [None, kl_gradient(-1.0)])
def test_without_a_kl_that_holds_the_means_there_is_no_weight(kl):
    bench = bench_of(STAMPS, loss_of(half_sse(), kl))
    with pytest.raises(Untestable) as refused:
        weight_leaves_code_alive(bench)
    assert str(refused.value) == "the loss has no KL that holds the means"
    assert bench.facts == {"largest_eigenvalue": pytest.approx(8)}


def test_pixels_count_in_units_of_the_root_of_their_curvature():
    weight = torch.tensor([[1.0, 9.0], [4.0, 2.0]], dtype=DOUBLE)
    findings, facts = weight_finding(weight, 8.0)
    # 1 * 16 / 2 and 9 * 4 / 2, over the mean weight
    assert facts["largest_eigenvalue"] == pytest.approx(18 / 4)
    assert facts["beta_s2"] == pytest.approx(8 / 4)
    assert findings == []


# -- reductions ----------------------------------------------------------------------------------

SUM = half_sse()
MEAN = lambda recon, stamps: 0.5 * (recon - stamps).square().mean()  # noqa: E731


def kl_sum(mean: Tensor, spread: Tensor) -> Tensor:
    return 0.5 * mean.square().sum()


def kl_mean(mean: Tensor, spread: Tensor) -> Tensor:
    return 0.5 * mean.square().mean()


def reductions(
    reconstruction: Any, kl: Any, stamps: Tensor = STAMPS, **flags: Any
) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    bench = bench_of(stamps, loss_of(reconstruction, kl, **flags))
    return [(each.name, each.measured) for each in reductions_agree(bench)], bench.facts


@pytest.mark.parametrize(
    ("reconstruction", "kl", "words"),
    [(SUM, kl_sum, ("summed", "summed")), (MEAN, kl_mean, ("averaged", "averaged"))],
)
def test_two_parts_that_are_reduced_alike_agree(reconstruction, kl, words):
    findings, facts = reductions(reconstruction, kl)
    assert findings == []
    assert facts == {"batch_reduction": {"pixels": words[0], "kl": words[1]}}


@pytest.mark.parametrize(
    ("reconstruction", "kl", "measured"),
    [
        (SUM, kl_mean, "from 24 to 48 stamps in a batch the reconstruction is summed and the KL "
         "averaged: the KL weight changes by a factor of 2"),
        (MEAN, kl_sum, "from 24 to 48 stamps in a batch the reconstruction is averaged and the KL "
         "summed: the KL weight changes by a factor of 2"),
        (lambda recon, stamps: SUM(recon, stamps) * len(recon) ** 2, kl_mean, "from 24 to 48 "
         "stamps in a batch the reconstruction is unknown and the KL averaged: the KL weight "
         "changes by a factor of 8"),
    ],
)  # fmt: skip
def test_two_parts_that_are_reduced_in_two_ways_make_a_weight_of_the_batch(
    reconstruction, kl, measured
):
    findings, _ = reductions(reconstruction, kl)
    assert findings == [("batch-size-in-kl-weight", measured)]


@pytest.mark.parametrize(("power", "is_found"), [(0.49, False), (0.51, True)])
def test_parts_may_differ_by_half_a_power_of_the_batch(power, is_found):
    def reconstruction(recon: Tensor, stamps: Tensor) -> Tensor:
        return SUM(recon, stamps) * len(recon) ** power

    assert bool(reductions(reconstruction, kl_sum)[0]) == is_found


def test_without_a_kl_there_is_nothing_to_compare():
    findings, facts = reductions(MEAN, None)
    assert findings == []
    assert facts["batch_reduction"] == {"pixels": "averaged", "kl": "unknown"}


def test_a_loss_that_takes_any_shape_is_asked_for_pixels_and_units():
    def both(reconstruction: Any, kl: Any) -> Any:
        return reductions(reconstruction, kl, takes_any_shape=True)[1]["reduction"]

    assert both(SUM, kl_sum) == {"pixels": "summed", "units": "summed"}
    assert both(MEAN, kl_mean) == {"pixels": "averaged", "units": "averaged"}

    def fixed(recon: Tensor, stamps: Tensor) -> Tensor:
        assert stamps.shape[-1] == 2
        return SUM(recon, stamps)

    def narrow(mean: Tensor, spread: Tensor) -> Tensor:
        assert mean.shape[1] == 2
        return kl_sum(mean, spread)

    assert both(fixed, narrow) == {
        "pixels": "unknown",
        "units": "unknown",
    }


def test_a_loss_that_compares_stamps_with_each_other_is_found():
    def broadcast(recon: Tensor, stamps: Tensor) -> Tensor:
        return (recon.flatten(1)[:, None] - stamps.flatten(1)[None]).square().sum()

    findings, _ = reductions(broadcast, None)
    assert findings == [
        ("loss-mixes-stamps", "the gradient at the output of one stamp turns when the other stamps "
         "change")
    ]  # fmt: skip


# -- the loss on its bench -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_stamps", "n"), [(2, 48), (5, 50), (47, 94), (48, 48), (49, 49), (256, 256), (257, 256)]
)
def test_stamps_are_repeated_to_make_a_batch_and_each_as_often(n_stamps, n):
    stamps = torch.arange(4.0 * n_stamps).view(n_stamps, 4)
    loss = _Loss(bench_of(stamps, loss_of()))
    assert loss.n == n
    assert torch.equal(loss.stamps, stamps.repeat(n // n_stamps + 1, 1)[:n])
    assert _Loss(bench_of(stamps, loss_of()), n=3).n == 3


def test_what_cannot_be_examined_is_told():
    with pytest.raises(Untestable, match=r"^there is no loss to examine$"):
        _Loss(bench_of(STAMPS))
    for missing in ("mean", "spread"):
        given = {"mean": torch.zeros(2, 2), "spread": torch.zeros(2, 2)}
        del given[missing]
        subject = Told(lambda x, given=given: Reading(recon=x, **given))
        with pytest.raises(Untestable, match=r"^the model hands out no mean and log-variance$"):
            _Loss(Bench(subject, STAMPS, loss_of()))


def test_the_mean_stamp_is_drawn_a_twentieth_towards_its_average_for_every_stamp():
    loss = a_loss()
    expected = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=DOUBLE) * 0.95 + 0.05 * 2.5
    torch.testing.assert_close(loss._recon(), expected.view(1, 1, 2, 2).expand(48, 1, 2, 2))
    torch.testing.assert_close(loss._recon(2.0), loss._recon() + 2)


def bench_with(recon_shape: tuple[int, ...], code_shape: tuple[int, ...]) -> Bench:
    def answer(given: Tensor) -> Reading:
        code = torch.zeros(len(given), *code_shape)
        return Reading(recon=torch.zeros(len(given), *recon_shape), mean=code, spread=code)

    return Bench(Told(answer), torch.randn(3, 1, 4, 6), loss_of())


def test_output_and_code_have_the_shapes_of_the_model_and_fewer_columns_or_more_units():
    flat = bench_with((24,), (3,))
    assert _Loss(flat)._recon().shape == (48, 24)
    assert _Loss(flat, columns=0.5)._recon().shape == (48, 12)
    picture = bench_with((1, 4, 6), (2, 3))
    assert _Loss(picture)._recon().shape == (48, 1, 4, 6)
    half = _Loss(picture, columns=0.5)
    assert half._recon().shape == (48, 1, 4, 3)
    assert torch.equal(half.stamps, _Loss(picture).stamps[..., :3])
    assert _Loss(picture, columns=0.01)._recon().shape == (48, 1, 4, 1)
    assert _Loss(picture)._mean().shape == (48, 2, 3)
    assert _Loss(picture, repeat=2)._mean().shape == (48, 2, 6)


def test_what_is_not_under_examination_is_neutral():
    objective = loss_of(half_sse(), kl_gradient())
    loss = _Loss(bench_of(STAMPS, objective))
    gradient = loss._gradient("recon")
    torch.testing.assert_close(gradient, loss._recon() - loss.stamps)
    (call,) = objective.calls
    assert torch.equal(call["stamps"], STAMPS.repeat(12, 1, 1, 1))
    assert torch.equal(call["recon"], loss._recon())
    assert torch.equal(call["mean"], torch.zeros(48, 2, dtype=DOUBLE))
    assert torch.equal(call["spread"], torch.full((48, 2), 0.5, dtype=DOUBLE))
    given = loss._mean(3.0)
    torch.testing.assert_close(loss._gradient("mean", mean=given), given)
    assert not given.requires_grad


@pytest.mark.parametrize("kl", [None, lambda mean, spread: mean.sum()])
def test_what_the_loss_does_not_depend_on_has_a_gradient_of_zero(kl):
    assert torch.equal(a_loss(None, kl)._gradient("spread"), torch.zeros(48, 2, dtype=DOUBLE))


@pytest.mark.parametrize(("samples_code", "n_draws"), [(True, N_DRAWS), (False, 1)])
def test_a_loss_that_draws_is_averaged_over_its_draws(samples_code, n_draws):
    loss = a_loss(None, lambda mean, spread: (torch.randn(()) * mean).sum(),
                  samples_code=samples_code)  # fmt: skip
    draws = [torch.randn((), generator=torch.Generator().manual_seed(k)) for k in range(n_draws)]
    expected = torch.stack(draws).double().mean().item()
    assert loss._averaged("mean").unique().tolist() == [pytest.approx(expected)]
    assert len(loss.objective.calls) == n_draws  # type: ignore[attr-defined]


def test_gradient_by_a_mean_is_in_units_of_it():
    loss = a_loss(None, lambda mean, spread: (mean.pow(4) / 4 * spread).sum())
    assert loss.by_mean() == pytest.approx(8**2 * 0.5)
    assert loss.by_mean(3.0, 2.0) == pytest.approx(3**2 * 2)


def test_gradient_by_the_spread_is_taken_on_a_grid_far_from_the_prior():
    loss = a_loss(None, lambda mean, spread: (mean.square() * spread.square()).sum())
    spreads, by_spread = loss.by_spread()
    assert spreads.tolist() == list(GRID)
    torch.testing.assert_close(by_spread, 2 * 64 * spreads)
    torch.testing.assert_close(loss.by_spread(3.0)[1], 2 * 9 * spreads)


@pytest.mark.parametrize("error", [RuntimeError, ValueError])
def test_a_spread_that_must_be_positive_is_taken_on_another_grid(error):
    def kl(mean: Tensor, spread: Tensor) -> Tensor:
        if bool((spread < 0).any()):
            raise error
        return (mean * spread.square()).sum()

    spreads, by_spread = a_loss(None, kl).by_spread(4.0)
    assert spreads.tolist() == list(POSITIVE)
    torch.testing.assert_close(by_spread, 2 * 4 * spreads)


def test_spreads_without_a_finite_gradient_are_left_out():
    spreads, by_spread = a_loss(None, lambda mean, spread: spread.sqrt().sum()).by_spread()
    assert spreads.tolist() == [0.5, 1.0, 2.0]
    torch.testing.assert_close(by_spread, 0.5 * spreads.rsqrt())


def quartic(recon: Tensor, stamps: Tensor) -> Tensor:
    """Around the mean stamp: curvature grows with the square of the step."""
    centre = STAMPS.mean(0)
    centre = centre + 0.05 * (centre.mean() - centre)
    return (recon - centre).pow(4).sum()


def test_curvature_by_a_pixel_is_over_a_fifth_of_the_spread_of_the_stamps():
    shift = float(STAMPS.repeat(12, 1, 1, 1).std())
    assert a_loss(quartic).by_pixel() == pytest.approx(4 * (0.1 * shift) ** 2)
    assert a_loss(half_sse(7.0)).by_pixel() == pytest.approx(7)
    assert a_loss(half_sse(-7.0)).by_pixel() == pytest.approx(7)


def test_curvature_around_the_mean_stamp_is_over_the_spread_of_each_pixel():
    many = STAMPS.repeat(12, 1, 1, 1)
    spread = many.std(0).flatten()
    spread = spread.clamp(min=0.05 * float(spread.mean()))  # two pixels never change
    curvature, pull = a_loss(quartic).around_mean_stamp()
    torch.testing.assert_close(curvature, 4 * spread.square())
    assert pull.shape == (48, 4)
    assert not bool(pull.any())
    weight = torch.tensor([[1.0, 9.0], [4.0, 2.0]], dtype=DOUBLE)
    loss = a_loss(half_sse(weight))
    curvature, pull = loss.around_mean_stamp()
    torch.testing.assert_close(curvature, weight.flatten())
    torch.testing.assert_close(pull, ((loss._recon() - many) * weight).flatten(1))
    assert (curvature.dtype, pull.dtype) == (DOUBLE, DOUBLE)


@pytest.mark.parametrize("how", [RuntimeError, ValueError, "nan"])
@pytest.mark.parametrize("share", [0.3, 0.1, 0.03, 0.01])
def test_a_step_out_of_range_is_taken_smaller(how, share):
    centre = a_loss()._recon()
    spread = STAMPS.repeat(12, 1, 1, 1).std(0)
    spread = spread.clamp(min=0.05 * float(spread.mean()))

    def bounded(recon: Tensor, stamps: Tensor) -> Tensor:
        is_out = bool((recon > centre + 1.01 * share * spread).any())
        if is_out and how != "nan":
            raise how
        return quartic(recon, stamps) * (math.nan if is_out else 1)

    curvature, _ = a_loss(bounded).around_mean_stamp()
    torch.testing.assert_close(curvature, 4 * (share * spread).square().flatten())


@pytest.mark.parametrize("side", [1, -1])
def test_a_loss_without_a_number_around_the_mean_stamp_cannot_be_weighed(side):
    centre = a_loss()._recon()

    def pole(recon: Tensor, stamps: Tensor) -> Tensor:
        if bool((side * (recon - centre) > 0).any()):
            raise ValueError
        return half_sse()(recon, stamps)

    with pytest.raises(Untestable) as refused:
        a_loss(pole).around_mean_stamp()
    assert str(refused.value) == "the loss is not finite, or raises, around the mean stamp"
    # a pull that is no number is none either
    with pytest.raises(Untestable):
        a_loss(lambda recon, stamps: (recon - centre).abs().sqrt().sum()).around_mean_stamp()


def test_outputs_are_pushed_a_thousand_ranges_away_on_both_sides():
    objective = loss_of(half_sse())
    loss = _Loss(bench_of(STAMPS, objective))
    assert loss.pushed_away() == 0
    up, down = (call["recon"] for call in objective.calls)
    span = float(STAMPS.max() - STAMPS.min())
    torch.testing.assert_close(up, loss._recon() + 1e3 * span)
    torch.testing.assert_close(down, loss._recon() - 1e3 * span)


@pytest.mark.parametrize(
    ("slopes", "share"),
    [
        ([1.0, 0.0, 0.0, 0.0], 0.25),  # falls for ever towards one side
        ([1.0, -1.0, 1.0, 0.0], 0.75),
        ([1.0, 1.0, 1.0, 1.0], 1.0),
    ],
)
def test_share_of_the_pixels_that_run_away_to_one_side(slopes, share):
    slope = torch.tensor(slopes, dtype=DOUBLE).view(2, 2)

    def reconstruction(recon: Tensor, stamps: Tensor) -> Tensor:
        return torch.where(slope == 0, 0.5 * recon.square(), slope * recon).sum()

    assert a_loss(reconstruction).pushed_away() == share


def test_a_sign_that_is_wrong_on_both_sides_is_told_elsewhere():
    assert a_loss(half_sse(-1.0)).pushed_away() == 0
    # in some of the pixels alone: on neither side does that count
    weight = torch.tensor([[-1.0, 1.0], [1.0, 1.0]], dtype=DOUBLE)
    assert a_loss(half_sse(weight)).pushed_away() == 0


@pytest.mark.parametrize("error", [RuntimeError, ValueError])
def test_a_loss_with_a_bounded_output_is_not_pushed(error):
    def bounded(recon: Tensor, stamps: Tensor) -> Tensor:
        if bool((recon.abs() > 100).any()):
            raise error
        return -recon.sum()

    assert a_loss(bounded).pushed_away() == 0


@pytest.mark.parametrize("learns", [True, False])
def test_scale_is_asked_for_with_neutral_arguments(learns):
    loss = a_loss(half_sse(), learns=learns)
    assert loss.learns_scale() is learns
    (call,) = loss.objective.calls  # type: ignore[attr-defined]
    for name, expected in (("recon", loss._recon()), ("stamps", loss.stamps),
                           ("mean", loss._mean()), ("spread", loss._mean(0.5))):  # fmt: skip
        assert torch.equal(call[name], expected)


@pytest.mark.parametrize(("turn", "mixes"), [(0.0, False), (0.98, False), (1.02, True)])
def test_a_gradient_that_turns_with_the_other_stamps_mixes_them(turn, mixes):
    """Which are lifted by twice their spread; 8 degrees, a cosine of 0.99, are allowed."""
    first = a_loss()._recon()[0] - 2.5 - (STAMPS[0] - STAMPS[0].mean())  # adds up to nothing
    lift = 2 * float(STAMPS.repeat(12, 1, 1, 1).std()) * math.sqrt(4)
    share = turn * math.tan(math.acos(0.99)) * float(first.norm()) / lift

    def mixing(recon: Tensor, stamps: Tensor) -> Tensor:
        level = share * (stamps[1].mean() - STAMPS[1].mean())
        return half_sse()(recon, 2.5 + stamps - stamps.mean((1, 2, 3), keepdim=True) + level)

    assert a_loss(mixing).mixes_stamps() is mixes


def test_other_stamps_are_moved_and_lifted_and_the_first_is_left():
    objective = loss_of(half_sse())
    loss = _Loss(bench_of(STAMPS, objective))
    loss.mixes_stamps()
    shown = objective.calls[1]["stamps"]
    kept = loss.stamps
    assert torch.equal(shown[0], kept[0])
    torch.testing.assert_close(shown[1:], kept[1:].roll(1, -1) + 2 * kept.std())


@pytest.mark.parametrize("error", [RuntimeError, ValueError])
def test_a_loss_that_wants_stamps_in_range_is_not_called_mixing(error):
    def bounded(recon: Tensor, stamps: Tensor) -> Tensor:
        if not torch.equal(stamps[:4], STAMPS):
            raise error
        return half_sse()(recon, stamps)

    loss = a_loss(bounded)
    assert loss.mixes_stamps() is False
    assert torch.equal(loss.stamps[:4], STAMPS)


def test_a_loss_without_a_gradient_mixes_nothing():
    assert a_loss(None).mixes_stamps() is False


# -- figures -------------------------------------------------------------------------------------


def test_misfit_is_relative_to_the_closed_form():
    spreads = torch.tensor([-1.0, 0.5, 2.0], dtype=DOUBLE)
    expected = 3 * 0.5 * (spreads.exp() - 1)
    assert _misfit(3.0, spreads, expected, "log_var") == pytest.approx(0)
    assert _misfit(3.0, spreads, 1.2 * expected, "log_var") == pytest.approx(0.2)
    off = expected + torch.tensor([0.3, 0.0, 0.4], dtype=DOUBLE)
    assert _misfit(3.0, spreads, off, "log_var") == pytest.approx(0.5 / float(expected.norm()))
    assert _misfit(3.0, spreads[:2], expected[:2], "log_var") == math.inf


def test_terms_are_the_factors_of_the_best_fit():
    spreads = torch.tensor(GRID, dtype=DOUBLE)
    assert _terms(spreads, 0.5 * (3 * spreads.exp() - 2)) == pytest.approx((3, 2))


def test_largest_eigenvalue_is_in_units_of_the_curvature_and_its_floor():
    pull = torch.zeros(4, 3, dtype=DOUBLE)
    pull[:, 0] = torch.tensor([3.0, -3.0, 3.0, -3.0])
    pull[:, 1] = torch.tensor([2.0, 2.0, -2.0, -2.0])
    pull += torch.tensor([5.0, 6.0, 7.0])  # of all stamps: no direction
    curvature = torch.tensor([9.0, 1.0, 2.0], dtype=DOUBLE)
    assert _largest_eigenvalue(pull, curvature) == pytest.approx(4)
    # a pixel that hardly bends counts as one with a thousandth of the mean
    curvature = torch.tensor([6.0, 0.0, 0.0], dtype=DOUBLE)
    assert _largest_eigenvalue(pull, curvature) == pytest.approx(4 / 2e-3)


@pytest.mark.parametrize(
    ("one", "other", "factor", "exponent"),
    [(8.0, 2.0, 2.0, 2.0), (1.0, 2.0, 2.0, -1.0), (3.0, 3.0, 2.0, 0.0), (1.0, 4.0, 0.5, 2.0)],
)
def test_exponent_is_the_power_of_the_size(one, other, factor, exponent):
    assert _exponent(one, other, factor) == pytest.approx(exponent)
    if factor == 2:
        assert _exponent(one, other) == pytest.approx(exponent)


@pytest.mark.parametrize(("one", "other"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0), (1.0, None)])
def test_what_is_not_positive_has_no_exponent(one, other):
    assert math.isnan(_exponent(one, other))


@pytest.mark.parametrize(
    ("exponent", "word"),
    [
        (0.34, "summed"), (-0.34, "summed"), (0.36, "unknown"), (-0.36, "unknown"),
        (-0.64, "unknown"), (-0.66, "averaged"), (-1.34, "averaged"), (-1.36, "unknown"),
        (0.35, "unknown"), (-0.65, "unknown"), (1.0, "unknown"), (math.nan, "unknown"),
    ],
)  # fmt: skip
def test_exponent_in_a_word(exponent, word):
    assert _word(exponent) == word


def test_a_measure_that_raises_measures_nothing():
    assert _tried(lambda: 2.0) == 2.0
    assert _tried(lambda: 1 / 0) is None
