"""Repeatable evaluation, one meaning of the log-variance, and its gradient, word for word."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hand_made import Weights, bench_of, column, passes_of, told
from torch import Tensor, nn

from vae_astro.collapse.audit.adapters import OwnSubject
from vae_astro.collapse.audit.bench import Bench, Evidence
from vae_astro.collapse.audit.findings import Untestable
from vae_astro.collapse.audit.noise import (
    evaluation_is_repeatable,
    log_var_learns_from_output,
    one_meaning,
)
from vae_astro.collapse.audit.outputs import Reading
from vae_astro.vae import VAE

DOUBLE = torch.float64


def first_draws(n: int = 1) -> list[np.ndarray]:
    """What a model draws first in passes with the seeds 1 and 2."""
    generators = (torch.Generator().manual_seed(seed) for seed in (1, 2))
    return [torch.randn(n, generator=each).double().numpy() for each in generators]


# Repeatable in evaluation


def shaken(mean: float = 0.0, output: float = 0.0, recon: float = 0.0) -> Bench:
    """1 plus so much of one draw: as mean, as output of a code and as output of the stamps."""

    def answer(x: Tensor, code: Tensor | None) -> Reading:
        draw = torch.randn(1).double()
        ones = torch.ones(len(x), 2, dtype=DOUBLE)
        made = ones + (recon if code is None else output) * draw
        return Reading(recon=made, mean=ones + mean * draw)

    return bench_of(answer, column(40))


def change_of(share: float) -> float:
    a, b = (float(1 + share * each[0]) for each in first_draws())
    return abs(a - b) / math.sqrt((a**2 + b**2) / 2)


SHARE_OF_ONE = 1 / abs(float(np.subtract(*first_draws())[0]))
"""Of a draw that makes a change of 1."""


def test_model_without_noise_is_repeatable_and_its_forward_does_not_sample():
    bench = shaken()
    assert evaluation_is_repeatable(bench) == []
    assert bench.facts == {"forward_samples_in_evaluation": False}
    assert passes_of(bench) == [(16, False)] * 4


def test_noise_in_the_mean_is_told_by_its_size():
    bench = shaken(mean=0.1, output=0.3)
    assert told(evaluation_is_repeatable(bench)) == [
        (
            "noise-in-evaluation",
            "the same stamps twice in evaluation mode: the posterior mean differs by "
            f"{100 * change_of(0.1):.3g} % of its size",
        )
    ]
    assert bench.facts == {}


def test_noise_in_the_output_of_a_code_is_told_by_its_size():
    bench = shaken(output=0.3)
    assert told(evaluation_is_repeatable(bench)) == [
        (
            "noise-in-evaluation",
            "the same code twice in evaluation mode: the output differs by "
            f"{100 * change_of(0.3):.3g} % of its size",
        )
    ]
    assert bench.facts == {}


@pytest.mark.parametrize(("change", "is_noise"), [(0.99e-6, False), (1.01e-6, True)])
def test_a_millionth_is_rounding_and_more_is_noise(change, is_noise):
    share = change * SHARE_OF_ONE
    for bench in (shaken(mean=share), shaken(output=share)):
        names = [each.name for each in evaluation_is_repeatable(bench)]
        assert names == ["noise-in-evaluation"] * is_noise
    bench = shaken(recon=share)
    assert evaluation_is_repeatable(bench) == []
    assert bench.facts == {"forward_samples_in_evaluation": is_noise}


def test_model_that_hands_out_no_mean_and_takes_no_code_is_asked_for_its_output():
    bench = bench_of(lambda x, code: Reading(recon=x + torch.rand(1)), column(9))
    bench.subject.reaches_code = False
    assert evaluation_is_repeatable(bench) == []
    assert bench.facts == {"forward_samples_in_evaluation": True}
    bench = bench_of(lambda x, code: Reading(mean=x), column(9))
    bench.subject.reaches_code = False
    assert evaluation_is_repeatable(bench) == []
    assert bench.facts == {}


def test_forward_of_our_own_model_is_not_asked_whether_it_samples():
    vae = VAE((1, 16, 16), model={"name": "linear"}).eval()
    bench = Bench(OwnSubject(vae), torch.randn(4, 1, 16, 16))
    assert evaluation_is_repeatable(bench) == []
    assert bench.facts == {}


# One meaning


def asked(
    named: str | None, kl: str | None, noise: str | None, *, is_positive: bool = False
) -> Bench:
    bench = bench_of(lambda x, code: Reading(claim=named), column(9))  # type: ignore[arg-type]
    bench.kl = kl and Evidence(kl, "the KL reads it so")  # type: ignore[assignment]
    bench.noise = noise and Evidence(noise, "the noise is so", is_positive)  # type: ignore[assignment]
    return bench


RETURN_IT = "; if it is a log standard deviation, return it as log_std or give the loss"


@pytest.mark.parametrize(
    ("named", "kl", "noise", "expected"),
    [
        # all agree, or there is nothing to agree on
        (None, None, None, []),
        ("log_var", None, None, []),
        ("log_var", "log_var", "log_var", []),
        ("log_var", "std", "std", []),
        (None, "log_var", "log_var", []),
        ("log_var", None, "log_var", []),
        ("log_var", "log_var", None, []),
        (None, "var", None, []),
        (None, None, "log_var", []),
        # the name decides
        ("log_var", None, "log_std", [("noise-exp-log-var", "the noise is so")]),
        ("log_var", None, "std", [("noise-formula", "the noise is so")]),
        ("log_std", None, "log_var", [("noise-formula", "the noise is so")]),
        ("log_var", "log_var", "log_std", [("noise-exp-log-var", "the noise is so")]),
        (
            "log_var", "std", "log_var",
            [("kl-log-var-taken-for-std", "the KL reads it so, where a log_var is meant")],
        ),
        (
            "log_var", "log_std", None,
            [("kl-log-var-taken-for-std", "the KL reads it so, where a log_var is meant")],
        ),
        ("log_var", "var", None, [("kl-formula", "the KL reads it so, where a log_var is meant")]),
        ("std", "log_std", None, [("kl-formula", "the KL reads it so, where a std is meant")]),
        (
            "std", "log_var", "var",
            [
                ("noise-formula", "the noise is so"),
                ("kl-formula", "the KL reads it so, where a std is meant"),
            ],
        ),
        # without a name a log-variance is meant, if one of the two takes it so
        (None, "log_var", "log_std", [("noise-exp-log-var", "the noise is so")]),
        (None, "log_var", "constant", [("noise-formula", "the noise is so")]),
        (
            None, "log_std", "log_var",
            [("kl-log-var-taken-for-std", "the KL reads it so, where a log_var is meant")],
        ),
        (None, "var", "log_var", [("kl-formula", "the KL reads it so, where a log_var is meant")]),
        # or else what the KL takes it for
        (None, "std", "log_std", [("noise-formula", "the noise is so")]),
        # without a loss too
        (None, None, "log_std", [("noise-exp-log-var", "the noise is so" + RETURN_IT)]),
        (None, None, "std", [("noise-formula", "the noise is so" + RETURN_IT)]),
        (None, None, "constant", [("noise-formula", "the noise is so" + RETURN_IT)]),
    ],
)  # fmt: skip
def test_name_kl_and_noise_must_mean_the_same(named, kl, noise, expected):
    bench = asked(named, kl, noise)
    assert told(one_meaning(bench)) == expected
    assert passes_of(bench) == [(2, False)]


@pytest.mark.parametrize(
    ("noise", "n_found"), [("std", 0), ("var", 0), ("constant", 1), ("log_std", 1)]
)
def test_spread_that_is_positive_may_be_a_standard_deviation_or_a_variance(noise, n_found):
    assert len(one_meaning(asked(None, None, noise, is_positive=True))) == n_found


# Gradient to the log-variance


class Sampler(nn.Module):
    """Mean of one weight, log-variance of others, and what the output is made of."""

    def __init__(
        self, output: Callable[[Sampler, Tensor, Tensor], Tensor], share: float = 50.0
    ) -> None:
        super().__init__()
        self.of_the_decoder = nn.Parameter(torch.ones(3))
        self.both = nn.Parameter(torch.tensor([0.1, 0.1, 0.1], dtype=DOUBLE))  # the last is idle
        self.share = share
        self.weak = nn.Parameter(torch.zeros(3, dtype=DOUBLE))
        self.strong = nn.Parameter(torch.zeros(5, dtype=DOUBLE))
        self.output = output

    def answer(self, x: Tensor, code: Tensor | None) -> Reading:
        turned = 2 * (x % 2) - 1  # so that a plain sum of the means does not tell of `both`
        mean = turned * self.both[0]
        spread = self.weak.sum() + 3 * self.strong.sum() + self.share * self.both[:2].sum()
        spread = spread.expand(len(x), 1)
        return Reading(recon=self.output(self, mean, spread), mean=mean, spread=spread)


def sampler(output: Callable[[Sampler, Tensor, Tensor], Tensor], share: float = 50.0) -> Bench:
    module = Sampler(output, share)
    return bench_of(module.answer, column(40), module, 1)


def test_output_that_moves_the_log_variance_is_no_finding():
    bench = sampler(lambda module, mean, spread: mean + 1e-9 * torch.exp(0.5 * spread))
    assert log_var_learns_from_output(bench) == []
    assert set(passes_of(bench)) == {(16, True)}
    assert len(passes_of(bench)) == 2
    assert not bench.module.training


@pytest.mark.parametrize(
    "output",
    [
        lambda module, mean, spread: mean,
        lambda module, mean, spread: mean + spread.detach(),
        lambda module, mean, spread: mean.detach(),
        lambda module, mean, spread: mean + 0 * spread,
    ],
)
def test_output_that_does_not_move_the_log_variance_is_told_with_its_weights(output):
    bench = sampler(output)
    assert told(log_var_learns_from_output(bench)) == [
        # the second of `both`, whose gradient is the largest
        (
            "log-var-without-gradient",
            "the output moves none of the 1 weights that set the log-variance",
        )
    ]
    assert bench.module.both.tolist() == [0.1] * 3


def test_weights_that_move_the_log_variance_most_are_the_ones_that_are_asked():
    def output(module: Sampler, mean: Tensor, spread: Tensor) -> Tensor:
        return mean + module.weak.sum() + module.both[1]

    (finding,) = log_var_learns_from_output(sampler(output, share=1.0))
    assert finding.measured == "the output moves none of the 5 weights that set the log-variance"
    # the mean square of one weight of 5.1 and two that are not its own is 8.7, against 9
    (finding,) = log_var_learns_from_output(sampler(output, share=5.1))
    assert "none of the 5 weights" in finding.measured
    assert log_var_learns_from_output(sampler(output, share=5.3)) == []


def test_weights_that_move_the_mean_too_tell_nothing_of_the_log_variance():
    module = Weights(0.5)
    bench = bench_of(
        lambda x, code: Reading(
            recon=x * module.w, mean=(2 * (x % 2) - 1) * module.w, spread=module.w.expand(len(x), 1)
        ),
        column(40),
        module,
        1,
    )
    with pytest.raises(
        Untestable, match=r"^every weight that moves the log-variance moves the mean too$"
    ):
        log_var_learns_from_output(bench)


def test_log_variance_that_no_weight_sets_learns_from_nothing():
    bench = bench_of(lambda x, code: Reading(recon=x, mean=x, spread=x), column(9), Weights(0.0))
    with pytest.raises(Untestable, match=r"^no weight moves the log-variance$"):
        log_var_learns_from_output(bench)


def test_mean_that_no_weight_sets_leaves_all_weights_to_the_log_variance():
    module = Weights(0.0, 0.0, 0.0)
    bench = bench_of(
        lambda x, code: Reading(
            recon=x, mean=x, spread=1e-3 * module.w[:2].sum() * torch.ones_like(x)
        ),
        column(9),
        module,
    )
    (finding,) = log_var_learns_from_output(bench)
    assert finding.measured == "the output moves none of the 2 weights that set the log-variance"


def test_mean_and_log_variance_may_have_a_layer_in_common():
    module = nn.ModuleDict({"hidden": Weights(2.0), "mean": Weights(1.0), "spread": Weights(1.0)})

    def answer(x: Tensor, code: Tensor | None) -> Reading:
        units = (x * module["hidden"].w).square()
        mean, spread = units * module["mean"].w, units * module["spread"].w
        return Reading(recon=mean, mean=mean, spread=spread)

    (finding,) = log_var_learns_from_output(bench_of(answer, 1 + column(9), module, 1))
    assert finding.measured == "the output moves none of the 1 weights that set the log-variance"
