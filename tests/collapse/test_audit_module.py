"""What a model does to its input, which weights it owns, how much its code has to hold."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_subjects import Told, bench_of
from torch import Tensor, nn

from vae_astro.collapse.audit.bench import Bench
from vae_astro.collapse.audit.findings import Untestable
from vae_astro.collapse.audit.module import (
    MOST_STAMPS,
    TOO_MANY,
    WORTH_NATS,
    _leaves,
    _nats,
    code_has_room,
    input_is_left_alone,
    weights_are_registered,
)
from vae_astro.collapse.audit.outputs import Reading

# -- the input -----------------------------------------------------------------------------------


class Overwrites(nn.Module):
    """Adds one to the first pixel of each stamp, in the modes that are named."""

    def __init__(self, *modes: bool) -> None:
        super().__init__()
        self.modes = modes
        self.passes: list[tuple[bool, int]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.passes.append((self.training, len(x)))
        if self.training in self.modes:
            x[..., 0] += 1
        return x


def overwriting(*modes: bool, n_stamps: int, n_pixels: int) -> Bench:
    stamps = torch.zeros(n_stamps, n_pixels)
    return Bench(Told(lambda x: Reading(), Overwrites(*modes)), stamps)


@pytest.mark.parametrize(
    ("modes", "measured"),
    [
        ((True,), "a pass over 16 stamps in training mode changed 33.3 % of the pixels that it was "
         "given"),
        ((False,), "a pass over 16 stamps in evaluation mode changed 33.3 % of the pixels that it "
         "was given"),
        ((True, False), "a pass over 16 stamps in training mode changed 33.3 % of the pixels that "
         "it was given"),
    ],
)  # fmt: skip
def test_a_changed_input_is_told_once_with_its_share_and_the_mode(modes, measured):
    bench = overwriting(*modes, n_stamps=20, n_pixels=3)
    (finding,) = input_is_left_alone(bench)
    assert (finding.name, finding.measured) == ("mutates-input", measured)
    assert not bool(bench.stamps.any())


def test_fewer_stamps_than_sixteen_are_all_shown():
    (finding,) = input_is_left_alone(overwriting(True, n_stamps=5, n_pixels=4))
    assert finding.measured.startswith("a pass over 5 stamps in training mode changed 25 %")


def test_an_input_that_stays_as_it_is_was_tried_in_both_modes_and_the_mode_comes_back():
    bench = overwriting(n_stamps=17, n_pixels=2)
    bench.module.eval()
    assert input_is_left_alone(bench) == []
    assert bench.module.passes == [(True, 16), (False, 16)]
    assert not bench.module.training


# -- weights -------------------------------------------------------------------------------------


class Layers(nn.Module):
    """A stack whose layers are registered or not; the last only where it trains."""

    def __init__(self, n_outside: int, registered: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        layers = [nn.Linear(3, 3) for _ in range(n_outside)]
        self.others = nn.ModuleList(layers) if registered else layers
        self.n_stamps: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.n_stamps.append(len(x))
        x = self.first(x)
        for layer in self.others if self.training else ():
            x = layer(x)
        return x


def bench_of_layers(module: nn.Module, role: str = "recon", n_stamps: int = 7) -> Bench:
    return Bench(Told(lambda x: Reading(**{role: module(x)}), module), torch.ones(n_stamps, 3))


@pytest.mark.parametrize("role", ["recon", "mean", "spread"])
def test_weights_outside_the_parameters_are_counted_with_their_shapes(role):
    module = Layers(1).eval()
    (finding,) = weights_are_registered(bench_of_layers(module, role))
    assert finding.name == "weights-outside-parameters"
    assert finding.measured in {
        f"the output depends on 12 weights in 2 tensors ({shapes}) that model.parameters() does "
        "not hold"
        for shapes in ("(3, 3), (3,)", "(3,), (3, 3)")
    }
    assert module.n_stamps == [4]
    assert not module.training  # looked at while training, and put back


def test_no_more_than_four_shapes_are_told():
    (finding,) = weights_are_registered(bench_of_layers(Layers(3)))
    assert finding.measured.startswith("the output depends on 36 weights in 6 tensors (")
    assert finding.measured.count("(3") == 4


def test_weights_that_are_registered_or_have_no_gradient_are_no_finding():
    assert weights_are_registered(bench_of_layers(Layers(2, registered=True))) == []
    module = Layers(1)
    bench = Bench(Told(lambda x: Reading(recon=x, mean=module(x).detach()), module),
                  torch.ones(3, 3))  # fmt: skip
    assert weights_are_registered(bench) == []


def test_leaves_of_a_graph_are_found_once_whatever_the_number_of_ways_to_them():
    a, b, c = (torch.ones(2, requires_grad=True) for _ in range(3))
    both = a * b
    roots = [(both + both * a).sum(), both.exp()]
    assert {id(each) for each in _leaves(roots)} == {id(a), id(b)}
    assert len(_leaves([*roots, c * 1])) == 3


# -- room in the code ----------------------------------------------------------------------------

N_SIGNALS = 30


def stamps_worth(nats: list[float]) -> Tensor:
    """64 stamps with directions of which each is worth what ``nats`` says, in (64, 1, 4, 8).

    The even and the odd stamps share 30 signals, columns of a Hadamard matrix; each half has one
    more pixel that only it varies in. So the other half's pixel is all that a half leaves over, and
    a signal with an amplitude of exp(w) times that pixel's is worth w nats.
    """
    hadamard = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(5):
        hadamard = torch.cat(
            [torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)]
        )
    worth = torch.tensor(nats + [-3.0] * (N_SIGNALS - len(nats)), dtype=torch.float64)
    half = torch.zeros(32, 32, dtype=torch.float64)
    half[:, :N_SIGNALS] = hadamard[:, 1 : N_SIGNALS + 1] * worth.exp()
    halves = half.clone(), half.clone()
    for pixel, each in enumerate(halves, start=N_SIGNALS):
        each[:, pixel] = hadamard[:, -1]
    # in every stamp, so worth nothing
    return (torch.stack(halves, 1).flatten(0, 1) + torch.linspace(3, 5, 32)).view(64, 1, 4, 8)


def directions(stamps: Tensor, latent_dim: int) -> tuple[list[str], int | None]:
    bench = bench_of(stamps, code_shape=(latent_dim,))
    findings = code_has_room(bench)
    return [each.measured for each in findings], bench.facts["directions_worth_coding"]


def test_directions_are_counted_by_what_they_are_worth():
    measured, n_directions = directions(stamps_worth([2.0] * 10 + [0.1] * 5), 1)
    assert n_directions == 10
    # 2 of 10 * 2 + 5 * 0.1 nats
    assert measured == [
        "1 latent units, and 10 directions of 64 stamps that stand out of the noise; the first 1 "
        "are worth 10 % of their nats"
    ]


def test_a_direction_counts_from_the_worth_of_twice_the_variance_of_the_noise():
    assert pytest.approx(0.5 * math.log(2), abs=0.01) == WORTH_NATS
    just = [WORTH_NATS + 0.001] * 3 + [WORTH_NATS - 0.001] * 4
    assert directions(stamps_worth(just), 1) == ([], 3)


@pytest.mark.parametrize(("n_directions", "is_found"), [(TOO_MANY, True), (TOO_MANY - 1, False)])
def test_eight_directions_for_a_unit_are_too_many(n_directions, is_found):
    measured, counted = directions(stamps_worth([1.0] * n_directions), 1)
    assert (counted, bool(measured)) == (n_directions, is_found)


@pytest.mark.parametrize(("nats", "is_found"), [(3.02, False), (2.98, True)])
def test_a_unit_that_may_hold_three_tenths_of_all_nats_is_enough(nats, is_found):
    measured, _ = directions(stamps_worth([1.0] * 7 + [nats]), 1)
    assert bool(measured) == is_found


def test_two_units_are_asked_for_sixteen_directions_and_share_the_nats_of_the_best_two():
    assert directions(stamps_worth([1.0] * 15), 2)[0] == []
    (measured,), _ = directions(stamps_worth([1.0] * 14 + [2.0] * 2), 2)
    assert measured.startswith("2 latent units, and 16 directions of 64 stamps")
    assert measured.endswith("the first 2 are worth 22 % of their nats")  # 4 of 18


def test_noise_alone_has_no_direction_and_no_finding():
    assert directions(stamps_worth([]), 1) == ([], 0)


def test_only_the_first_64_stamps_are_looked_at():
    stamps = torch.cat([stamps_worth([1.0] * 10), 1e6 * torch.randn(9, 1, 4, 8)])
    (measured,), n_directions = directions(stamps, 1)
    assert (n_directions, MOST_STAMPS) == (10, 64)
    assert "10 directions of 64 stamps" in measured


@pytest.mark.parametrize(("latent_dim", "enough"), [(1, 32), (2, 64), (5, 64)])
def test_too_few_stamps_to_count_directions_are_refused(latent_dim, enough):
    stamps = stamps_worth([1.0] * 3)
    bench = bench_of(stamps[:enough], code_shape=(latent_dim,))
    assert code_has_room(bench) == []
    bench.stamps = stamps[: enough - 1]
    with pytest.raises(Untestable) as refused:
        code_has_room(bench)
    assert str(refused.value) == f"{enough - 1} stamps are too few to count their directions"


def test_a_code_of_unknown_width_cannot_be_judged():
    with pytest.raises(Untestable) as refused:
        code_has_room(bench_of(torch.randn(64, 1, 4, 4), code_shape=()))
    assert str(refused.value) == "the width of the code is not known"


def test_worth_of_a_direction_is_half_the_logarithm_of_its_variance_over_the_floor():
    a, b = 2.0, 3.0
    one = torch.zeros(3, 6, dtype=torch.float64)
    one[:, 0] = a * torch.tensor([1.0, -1.0, 0.0])
    one[:, 1] = b * torch.tensor([1.0, 1.0, -2.0])
    other = torch.tensor(
        [
            [5.0, 1.0, 1.0, 0.0, 0.0, 2.0],
            [1.0, 2.0, 0.0, 2.0, 0.0, 0.0],
            [2.0, 3.0, 0.0, 0.0, 3.0, 0.0],
        ],
        dtype=torch.float64,
    )
    floor = (1 + 4 + 9 + 4) / 3 / 4  # mean over three stamps, in the four directions left over
    along = torch.tensor([(1 + 4 + 9) / 3, (25 + 1 + 4) / 3], dtype=torch.float64)  # the larger: b
    offset = torch.arange(6.0)  # of both: that of `one` is taken away
    for shift in (0, offset):
        nats = _nats(one + shift, other + shift)
        torch.testing.assert_close(nats, 0.5 * (along / floor).log())
    # of unequal halves the longer is cut
    longer = torch.cat([other, torch.full((2, 6), 99.0, dtype=torch.float64)])
    torch.testing.assert_close(_nats(one, longer), _nats(one, other))
    torch.testing.assert_close(_nats(torch.cat([one, longer]), other), _nats(one, other))


def test_a_direction_below_the_floor_is_worth_nothing_and_none_is_worth_infinitely_much():
    one = torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]], dtype=torch.float64)
    faint = torch.tensor([[0.1, 1, 1, 1], [0.1, 1, 1, 1]], dtype=torch.float64)
    assert _nats(one, faint).tolist() == [0.0]
    # nothing left over: the floor is a millionth of a millionth of the sum
    assert _nats(one, one).item() == pytest.approx(0.5 * math.log(1e12 * 3))
    # pixels fewer than directions: the floor is of one
    assert _nats(one[:, :1], one[:, :1]).item() == pytest.approx(0.5 * math.log(1e12))
