"""How the gradients of a loss are taken: around what, over which steps, in which units."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_losses import DOUBLE, STAMPS, a_loss, half_sse, loss_of, quartic
from tiny_subjects import Told, bench_of, kl_gradient
from torch import Tensor

from vae_astro.collapse.audit.adapters import OwnSubject
from vae_astro.collapse.audit.bench import Bench
from vae_astro.collapse.audit.findings import Untestable
from vae_astro.collapse.audit.losses import OwnLoss
from vae_astro.collapse.audit.objective import (
    GRID,
    N_DRAWS,
    POSITIVE,
    _exponent,
    _largest_eigenvalue,
    _Loss,
    _misfit,
    _terms,
    _tried,
    _word,
)
from vae_astro.collapse.audit.outputs import Reading
from vae_astro.vae import VAE

# -- the loss on its bench -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_stamps", "n"), [(2, 48), (5, 50), (47, 94), (48, 48), (49, 49), (256, 256), (257, 256)]
)
def test_stamps_are_repeated_to_make_a_batch_and_each_as_often(n_stamps, n):
    stamps = torch.arange(4.0 * n_stamps).view(n_stamps, 4)
    loss = _Loss(bench_of(stamps, loss_of()))
    assert loss.n == n
    assert torch.equal(loss.stamps, stamps.repeat(n // n_stamps + 1, 1)[:n])
    assert _Loss(bench_of(stamps, loss_of()), n=3).n == 3


def test_what_cannot_be_examined_is_told():
    with pytest.raises(Untestable, match=r"^there is no loss to examine$"):
        _Loss(bench_of(STAMPS))
    for missing in ("mean", "spread"):
        given = {"mean": torch.zeros(2, 2), "spread": torch.zeros(2, 2)}
        del given[missing]
        subject = Told(lambda x, given=given: Reading(recon=x, **given))
        with pytest.raises(Untestable, match=r"^the model hands out no mean and log-variance$"):
            _Loss(Bench(subject, STAMPS, loss_of()))


def test_the_mean_stamp_is_drawn_a_twentieth_towards_its_average_for_every_stamp():
    loss = a_loss()
    expected = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=DOUBLE) * 0.95 + 0.05 * 2.5
    torch.testing.assert_close(loss._recon(), expected.view(1, 1, 2, 2).expand(48, 1, 2, 2))
    torch.testing.assert_close(loss._recon(2.0), loss._recon() + 2)


def bench_with(recon_shape: tuple[int, ...], code_shape: tuple[int, ...]) -> Bench:
    def answer(given: Tensor) -> Reading:
        assert len(given) == 2  # enough to learn the shapes
        code = torch.zeros(len(given), *code_shape)
        return Reading(recon=torch.zeros(len(given), *recon_shape), mean=code, spread=code)

    return Bench(Told(answer), torch.randn(3, 1, 4, 6), loss_of())


def test_output_and_code_have_the_shapes_of_the_model_and_fewer_columns_or_more_units():
    flat = bench_with((24,), (3,))
    assert _Loss(flat)._recon().shape == (48, 24)
    assert _Loss(flat, columns=0.5)._recon().shape == (48, 12)
    no_band = bench_with((4, 6), (3,))
    assert _Loss(no_band)._recon().shape == (48, 4, 6)
    assert _Loss(no_band, columns=0.5)._recon().shape == (48, 1, 4, 3)
    picture = bench_with((1, 4, 6), (2, 3))
    assert _Loss(picture)._recon().shape == (48, 1, 4, 6)
    half = _Loss(picture, columns=0.5)
    assert half._recon().shape == (48, 1, 4, 3)
    assert torch.equal(half.stamps, _Loss(picture).stamps[..., :3])
    assert _Loss(picture, columns=0.01)._recon().shape == (48, 1, 4, 1)
    assert _Loss(picture)._mean().shape == (48, 2, 3)
    assert _Loss(picture, repeat=2)._mean().shape == (48, 2, 6)


def test_what_is_not_under_examination_is_neutral():
    objective = loss_of(half_sse(), kl_gradient())
    loss = _Loss(bench_of(STAMPS, objective))
    gradient = loss._gradient("recon")
    torch.testing.assert_close(gradient, loss._recon() - loss.stamps)
    (call,) = objective.calls
    assert torch.equal(call["stamps"], STAMPS.repeat(12, 1, 1, 1))
    assert torch.equal(call["recon"], loss._recon())
    assert torch.equal(call["mean"], torch.zeros(48, 2, dtype=DOUBLE))
    assert torch.equal(call["spread"], torch.full((48, 2), 0.5, dtype=DOUBLE))
    given = loss._mean(3.0)
    torch.testing.assert_close(loss._gradient("mean", mean=given), given)
    assert not given.requires_grad


@pytest.mark.parametrize("kl", [None, lambda mean, spread: mean.sum()])
def test_what_the_loss_does_not_depend_on_has_a_gradient_of_zero(kl):
    assert torch.equal(a_loss(None, kl)._gradient("spread"), torch.zeros(48, 2, dtype=DOUBLE))


def test_a_loss_of_its_own_weights_alone_has_a_gradient_of_zero():
    weight = torch.tensor(2.0, requires_grad=True)
    loss = a_loss(None, lambda mean, spread: weight * mean.sum())
    assert torch.equal(loss._gradient("spread"), torch.zeros(48, 2, dtype=DOUBLE))


@pytest.mark.parametrize(("samples_code", "n_draws"), [(True, N_DRAWS), (False, 1)])
def test_a_loss_that_draws_is_averaged_over_its_draws(samples_code, n_draws):
    loss = a_loss(None, lambda mean, spread: (torch.randn(()) * mean).sum(),
                  samples_code=samples_code)  # fmt: skip
    draws = [torch.randn((), generator=torch.Generator().manual_seed(k)) for k in range(n_draws)]
    expected = torch.stack(draws).double().mean().item()
    assert loss._averaged("mean").unique().tolist() == [pytest.approx(expected)]
    assert len(loss.objective.calls) == n_draws  # type: ignore[attr-defined]


def test_gradient_by_a_mean_is_in_units_of_it():
    loss = a_loss(None, lambda mean, spread: (mean.pow(4) / 4 * spread).sum())
    assert loss.by_mean() == pytest.approx(8**2 * 0.5)
    assert loss.by_mean(3.0, 2.0) == pytest.approx(3**2 * 2)


def test_gradient_by_the_spread_is_taken_on_a_grid_far_from_the_prior():
    loss = a_loss(None, lambda mean, spread: (mean.square() * spread.square()).sum())
    spreads, by_spread = loss.by_spread()
    assert spreads.tolist() == list(GRID)
    torch.testing.assert_close(by_spread, 2 * 64 * spreads)
    torch.testing.assert_close(loss.by_spread(3.0)[1], 2 * 9 * spreads)


def test_arguments_are_in_the_precision_of_the_stamps():
    objective = loss_of(half_sse(), kl_gradient())
    loss = _Loss(bench_of(STAMPS.float(), objective))
    loss.by_spread()
    loss.by_mean()
    loss.around_mean_stamp()
    assert {each.dtype for call in objective.calls for each in call.values()} == {torch.float32}


@pytest.mark.parametrize("error", [RuntimeError, ValueError])
def test_a_spread_that_must_be_positive_is_taken_on_another_grid(error):
    def kl(mean: Tensor, spread: Tensor) -> Tensor:
        if bool((spread < 0).any()):
            raise error
        return (mean * spread.square()).sum()

    spreads, by_spread = a_loss(None, kl).by_spread(4.0)
    assert spreads.tolist() == list(POSITIVE)
    torch.testing.assert_close(by_spread, 2 * 4 * spreads)


def test_spreads_without_a_finite_gradient_are_left_out():
    spreads, by_spread = a_loss(None, lambda mean, spread: spread.sqrt().sum()).by_spread()
    assert spreads.tolist() == [0.5, 1.0, 2.0]
    torch.testing.assert_close(by_spread, 0.5 * spreads.rsqrt())


def test_curvature_by_a_pixel_is_over_a_fifth_of_the_spread_of_the_stamps():
    shift = float(STAMPS.repeat(12, 1, 1, 1).std())
    assert a_loss(quartic).by_pixel() == pytest.approx(4 * (0.1 * shift) ** 2)
    assert a_loss(half_sse(7.0)).by_pixel() == pytest.approx(7)
    assert a_loss(half_sse(-7.0)).by_pixel() == pytest.approx(7)


def test_curvature_around_the_mean_stamp_is_over_the_spread_of_each_pixel():
    many = STAMPS.repeat(12, 1, 1, 1)
    spread = many.std(0).flatten()
    spread = spread.clamp(min=0.05 * float(spread.mean()))  # two pixels never change
    curvature, pull = a_loss(quartic).around_mean_stamp()
    torch.testing.assert_close(curvature, 4 * spread.square())
    assert pull.shape == (48, 4)
    assert not bool(pull.any())
    weight = torch.tensor([[1.0, 9.0], [4.0, 2.0]], dtype=DOUBLE)
    loss = a_loss(half_sse(weight))
    curvature, pull = loss.around_mean_stamp()
    torch.testing.assert_close(curvature, weight.flatten())
    torch.testing.assert_close(pull, ((loss._recon() - many) * weight).flatten(1))
    assert (curvature.dtype, pull.dtype) == (DOUBLE, DOUBLE)


@pytest.mark.parametrize("how", [RuntimeError, ValueError, "nan"])
@pytest.mark.parametrize("share", [0.3, 0.1, 0.03, 0.01])
def test_a_step_out_of_range_is_taken_smaller(how, share):
    centre = a_loss()._recon()
    spread = STAMPS.repeat(12, 1, 1, 1).std(0)
    spread = spread.clamp(min=0.05 * float(spread.mean()))

    def bounded(recon: Tensor, stamps: Tensor) -> Tensor:
        is_out = bool((recon > centre + 1.01 * share * spread).any())
        if is_out and how != "nan":
            raise how
        return quartic(recon, stamps) * (math.nan if is_out else 1)

    curvature, _ = a_loss(bounded).around_mean_stamp()
    torch.testing.assert_close(curvature, 4 * (share * spread).square().flatten())


@pytest.mark.parametrize("side", [1, -1])
def test_a_loss_without_a_number_around_the_mean_stamp_cannot_be_weighed(side):
    centre = a_loss()._recon()

    def pole(recon: Tensor, stamps: Tensor) -> Tensor:
        if bool((side * (recon - centre) > 0).any()):
            raise ValueError
        return half_sse()(recon, stamps)

    with pytest.raises(Untestable) as refused:
        a_loss(pole).around_mean_stamp()
    assert str(refused.value) == "the loss is not finite, or raises, around the mean stamp"
    # a pull that is no number is none either
    with pytest.raises(Untestable):
        a_loss(lambda recon, stamps: (recon - centre).abs().sqrt().sum()).around_mean_stamp()


def test_outputs_are_pushed_a_thousand_ranges_away_on_both_sides():
    objective = loss_of(half_sse())
    loss = _Loss(bench_of(STAMPS, objective))
    assert loss.pushed_away() == 0
    up, down = (call["recon"] for call in objective.calls)
    span = float(STAMPS.max() - STAMPS.min())
    torch.testing.assert_close(up, loss._recon() + 1e3 * span)
    torch.testing.assert_close(down, loss._recon() - 1e3 * span)


@pytest.mark.parametrize(
    ("slopes", "share"),
    [
        ([1.0, 0.0, 0.0, 0.0], 0.25),  # falls for ever towards one side
        ([1.0, -1.0, 1.0, 0.0], 0.75),
        ([1.0, 1.0, 1.0, 1.0], 1.0),
    ],
)
def test_share_of_the_pixels_that_run_away_to_one_side(slopes, share):
    slope = torch.tensor(slopes, dtype=DOUBLE).view(2, 2)

    def reconstruction(recon: Tensor, stamps: Tensor) -> Tensor:
        return torch.where(slope == 0, 0.5 * recon.square(), slope * recon).sum()

    assert a_loss(reconstruction).pushed_away() == share


def test_a_loss_that_is_flat_or_hardly_rises_far_away_does_not_run_away():
    assert a_loss(lambda recon, stamps: recon.tanh().sum()).pushed_away() == 0
    assert a_loss(half_sse(1e-6)).pushed_away() == 0
    assert a_loss(half_sse(-1e-6)).pushed_away() == 0


def test_a_sign_that_is_wrong_on_both_sides_is_told_elsewhere():
    assert a_loss(half_sse(-1.0)).pushed_away() == 0
    # in some of the pixels alone: on neither side does that count
    weight = torch.tensor([[-1.0, 1.0], [1.0, 1.0]], dtype=DOUBLE)
    assert a_loss(half_sse(weight)).pushed_away() == 0


@pytest.mark.parametrize(("slope", "share"), [(0.009, 0.0), (0.011, 1.0)])
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_slope_below_a_hundredth_of_that_on_the_other_side_is_none(slope, share, sign):
    def reconstruction(recon: Tensor, stamps: Tensor) -> Tensor:
        towards = sign * recon
        return torch.where(towards > 0, -slope * towards, -towards).sum()

    assert a_loss(reconstruction).pushed_away() == share


@pytest.mark.parametrize("kind", ["continuous", "binary"])
def test_dark_pixels_of_a_bernoulli_do_not_run_away_but_negative_ones_do(kind):
    stamps = torch.rand(48, 1, 16, 16, generator=torch.Generator().manual_seed(0)).pow(20)
    assert float((stamps < 1e-3).double().mean()) > 0.5
    vae = VAE((1, 16, 16), model={"name": "linear", "latent_dim": 2},
              likelihood={"name": "bernoulli", "kind": kind},
              normalize={"stretch": "minmax"})  # fmt: skip
    subject = OwnSubject(vae)

    def pushed_away(given: Tensor) -> float:
        return _Loss(Bench(subject, given, OwnLoss(subject))).pushed_away()

    assert pushed_away(stamps) == 0
    assert pushed_away(stamps - 0.1) > 0.5


@pytest.mark.parametrize("error", [RuntimeError, ValueError])
def test_a_loss_with_a_bounded_output_is_not_pushed(error):
    def bounded(recon: Tensor, stamps: Tensor) -> Tensor:
        if bool((recon.abs() > 100).any()):
            raise error
        return -recon.sum()

    assert a_loss(bounded).pushed_away() == 0


@pytest.mark.parametrize("learns", [True, False])
def test_scale_is_asked_for_with_neutral_arguments(learns):
    loss = a_loss(half_sse(), learns=learns)
    assert loss.learns_scale() is learns
    (call,) = loss.objective.calls  # type: ignore[attr-defined]
    for name, expected in (("recon", loss._recon()), ("stamps", loss.stamps),
                           ("mean", loss._mean()), ("spread", loss._mean(0.5))):  # fmt: skip
        assert torch.equal(call[name], expected)


@pytest.mark.parametrize(("turn", "mixes"), [(0.0, False), (0.98, False), (1.02, True)])
def test_a_gradient_that_turns_with_the_other_stamps_mixes_them(turn, mixes):
    """Which are lifted by twice their spread; 8 degrees, a cosine of 0.99, are allowed."""
    first = a_loss()._recon()[0] - 2.5 - (STAMPS[0] - STAMPS[0].mean())  # adds up to nothing
    lift = 2 * float(STAMPS.repeat(12, 1, 1, 1).std()) * math.sqrt(4)
    share = turn * math.tan(math.acos(0.99)) * float(first.norm()) / lift

    def mixing(recon: Tensor, stamps: Tensor) -> Tensor:
        level = share * (stamps[1].mean() - STAMPS[1].mean())
        return half_sse()(recon, 2.5 + stamps - stamps.mean((1, 2, 3), keepdim=True) + level)

    assert a_loss(mixing).mixes_stamps() is mixes


def test_other_stamps_are_moved_and_lifted_and_the_first_is_left():
    objective = loss_of(half_sse())
    loss = _Loss(bench_of(STAMPS, objective))
    loss.mixes_stamps()
    shown = objective.calls[1]["stamps"]
    kept = loss.stamps
    assert torch.equal(shown[0], kept[0])
    torch.testing.assert_close(shown[1:], kept[1:].roll(1, -1) + 2 * kept.std())


@pytest.mark.parametrize("error", [RuntimeError, ValueError])
def test_a_loss_that_wants_stamps_in_range_is_not_called_mixing(error):
    def bounded(recon: Tensor, stamps: Tensor) -> Tensor:
        if not torch.equal(stamps[:4], STAMPS):
            raise error
        return half_sse()(recon, stamps)

    loss = a_loss(bounded)
    assert loss.mixes_stamps() is False
    assert torch.equal(loss.stamps[:4], STAMPS)


def test_a_loss_without_a_gradient_mixes_nothing():
    assert a_loss(None).mixes_stamps() is False


# -- figures -------------------------------------------------------------------------------------


def test_misfit_is_relative_to_the_closed_form():
    spreads = torch.tensor([-1.0, 0.5, 2.0], dtype=DOUBLE)
    expected = 3 * 0.5 * (spreads.exp() - 1)
    assert _misfit(3.0, spreads, expected, "log_var") == pytest.approx(0)
    assert _misfit(3.0, spreads, 1.2 * expected, "log_var") == pytest.approx(0.2)
    off = expected + torch.tensor([0.3, 0.0, 0.4], dtype=DOUBLE)
    assert _misfit(3.0, spreads, off, "log_var") == pytest.approx(0.5 / float(expected.norm()))
    assert _misfit(3.0, spreads[:2], expected[:2], "log_var") == math.inf


def test_terms_are_the_factors_of_the_best_fit():
    spreads = torch.tensor(GRID, dtype=DOUBLE)
    assert _terms(spreads, 0.5 * (3 * spreads.exp() - 2)) == pytest.approx((3, 2))


def test_largest_eigenvalue_is_in_units_of_the_curvature_and_its_floor():
    pull = torch.zeros(4, 3, dtype=DOUBLE)
    pull[:, 0] = torch.tensor([3.0, -3.0, 3.0, -3.0])
    pull[:, 1] = torch.tensor([2.0, 2.0, -2.0, -2.0])
    pull += torch.tensor([5.0, 6.0, 7.0])  # of all stamps: no direction
    curvature = torch.tensor([9.0, 1.0, 2.0], dtype=DOUBLE)
    assert _largest_eigenvalue(pull, curvature) == pytest.approx(4)
    # a pixel that hardly bends counts as one with a thousandth of the mean
    curvature = torch.tensor([6.0, 0.0, 0.0], dtype=DOUBLE)
    assert _largest_eigenvalue(pull, curvature) == pytest.approx(4 / 2e-3)


@pytest.mark.parametrize(
    ("one", "other", "factor", "exponent"),
    [(8.0, 2.0, 2.0, 2.0), (1.0, 2.0, 2.0, -1.0), (3.0, 3.0, 2.0, 0.0), (1.0, 4.0, 0.5, 2.0)],
)
def test_exponent_is_the_power_of_the_size(one, other, factor, exponent):
    assert _exponent(one, other, factor) == pytest.approx(exponent)
    if factor == 2:
        assert _exponent(one, other) == pytest.approx(exponent)


@pytest.mark.parametrize(("one", "other"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0), (1.0, None)])
def test_what_is_not_positive_has_no_exponent(one, other):
    assert math.isnan(_exponent(one, other))


@pytest.mark.parametrize(
    ("exponent", "word"),
    [
        (0.34, "summed"), (-0.34, "summed"), (0.36, "unknown"), (-0.36, "unknown"),
        (-0.64, "unknown"), (-0.66, "averaged"), (-1.34, "averaged"), (-1.36, "unknown"),
        (0.35, "unknown"), (-0.65, "unknown"), (1.0, "unknown"), (math.nan, "unknown"),
    ],
)  # fmt: skip
def test_exponent_in_a_word(exponent, word):
    assert _word(exponent) == word


def test_a_measure_that_raises_measures_nothing():
    assert _tried(lambda: 2.0) == 2.0
    assert _tried(lambda: 1 / 0) is None
