"""Optimiser steps that neither a full memory nor a number that is not finite can spoil."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor

from vae_astro.model.micro_batches import MicroBatches
from vae_astro.objective.finite import FiniteUpdates, carried_by_gradient
from vae_astro.ranks import mean_over_ranks

__all__ = ["GuardedSteps"]


class GuardedSteps(LightningModule):
    """A module whose steps are repeated in parts, or held back, where they cannot be taken.

    ``training_step`` passes its loss through `sent_back`; the rest follows.

    Attributes
    ----------
    micro_batches : MicroBatches
        How many stamps go through the networks at a time.
    updates : FiniteUpdates
        What judges gradients before the optimiser gets them.
    """

    _step_loss: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.micro_batches = MicroBatches()
        self.updates = FiniteUpdates()
        self._again: tuple[Callable[[], Tensor], int] | None = None

    def sent_back(self, loss: Tensor, again: Callable[[], Tensor], n_stamps: int) -> Tensor:
        """What ``training_step`` returns.

        Parameters
        ----------
        loss : Tensor, scalar
            Of the batch.
        again : callable
            The same once more, with the same noise and nothing observed anew.
        n_stamps : int
            Of the batch.

        Returns
        -------
        Tensor, scalar
            Under a trainer a number that stands for the loss, see `MicroBatches.hand_over`;
            otherwise the loss, to call ``backward`` on.
        """
        self._step_loss = loss.detach()
        if self._trainer is None:
            return loss

        def repeated() -> Tensor:
            with self.trainer.precision_plugin.train_step_context():
                return carried_by_gradient(again())

        self._again = (repeated, n_stamps)
        return self.micro_batches.hand_over(carried_by_gradient(loss))

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Gradients of the step, in smaller parts where the memory does not hold it."""
        assert self._again is not None
        again, n_stamps = self._again
        self._again = None
        self.micro_batches.backward(loss, again, self.parameters(), n_stamps)

    @property
    def loss_is_scaled(self) -> bool:
        """Whether a scaler multiplies the loss, as 16-bit floats need it."""
        return getattr(self.trainer.precision_plugin, "scaler", None) is not None

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the trainer is set to, and hold back an update that is not finite.

        Lightning refuses to clip for a fused optimiser under any mixed precision, though only a
        scaled loss forbids it.
        """
        by_value = gradient_clip_algorithm == "value"
        most = None if gradient_clip_val is None else float(gradient_clip_val)
        loss = mean_over_ranks(self._step_loss) if self.loss_is_scaled else None
        self.updates.clip(optimizer, None if by_value else most, self.global_step, loss)
        if by_value and most:
            torch.nn.utils.clip_grad_value_(self.parameters(), most)
