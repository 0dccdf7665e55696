"""Which pixel values a decoder can draw, on models whose reach is known; and softmax outputs."""

from __future__ import annotations

import math

import pytest
import torch
from hand_made import Weights, bench_of, passes_of, told
from torch import Tensor, nn

from vae_astro.collapse.audit.bench import Bench
from vae_astro.collapse.audit.decoder import output_reaches_stamps
from vae_astro.collapse.audit.outputs import Reading

DOUBLE = torch.float64


def drawing(
    low: float, high: float, stamps: Tensor, *, by_code: bool = False, start: float = 0.0
) -> Bench:
    """All pixels alike and between two bounds, moved by a weight or by the code."""
    module = Weights(start)

    def answer(x: Tensor, code: Tensor | None) -> Reading:
        value = module.w.expand(len(x), 1)
        if by_code:
            value = 0 * value if code is None else 0 * value + code.sum(1)[:, None]
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

    So a push of all of them takes the output from 0.9 down, never up.
    """

    def __init__(self, n_lifting: int, b: float) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.tensor([1e-4], dtype=DOUBLE))
        self.lifting = nn.ParameterList(torch.zeros(1, dtype=DOUBLE) for _ in range(n_lifting))
        self.idle = nn.Parameter(torch.zeros(1, dtype=DOUBLE))
        self.b = b

    def answer(self, x: Tensor, code: Tensor | None) -> Reading:
        lifted = sum(each.clamp(-self.b, self.b) for each in self.lifting)
        return Reading(recon=(1 + lifted + 0 * self.idle - 1e3 * self.first.abs()).expand(x.shape))


@pytest.mark.parametrize(
    ("n_lifting", "b", "highest"), [(2, 3, None), (2, 1.9, "4.7"), (3, 1.5, "3.9"), (1, 9, "0.9")]
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
