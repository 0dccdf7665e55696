"""Aggressive inference: who moves when, what ends a round and the phase, what a resume keeps."""

from __future__ import annotations

import io
import logging
import math
import random
from collections.abc import Iterable

import pytest
import torch

from vae_astro.errors import InputError
from vae_astro.objective.aggressive import (
    CLIMB_NATS,
    AggressiveInference,
    aggressive_inference,
)
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


def test_cap_holds_at_the_end_of_a_window_that_improves():
    phase = AggressiveInference(window_steps=2, max_encoder_steps=4)
    assert rounds(phase, range(100, 89, -1)) == "deeee" * 2 + "d"


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


def test_end_of_the_phase_is_logged_with_its_reason_and_the_steps_of_the_decoder(caplog):
    caplog.set_level(logging.INFO, logger="vae_astro.objective.aggressive")
    phase = AggressiveInference(patience=1)
    rounds(phase, [1.0] * 3)
    phase.validated(2.0)
    assert caplog.messages == []
    phase.validated(1.234)
    assert caplog.messages == [
        "aggressive inference ends, the mutual information stays at 1.23 nats: 1 updates of the "
        "decoder"
    ]
    phase.validated(1.0)  # it has ended
    caplog.clear()
    AggressiveInference(max_fraction=0.5).observe(1.0, 0.5)
    assert caplog.messages == [
        "aggressive inference ends, its share of the run is over: 1 updates of the decoder"
    ]


@pytest.mark.parametrize(("rise", "patient"), [(0.0101, True), (CLIMB_NATS, False)])
def test_a_hundredth_of_a_nat_is_a_climb(rise, patient):
    phase = AggressiveInference(patience=1)
    phase.validated(1.0)
    phase.validated(1.0 + rise)
    assert phase.active is patient


def test_a_climb_gives_back_all_patience_and_sets_the_mark():
    phase = AggressiveInference(patience=2)
    for nats in (1.0, 0.9, 2.0, 1.5):
        phase.validated(nats)
    assert phase.active
    phase.validated(1.9)  # above the first, below the best
    assert not phase.active


# -- losses on a device --------------------------------------------------------------------------


def test_losses_as_tensors_decide_as_numbers_do_and_are_read_in_their_places():
    numbers, tensors = (AggressiveInference(window_steps=2, max_encoder_steps=9) for _ in range(2))
    losses = [0.0, 9.0, 7.0, 7.0, 5.0, 6.0, 6.0, 0.0, 3.0]
    assert rounds(numbers, losses) == rounds(tensors, map(torch.tensor, losses))
    tensors.observe(torch.tensor(2.5), 0.0)
    mixed = AggressiveInference(window_steps=5)
    for loss in (0.0, 1.0, torch.tensor(2.0), 3.0, torch.tensor(4.0)):
        mixed.observe(loss, 0.0)
    window = mixed.state_dict()["window"]
    assert window == [1.0, 2.0, 3.0, 4.0]
    assert {type(loss) for loss in window} == {float}


def test_state_is_that_of_the_steps_under_way():
    phase = AggressiveInference(window_steps=2)
    assert phase.state_dict() == {
        "active": True,
        "decoder_learns": True,
        "decoder_steps": 0,
        "encoder_steps": 0,
        "window": [],
        "previous_mean": math.inf,
        "best_nats": -math.inf,
        "n_without_climb": 0,
    }
    phase.observe(5.0, 0.0)
    assert phase.state_dict()["decoder_learns"] is False
    rounds(phase, [4.0, 2.0, 1.0])
    phase.validated(0.5)
    phase.validated(0.5)
    assert phase.state_dict() == {
        "active": True,
        "decoder_learns": False,
        "decoder_steps": 1,
        "encoder_steps": 3,
        "window": [1.0],
        "previous_mean": 3.0,
        "best_nats": 0.5,
        "n_without_climb": 1,
    }


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
    phase = aggressive_inference(True)
    assert (phase.window_steps, phase.max_encoder_steps) == (5, 20)
    assert (phase.patience, phase.max_fraction) == (3, 0.25)
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
