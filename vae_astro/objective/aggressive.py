"""Aggressive inference: early in a run the encoder gets several updates for each of the decoder.

He, Spokoyny, Neubig & Berg-Kirkpatrick (2019), "Lagging inference networks": at the start the
decoder changes faster than the encoder can follow, and a decoder whose codes lag behind learns to
do without them. While the phase lasts, the run is cut into rounds. In a round only the encoder
moves, until its objective stops improving or a cap is reached; one step then moves everything and
ends the round. The phase ends when the mutual information of stamps and codes has stopped
climbing on the validation stamps, or after a share of the run.

This changes the way to the end of a run, not the end: what the final beta and the decoder's
variance do not allow to live dies all the same (Lucas et al. 2019).

Each batch is one optimiser step, whoever moves: beta, the learning rate and the length of the run
are counted in these. A step costs what it always costs, but the decoder gets fewer of them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from vae_astro.errors import InputError
from vae_astro.settings import check_int, check_number, construct

__all__ = ["AggressiveInference", "aggressive_inference"]

CLIMB_NATS = 0.01
"""Rise of the mutual information that counts as one."""

log = logging.getLogger(__name__)


@dataclass
class _State:
    """Where the phase is; plain numbers but for losses of a window that is not full yet."""

    active: bool = True
    # a step of everything comes first, so that a learned sigma has seen a batch
    decoder_learns: bool = True
    decoder_steps: int = 0
    encoder_steps: int = 0
    window: list[float | Tensor] = field(default_factory=list)
    previous_mean: float = math.inf
    best_nats: float = -math.inf
    n_without_climb: int = 0


class AggressiveInference:
    """Says at each step whether everything learns or the encoder alone.

    Parameters
    ----------
    window_steps : int
        Steps over which the objective is averaged. A round ends when a window's mean is no lower
        than that of the window before it, so after twice as many steps at the earliest.
    max_encoder_steps : int
        Most steps of the encoder alone in a round.
    patience : int
        Validations without a rise of the mutual information that end the phase.
    max_fraction : float
        Share of the run after which it ends in any case.

    Raises
    ------
    InputError
        A setting out of range.
    """

    def __init__(
        self,
        *,
        window_steps: int = 5,
        max_encoder_steps: int = 20,
        patience: int = 3,
        max_fraction: float = 0.25,
    ) -> None:
        key = "optim.aggressive"
        self.window_steps = check_int(f"{key}.window_steps", window_steps, minimum=1)
        self.max_encoder_steps = check_int(f"{key}.max_encoder_steps", max_encoder_steps, minimum=1)
        self.patience = check_int(f"{key}.patience", patience, minimum=1)
        self.max_fraction = check_number(f"{key}.max_fraction", max_fraction, above=0, maximum=1)
        self._state = _State()

    @property
    def active(self) -> bool:
        """Whether the phase lasts."""
        return self._state.active

    @property
    def decoder_learns(self) -> bool:
        """Whether everything moves in the step under way; else the encoder alone."""
        return self._state.decoder_learns

    @property
    def decoder_steps(self) -> int:
        """Steps of the phase in which everything moved."""
        return self._state.decoder_steps

    def observe(self, loss: float | Tensor, progress: float) -> None:
        """Take in the step under way, and decide who moves in the next.

        Losses stay where they are and are read once a window, so that a step is not waited for.

        Parameters
        ----------
        loss : float, or Tensor without axes
            What was minimised, in nats per stamp. Processes that train together decide by the mean
            of theirs.
        progress : float
            Share of the run that is done.
        """
        state = self._state
        if not state.active:
            return
        if state.decoder_learns:
            state.decoder_steps += 1
            state.encoder_steps, state.window, state.previous_mean = 0, [], math.inf
            state.decoder_learns = False
        else:
            state.encoder_steps += 1
            state.window.append(loss)
            state.decoder_learns = self._stops_improving()
        if progress >= self.max_fraction:
            self._stop("its share of the run is over")

    def _stops_improving(self) -> bool:
        state = self._state
        stops = state.encoder_steps >= self.max_encoder_steps
        if len(state.window) == self.window_steps:
            mean = sum(_read(state.window)) / self.window_steps
            stops |= not mean < state.previous_mean  # NaN stops too
            state.window, state.previous_mean = [], mean
        return stops

    def validated(self, mutual_information_nats: float) -> None:
        """Take in a validation: the mutual information of its stamps and their codes."""
        state = self._state
        if not state.active:
            return
        if mutual_information_nats > state.best_nats + CLIMB_NATS:
            state.best_nats, state.n_without_climb = mutual_information_nats, 0
        else:
            state.n_without_climb += 1
        if state.n_without_climb >= self.patience:
            self._stop(f"the mutual information stays at {mutual_information_nats:.2f} nats")

    def _stop(self, reason: str) -> None:
        self._state.active, self._state.decoder_learns = False, True
        log.info(
            "aggressive inference ends, %s: %d updates of the decoder", reason, self.decoder_steps
        )

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, in plain numbers."""
        return {**asdict(self._state), "window": _read(self._state.window)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._state = _State(**{**state, "window": list(state["window"])})


def _read(window: list[float | Tensor]) -> list[float]:
    """The losses as numbers, brought from the device at once."""
    on_device = [loss for loss in window if isinstance(loss, Tensor)]
    read = iter(torch.stack(on_device).tolist() if on_device else [])
    return [next(read) if isinstance(loss, Tensor) else loss for loss in window]


def aggressive_inference(setting: object) -> AggressiveInference | None:
    """What ``optim.aggressive`` asks for: false, true, or a mapping of its settings.

    Raises
    ------
    InputError
        Anything else, or as `AggressiveInference`.
    """
    if setting is False:
        return None
    if setting is True:
        return AggressiveInference()
    if not isinstance(setting, Mapping):
        raise InputError(
            "optim.aggressive must be true, false or settings such as {max_fraction: 0.25}, got "
            f"{setting!r}"
        )
    return construct("optim.aggressive", AggressiveInference, setting)
