"""Experiments on the decoder, on models whose every figure is known: words, numbers, thresholds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hand_made import bench_of, column, passes_of, told
from torch import Tensor, nn

from vae_astro.collapse.audit.bench import Bench
from vae_astro.collapse.audit.decoder import (
    code_changes_output,
    gradients_reach_encoder,
    input_changes_output,
    input_stays_outside,
    output_is_finite,
)
from vae_astro.collapse.audit.outputs import Reading

DOUBLE = torch.float64


def drawn(n: int, latent_dim: int = 2) -> np.ndarray:
    """The codes that an audit decodes, (n, Z)."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, latent_dim, generator=generator).double().numpy()


def change(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square of the difference over that of both."""
    return float(np.sqrt(((a - b) ** 2).mean() / ((a**2).mean() / 2 + (b**2).mean() / 2)))


def rolled(a: np.ndarray) -> np.ndarray:
    return np.roll(a, 1, 0)


def decoding(decode: Callable[[Tensor, Tensor], Tensor], stamps: Tensor) -> Bench:
    """A model whose code is twice the stamp, decoded by ``decode(code, stamps)``."""

    def answer(x: Tensor, code: Tensor | None) -> Reading:
        made = x[:, :1] * torch.tensor([2.0, 2.0]) if code is None else code
        return Reading(recon=decode(made, x))

    return bench_of(answer, stamps)


# Shape and finiteness


def handing_out(n: int = 70, **parts: Tensor) -> Bench:
    return bench_of(lambda x, code: Reading(**parts), torch.zeros(n, 1, 2, 5))


def test_output_of_the_stamps_size_is_no_finding_in_whatever_shape():
    for shape in ((64, 1, 2, 5), (64, 10), (64, 5, 2)):
        bench = handing_out(recon=torch.zeros(shape))
        assert output_is_finite(bench) == []
        assert passes_of(bench) == [(64, False)]
    assert output_is_finite(handing_out(mean=torch.zeros(64, 3))) == []


@pytest.mark.parametrize(("n", "shape"), [(70, (64, 1, 2, 4)), (70, (32, 20)), (9, (9, 1, 5, 5))])
def test_output_of_another_shape_is_told_with_both(n, shape):
    sent = (min(n, 64), 1, 2, 5)
    assert told(output_is_finite(handing_out(n, recon=torch.zeros(shape)))) == [
        ("output-shape", f"stamps of shape {sent} went in, {shape} came out")
    ]


def test_shares_that_are_not_finite_are_told_part_by_part():
    recon, mean, spread = torch.zeros(64, 10), torch.zeros(64, 4), torch.zeros(64, 4)
    recon[:16] = torch.nan
    spread[0, 0] = torch.inf
    assert told(output_is_finite(handing_out(recon=recon, mean=mean, spread=spread))) == [
        (
            "not-finite",
            "25 % of the output, 0.391 % of the log-variance is NaN or infinite on 64 finite "
            "stamps",
        )
    ]
    mean[:32] = -torch.inf
    (finding,) = output_is_finite(handing_out(mean=mean))
    assert finding.measured == "50 % of the mean is NaN or infinite on 64 finite stamps"


def test_wrong_shape_and_nan_are_both_told():
    names = [each.name for each in output_is_finite(handing_out(recon=torch.full((9,), torch.nan)))]
    assert names == ["output-shape", "not-finite"]


# Code and output


def test_change_of_the_output_with_the_code_is_a_fact():
    bench = decoding(lambda code, x: 1 + code, column(40))
    assert code_changes_output(bench) == []
    codes = 1 + drawn(16)
    assert bench.facts == {"output_change_with_code": pytest.approx(change(codes, rolled(codes)))}
    assert passes_of(bench) == [(16, False)] * 4


def test_codes_far_out_are_tried_too():
    bench = decoding(lambda code, x: torch.relu(code.abs() - 5), column(6))
    assert code_changes_output(bench) == []
    assert bench.facts == {"output_change_with_code": 0}
    bench = decoding(lambda code, x: torch.relu(code.abs() - 50), column(16))
    assert told(code_changes_output(bench)) == [
        (
            "decoder-ignores-code",
            "16 codes drawn with standard deviation 1 and 10: the output differs by 0.0e+00 of its "
            "size",
        )
    ]
    assert passes_of(bench)[0] == (16, False)


@pytest.mark.parametrize(("share", "is_found"), [(0.96e-7, True), (1.04e-7, False)])
def test_output_that_changes_less_than_a_deep_network_passes_on_ignores_the_code(share, is_found):
    codes = drawn(5)
    # seen where the codes are ten times as large
    slope = share / 10 / np.sqrt(((codes - rolled(codes)) ** 2).mean())
    bench = decoding(lambda code, x: 1 + slope * code, column(5))
    measured = (
        "5 codes drawn with standard deviation 1 and 10: the output differs by 9.6e-08 of its size"
    )
    assert told(code_changes_output(bench)) == [("decoder-ignores-code", measured)] * is_found


def test_stamps_that_come_past_the_code_are_told_by_how_much():
    stamps = torch.stack([1 + column(40), column(40).square()], 1)[..., 0]  # two pixels
    bench = decoding(lambda code, x: code + 0.1 * x, stamps)
    codes, x = drawn(16), stamps[:16].numpy()
    by_input = 100 * change(codes + 0.1 * x, codes + 0.1 * rolled(x))
    by_code = 100 * change(codes + 0.1 * x, rolled(codes) + 0.1 * x)
    assert told(input_stays_outside(bench)) == [
        (
            "decoder-sees-input",
            f"with the code held, other stamps change the output by {by_input:.3g} % of its size; "
            f"with the stamps held, other codes by {by_code:.3g} %",
        )
    ]
    assert passes_of(bench) == [(16, False)] * 3


@pytest.mark.parametrize(("share", "is_found"), [(0.96e-6, False), (1.04e-6, True)])
def test_a_millionth_of_the_output_may_come_past_the_code(share, is_found):
    x = column(6)
    slope = share / float((x - x.roll(1, 0)).square().mean().sqrt())
    bench = decoding(lambda code, x: 1 + slope * x + 0 * code, x)
    assert [each.name for each in input_stays_outside(bench)] == ["decoder-sees-input"] * is_found


def test_noise_in_the_output_does_not_pass_for_the_input():
    bench = decoding(lambda code, x: code + torch.randn_like(code), column(6))
    assert input_stays_outside(bench) == []
    bench = decoding(lambda code, x: torch.randn_like(x), column(6))
    assert told(input_changes_output(bench)) == [
        (
            "output-ignores-input",
            "other stamps, the same noise: the output differs by 0.0e+00 of its size",
        )
    ]


@pytest.mark.parametrize(("share", "is_found"), [(0.96e-7, True), (1.04e-7, False)])
def test_output_that_differs_less_than_nothing_ignores_the_input(share, is_found):
    x = torch.stack([column(6), column(6).square()], 1)[..., 0]  # two pixels
    slope = share / float((x - x.roll(1, 0)).square().mean().sqrt())
    bench = decoding(lambda code, x: 1 + slope * x, x)
    measured = "other stamps, the same noise: the output differs by 9.6e-08 of its size"
    assert told(input_changes_output(bench)) == [("output-ignores-input", measured)] * is_found
    assert passes_of(bench) == [(6, False)] * 2


def test_sixteen_stamps_show_whether_the_input_reaches_the_output():
    bench = decoding(lambda code, x: code, column(40))
    assert input_changes_output(bench) == []
    assert passes_of(bench) == [(16, False)] * 2
    assert input_stays_outside(bench) == []


# Gradients


class Linear(nn.Module):
    """Code ``encoder * x``, output ``code @ decoder``, each unit through ``way``."""

    def __init__(self, decoder: Tensor, way: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.encoder = nn.Parameter(torch.ones(len(decoder), dtype=DOUBLE))
        self.decoder = nn.Parameter(decoder.to(DOUBLE))
        self.way = way

    def answer(self, x: Tensor, code: Tensor | None) -> Reading:
        made = self.way(self.encoder * x[:, :1]) if code is None else code
        return Reading(recon=made @ self.decoder)


def linear(decoder: Tensor, way: Callable[[Tensor], Tensor] = lambda code: code) -> Bench:
    module = Linear(decoder, way)
    return bench_of(module.answer, 1 + column(40), module, len(decoder))


def test_gradients_that_reach_all_are_no_finding_and_the_decoder_is_counted():
    bench = linear(torch.ones(3, 5))
    assert gradients_reach_encoder(bench) == []
    assert bench.facts == {"decoder_weights": 15}
    assert set(passes_of(bench)) == {(16, True)}
    assert not bench.module.training


@pytest.mark.parametrize(
    ("silent", "n_units", "listed"),
    [
        ([1], 3, "1"),
        ([0, 2], 10, "0, 2"),
        (list(range(6)), 10, "0, 1, 2, 3, 4, 5"),
        (list(range(1, 8)), 10, "1, 2, 3, 4, 5, 6, ..."),
    ],
)
def test_units_without_gradient_are_counted_and_listed(silent, n_units, listed):
    decoder = torch.linspace(1, 2, n_units)[:, None] * torch.ones(5)
    decoder[silent] = 0
    torch.manual_seed(0)
    weights = torch.randn(16, 5, dtype=DOUBLE)
    strongest = float((weights @ decoder.T.double()).abs().max())
    assert told(gradients_reach_encoder(linear(decoder))) == [
        (
            "units-without-gradient",
            f"{len(silent)} of {n_units} latent units ({listed}) get no gradient from the output, "
            f"the strongest {strongest:.2g}",
        )
    ]


@pytest.mark.parametrize(("strength", "is_silent"), [(0.9e-12, True), (1.1e-12, False)])
def test_a_unit_is_silent_beside_one_that_is_a_million_million_times_stronger(strength, is_silent):
    found = gradients_reach_encoder(linear(torch.tensor([[1.0], [strength]])))
    assert [each.name for each in found] == ["units-without-gradient"] * is_silent


def test_output_without_gradient_at_any_unit_is_cut():
    expected = [("gradient-cut", "the gradient of the output is zero at all 3 latent units")]
    assert told(gradients_reach_encoder(linear(torch.zeros(3, 5)))) == expected
    bench = bench_of(lambda x, code: Reading(recon=x), column(9), latent_dim=3)
    assert told(gradients_reach_encoder(bench)) == expected
    assert bench.facts == {"decoder_weights": 0}


def test_gradient_that_ends_between_decoder_and_encoder_is_cut():
    bench = linear(torch.ones(3, 5), way=Tensor.detach)
    assert told(gradients_reach_encoder(bench)) == [
        ("gradient-cut", "the output moves 1 weights of the decoder and none of the encoder")
    ]


def test_silent_units_and_a_cut_are_both_told():
    bench = linear(torch.tensor([[1.0], [0.0]]), way=Tensor.detach)
    names = [each.name for each in gradients_reach_encoder(bench)]
    assert names == ["units-without-gradient", "gradient-cut"]


def test_gradient_that_is_not_finite_is_told_by_how_many_weights():
    bench = linear(torch.ones(3, 5), way=lambda code: (code - code).sqrt())
    assert told(gradients_reach_encoder(bench)) == [
        (
            "not-finite",
            "the gradient of the finite output is NaN or infinite at 1 of 2 weight tensors",
        )
    ]
    assert bench.facts == {"decoder_weights": 15}
