"""What two processes share is what one has: loss, gradients, noise, and what moves beside them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vae_astro.ranks import Alarm, gather, mean_over_ranks, n_ranks, own_rows, rank

TWO_RANKS = Path(__file__).with_name("two_ranks.py")
VARIANTS = ("sigma", "learned by gradient", "student_t", "free bits", "capacity", "geco",
            "minimum rate", "mixture", "vamp")  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "stamps").mkdir()
    stamps = np.random.default_rng(0).normal(size=(60, 16, 16))
    np.save(folder / "stamps" / "early.npy", stamps)
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen(
            [sys.executable, str(TWO_RANKS), str(number), str(folder)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env,
        )
        for number in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=240)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(said)
    return [json.loads((folder / f"{number}.json").read_text()) for number in range(2)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_batch_shared_by_two_gives_the_step_of_one(
    found: list[dict[str, Any]], variant: str
) -> None:
    whole = found[0]["whole"][variant]
    for one in found:
        shared = one["shared"][variant]
        assert shared["loss"] == pytest.approx(whole["loss"], rel=1e-5)
        largest = np.abs(whole["gradient"]).max()
        np.testing.assert_allclose(
            shared["gradient"], whole["gradient"], atol=1e-5 * largest, rtol=1e-4
        )
        assert shared["moved"] == pytest.approx(whole["moved"], rel=1e-5)
        assert shared["beta"] == pytest.approx(whole["beta"], rel=1e-9)
        assert shared["next draw"] == whole["next draw"], "the random state is that of one process"


def test_the_variants_are_those_that_the_processes_know(found: list[dict[str, Any]]) -> None:
    assert set(found[0]["whole"]) == set(VARIANTS)


def test_what_is_gathered_has_the_order_of_one_process(found: list[dict[str, Any]]) -> None:
    for one in found:
        assert one["gathered"] == list(range(7))
        assert one["gathered masks"] == [[True, False], [False, True], [True, False], [True, True]]


def test_an_alarm_is_heard_by_all_at_the_same_step(found: list[dict[str, Any]]) -> None:
    assert [one["heard"] for one in found] == [[0, 0, 0, 15, 0, 0]] * 2


def test_stamps_that_arrive_while_processes_start_are_in_none_of_them(
    found: list[dict[str, Any]],
) -> None:
    assert found[0]["opened"] == found[1]["opened"]
    assert found[0]["opened"][0] == 60


def test_a_process_alone_keeps_its_figures_as_they_are() -> None:
    values = torch.randn(5, 2)
    assert (n_ranks(), rank()) == (1, 0)
    assert mean_over_ranks(values) is gather(values) is values
    assert torch.equal(own_rows(values), values)
    alarm = Alarm()
    assert [alarm.heard(0), alarm.heard(2), alarm.last()] == [0, 2, 0]
