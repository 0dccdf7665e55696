"""The layer before the code: how it is found, and when it is dead, dying or saturated."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hand_made import Table, bench_of, column, passes_of, told
from torch import Tensor, nn

from vae_astro.collapse.audit.adapters import AnySubject
from vae_astro.collapse.audit.bench import Bench
from vae_astro.collapse.audit.encoder import bottleneck_is_alive
from vae_astro.collapse.audit.findings import Untestable
from vae_astro.collapse.audit.outputs import Reading

DOUBLE = torch.float64


class Layered(nn.Module):
    """Row k of a table, what comes after it, and a layer for the means."""

    def __init__(self, units: Tensor, *after: nn.Module, latent_dim: int = 2) -> None:
        super().__init__()
        self.table = Table(units)
        self.after = nn.Sequential(*after)
        self.fc_mu = nn.Linear(units.shape[1], latent_dim, dtype=units.dtype)

    def answer(self, x: Tensor, code: Tensor | None) -> Reading:
        units = self.table(x)
        return Reading(mean=self.fc_mu(self.after(units) if len(self.after) else units))


def layered(units: Tensor, *after: nn.Module, latent_dim: int = 2) -> Bench:
    torch.manual_seed(0)
    module = Layered(units.to(DOUBLE), *after, latent_dim=latent_dim)
    return bench_of(module.answer, column(len(units)), module, latent_dim)


def alive_and_dead(n_alive: int, width: int, n: int = 10) -> Tensor:
    """Units that count the stamps from -5 on, and units that are 2 for all."""
    units = torch.full((n, width), 2.0)
    units[:, :n_alive] = torch.arange(n)[:, None] - 5.0
    return units


def test_layer_that_differs_between_stamps_is_counted_and_no_finding():
    bench = layered(alive_and_dead(12, 16, n=70))
    assert bottleneck_is_alive(bench) == []
    assert bench.facts == {"bottleneck_units": 16, "bottleneck_alive": 12}
    assert passes_of(bench)[0] == (64, False)


@pytest.mark.parametrize(
    ("n_alive", "width", "latent_dim", "is_dead"),
    [
        (0, 16, 2, True),
        (1, 16, 2, False),
        (1, 16, 8, True),
        (2, 16, 8, False),
        (2, 16, 9, True),
        (3, 16, 100, True),  # a quarter of the narrower of the two
        (4, 16, 100, False),
    ],
)
def test_layer_with_fewer_living_units_than_a_quarter_of_the_code_is_dead(
    n_alive, width, latent_dim, is_dead
):
    bench = layered(alive_and_dead(n_alive, width), latent_dim=latent_dim)
    measured = (
        f"{width} units before the code (table), over 10 stamps: {n_alive} differ between stamps, "
        f"{10 * n_alive / width:.0f} % of values are 0"
    )
    assert told(bottleneck_is_alive(bench)) == [("dead-bottleneck", measured)] * is_dead
    assert bench.facts["bottleneck_alive"] == n_alive


def test_unit_is_alive_from_a_millionth_of_the_size_of_all():
    # n / (n - 1) of the variance: two stamps 2 d apart have a standard deviation of sqrt(2) d
    for change, n_alive in ((0.9e-6, 0), (1.1e-6, 1)):
        units = torch.full((2, 9), 3.0, dtype=DOUBLE)
        units[:, 0] += torch.tensor([-3, 3]) * change / math.sqrt(2)
        units[:, 1:5] *= -1
        bench = layered(units)
        bottleneck_is_alive(bench)
        assert bench.facts["bottleneck_alive"] == n_alive


def test_units_that_are_zero_for_all_stamps_are_dead():
    bench = layered(torch.full((10, 9), -1.0), nn.ReLU())
    measured = (
        "9 units before the code (after.0), over 10 stamps: 0 differ between stamps, 100 % of "
        "values are 0"
    )
    assert told(bottleneck_is_alive(bench)) == [("dead-bottleneck", measured)]


@pytest.mark.parametrize(("width", "is_found"), [(8, True), (9, False)])
def test_eight_rectified_units_are_a_handful_and_nine_are_not(width, is_found):
    bench = layered(3 * alive_and_dead(width, width), nn.ReLU())
    measured = (
        f"{width} units before the code (after.0), over 10 stamps: none can fall below 0, "
        "60 % of values are 0"
    )
    assert told(bottleneck_is_alive(bench)) == [("bottleneck-can-die", measured)] * is_found
    assert passes_of(bench) == [(10, False)]  # zeros tell without a push


def test_units_that_fall_below_zero_are_not_rectified():
    assert bottleneck_is_alive(layered(alive_and_dead(4, 4))) == []


@pytest.mark.parametrize(
    ("after", "is_found"),
    [
        ((nn.ReLU(),), True),
        ((nn.Softplus(),), True),  # which comes to zero little by little
        ((), False),  # all above zero now, and nothing holds them there
        ((nn.LeakyReLU(),), False),
        ((nn.Hardtanh(0.5, 100.0),), False),  # they end, but not at zero
    ],
)
def test_units_that_are_above_zero_are_pushed_to_see_whether_they_end_there(after, is_found):
    bench = layered(1 + torch.rand(10, 4), *after)
    before = [each.clone() for each in bench.parameters()]
    names = [each.name for each in bottleneck_is_alive(bench)]
    assert names == ["bottleneck-can-die"] * is_found
    assert all(torch.equal(a, b) for a, b in zip(before, bench.parameters(), strict=True))
    if not is_found:
        assert passes_of(bench)[1:] == [(4, False)] * (len(passes_of(bench)) - 1)


def at_ends(n_low: int, n_high: int, n_between: int, gap: float = 0.0) -> Tensor:
    """Ten units; values -1 and 1, each but one off by ``gap`` of the range, and some between."""
    values = torch.cat(
        [
            torch.full((n_low,), -1.0 + 2 * gap, dtype=DOUBLE),
            torch.full((n_high,), 1.0 - 2 * gap, dtype=DOUBLE),
            torch.linspace(-0.5, 0.5, n_between, dtype=DOUBLE),
        ]
    )
    values[0], values[n_low] = -1.0, 1.0
    generator = torch.Generator().manual_seed(0)
    return values[torch.randperm(len(values), generator=generator)].view(-1, 10)


@pytest.mark.parametrize(
    ("units", "percent"),
    [
        (at_ends(50, 50, 0), 100),
        (at_ends(50, 46, 4), 96),
        (at_ends(50, 45, 5), None),
        (at_ends(79, 21, 0), 100),
        (at_ends(80, 20, 0), None),  # rectified, not saturated
        (at_ends(50, 50, 0, gap=0.9e-3), 100),
        (at_ends(50, 50, 0, gap=1.1e-3), None),
    ],
)
def test_units_at_the_ends_of_their_range_are_saturated(units, percent):
    measured = (
        f"10 units before the code (table), over 10 stamps: {percent} % of values lie at -1 or 1, "
        "the ends of their range"
    )
    expected = [("saturated-bottleneck", measured)] if percent else []
    assert told(bottleneck_is_alive(layered(units))) == expected


def test_dead_units_are_not_called_saturated_too():
    units = torch.tensor([-2.0, 3.0] * 5).expand(10, 10)
    assert [each.name for each in bottleneck_is_alive(layered(units))] == ["dead-bottleneck"]
    units = torch.full((10, 10), 3.0)
    assert [each.name for each in bottleneck_is_alive(layered(units))] == ["dead-bottleneck"]


class TwoInOne(nn.Module):
    """One layer for means and log-variances, taken apart by ``halves``."""

    def __init__(self, halves: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.hidden = nn.Linear(3, 12)
        self.head = nn.Linear(12, 4)
        self.halves = halves

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        mu, log_var = self.halves(self.head(self.hidden(x)))
        return torch.cat([mu, mu[:, :1]], 1), mu, log_var


@pytest.mark.parametrize(
    "halves",
    [
        lambda h: h.chunk(2, 1),
        lambda h: (h[:, :2].clone(), h[:, 2:].clone()),
        lambda h: (h[:, 2:].clone(), h[:, :2].clone()),
    ],
    ids=["views", "first half", "second half"],
)
def test_layer_of_the_means_is_found_where_it_makes_the_log_variances_too(halves):
    torch.manual_seed(0)
    module, stamps = TwoInOne(halves), torch.randn(20, 3)
    bench = Bench(AnySubject(module, stamps), stamps)
    assert bottleneck_is_alive(bench) == []
    assert bench.facts == {"bottleneck_units": 12, "bottleneck_alive": 12}


class Unlayered(nn.Module):
    """Means made by ``make`` of the stamps and a layer."""

    def __init__(self, make: Callable[[nn.Module, Tensor], Tensor], n_made: int) -> None:
        super().__init__()
        self.fc_mu = nn.Linear(3, n_made)
        self.make = make

    def answer(self, x: Tensor, code: Tensor | None) -> Reading:
        return Reading(mean=self.make(self.fc_mu, x))


def unlayered(make: Callable[[nn.Module, Tensor], Tensor], n_made: int = 2) -> Bench:
    torch.manual_seed(0)
    module = Unlayered(make, n_made)
    return bench_of(module.answer, torch.randn(70, 3), module)


def test_units_that_no_layer_made_are_called_what_the_layer_is_given():
    bench = unlayered(lambda layer, x: layer(torch.full_like(x, 7.0)))
    (finding,) = bottleneck_is_alive(bench)
    assert finding.measured == (
        "3 units before the code (what fc_mu is given), over 64 stamps: 0 differ between stamps, "
        "0 % of values are 0"
    )


def test_layers_that_give_the_same_numbers_for_all_stamps_are_not_confused():
    bench = layered(torch.zeros(10, 2))
    with torch.no_grad():
        bench.module.fc_mu.bias.zero_()  # so the means are zero, as the units are
    for finding in bottleneck_is_alive(bench):
        assert finding.measured.startswith("2 units before the code (table), over 10 stamps: ")
    assert bench.facts == {"bottleneck_units": 2, "bottleneck_alive": 0}


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda layer, x: layer(x), "there is no layer between the stamps and the code"),
        (lambda layer, x: layer(x.clone()), "there is no layer between the stamps and the code"),
        (
            lambda layer, x: torch.tanh(layer(x)),
            "the layer that makes the means could not be told",
        ),
    ],
)
def test_layer_before_the_code_that_is_not_there_or_not_told(make, reason):
    with pytest.raises(Untestable, match=f"^{reason}$"):
        bottleneck_is_alive(unlayered(make))


def test_last_layer_is_meant_where_several_make_the_means():
    bench = unlayered(lambda layer, x: layer(x))
    bench.module.fc_mu = nn.Sequential(nn.Linear(3, 11), nn.Tanh(), nn.Linear(11, 2))
    assert bottleneck_is_alive(bench) == []
    assert bench.facts == {"bottleneck_units": 11, "bottleneck_alive": 11}


def test_means_that_are_no_equal_part_of_what_a_layer_makes_are_not_taken_for_its_own():
    reason = "the layer that makes the means could not be told"
    for n_made in (4, 5):
        bench = unlayered(lambda layer, x: layer(-x)[:, 1:3].clone(), n_made)
        with pytest.raises(Untestable, match=f"^{reason}$"):
            bottleneck_is_alive(bench)
    second_of_three = unlayered(lambda layer, x: layer(-x)[:, 2:4].clone(), 6)
    assert bottleneck_is_alive(second_of_three) == []


def test_layer_before_the_code_of_no_posterior():
    with pytest.raises(Untestable, match=r"^the model hands out no posterior$"):
        bottleneck_is_alive(bench_of(lambda x, code: Reading(recon=x), column(8)))
