"""A module goes back to the modes that it was in."""

import pytest
from torch import nn

from vae_astro.model.modes import in_evaluation


def test_every_part_is_in_evaluation_within_and_in_its_own_mode_after() -> None:
    module = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.Linear(1, 1)))
    module[0].eval()
    before = [part.training for part in module.modules()]
    with in_evaluation(module):
        assert not any(part.training for part in module.modules())
    assert [part.training for part in module.modules()] == before
    assert before == [True, False, True, True]


def test_an_error_within_gives_the_mode_back_too() -> None:
    module = nn.Linear(1, 1)
    with pytest.raises(ZeroDivisionError), in_evaluation(module):
        _ = 1 // 0
    assert module.training
