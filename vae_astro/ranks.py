"""The processes that train together: which one this is, and what they make of figures they share.

A process on its own keeps its figures as they are, bit for bit, and sends nothing. All functions
but `n_ranks`, `rank` and `own_rows` have to be called by every process, in the same order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

__all__ = ["Alarm", "gather", "mean_over_ranks", "n_ranks", "own_rows", "rank", "sum_over_ranks"]


def n_ranks() -> int:
    """Processes that train together; 1 before they have found each other."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def own_rows(everyone: Tensor) -> Tensor:
    """The rows of this process of a tensor (N, ...) of the whole batch: its part of equal parts."""
    return everyone.tensor_split(n_ranks())[rank()]


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum of ``values`` over the processes, of the same shape, without gradients."""
    if n_ranks() == 1:
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total


def mean_over_ranks(values: Tensor) -> Tensor:
    """Mean of ``values`` over the processes, of the same shape.

    Gradients flow back to the values of every process, so that what is made of a mean over the
    whole batch learns as it does in one process.
    """
    return values if n_ranks() == 1 else _Mean.apply(values)


class _Mean(torch.autograd.Function):
    """A mean over processes; its gradient is the mean of theirs."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return sum_over_ranks(values) / n_ranks()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return sum_over_ranks(gradient) / n_ranks()


@torch.no_grad()
def gather(values: Tensor, equal: bool = False) -> Tensor:
    """Rows of all processes, one after the other: as one process has them (`InOrder`).

    Parameters
    ----------
    values : Tensor, shape (N, ...)
        N may differ from process to process, the rest may not.
    equal : bool
        N is the same in all of them: then nobody waits for a device to hear it.

    Returns
    -------
    Tensor, shape (sum of N, ...)
        The same in every process; on one process ``values`` itself.
    """
    n = n_ranks()
    if n == 1:
        return values
    if equal:
        whole = [torch.empty_like(values) for _ in range(n)]
        dist.all_gather(whole, values.contiguous())
        return torch.cat(whole)
    sizes = [torch.zeros(1, dtype=torch.long, device=values.device) for _ in range(n)]
    dist.all_gather(sizes, torch.full_like(sizes[0], len(values)))
    size = torch.cat(sizes)
    most = int(size.max())
    rows = values.to(torch.uint8) if values.dtype == torch.bool else values
    padded = rows.new_zeros((most, *rows.shape[1:]))
    padded[: len(rows)] = rows
    everyone = [torch.empty_like(padded) for _ in range(n)]
    dist.all_gather(everyone, padded)
    parts = (part[:length] for part, length in zip(everyone, size.tolist(), strict=True))
    return torch.cat(list(parts)).to(values.dtype)


class Alarm:
    """Says in all processes at the same step that one of them has raised a number.

    The answer comes one call late, so that nobody waits for it; it goes by the processor, so that
    no accelerator is asked for it.
    """

    def __init__(self) -> None:
        self._group: Any = dist.new_group(backend="gloo") if n_ranks() > 1 else None
        self._asked: tuple[Any, Tensor] | None = None

    def heard(self, number: int) -> int:
        """The highest number that a process gave at the call before; alone, the one given now."""
        if self._group is None:
            return number
        before = self.last()
        highest = torch.tensor([number])
        work = dist.all_reduce(highest, dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._asked = work, highest
        return before

    def last(self) -> int:
        """What is still under way, waited for; 0 where nothing is."""
        if self._asked is None:
            return 0
        work, highest = self._asked
        work.wait()
        self._asked = None
        return int(highest)
