"""Aggressive inference: who moves when, what ends a round and the phase, what a resume keeps."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Iterable

import pytest
import torch

from vae_astro.errors import InputError
from vae_astro.objective.aggressive import AggressiveInference, aggressive_inference
from vae_astro.objective.optim import Optim


def rounds(phase: AggressiveInference, losses: Iterable[float]) -> str:
    """``d`` for each step in which everything moves, ``e`` for the encoder alone."""
    moved = ""
    for loss in losses:
        moved += "d" if phase.decoder_learns else "e"
        phase.observe(loss, 0.0)
    return moved


# -- rounds --------------------------------------------------------------------------------------


def test_everything_moves_first_so_that_sigma_sees_a_batch():
    assert AggressiveInference().decoder_learns


def test_round_ends_at_the_cap_while_the_objective_falls():
    phase = AggressiveInference(window_steps=2, max_encoder_steps=7)
    assert rounds(phase, range(100, 80, -1)) == "d" + "eeeeeeed" * 2 + "eee"
    assert phase.decoder_steps == 3


def test_round_ends_when_a_window_is_no_better_than_the_one_before():
    phase = AggressiveInference(window_steps=2, max_encoder_steps=50)
    falls_then_stays = [9.0, 7.0, 7.0, 5.0, 6.0, 6.0]  # windows of mean 8, 6, 6
    assert rounds(phase, [0.0, *falls_then_stays, 0.0, 0.0]) == "deeeeee" + "de"


def test_one_bad_batch_within_a_window_does_not_end_the_round():
    phase = AggressiveInference(window_steps=3, max_encoder_steps=50)
    assert rounds(phase, [0.0, 9.0, 9.0, 9.0, 12.0, 6.0, 6.0, 1.0]) == "d" + "e" * 7


def test_windows_do_not_reach_into_the_next_round():
    phase = AggressiveInference(window_steps=1, max_encoder_steps=50)
    # the second round begins at 5, above the last of the first, and falls again
    assert rounds(phase, [0, 3, 4, 0, 5, 4, 3, 3, 0]) == "dee" + "deeee" + "d"


def test_loss_without_a_number_ends_the_round():
    phase = AggressiveInference(window_steps=1, max_encoder_steps=50)
    assert rounds(phase, [0.0, math.nan, 0.0]) == "ded"


def test_cap_of_one_alternates():
    assert rounds(AggressiveInference(max_encoder_steps=1), [1.0] * 6) == "dedede"


# -- the phase -----------------------------------------------------------------------------------


def test_phase_lasts_while_the_mutual_information_climbs():
    phase = AggressiveInference(patience=2)
    for nats in (0.1, 0.5, 0.4, 0.9, 0.9, 1.5):
        phase.validated(nats)
    assert phase.active


def test_phase_ends_after_so_many_validations_without_a_climb():
    phase = AggressiveInference(patience=2)
    rounds(phase, [1.0] * 4)
    phase.validated(1.0)
    phase.validated(1.005)  # a rise within rounding is none
    assert phase.active
    phase.validated(0.9)
    assert not phase.active
    assert rounds(phase, [5.0] * 40) == "d" * 40


def test_mutual_information_without_a_number_is_no_climb():
    phase = AggressiveInference(patience=1)
    phase.validated(math.nan)
    assert not phase.active


def test_phase_ends_after_its_share_of_the_run():
    phase = AggressiveInference(max_fraction=0.25, window_steps=20)
    learns = []
    for step in range(100):
        learns.append(phase.decoder_learns)
        phase.observe(1.0, step / 100)
    assert not learns[25]
    assert all(learns[26:])
    assert not phase.active


def test_steps_of_the_decoder_are_counted_in_the_phase_alone():
    phase = AggressiveInference(max_encoder_steps=4)
    rounds(phase, [1.0] * 11)
    counted = phase.decoder_steps
    phase.observe(1.0, 1.0)
    rounds(phase, [1.0] * 30)
    assert counted == phase.decoder_steps == 3


# -- the checkpoint ------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [1, 4, 7, 13, 26])
def test_state_goes_through_a_checkpoint_and_on_exactly(stop):
    draw = random.Random(0)
    losses = [draw.uniform(0, 10) for _ in range(60)]
    settings = {"window_steps": 3, "max_encoder_steps": 11, "patience": 2}
    through, first, second = (AggressiveInference(**settings) for _ in range(3))
    expected = rounds(through, losses)
    moved = rounds(first, losses[:stop])
    first.validated(2.0)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    moved += rounds(second, losses[stop:])
    through.validated(2.0)
    assert moved == expected
    assert second.state_dict() == through.state_dict()
    second.validated(1.9)
    second.validated(1.9)
    assert not second.active


def test_saved_state_does_not_change_afterwards():
    phase = AggressiveInference()
    rounds(phase, [1.0] * 3)
    saved = phase.state_dict()
    kept = AggressiveInference()
    kept.load_state_dict(saved)
    rounds(phase, [1.0] * 3)
    rounds(kept, [1.0])
    assert saved["window"] == [1.0, 1.0]


# -- settings ------------------------------------------------------------------------------------


def test_it_is_off_unless_asked_for():
    assert aggressive_inference(Optim().aggressive) is None
    assert aggressive_inference(False) is None
    assert aggressive_inference(True).max_fraction == 0.25
    assert aggressive_inference({"max_fraction": 0.5}).max_fraction == 0.5


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (None, "optim.aggressive must be true, false or settings such as {max_fraction: 0.25}, got "
         "None"),
        (3, "optim.aggressive must be true, false or settings such as {max_fraction: 0.25}, got 3"),
        ({"windows": 3}, "optim.aggressive has no setting optim.aggressive.windows; did you mean "
                          "optim.aggressive.window_steps? it has "
         "window_steps, max_encoder_steps, patience, max_fraction"),
        ({"window_steps": 0}, "optim.aggressive.window_steps must be at least 1, got 0"),
        ({"max_encoder_steps": 0}, "optim.aggressive.max_encoder_steps must be at least 1, got 0"),
        ({"patience": 0}, "optim.aggressive.patience must be at least 1, got 0"),
        ({"max_fraction": 0}, "optim.aggressive.max_fraction must be greater than 0, got 0"),
        ({"max_fraction": 1.5}, "optim.aggressive.max_fraction must be at most 1, got 1.5"),
    ],
)  # fmt: skip
def test_setting_out_of_range_is_refused_by_its_key(setting, message):
    with pytest.raises(InputError) as refused:
        Optim(aggressive=setting)
    assert str(refused.value) == message
