"""Lots packed side by side: here, by processes of this machine, or by a Dask cluster."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from typing import Any

from vae_astro.data.store.layout import Lot, Shard
from vae_astro.data.store.shard import PackJob, pack_lot
from vae_astro.errors import InputError

__all__ = ["pack_lots"]

WORTH_A_PROCESS = 3.0
"""Seconds of work left from which it pays to start others: each takes about one to be ready."""

Packed = tuple[int, list[Shard]]


def pack_lots(
    job: PackJob, lots: Sequence[Lot], n_processes: int, cluster: str | None
) -> Iterator[Packed]:
    """Position and shards of each lot, in the order in which they are done.

    Parameters
    ----------
    job : PackJob
        How they are packed.
    lots : sequence of Lot
        What.
    n_processes : int
        Of this machine, this one included; others are started only where the work is worth it.
    cluster : str, optional
        Address of a Dask scheduler, or ``local``; its workers must see the same paths.

    Raises
    ------
    InputError
        As `pack_lot`, or if the cluster cannot be used.
    OSError
        As `pack_lot`.
    """
    if cluster is not None:
        with _dask(cluster) as executor:
            yield from _in_order_of_completion(executor, job, lots)
        return
    started = time.monotonic()
    for k, lot in enumerate(lots):
        yield k, pack_lot(job, lot)
        n_left = len(lots) - k - 1
        seconds_left = n_left * (time.monotonic() - started) / (k + 1)
        if n_processes > 1 and n_left > 1 and seconds_left > WORTH_A_PROCESS:
            rest = (
                (k + 1 + j, shards) for j, shards in _with_others(job, lots[k + 1 :], n_processes)
            )
            yield from rest
            return


def _with_others(job: PackJob, lots: Sequence[Lot], n_processes: int) -> Iterator[Packed]:
    """Other processes take lots from the front while this one takes them from the back."""
    context = multiprocessing.get_context("forkserver")
    pool = ProcessPoolExecutor(
        min(n_processes, len(lots)) - 1, mp_context=context, initializer=_start_worker
    )
    try:
        futures = {k: pool.submit(pack_lot, job, lot) for k, lot in enumerate(lots)}
        for k in reversed(range(len(lots))):
            if futures[k].cancel():
                del futures[k]
                yield k, pack_lot(job, lots[k])
                yield from _done(futures)
        while futures:
            next(as_completed(futures.values()))
            yield from _done(futures)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _done(futures: dict[int, Future[list[Shard]]]) -> Iterator[Packed]:
    """Take out what is finished."""
    for k in [k for k, future in futures.items() if future.done()]:
        yield k, futures.pop(k).result()


def _in_order_of_completion(
    executor: Executor, job: PackJob, lots: Sequence[Lot]
) -> Iterator[Packed]:
    positions = {executor.submit(partial(pack_lot, job), lot): k for k, lot in enumerate(lots)}
    for future in as_completed(positions):
        yield positions[future], future.result()


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end when it does, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent: Any = multiprocessing.parent_process()

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextmanager
def _dask(address: str) -> Iterator[Executor]:
    """The workers of a Dask cluster behind the interface of a process pool."""
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise InputError(
            f"pack.cluster={address} needs Dask: pip install 'vae-astro[dask]'"
        ) from error
    try:
        if address == "local":
            cluster = LocalCluster(threads_per_worker=1, dashboard_address=None)
            client = Client(cluster)
        else:
            cluster, client = None, Client(address, timeout="20s")
    except (OSError, ValueError) as error:
        raise InputError(f"pack.cluster={address} cannot be reached: {error}") from error
    try:
        with client:
            yield client.get_executor(pure=False)
    finally:
        if cluster is not None:
            cluster.close()
