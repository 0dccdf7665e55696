"""Updates that are held back, and when they are told."""

from __future__ import annotations

import pytest
import torch

from vae_astro.objective.finite import FiniteUpdates


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
