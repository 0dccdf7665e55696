"""Findings about a loss, on losses whose gradients have a closed form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny_losses import DOUBLE, STAMPS, half_sse, loss_of, quartic
from tiny_subjects import bench_of, kl_gradient
from torch import Tensor

from vae_astro.collapse.audit.adapters import OwnSubject
from vae_astro.collapse.audit.bench import Bench, Evidence
from vae_astro.collapse.audit.findings import Untestable
from vae_astro.collapse.audit.losses import OwnLoss
from vae_astro.collapse.audit.objective import (
    TOLERANCE,
    kl_is_that_of_gaussians,
    reductions_agree,
    weight_leaves_code_alive,
)
from vae_astro.collapse.forecast import forecast_run
from vae_astro.vae import VAE

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


def test_a_misfit_that_passes_is_told_in_per_cent():
    _, bench = kl_finding(kl_gradient(1, 1.1045, 1.1045))
    assert bench.kl is not None
    assert bench.kl.measured.endswith(", to 10 %")


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
    for one_of_both in ((1, -1, 1), (1, 1, -1), (1, 0.5, -1)):
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


@pytest.mark.parametrize(
    "likelihood",
    [
        {"name": "bernoulli", "kind": "continuous"},
        {"name": "bernoulli", "kind": "binary"},
        {"name": "gaussian", "std": 0.1},
    ],
    ids=lambda settings: settings.get("kind", settings["name"]),
)
def test_own_model_is_weighed_as_the_forecast_weighs_it(likelihood):
    """Around the collapsed state, be it pixels or logits: a dark sky, where these are far apart."""
    draw = torch.Generator().manual_seed(0)
    light = torch.linspace(-4, 4, 16).square().neg().exp().outer(torch.ones(16))
    stamps = 0.02 + 0.9 * light * torch.rand(64, 1, 1, 1, generator=draw)
    stamps = (stamps + 0.02 * torch.rand(64, 1, 16, 16, generator=draw)).clamp(0.02, 0.98)
    vae = VAE((1, 16, 16), model={"name": "linear", "latent_dim": 2}, likelihood=likelihood,
              normalize={"stretch": "minmax"}, beta={"name": "constant", "value": 3.0})  # fmt: skip
    subject = OwnSubject(vae)
    bench = Bench(subject, stamps, OwnLoss(subject))
    weight_leaves_code_alive(bench)
    batch = {
        "image": stamps,
        "mask": torch.ones_like(stamps, dtype=torch.bool),
        "noise": torch.ones_like(stamps),
        "index": torch.arange(64),
    }
    end = forecast_run([batch], vae.likelihood, 2, vae.schedule, 1).end
    ratio = bench.facts["largest_eigenvalue"] / bench.facts["beta_s2"]
    assert ratio == pytest.approx(end.largest_eigenvalue / end.threshold, rel=0.01)


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
