"""GECO: which way beta moves, how far, where it settles, and what a checkpoint keeps of it."""

from __future__ import annotations

import io
import math

import pytest
import torch

from vae_astro.errors import InputError
from vae_astro.objective.beta import SCHEDULES, Schedule, geco
from vae_astro.objective.geco import Geco, chi2_per_pixel, precision_on
from vae_astro.settings import build


def shown(*values: float) -> Geco:
    """A controller after a batch of the same chi-squared for each value."""
    controller = Geco(tolerance=0.1, rate=0.01, momentum=0.9)
    for value in values:
        controller.observe(torch.full((5,), value))
    return controller


# -- the constraint ------------------------------------------------------------------------------


def test_chi2_is_the_mean_square_of_the_good_pixels_of_each_stamp():
    residual = torch.arange(16.0).reshape(2, 2, 2, 2)
    mask = torch.ones(2, 2, 2, 2, dtype=torch.bool)
    mask[0, 1] = False
    residual[0, 1] = torch.nan  # what a masked pixel holds does not matter
    expected = [(0 + 1 + 4 + 9) / 4, sum(k**2 for k in range(8, 16)) / 8]
    assert chi2_per_pixel(residual, mask).tolist() == pytest.approx(expected)


def test_chi2_of_a_stamp_without_a_good_pixel_is_zero():
    residual = torch.ones(1, 1, 3, 3)
    assert chi2_per_pixel(residual, torch.zeros(1, 1, 3, 3, dtype=torch.bool)).item() == 0


def test_chi2_of_a_single_good_pixel_is_its_square():
    mask = torch.zeros(1, 1, 3, 3, dtype=torch.bool)
    mask[0, 0, 1, 2] = True
    assert chi2_per_pixel(torch.full((1, 1, 3, 3), 3.0), mask).item() == 9


def test_beta_falls_where_stamps_are_badly_explained_and_rises_where_noise_is_fitted():
    assert shown(1.05).beta == pytest.approx(math.exp(-0.01 * 0.5), rel=1e-5)
    assert shown(0.98).beta == pytest.approx(math.exp(0.01 * 0.2), rel=1e-5)
    assert shown(1.0).beta == 1.0


def test_target_is_the_users():
    controller = Geco(target_chi2=2.0)
    controller.observe(torch.tensor([2.0]))
    assert controller.beta == 1.0
    controller.observe(torch.tensor([1.5]))
    assert controller.beta > 1.0


def test_beta_follows_the_moving_average_of_the_constraint():
    # plain averages while there are few, then a tenth of each new one
    controller, average = Geco(tolerance=1.0, rate=0.01, momentum=0.9), 0.0
    expected = 1.0
    for k, value in enumerate([1.4, 0.8, 1.1] * 10):
        controller.observe(torch.tensor([value]))
        keep = min(0.9, k / (k + 1))
        average = keep * average + (1 - keep) * (value - 1)
        expected *= math.exp(-0.01 * average)
    assert controller.beta == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("wild", [1.1001, 30.0, 1e30, math.inf])
def test_a_step_is_bounded_however_bad_the_batch(wild):
    assert shown(wild).beta == pytest.approx(math.exp(-0.01), rel=1e-5)
    # and what was infinite once is forgotten
    assert shown(wild, *[0.5] * 200).beta > shown(wild).beta


def test_a_batch_without_a_number_is_passed_over():
    controller = shown(1.05)
    before = controller.state_dict()
    controller.observe(torch.tensor([math.nan, 1.0]))
    assert controller.state_dict() == before


def test_median_stamp_decides_and_not_the_bright_one():
    controller = Geco()
    controller.observe(torch.tensor([1.0, 1.0, 1.0, 1.0, 900.0]))
    assert controller.beta == 1.0


@pytest.mark.parametrize(("value", "end"), [(9.0, 0.02), (0.0, 3.0)])
def test_beta_stays_within_its_bounds(value, end):
    controller = Geco(minimum=0.02, maximum=3.0)
    for _ in range(500):
        controller.observe(torch.tensor([value]))
        assert 0.02 <= controller.beta <= 3.0
    assert controller.beta == end


