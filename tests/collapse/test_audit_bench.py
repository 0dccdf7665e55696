"""What the audit's experiments are made with: pushing, putting back, listening, comparing."""

from __future__ import annotations

import math

import pytest
import torch
from plain_vae import PlainVAE, sky_stamps
from torch import Tensor, nn

from vae_astro.collapse.audit.bench import preserved, reach, relative_change
from vae_astro.collapse.audit.calls import Call, intercepted, survey
from vae_astro.collapse.audit.module import code_has_room
from vae_astro.collapse.audit.outputs import STD_OF


@pytest.mark.parametrize(
    ("activation", "low", "high"),
    [
        (nn.Sigmoid(), 0, 1),
        (nn.Tanh(), -1, 1),
        (nn.ReLU(), 0, math.inf),
        (nn.Softplus(), 0, math.inf),
        (nn.Identity(), -math.inf, math.inf),
        (nn.ELU(), -1, math.inf),
        (nn.Hardtanh(-3, 2), -3, 2),
    ],
)
def test_pushing_finds_the_bounds_of_an_activation_and_passes_any_goal_where_there_is_none(
    activation, low, high
):
    goal = 1e4
    for sign, bound in ((-1, low), (1, high)):
        weights = torch.linspace(-1, 1, 5, requires_grad=True)
        furthest = reach(lambda w=weights: activation(w), [weights], sign, sign * goal)
        if math.isfinite(bound):
            assert furthest == pytest.approx(bound, abs=1e-3)
        else:
            assert sign * furthest >= goal


def test_pushing_stops_where_there_is_no_gradient_or_no_number():
    weights = torch.ones(3, requires_grad=True)
    assert reach(lambda: weights.detach(), [weights], 1, 10.0) == 1
    assert reach(lambda: weights * torch.nan, [weights], 1, 10.0) == -math.inf
    assert torch.equal(weights, torch.ones(3))


def test_what_is_preserved_comes_back_after_an_error():
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
    module[0].train()
    before = {name: value.clone() for name, value in module.state_dict().items()}

    def spoil() -> None:
        with preserved(module):
            module.train()(torch.randn(5, 2)).sum().backward()
            with torch.no_grad():
                module[0].weight.zero_()
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        spoil()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert [each.training for each in module.modules()] == [False, True, False]
    assert module[0].weight.grad is None


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [(0.0, 0.0, 0.0), (3.0, 3.0, 0.0), (1.0, -1.0, 2.0), (1e-30, 0.0, math.sqrt(2))],
)
def test_relative_change_is_that_of_root_mean_squares(a, b, expected):
    assert relative_change(torch.full((4,), a), torch.full((4,), b)) == pytest.approx(expected)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def encode(self, x: Tensor) -> Tensor:
        return self.layer(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.encode(x=x))


def test_every_call_is_heard_in_the_order_in_which_it_begins():
    module, x = Twice(), torch.randn(2, 3)
    records = survey(module, lambda: module(x))
    assert [each.call for each in records] == [
        Call("encode()", 0),
        Call("layer", 0),
        Call("layer", 1),
    ]
    assert records[0].given is x
    assert records[0].output is records[1].output
    assert torch.equal(records[2].output, module(x))


def test_one_call_of_many_is_given_and_returns_something_else():
    module, x = Twice(), torch.randn(2, 3)
    swapped, returned = torch.zeros(2, 3), torch.ones(2, 3)
    with intercepted(
        module,
        lambda call, tensor: swapped if call == Call("layer", 1) else None,
        lambda call, output: None,
    ):
        assert torch.equal(module(x), module.layer.bias.expand(2, 3))
    with intercepted(
        module,
        lambda call, tensor: None,
        lambda call, output: returned if call.key == "encode()" else None,
    ):
        assert torch.equal(module(x), module.layer(returned))


def test_nobody_listens_any_more_after_an_error():
    module = Twice()

    def fail(call: Call, tensor: Tensor) -> None:
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"), intercepted(module, fail, fail):
        module(torch.randn(2, 3))
    assert "encode" not in vars(module)
    assert not module.layer._forward_hooks
    assert not module.layer._forward_pre_hooks
    module(torch.randn(2, 3))


@pytest.mark.parametrize(
    ("meaning", "spread"), [("log_var", 2 * math.log(3)), ("log_std", math.log(3)),
                            ("std", 3.0), ("var", 9.0)],
)  # fmt: skip
def test_every_meaning_of_a_spread_gives_the_same_standard_deviation(meaning, spread):
    assert STD_OF[meaning](torch.tensor(spread)).item() == pytest.approx(3, rel=1e-6)


class Room:
    """A bench with nothing but stamps and a width of the code."""

    def __init__(self, stamps: Tensor, latent_dim: int) -> None:
        self.stamps, self.subject, self.facts = stamps, self, {}
        self.latent_dim = latent_dim

    def few(self, n: int) -> Tensor:
        return self.stamps[:n]


def stamps_of_directions(n_directions: int, strength: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(400, n_directions, generator=generator)).Q
    codes = strength * torch.randn(64, n_directions, generator=generator)
    return codes @ basis.T + torch.randn(64, 400, generator=generator)


def test_directions_that_stand_out_of_the_noise_are_counted_and_noise_is_not():
    strong, noise = Room(stamps_of_directions(20, 30.0), 1), Room(torch.randn(64, 400), 1)
    assert [each.name for each in code_has_room(strong)] == ["code-too-narrow"]
    assert 18 <= strong.facts["directions_worth_coding"] <= 22
    assert code_has_room(noise) == []
    assert noise.facts["directions_worth_coding"] <= 3


def test_code_as_wide_as_the_structure_of_the_stamps_has_room():
    assert code_has_room(Room(stamps_of_directions(3, 30.0), 3)) == []
    assert code_has_room(Room(sky_stamps().flatten(1), PlainVAE().fc_mu.out_features)) == []
