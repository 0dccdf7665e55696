"""Overrides as they are typed: their keys, and what they replace."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from vae_astro.command.typed import is_typed, key_of, take_over


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("beta.end=0.1", "beta.end"),
        ("+beta.end=0.1", "beta.end"),
        ("++beta.end=a=b", "beta.end"),
        ("~likelihood.kl_weight", "likelihood.kl_weight"),
        ("data=fits", "data"),
        ("hydra/job_logging=stdout", "hydra.job_logging"),
        ("+model@other=conv", "model"),
        ("data.root=/a/b@c", "data.root"),
    ],
)
def test_the_key_is_what_is_set_however_it_is_typed(word: str, key: str) -> None:
    assert key_of(word) == key


def test_a_group_is_typed_where_it_or_a_key_of_it_is() -> None:
    for word in ("data=fits", "data.root=a", "+data.size=32", "~data.size"):
        assert is_typed("data", [word, "seed=1"])
    assert not is_typed("data", ["database=1", "seed=data", "model.data=3"])
    assert not is_typed("data.root", ["data=fits"])
    assert not is_typed("data", [])


def test_groups_and_values_that_are_typed_replace_those_of_the_run_whole() -> None:
    run = OmegaConf.create({"beta": {"name": "sigmoid", "steepness": 4}, "seed": 1, "lr": 2})
    now = OmegaConf.create({"beta": {"name": "constant", "value": 3}, "seed": 5, "lr": 7})
    take_over(run, now, ["beta=constant", "seed=5"])
    assert run == {"beta": {"name": "constant", "value": 3}, "seed": 5, "lr": 2}