@pytest.mark.parametrize("start", [0.011, 1.0, 9.0])
def test_beta_settles_where_the_target_is_met(start):
    # a model whose chi-squared answers to ln(beta) with a delay, and meets the target at 0.2
    controller, chi2 = Geco(start=start), 1.5
    betas = []
    for _ in range(3000):
        chi2 += 0.05 * (1 + 0.2 * math.log(controller.beta / 0.2) - chi2)
        controller.observe(torch.tensor([chi2]))
        betas.append(controller.beta)
    assert betas[-500:] == pytest.approx([0.2] * 500, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_precision_will_do(dtype):
    controller = Geco()
    controller.observe(torch.tensor([1.0, 1.5, 2.0], dtype=dtype))
    assert controller.beta == pytest.approx(math.exp(-0.01), rel=1e-5)


def test_gradients_stay_out_of_it():
    chi2 = torch.tensor([1.05, 1.05], requires_grad=True)
    controller = Geco()
    controller.observe(chi2)
    assert isinstance(controller.beta, float)
    assert chi2.grad is None


# -- in place of a schedule ----------------------------------------------------------------------


def test_geco_stands_where_a_schedule_stands():
    made = build("beta", SCHEDULES, {"name": "geco", "free_bits_nats": 0.25}, total_steps=100)
    assert isinstance(made, Schedule)
    assert made.controller is not None
    assert (made(0).beta, made(0).free_bits_nats, made(0).capacity_nats) == (1.0, 0.25, None)
    made.controller.observe(torch.tensor([2.0]))
    assert made(0).beta == made(10**6).beta == made.controller.beta < 1.0


def test_two_schedules_do_not_share_a_controller():
    one, other = geco(), geco()
    one.controller.observe(torch.tensor([2.0]))
    assert other(0).beta == 1.0


def test_only_geco_has_a_controller():
    with_controller = [
        name
        for name in SCHEDULES
        if build("beta", SCHEDULES, {"name": name}, total_steps=9).controller is not None
    ]
    assert with_controller == ["geco"]


# -- the checkpoint ------------------------------------------------------------------------------


def test_state_goes_through_a_checkpoint_and_on_bit_for_bit():
    values = (1 + 0.2 * torch.randn(60, 8, generator=torch.Generator().manual_seed(0))).unbind()
    through, first, second = Geco(), Geco(), Geco(start=0.3)
    for value in values:
        through.observe(value)
    for value in values[:25]:
        first.observe(value)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    for value in values[25:]:
        second.observe(value)
    assert second.state_dict() == through.state_dict()
    assert through.beta != 1.0


def test_bounds_of_the_settings_hold_for_a_loaded_state():
    narrow = Geco(minimum=0.5, maximum=2.0)
    narrow.load_state_dict({"beta": 0.01, "average": 0.3, "n_seen": 7})
    assert narrow.beta == 0.5


# -- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"target_chi2": 0}, "beta.target_chi2 must be greater than 0, got 0"),
        ({"target_chi2": math.nan}, "beta.target_chi2 must be a finite number, got nan"),
        ({"tolerance": 0}, "beta.tolerance must be greater than 0, got 0"),
        ({"rate": 0}, "beta.rate must be greater than 0, got 0"),
        ({"rate": 2}, "beta.rate must be at most 1, got 2"),
        ({"momentum": -0.1}, "beta.momentum must be at least 0, got -0.1"),
        ({"momentum": 1}, "beta.momentum must be less than 1, got 1"),
        ({"minimum": 0}, "beta.minimum must be greater than 0, got 0"),
        ({"maximum": 0.001}, "beta.maximum must be at least 0.01, got 0.001"),
        ({"start": 20}, "beta.start must be at most 10, got 20"),
        ({"start": 0.001}, "beta.start must be at least 0.01, got 0.001"),
        ({"start": "low"}, "beta.start must be a finite number, got 'low'"),
    ],
)
def test_setting_out_of_range_is_refused_by_its_key(keys, message):
    with pytest.raises(InputError) as refused:
        build("beta", SCHEDULES, {"name": "geco", **keys}, total_steps=100)
    assert str(refused.value) == message


# -- devices -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "dtype"), [("cpu", torch.float64), ("cuda", torch.float64), ("mps", torch.float32)]
)
def test_a_device_computes_as_finely_as_it_can(device, dtype):
    assert precision_on(torch.device(device)) == dtype


def test_the_state_stays_where_it_was_brought():
    controller = shown(1.05)
    same = controller.state
    assert controller.state_on(torch.device("cpu")) is same
    moved = controller.state_on(torch.device("meta"))
    assert (moved.device.type, moved.dtype) == ("meta", torch.float64)
    assert controller.state is moved


# -- closed forms --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "median"), [([3.0, 1.0, 2.0], 2.0), ([4.0, 1.0, 2.0, 3.0], 2.5), ([7.0], 7.0)]
)
def test_the_median_of_an_even_batch_lies_between_its_middle_two(values, median):
    controller = Geco(target_chi2=median, tolerance=1.0)
    controller.observe(torch.tensor(values))
    assert controller.beta == 1.0
    higher = Geco(target_chi2=median - 0.1, tolerance=1.0, rate=0.5)
    higher.observe(torch.tensor(values))
    assert higher.beta == pytest.approx(math.exp(-0.5 * 0.1), rel=1e-5)


def test_the_state_counts_batches_and_averages_the_constraint():
    controller = Geco(target_chi2=1.0, tolerance=1.0, momentum=0.5, rate=0.1)
    for value in (1.5, 1.25, 0.75):
        controller.observe(torch.tensor([value]))
    # 0.5, then (0.5 + 0.25) / 2 = 0.375, then half of it and half of -0.25
    state = controller.state_dict()
    assert state["n_seen"] == 3
    assert isinstance(state["n_seen"], int)
    assert state["average"] == pytest.approx(0.0625)
    assert state["beta"] == pytest.approx(math.exp(-0.1 * (0.5 + 0.375 + 0.0625)))


def test_a_loaded_state_goes_on_from_its_three_numbers():
    controller = Geco(tolerance=1.0, momentum=0.5, rate=0.1)
    controller.load_state_dict({"beta": 2.0, "average": 0.5, "n_seen": 9})
    assert controller.state_dict() == {"beta": 2.0, "average": 0.5, "n_seen": 9}
    controller.observe(torch.tensor([1.5]))
    assert controller.beta == pytest.approx(2 * math.exp(-0.1 * 0.5))
    controller.load_state_dict({"beta": 99.0, "average": 0.0, "n_seen": 1})
    assert controller.beta == 10.0


def test_settings_are_those_of_the_documentation_unless_given():
    controller = Geco()
    settings = (controller.target_chi2, controller.tolerance, controller.rate, controller.momentum)
    assert settings == (1.0, 0.1, 0.01, 0.9)
    assert (controller.minimum, controller.maximum, controller.beta) == (0.01, 10.0, 1.0)
    made = geco(target_chi2=2.0, tolerance=0.3, start=0.7, rate=0.02, momentum=0.1, minimum=0.5,
                maximum=3.0).controller  # fmt: skip
    assert made is not None
    settings = (made.target_chi2, made.tolerance, made.rate, made.momentum)
    assert settings == (2.0, 0.3, 0.02, 0.1)
    assert (made.minimum, made.maximum, made.beta) == (0.5, 3.0, 0.7)
