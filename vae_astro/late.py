"""Numbers on their way from the device to a log, which nothing waits for."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["LateValues"]


class _OnTheWay(NamedTuple):
    step: int
    names: list[str]
    values: Tensor
    has_arrived: torch.cuda.Event | None


class LateValues:
    """Takes scalars where they are computed, and hands them out when they have come to the host.

    From a CUDA device they come through pinned memory while the next steps are queued already;
    elsewhere they are there at once.
    """

    def __init__(self) -> None:
        self._waiting: deque[_OnTheWay] = deque()

    def put(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Send off the values of a step, each without axes."""
        together = torch.stack([value.detach().float() for value in values.values()])
        event = None
        if together.is_cuda:
            stream = torch.cuda.current_stream(together.device)
            host = torch.empty(together.shape, dtype=together.dtype, pin_memory=True)
            together = host.copy_(together, non_blocking=True)
            event = torch.cuda.Event()
            event.record(stream)
        self._waiting.append(_OnTheWay(step, list(values), together, event))

    def arrived(self, wait: bool = False) -> Iterator[tuple[int, dict[str, float]]]:
        """Step and values of what has come, oldest first; with ``wait``, of all that was sent."""
        while self._waiting:
            event = self._waiting[0].has_arrived
            if event is not None and not wait and not event.query():
                return
            if event is not None:
                event.synchronize()
            step, names, values, _ = self._waiting.popleft()
            yield step, dict(zip(names, values.tolist(), strict=True))
