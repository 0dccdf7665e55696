"""The optimiser that is built, its learning rate step by step, and what a checkpoint hands it."""

from __future__ import annotations

import math

import pytest
import torch

from vae_astro.errors import InputError
from vae_astro.objective.optim import Optim

# -- the learning rate ---------------------------------------------------------------------------


def test_learning_rate_rises_in_equal_steps_and_is_never_zero():
    flat = Optim(schedule="constant", warmup_steps=4)
    assert [flat.factor(step, 10) for step in range(7)] == [0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0]


def test_learning_rate_falls_along_half_a_cosine_to_a_hundredth():
    optim = Optim(warmup_steps=0)
    # sin^2 is the rest of half a cosine; a hundredth of the rate stays
    expected = [0.01 + 0.99 * math.sin(0.5 * math.pi * (1 - k / 8)) ** 2 for k in range(9)]
    assert [optim.factor(k, 8) for k in range(9)] == pytest.approx(expected, rel=1e-12)
    assert optim.factor(4, 8) == pytest.approx(0.505)


def test_rise_and_fall_are_multiplied():
    optim = Optim(warmup_steps=3)
    assert optim.factor(1, 4) == pytest.approx(0.5 * (0.01 + 0.99 * math.cos(math.pi / 8) ** 2))


def test_learning_rate_stays_at_its_lowest_after_the_end():
    optim = Optim(warmup_steps=2)
    assert [optim.factor(step, 50) for step in (50, 75, 10**9)] == pytest.approx([0.01] * 3)


def test_a_run_without_a_step_still_has_a_learning_rate():
    assert Optim(warmup_steps=0).factor(0, 0) == 1.0


# -- the optimiser -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
@pytest.mark.parametrize("fused", [True, False])
def test_optimiser_has_the_settings_and_all_parameters(name, kind, fused):
    module = torch.nn.Linear(3, 2)
    made = Optim(name=name, lr=0.02, weight_decay=0.3).optimizer(module, fused=fused)
    assert type(made) is kind
    (group,) = made.param_groups
    assert (group["lr"], group["weight_decay"], group["fused"]) == (0.02, 0.3, fused)
    assert [id(p) for p in group["params"]] == [id(p) for p in module.parameters()]


def test_updates_are_fused_unless_told_otherwise():
    assert Optim().optimizer(torch.nn.Linear(1, 1)).defaults["fused"] is True


# -- the checkpoint ------------------------------------------------------------------------------


def test_moments_take_the_layout_of_the_weights_and_keep_their_values():
    weight = torch.nn.Parameter(torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last))
    optimizer = torch.optim.Adam([weight])
    moment, step = torch.randn(2, 3, 4, 5), torch.tensor(7.0)
    optimizer.state[weight] = {"step": step, "exp_avg": moment, "exp_avg_sq": moment.square()}
    Optim.lay_out(optimizer)
    state = optimizer.state[weight]
    for name, value in (("exp_avg", moment), ("exp_avg_sq", moment.square())):
        assert state[name].stride() == weight.stride() != value.stride()
        assert torch.equal(state[name], value)
        assert not state[name].requires_grad
    assert state["step"] is step


def test_moments_that_lie_as_the_weights_do_are_left_alone():
    weight = torch.nn.Parameter(torch.randn(3, 4))
    optimizer = torch.optim.Adam([weight])
    moment = torch.randn(3, 4)
    optimizer.state[weight] = {"exp_avg": moment}
    Optim.lay_out(optimizer)
    assert optimizer.state[weight]["exp_avg"] is moment


def test_a_saved_optimiser_gets_the_new_rate_where_its_schedule_stands():
    # the saved run was at a quarter of its rate of 0.1; a second group went at half of it
    saved = {
        "optimizer_states": [
            {
                "param_groups": [
                    {"lr": 0.025, "initial_lr": 0.1},
                    {"lr": 0.0125, "initial_lr": 0.05},
                ]
            }
        ],
        "lr_schedulers": [{"base_lrs": [0.1, 0.05], "last_epoch": 30}],
    }
    Optim(lr=0.002).take_over(saved)
    for group in saved["optimizer_states"][0]["param_groups"]:
        assert group["lr"] == pytest.approx(0.25 * 0.002)
        assert group["initial_lr"] == 0.002
    assert saved["lr_schedulers"] == [{"base_lrs": [0.002, 0.002], "last_epoch": 30}]


def test_a_checkpoint_without_an_optimiser_stays_as_it_is():
    checkpoint = {"state_dict": {}}
    Optim().take_over(checkpoint)
    assert checkpoint == {"state_dict": {}}


# -- settings ------------------------------------------------------------------------------------


def test_settings_are_those_of_the_documentation_unless_given():
    optim = Optim()
    assert (optim.name, optim.lr, optim.weight_decay) == ("adam", 1e-3, 0.0)
    assert (optim.schedule, optim.warmup_steps, optim.aggressive) == ("cosine", 100, False)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "sgd"}, "optim.name must be one of adam, adamw, got 'sgd'"),
        ({"lr": 0}, "optim.lr must be greater than 0, got 0"),
        ({"lr": math.nan}, "optim.lr must be a finite number, got nan"),
        ({"weight_decay": -0.1}, "optim.weight_decay must be at least 0, got -0.1"),
        ({"schedule": "step"}, "optim.schedule must be one of constant, cosine, got 'step'"),
        ({"warmup_steps": -1}, "optim.warmup_steps must be at least 0, got -1"),
        ({"warmup_steps": 2.5}, "optim.warmup_steps must be a whole number, got 2.5"),
    ],
)
def test_setting_out_of_range_is_refused_by_its_key(keys, message):
    with pytest.raises(InputError) as refused:
        Optim(**keys)
    assert str(refused.value) == message


def test_a_run_of_one_step_ends_at_its_lowest():
    assert Optim(warmup_steps=0).factor(1, 1) == pytest.approx(0.01)
