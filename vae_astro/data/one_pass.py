"""One pass over a store in its order: the next batch is gathered while one is worked on."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from vae_astro.data.batches import Batch, StampLoader
from vae_astro.data.store.store import StampStore
from vae_astro.settings import check_choice, check_int

__all__ = ["SPLITS", "OnePass", "Pass"]

SPLITS = ("all", "train", "val", "test")
READ_AHEAD = 8
"""Batches that the system is asked to have read by the time they are gathered."""


@dataclass(frozen=True)
class Pass:
    """What one pass over a store is to hold.

    Parameters
    ----------
    split : {"all", "train", "val", "test"}
        Which stamps.
    batch_size : int
        Stamps in a batch.
    columns : tuple of str
        Entries of a batch that are wanted; the others need not travel to the device.

    Raises
    ------
    InputError
        A setting out of range.
    """

    split: str = "all"
    batch_size: int = 256
    columns: tuple[str, ...] = ("image", "index")

    def __post_init__(self) -> None:
        check_choice("split", self.split, SPLITS)
        check_int("batch_size", self.batch_size, minimum=1)


class OnePass:
    """The batches of a loader that goes through a store in order.

    The next one is gathered in a thread, the system reads further ahead, and what has been gathered
    no longer counts as memory of this process, however large the store.

    Parameters
    ----------
    loader : StampLoader
        What gathers; its rows must ascend.
    store : StampStore
        What it gathers from.
    columns : tuple of str
        Entries of a batch that are handed on.
    """

    def __init__(self, loader: StampLoader, store: StampStore, columns: tuple[str, ...]) -> None:
        self.loader = loader
        self.store = store
        self.columns = columns

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.loader)
        with ThreadPoolExecutor(1, thread_name_prefix="gather") as thread:
            coming = thread.submit(self._gather, batches)
            while (batch := coming.result()) is not None:
                coming = thread.submit(self._gather, batches)
                yield batch

    def _gather(self, batches: Iterator[Batch]) -> Batch | None:
        batch = next(batches, None)
        if batch is None:
            return None
        first, last = int(batch["index"][0]), int(batch["index"][-1]) + 1
        self.store.let_go(first, last)
        self.store.will_need(last, last + READ_AHEAD * (last - first))
        return {name: batch[name] for name in self.columns}
