"""A batch through the networks in parts, where the memory does not hold it as a whole.

The parts change nothing but the memory: the terms of all stamps are put together again before the
objective is taken, so that what looks at a whole batch (free bits, a capacity, the median of GECO,
a learned sigma, a floor under the rate) sees the whole batch. In training each part forgets its
activations and computes them once more on the way back (Chen et al. 2016, "sublinear memory").
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vae_astro.errors import InputError
from vae_astro.settings import check_int

__all__ = ["MicroBatches", "is_out_of_memory", "micro_batch_size"]

WORDS = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
"""What allocators and libraries say whose errors have no class of their own."""

T = TypeVar("T")

log = logging.getLogger(__name__)


def micro_batch_size(setting: object) -> int | None:
    """``trainer.micro_batch_size``, checked: a number of stamps, or None for the whole batch.

    Raises
    ------
    InputError
        Anything else.
    """
    return None if setting is None else check_int("trainer.micro_batch_size", setting, minimum=1)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the allocator of the CPU, had no memory left."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in WORDS)


class MicroBatches:
    """How many stamps go through a network at a time; halved where the memory does not hold them.

    Attributes
    ----------
    n_training, n_evaluation : int or None
        Most stamps at a time with gradients and without; None is the whole batch.
    n_repeated : int
        Steps that were taken again.
    """

    def __init__(self) -> None:
        self.n_training: int | None = None
        self.n_evaluation: int | None = None
        self.n_repeated = 0
        self._loss: Tensor | None = None
        self._leaf: Tensor | None = None

    # -- through a network -------------------------------------------------------------------

    def through(self, network: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor) -> list[Tensor]:
        """``network(x)``, computed in parts along the first axis of ``x`` (B, ...).

        Parameters
        ----------
        network : callable
            Treats each row by itself, draws nothing at random, and returns a tuple of tensors
            (B, ...).
        x : Tensor, shape (B, ...)

        Raises
        ------
        RuntimeError
            In training, if the memory does not hold a part: see `repeat`.
        InputError
            Without gradients, if it does not even hold a single stamp.
        """
        if torch.is_grad_enabled():
            n_stamps = self.n_training
            return self._in_parts(lambda part: _recomputed(network, part), network, x, n_stamps)
        while True:
            try:
                return self._in_parts(network, network, x, self.n_evaluation)
            except RuntimeError as error:
                self.n_evaluation = _halved(error, self.n_evaluation, len(x), x.device, "scoring")
            _free(x.device)

    @staticmethod
    def _in_parts(
        part_of: Callable[[Tensor], tuple[Tensor, ...]],
        whole: Callable[[Tensor], tuple[Tensor, ...]],
        x: Tensor,
        n_stamps: int | None,
    ) -> list[Tensor]:
        if n_stamps is None or len(x) <= n_stamps:
            return list(whole(x))
        columns = zip(*(part_of(part) for part in x.split(n_stamps)), strict=True)
        return [torch.cat(column) for column in columns]

    # -- a training step ---------------------------------------------------------------------

    def repeat(
        self,
        forward: Callable[[], T],
        again: Callable[[], T],
        n_stamps: int,
        device: torch.device,
    ) -> T:
        """``forward()`` of a batch of ``n_stamps``; ``again()`` in smaller parts if memory ends.

        Raises
        ------
        InputError
            If the memory does not even hold a single stamp, or several processes train together:
            they would wait for this one.
        """
        attempt = forward
        while True:
            try:
                return attempt()
            except RuntimeError as error:
                self.n_training = _halved(error, self.n_training, n_stamps, device, "training")
            self.n_repeated += 1
            attempt = again
            _free(device)

    def hand_over(self, loss: Tensor) -> Tensor:
        """Keep ``loss`` and its graph here, and return a number to be scaled and sent back.

        Whoever holds a loss holds the activations behind it, and those of a step that did not fit
        must be gone before it is taken again. `backward` takes what comes back.
        """
        self._loss, self._leaf = loss, loss.detach().requires_grad_()
        return self._leaf

    def backward(
        self,
        scaled: Tensor,
        again: Callable[[], Tensor],
        parameters: Iterable[nn.Parameter],
        n_stamps: int,
    ) -> None:
        """Add the gradients of the loss that was handed over, times what it was scaled with.

        Parameters
        ----------
        scaled : Tensor, scalar
            Made of what `hand_over` returned, by factors alone.
        again : callable
            The same loss once more, with nothing drawn or observed anew.
        parameters : iterable of Parameter
            What it depends on.
        n_stamps : int
            Of the batch.

        Raises
        ------
        InputError
            As `repeat`.
        """
        loss, leaf, device = self._loss, self._leaf, scaled.device
        assert loss is not None
        assert leaf is not None
        self._loss = self._leaf = None
        (factor,) = torch.autograd.grad(scaled, leaf)
        parameters = list(parameters)
        gathered = [None if p.grad is None else p.grad.clone() for p in parameters]
        while True:
            try:
                if loss is None:
                    loss = again()
                loss.backward(factor)
                return
            except RuntimeError as error:
                loss = None  # and with it the activations
                self.n_training = _halved(error, self.n_training, n_stamps, device, "training")
            self.n_repeated += 1
            for parameter, before in zip(parameters, gathered, strict=True):
                # some of the gradients may have been added already
                parameter.grad = None if before is None else before.clone()
            _free(device)


def _recomputed(
    network: Callable[[Tensor], tuple[Tensor, ...]], part: Tensor
) -> tuple[Tensor, ...]:
    made: Any = checkpoint(network, part, use_reentrant=False, preserve_rng_state=False)
    return tuple(made)


def _halved(
    error: RuntimeError, n_now: int | None, n_stamps: int, device: torch.device, doing: str
) -> int:
    """Half of what did not fit, said in one line; any other ``error`` is raised again."""
    if not is_out_of_memory(error):
        raise error
    n_tried = min(n_now or n_stamps, n_stamps)
    reason = " ".join(str(error).split())[:200]
    if n_tried <= 1:
        raise InputError(
            f"out of memory on {device} in {doing}, even with one stamp at a time ({reason}); "
            "lower data.batch_size, data.size or model.width, set trainer.precision=bf16-mixed, or "
            "free the device of what else runs there"
        ) from error
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    n_half = -(-n_tried // 2)
    if together and torch.distributed.get_world_size() > 1:
        raise InputError(
            f"out of memory on {device} in {doing} with {n_tried} stamps at a time ({reason}); set "
            f"trainer.micro_batch_size={n_half}: among processes that train together one cannot "
            "take a step again alone"
        ) from error
    more = f"; set trainer.micro_batch_size={n_half} to start so" if doing == "training" else ""
    log.warning(
        "out of memory on %s in %s with %d stamps at a time: from here %d at a time, the batch and "
        "its objective stay as they are%s",
        device,
        doing,
        n_tried,
        n_half,
        more,
    )
    return n_half


def _free(device: torch.device) -> None:
    """Give back what the step that failed has left."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
