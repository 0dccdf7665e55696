"""Updates that are held back, and when they are told."""

from __future__ import annotations

import pytest
import torch

from vae_astro.errors import InputError
from vae_astro.objective.finite import FiniteUpdates, carried_by_gradient


def updates_on_a_device() -> tuple[FiniteUpdates, list[int], torch.nn.Parameter]:
    updates, told = FiniteUpdates(), []
    updates.is_free_to_read = lambda device: False  # type: ignore[method-assign]
    updates.start(told.append)
    return updates, told, torch.nn.Parameter(torch.ones(3))


@pytest.mark.parametrize("reads_at_once", [True, False])
def test_a_bad_step_is_told_one_poll_late_or_when_it_is_read(reads_at_once: bool) -> None:
    updates, told, weight = updates_on_a_device()
    optimizer = torch.optim.Adam([weight], fused=True)
    for step in range(6):
        weight.grad = torch.full((3,), torch.nan if step == 2 else 1.0)
        updates.clip(optimizer, 1.0, step)
        optimizer.step()
        if step == 1:
            good = weight.detach().clone()
        if step == 3:
            updates.poll()
            assert told == []
    assert torch.equal(weight.detach(), good), "nothing moves from the bad step on"
    if reads_at_once:
        updates.read()
    else:
        updates.poll()
    assert told == [2]


def test_polling_tells_nothing_where_all_is_finite() -> None:
    updates, told, weight = updates_on_a_device()
    optimizer = torch.optim.Adam([weight], fused=True)
    for step in range(3):
        weight.grad = torch.ones(3)
        updates.clip(optimizer, 1.0, step)
        optimizer.step()
        updates.poll()
    updates.read()
    assert told == []
    assert not torch.equal(weight.detach(), torch.ones(3))


# -- where a number is free to read --------------------------------------------------------------


def weights_with_gradients(*gradients: list[float]) -> list[torch.nn.Parameter]:
    weights = [torch.nn.Parameter(torch.zeros(len(gradient))) for gradient in gradients]
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = torch.tensor(gradient)
    return weights


def test_gradients_are_clipped_together_over_all_groups() -> None:
    one, other = weights_with_gradients([3.0, 0.0], [4.0])
    idle = torch.nn.Parameter(torch.zeros(2))  # has no gradient, and needs none
    optimizer = torch.optim.Adam([{"params": [one, idle]}, {"params": [other]}])
    FiniteUpdates().clip(optimizer, 1.0, 0)  # the norm of both is 5
    torch.testing.assert_close(one.grad, torch.tensor([0.6, 0.0]))
    torch.testing.assert_close(other.grad, torch.tensor([0.8]))
    assert idle.grad is None


@pytest.mark.parametrize("max_norm", [None, 6.0])
def test_gradients_below_the_norm_or_without_one_stay_as_they_are(max_norm: float | None) -> None:
    (weight,) = weights_with_gradients([3.0, 4.0])
    FiniteUpdates().clip(torch.optim.Adam([weight]), max_norm, 0)
    assert weight.grad.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_bad_gradient_is_refused_at_its_step_with_the_way_out(bad: float) -> None:
    (weight,) = weights_with_gradients([1.0, bad])
    with pytest.raises(InputError) as refused:
        FiniteUpdates().clip(torch.optim.Adam([weight]), 1.0, 12)
    assert str(refused.value) == (
        "the loss or its gradient is not finite at step 12; lower optim.lr, or look for extreme "
        "pixels and set data.normalize.saturation"
    )


def test_a_scaled_loss_is_judged_in_place_of_its_gradient() -> None:
    (weight,) = weights_with_gradients([1.0, torch.inf])
    optimizer, told = torch.optim.Adam([weight]), []
    updates = FiniteUpdates()
    updates.start(told.append)
    updates.clip(optimizer, None, 3, scaled_loss=torch.tensor(7.0))
    assert told == []
    updates.clip(optimizer, None, 4, scaled_loss=torch.tensor(torch.inf))
    assert told == [4]


def test_only_numbers_on_the_cpu_are_free_to_read() -> None:
    assert FiniteUpdates.is_free_to_read(torch.device("cpu"))
    assert not FiniteUpdates.is_free_to_read(torch.device("cuda", 0))


# -- on a device ---------------------------------------------------------------------------------


def test_an_optimiser_that_cannot_be_told_is_read_at_each_step() -> None:
    updates, told, weight = updates_on_a_device()
    weight.grad = torch.full((3,), torch.nan)
    updates.clip(torch.optim.Adam([weight], fused=False), None, 5)
    assert told == [5]


@pytest.mark.parametrize("bad_steps", [[0], [0, 1, 3], [2, 3]])
def test_the_first_of_several_bad_steps_is_told(bad_steps: list[int]) -> None:
    updates, told, weight = updates_on_a_device()
    optimizer = torch.optim.Adam([weight], fused=True)
    for step in range(4):
        weight.grad = torch.full((3,), torch.nan if step in bad_steps else 1.0)
        updates.clip(optimizer, None, step)
    updates.poll()
    updates.poll()
    assert told == bad_steps[:1]
    updates.read()
    assert told == bad_steps[:1] * 2


def test_a_new_fit_forgets_the_faults_of_the_one_before() -> None:
    updates, told, weight = updates_on_a_device()
    weight.grad = torch.full((3,), torch.nan)
    updates.clip(torch.optim.Adam([weight], fused=True), None, 0)
    updates.poll()
    again: list[int] = []
    updates.start(again.append)
    updates.poll()
    updates.read()
    assert told == again == []


def test_nothing_is_told_before_the_first_step() -> None:
    updates, told, _ = updates_on_a_device()
    updates.poll()
    updates.poll()
    updates.read()
    assert told == []


# -- what the gradient carries -------------------------------------------------------------------


@pytest.mark.parametrize("loss", [torch.inf, -torch.inf, torch.nan])
def test_gradient_of_a_loss_that_is_not_finite_is_nan(loss: float) -> None:
    x = torch.tensor(2.0, requires_grad=True)
    carried_by_gradient(3 * x + loss).backward()
    assert torch.isnan(x.grad)


def test_gradient_and_value_of_a_finite_loss_are_its_own() -> None:
    x = torch.tensor(2.0, requires_grad=True)
    carried = carried_by_gradient(3 * x)
    carried.backward()
    assert (carried.item(), x.grad.item()) == (6.0, 3.0)
