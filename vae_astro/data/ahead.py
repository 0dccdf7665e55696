"""Batches from the host's memory, gathered and copied while the device is at work on others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from queue import Empty, Full, Queue
from typing import Generic, NamedTuple, TypeVar

import torch
from torch.utils.data import Sampler

from vae_astro.data.batches import Batch, Draw, StampDataset, StampLoader

__all__ = ["AheadLoader", "made_ahead"]

N_AHEAD = 2
"""Batches that wait, ready, besides the one that is being made."""
LOOK_SECONDS = 0.1
"""How often a thread that nobody takes from looks whether it is to stop."""

JOIN_SECONDS = 30.0
"""How long the end of an iteration waits for the result in hand; at exit, threads stand still."""

T = TypeVar("T")
U = TypeVar("U")


class _Made(NamedTuple, Generic[U]):
    value: U


def made_ahead(items: Iterable[T], make: Callable[[T], U], n_ahead: int = N_AHEAD) -> Iterator[U]:
    """``make(item)`` for each of ``items`` in order, made in a thread before it is asked for.

    What is raised there is raised here, in its place. The thread ends with the iteration, also
    where that is left early.

    Parameters
    ----------
    items : iterable
        Taken in the thread, too.
    make : callable
        Of an item.
    n_ahead : int
        Results that wait, at most.
    """
    ready: Queue[_Made[U] | BaseException | None] = Queue(n_ahead)
    stop = threading.Event()

    def hand_over(result: _Made[U] | BaseException | None) -> None:
        while not stop.is_set():
            try:
                ready.put(result, timeout=LOOK_SECONDS)
            except Full:
                continue
            return

    def work() -> None:
        try:
            for item in items:
                hand_over(_Made(make(item)))
                if stop.is_set():
                    return
            hand_over(None)
        except BaseException as error:
            hand_over(error)

    thread = threading.Thread(target=work, daemon=True, name="vae-astro-ahead")
    thread.start()
    try:
        while (result := ready.get()) is not None:
            if isinstance(result, BaseException):
                raise result
            yield result.value
    finally:
        stop.set()
        try:
            while True:
                ready.get_nowait()
        except Empty:
            pass
        thread.join(JOIN_SECONDS)


class AheadLoader(StampLoader):
    """A `StampLoader` whose next batches are gathered, and copied, while a step is under way.

    On a CUDA device the copies have a stream of their own, so that kernels do not wait for them,
    and start from pinned memory. The batches are those of `StampLoader`, to the bit.

    Parameters
    ----------
    dataset : StampDataset
        What gathers.
    sampler : EpochSampler or InOrder
        What draws.
    device : torch.device
        Where the batches go.
    """

    def __init__(self, dataset: StampDataset, sampler: Sampler[Draw], device: torch.device) -> None:
        super().__init__(dataset, sampler)
        self.device = device

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        if self.device.type != "cuda":
            return made_ahead(self.sampler, self.dataset.__getitem__)
        return self._copied_ahead()

    def _copied_ahead(self) -> Iterator[Batch]:
        side = torch.cuda.Stream(self.device)

        def make(draw: Draw) -> tuple[Batch, torch.cuda.Event]:
            on_host = self.dataset[draw]
            with torch.cuda.stream(side):
                # pinned memory is not used again before the copy is done: torch sees to that
                batch = {
                    name: value.pin_memory().to(self.device, non_blocking=True)
                    for name, value in on_host.items()
                }
                copied = torch.cuda.Event()
                copied.record(side)
            return batch, copied

        for batch, copied in made_ahead(self.sampler, make):
            here = torch.cuda.current_stream(self.device)
            here.wait_event(copied)
            for value in batch.values():
                value.record_stream(here)  # or the next copy could be written over it
            yield batch
