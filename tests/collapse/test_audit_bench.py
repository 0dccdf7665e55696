"""What the audit's experiments are made with: pushing, putting back, comparing."""

from __future__ import annotations

import math

import pytest
import torch
from hand_made import Weights, bench_of, column
from plain_vae import PlainVAE, sky_stamps
from torch import Tensor, nn

from vae_astro.collapse.audit.bench import preserved, reach, relative_change
from vae_astro.collapse.audit.findings import Untestable
from vae_astro.collapse.audit.module import code_has_room
from vae_astro.collapse.audit.outputs import STD_OF, Reading


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
    assert reach(lambda: weights, [weights], 1, 1.0) == 1  # it is there already
    assert torch.equal(weights, torch.ones(3))


def test_pushing_passes_by_weights_that_the_measure_does_not_use():
    unused, weights = torch.ones(2, requires_grad=True), torch.zeros(3, requires_grad=True)
    assert reach(lambda: weights, [unused, weights], 1, 2.0) >= 2
    assert torch.equal(unused, torch.ones(2))


def test_pushing_takes_the_first_step_of_a_thousandth_and_then_each_half_as_long_again():
    for goal, n_steps in ((0.0005, 1), (0.002, 2), (0.0026, 3)):
        weights = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        furthest = reach(lambda w=weights: w, [weights], -1, -goal)
        assert furthest == pytest.approx(-1e-3 * sum(1.5**k for k in range(n_steps)))
        assert weights.tolist() == [furthest] * 3


def test_pushing_ends_eight_orders_of_magnitude_out():
    weights = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    furthest = reach(lambda: weights, [weights], 1, math.inf)
    assert furthest == pytest.approx(1e-3 * sum(1.5**k for k in range(43)))


def test_pushing_reports_the_furthest_element_and_the_furthest_step():
    # moves together along the mean: up from 0.5, where the second falls by as much
    weights = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
    measured = reach(lambda: torch.cat([2 * weights, -weights]), [weights], 1, 1.0004)
    assert measured == pytest.approx(1 + 2e-3)
    # what starts at its best never gets better, and is pushed on all the same
    peak = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    assert reach(lambda: 3 - (peak - 1e-4).square(), [peak], 1, 9.0) == pytest.approx(3, abs=1e-7)


def test_pushing_reads_past_nan_and_stops_there():
    weights = torch.zeros(1, requires_grad=True)
    measured = reach(lambda: torch.cat([weights + 2, weights * torch.nan]), [weights], 1, 5.0)
    assert measured == 2
    assert weights.tolist() == [0]


def test_bench_reads_with_the_same_noise_and_draws_the_same_codes():
    bench = bench_of(lambda x, code: Reading(recon=torch.randn(2)), column(9), latent_dim=3)
    first, second = bench.read(4).recon, bench.read(4).recon
    torch.manual_seed(0)
    noise = torch.randn(2)
    assert torch.equal(first, noise)
    assert torch.equal(second, noise)
    drawn = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(bench.codes(5, 10.0), 10 * drawn.double())
    assert torch.equal(bench.codes(5), drawn.double())
    assert bench.few(4).tolist() == [[0], [1], [2], [3]]


def test_bench_hands_out_mean_and_spread_flat():
    bench = bench_of(lambda x, code: Reading(mean=x.view(-1, 1, 1), spread=-x), column(9))
    mean, spread = bench.posterior(3)
    assert mean.tolist() == [[0], [1], [2]]
    assert spread.tolist() == [[0], [-1], [-2]]


@pytest.mark.parametrize("reading", [Reading(), Reading(mean=column(3)), Reading(spread=column(3))])
def test_posterior_that_lacks_a_part_is_none(reading):
    bench = bench_of(lambda x, code: reading, column(9))
    with pytest.raises(Untestable, match=r"^the model hands out no mean and log-variance$"):
        bench.posterior(3)


def test_code_that_cannot_be_reached_is_not_drawn():
    bench = bench_of(lambda x, code: Reading(), column(9))
    bench.subject.reaches_code = False
    reason = "the code cannot be reached between encoder and decoder"
    with pytest.raises(Untestable, match=f"^{reason}$"):
        bench.codes(3)


def test_parameters_of_a_bench_are_those_that_a_gradient_can_move():
    module = Weights(1.0)
    module.counts = nn.Parameter(torch.ones(2, dtype=torch.int64), requires_grad=False)
    assert bench_of(lambda x, code: Reading(), column(9), module).parameters() == [module.w]


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
