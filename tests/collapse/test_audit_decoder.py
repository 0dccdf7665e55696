"""Experiments on the decoder, on models whose every figure is known: words, numbers, thresholds."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hand_made import Weights, bench_of, column, passes_of, told
from torch import Tensor, nn

from vae_astro.collapse.audit.bench import Bench
from vae_astro.collapse.audit.decoder import (
    code_changes_output,
    gradients_reach_encoder,
    input_changes_output,
    input_stays_outside,
    output_is_finite,
    output_reaches_stamps,
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
    bench = decoding(lambda code, x: code, column(40))
    assert code_changes_output(bench) == []
    codes = drawn(16)
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
    stamps = 1 + column(40)
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
    x = column(6)
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


# The range of the output


def drawing(
    low: float, high: float, stamps: Tensor, *, by_code: bool = False, start: float = 0.0
) -> Bench:
    """All pixels alike and between two bounds, moved by a weight or by the code."""
    module = Weights(start)

    def answer(x: Tensor, code: Tensor | None) -> Reading:
        value = module.w.expand(len(x), 1)
        if code is not None:
            value = 0 * value + code.sum(1)[:, None]
        return Reading(recon=value.clamp(low, high).expand(x.shape))

    bench = bench_of(answer, stamps, module)
    bench.subject.reaches_code = by_code
    return bench


def pixels(n_low: int = 0, n_high: int = 0) -> Tensor:
    """20 stamps of 10 pixels: 0, but one -5 and one 5, and some more of these."""
    values = torch.zeros(200, dtype=DOUBLE)
    values[:n_low] = -5.0
    values[100 : 100 + n_high] = 5.0
    return values.view(20, 10)


@pytest.mark.parametrize("by_code", [True, False])
@pytest.mark.parametrize(
    ("low", "high", "stamps", "measured"),
    [
        (-9, 9, pixels(50, 50), None),
        (-4.9, 4.9, pixels(50, 50), None),  # within the slack of a hundredth of 10
        (-4.91, 4.89, pixels(50, 50), "-4.91 to 4.89; -5 to 5, 25 %"),
        (-4.89, 4.91, pixels(50, 50), "-4.89 to 4.91; -5 to 5, 25 %"),
        (-1, 1, pixels(20, 30), "-1 to 1; -5 to 5, 25 %"),
        (-1, 1, pixels(1, 1), "-1 to 1; -5 to 5, 1 %"),
        (0, 1, pixels(1, 0), None),  # one pixel of 200
        (-1, 0, pixels(0, 1), None),
    ],
)
def test_pixels_beyond_what_the_decoder_can_draw_are_counted(low, high, stamps, measured, by_code):
    bench = drawing(low, high, stamps, by_code=by_code)
    if measured is None:
        assert output_reaches_stamps(bench) == []
    else:
        reached, rest = measured.split("; ")
        seen, share = rest.split(", ")
        assert told(output_reaches_stamps(bench)) == [
            (
                "output-range",
                f"with weights and code pushed as far as they go the output reaches {reached}; the "
                f"stamps run from {seen}, {share} of their pixels lie outside",
            )
        ]
    assert set(passes_of(bench)) == {(4, False)}
    assert all(each.tolist() == [0] for each in bench.parameters())


def test_output_is_pushed_no_further_than_the_stamps_lie():
    steps = [1e-3 * 1.5**k for k in range(20)]
    reached = sum(steps)  # the first of the growing steps past 4.9, the slack inside the stamps
    assert reached - steps[-1] < 4.9 < reached
    (finding,) = output_reaches_stamps(drawing(-9, 1, pixels(50, 50)))
    assert f"the output reaches -{reached:.3g} to 1;" in finding.measured
    (finding,) = output_reaches_stamps(drawing(-1, 9, pixels(50, 50)))
    assert f"the output reaches -1 to {reached:.3g};" in finding.measured
    # from 0.05 below its goal on, one small step is enough
    for sign, reach in ((1, "-1 to 4.9;"), (-1, "-4.9 to 1;")):
        bench = drawing(*((-1, 9) if sign > 0 else (-9, 1)), pixels(50, 50), start=sign * 4.8995)
        (finding,) = output_reaches_stamps(bench)
        assert f"the output reaches {reach}" in finding.measured


class Fragile(nn.Module):
    """A first weight that spoils all when it moves, one that is no use, some that lift by up to b.

    So a push of all of them takes the output from -0.1 down, never up.
    """

    def __init__(self, n_lifting: int, b: float) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.tensor([1e-4], dtype=DOUBLE))
        self.lifting = nn.ParameterList(torch.zeros(1, dtype=DOUBLE) for _ in range(n_lifting))
        self.idle = nn.Parameter(torch.zeros(1, dtype=DOUBLE))
        self.b = b

    def answer(self, x: Tensor, code: Tensor | None) -> Reading:
        lifted = sum(each.clamp(-self.b, self.b) for each in self.lifting)
        return Reading(recon=(lifted + 0 * self.idle - 1e3 * self.first.abs()).expand(x.shape))


@pytest.mark.parametrize(
    ("n_lifting", "b", "highest"), [(2, 3, None), (2, 2.4, "4.7"), (3, 2, "3.9"), (1, 9, "-0.1")]
)
def test_where_pushing_all_weights_spoils_the_output_the_last_two_are_pushed_alone(
    n_lifting, b, highest
):
    module = Fragile(n_lifting, b)
    before = [each.clone() for each in module.parameters()]
    found = output_reaches_stamps(bench_of(module.answer, pixels(50, 50), module))
    assert [each.name for each in found] == (["output-range"] if highest else [])
    assert all(f"to {highest}; the stamps" in each.measured for each in found)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


class Softmax(nn.Module):
    """A softmax over these axes, of one weight that all pixels share."""

    def __init__(self, shape: tuple[int, ...], dims: tuple[int, ...]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(shape[1:], dtype=DOUBLE))
        self.dims = [dim - 1 for dim in dims]

    def answer(self, x: Tensor, code: Tensor | None) -> Reading:
        powers = self.w.exp()
        made = powers / powers.sum(self.dims, keepdim=True)
        return Reading(recon=made.expand(len(x), *self.w.shape))


@pytest.mark.parametrize(
    ("shape", "dims", "axis"),
    [
        ((20, 1, 4, 5), (1,), "axis 1 of 1"),
        ((20, 3, 4, 5), (2,), "axis 2 of 4"),
        ((20, 3, 4, 5), (3,), "axis 3 of 5"),
        ((20, 1, 4, 5), (1, 2, 3), "all pixels"),
        ((20, 3, 2), (1, 2), "all pixels"),
        ((20, 6), (1,), "axis 1 of 6"),
    ],
)
def test_output_that_always_sums_to_one_is_a_softmax(shape, dims, axis):
    module = Softmax(shape, dims)
    stamps = torch.linspace(-5, 5, math.prod(shape), dtype=DOUBLE).view(shape)
    bench = bench_of(module.answer, stamps, module)
    value = f"{1 / math.prod(shape[dim] for dim in dims):.3g}"
    assert told(output_reaches_stamps(bench)) == [
        (
            "softmax-output",
            f"whatever the weights and the code, the output sums to 1 over {axis}; it reaches "
            f"{value} to {value}, the stamps -5 to 5",
        )
    ]


def names_of_constant(recon: Tensor, stamps: Tensor) -> list[str]:
    bench = bench_of(lambda x, code: Reading(recon=recon[: len(x)]), stamps)
    return [each.name for each in output_reaches_stamps(bench)]


def test_sum_of_one_is_a_softmax_to_a_thousandth_and_of_no_negative_value():
    stamps = torch.linspace(-5, 5, 60, dtype=DOUBLE).view(20, 3)
    row = torch.tensor([0.2, 0.3, 0.5], dtype=DOUBLE)
    assert names_of_constant((row * 1.0009).expand(20, 3), stamps) == ["softmax-output"]
    assert names_of_constant((row * 0.9991).expand(20, 3), stamps) == ["softmax-output"]
    assert names_of_constant((row * 1.0011).expand(20, 3), stamps) == ["output-range"]
    assert names_of_constant((row * 0.9989).expand(20, 3), stamps) == ["output-range"]
    with_zero = torch.tensor([0.0, 0.5, 0.5], dtype=DOUBLE)
    assert names_of_constant(with_zero.expand(20, 3), stamps) == ["softmax-output"]
    negative = torch.tensor([-0.1, 0.6, 0.5], dtype=DOUBLE)
    assert names_of_constant(negative.expand(20, 3), stamps) == ["output-range"]
    one_row_off = row.repeat(20, 1)
    one_row_off[2, 0] += 0.1
    assert names_of_constant(one_row_off, stamps) == ["output-range"]


def test_stamps_that_sum_to_one_themselves_may_be_drawn_by_a_softmax():
    row = torch.tensor([0.2, 0.3, 0.5], dtype=DOUBLE)
    assert names_of_constant(row.expand(20, 3), row.expand(20, 3)) == []
    other = row.repeat(20, 1)
    other[7, 1] += 0.1
    assert names_of_constant(row.expand(20, 3), other) == ["softmax-output"]
    assert names_of_constant(row.expand(20, 3), 1.0009 * row.expand(20, 3)) == []
    assert names_of_constant(row.expand(20, 3), 1.0011 * row.expand(20, 3)) == ["softmax-output"]
    flat = row.expand(20, 3)
    assert names_of_constant(flat, flat.reshape(20, 1, 3, 1)) == []


def test_output_that_turns_nan_under_the_push_is_judged_by_what_was_finite():
    module = Weights(0.0)

    def answer(x: Tensor, code: Tensor | None) -> Reading:
        ones = torch.ones_like(x) / 2 + 0 * module.w
        return Reading(recon=ones if module.w.tolist() == [0] else ones * torch.nan)

    stamps = torch.linspace(-5, 5, 40, dtype=DOUBLE).view(20, 2)
    (finding,) = output_reaches_stamps(bench_of(answer, stamps, module))
    assert finding.name == "softmax-output"


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
