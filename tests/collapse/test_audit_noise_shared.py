"""Whether stamps, units and passes get noise of their own."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hand_made import column, fixed, sampled, signs_like, told
from torch import Tensor

from vae_astro.collapse.audit.noise import noise_follows_log_var

DOUBLE = torch.float64


def frozen(mean: Tensor, fresh: float) -> Tensor:
    """The same noise at every pass, and so much that is new."""
    same = torch.randn(mean.shape, generator=torch.Generator().manual_seed(5)).to(mean)
    return same + fresh * signs_like(mean)


@pytest.mark.parametrize(("fresh", "is_frozen"), [(0.0, True), (0.005, True), (0.02, False)])
def test_noise_that_is_the_same_at_every_pass_is_frozen(fresh, is_frozen):
    same = frozen(torch.zeros(16, 2, dtype=DOUBLE), 0.0).numpy()
    size = math.exp(0.25) * float(np.sqrt((same**2).mean()))
    bench = sampled(lambda mean, s: mean + torch.exp(0.5 * s) * frozen(mean, fresh), (0.5, 0.5))
    found = dict(told(noise_follows_log_var(bench)))
    measured = (
        "20 passes in training mode with other seeds drew the same noise, of a root mean square "
        f"of {size:.3g}"
    )
    if fresh == 0:
        assert found["noise-frozen"] == measured
    assert ("noise-frozen" in found) == is_frozen
    assert (bench.noise is None) == is_frozen


def shared(dim: int, own: float) -> Callable[[Tensor], Tensor]:
    """One draw of 1 or -1 along an axis, and so much that each has of its own."""

    def draw(mean: Tensor) -> Tensor:
        one = signs_like(mean.select(dim, 0)).unsqueeze(dim)
        if one.numel() < 3:  # not the same two at every pass
            one = 2 * torch.randint(2, one.shape).to(mean) - 1
        return one + own * signs_like(mean)

    return draw


@pytest.mark.parametrize(
    ("dim", "n_stamps", "n_units", "who"),
    [
        (0, 40, 4, "the 16 stamps of a batch"),
        (0, 2, 64, "the 2 stamps of a batch"),
        (1, 40, 4, "the 4 units of a stamp"),
        (1, 40, 2, "the 2 units of a stamp"),
        (1, 1, 4, "the 4 units of a stamp"),
    ],
)
def test_noise_that_stamps_or_units_share_is_told(dim, n_stamps, n_units, who):
    draw = shared(dim, 0.0)
    bench = sampled(
        lambda mean, s: mean + torch.exp(0.5 * s) * draw(mean),
        (0.0,) * n_units,
        stamps=column(n_stamps),
    )
    found = dict(told(noise_follows_log_var(bench)))
    assert found["noise-shared"] == (
        f"{who} share one draw: within them the noise varies by 0 % of its size"
    )
    assert bench.noise is None


def test_what_each_unit_has_of_its_own_beside_one_draw_is_told_in_per_cent():
    def draw(mean: Tensor) -> Tensor:
        own = torch.tensor([0.0095, -0.0095] * 8, dtype=DOUBLE)
        return signs_like(mean[:, 0])[:, None] + own

    bench = sampled(lambda mean, s: mean + torch.exp(0.5 * s) * draw(mean), (0.0,) * 16)
    percent = 100 * 0.0095 * math.sqrt(16 / 15) / math.sqrt(1 + 0.0095**2)
    (finding,) = noise_follows_log_var(bench)
    assert finding.measured == (
        "the 16 units of a stamp share one draw: within them the noise varies by "
        f"{percent:.2g} % of its size"
    )


@pytest.mark.parametrize(("own", "is_shared"), [(0.04, True), (0.06, False)])
@pytest.mark.parametrize(("dim", "n_units"), [(0, 1), (1, 16)])
def test_noise_of_which_each_has_a_twentieth_is_not_shared(dim, n_units, own, is_shared):
    draw = shared(dim, own)
    bench = sampled(lambda mean, s: mean + torch.exp(0.5 * s) * draw(mean), (0.0,) * n_units)
    names = [each.name for each in noise_follows_log_var(bench)]
    assert ("noise-shared" in names) == is_shared


@pytest.mark.parametrize("dim", [0, 1])
def test_one_draw_is_told_where_log_variances_differ(dim):
    draw = shared(dim, 0.0)
    spreads = torch.linspace(-2, 2, 16 * 4, dtype=DOUBLE).view(16, 4)
    bench = fixed(lambda mean, s: mean + torch.exp(0.5 * s) * draw(mean), spreads)
    assert "noise-shared" in [each.name for each in noise_follows_log_var(bench)]


@pytest.mark.parametrize("dim", [0, 1])
def test_one_draw_is_told_where_the_noise_does_not_follow_the_log_variance(dim):
    draw = shared(dim, 0.0)
    spreads = torch.linspace(-2, 2, 16 * 4, dtype=DOUBLE).view(16, 4)
    # for units with sizes of their own that the log-variance does not tell
    bench = fixed(lambda mean, s: mean + torch.tensor([0.1, 0.2, 0.3, 0.4]) * draw(mean), spreads)
    assert "noise-shared" in [each.name for each in noise_follows_log_var(bench)]


def test_one_unit_shares_nothing_with_others():
    bench = sampled(lambda mean, s: mean + torch.exp(0.5 * s) * signs_like(mean), (0.0,))
    assert noise_follows_log_var(bench) == []
