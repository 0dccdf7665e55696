"""Updates that are held back where their gradient is not finite, without waiting for the device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from vae_astro.errors import InputError
from vae_astro.late import LateValues

__all__ = ["FiniteUpdates", "carried_by_gradient"]


def carried_by_gradient(loss: Tensor) -> Tensor:
    """``loss`` (scalar) with a gradient that is NaN wherever the loss is not finite.

    A loss can overflow while its gradient does not. Thus the norm of the gradient alone tells both,
    and where processes average their gradients it tells all of them at the same step.
    """
    return loss * torch.where(torch.isfinite(loss.detach()), 1.0, torch.nan)


class FiniteUpdates:
    """Clips gradients by their norm, and lets no update through that is not finite.

    On the CPU the norm is read at once, and the step under way does not happen. Reading it from a
    device would wait for all that is queued there, so there the first bad step is noted on the
    device itself, and a fused optimiser is told on the device to leave the weights alone, in that
    step and in all after it: when the note is read, they are still those of the last good step.
    An optimiser that is not fused cannot be told so, and its norm is read at each step.

    Attributes
    ----------
    on_fault : callable
        Told the step at which the first gradient was not finite; raises what the user gets.
    """

    def __init__(self) -> None:
        self.on_fault: Callable[[int], None] = _refuse
        self._first: Tensor | None = None
        self._late = LateValues()

    def start(self, on_fault: Callable[[int], None] | None = None) -> None:
        """Forget what was noted; a fit begins."""
        self._first = None
        self._late = LateValues()
        self.on_fault = on_fault or _refuse

    def clip(
        self,
        optimizer: torch.optim.Optimizer,
        max_norm: float | None,
        step: int,
        scaled_loss: Tensor | None = None,
    ) -> None:
        """Clip all gradients of ``optimizer`` together to ``max_norm`` (None: not at all).

        Parameters
        ----------
        optimizer : Optimizer
            Adam, fused or not.
        max_norm : float or None
            In nats per stamp and unit of weight.
        step : int
            Optimiser steps done so far.
        scaled_loss : Tensor, scalar, optional
            The loss, where a scaler multiplies it. It is judged in place of the norm then: an
            infinite gradient only means that the scale has to go down, and the scaler skips it.
        """
        moved = [p for group in optimizer.param_groups for p in group["params"]]
        moved = [parameter for parameter in moved if parameter.grad is not None]
        norm = get_total_norm([parameter.grad for parameter in moved])
        self._judge(optimizer, norm if scaled_loss is None else scaled_loss, step)
        if max_norm:
            clip_grads_with_norm_(moved, max_norm, norm)

    def _judge(self, optimizer: torch.optim.Optimizer, value: Tensor, step: int) -> None:
        if self.is_free_to_read(value.device) or not optimizer.defaults.get("fused"):
            if not bool(torch.isfinite(value)):
                self.on_fault(step)
            return
        if self._first is None:
            self._first = torch.full((), -1, device=value.device)
        is_first = ~torch.isfinite(value) & (self._first < 0)
        self._first = torch.where(is_first, step, self._first)
        # what a fused optimiser takes from a gradient scaler: it then changes nothing
        optimizer.found_inf = (self._first >= 0).float()  # type: ignore[attr-defined]

    @staticmethod
    def is_free_to_read(device: torch.device) -> bool:
        """Whether nobody has to wait for a number on ``device``."""
        return device.type == "cpu"

    def poll(self) -> None:
        """Tell `on_fault` what has come of the note as it was at the call before; nothing waits."""
        for _, values in self._late.arrived():
            if values["first"] >= 0:
                self.on_fault(int(values["first"]))
        if self._first is not None:
            self._late.put(0, {"first": self._first})

    def read(self) -> None:
        """Wait for the device and tell `on_fault` if a step was held back since `start`."""
        first = -1 if self._first is None else int(self._first)
        if first >= 0:
            self.on_fault(first)


def _refuse(step: int) -> None:
    raise InputError(
        f"the loss or its gradient is not finite at step {step}; lower optim.lr, or look for "
        "extreme pixels and set data.normalize.saturation"
    )
