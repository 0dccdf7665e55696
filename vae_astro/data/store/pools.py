"""Lots packed side by side: here, by processes of this machine, or by a Dask cluster."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.connection import Connection

from vae_astro.data.store.layout import Lot, Shard
from vae_astro.data.store.server import is_warm
from vae_astro.data.store.shard import PackJob, pack_lot
from vae_astro.errors import InputError
from vae_astro.stopping import leave_to_parent, servants

__all__ = ["pack_lots", "refuse_in_a_starting_worker"]

WORTH_A_PROCESS = 3.0
"""Seconds of work left from which it pays to start others: they take about one to be ready,"""
WORTH_A_WARM_PROCESS = 0.2
"""and a hundredth of that where `warm_up` was called some seconds before."""
PATIENCE = "20s"
"""How long a Dask scheduler may take to answer."""

log = logging.getLogger(__name__)

Packed = tuple[int, list[Shard]]
Submit = Callable[[Callable[[PackJob, Lot], list[Shard]], PackJob, Lot], "Future[list[Shard]]"]


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
    numbered = list(enumerate(lots))
    if cluster is not None:
        with _dask(cluster, n_processes) as (submit, n_workers):
            yield from _shared_out(submit, n_workers, job, numbered, helps=False)
        return
    started = time.monotonic()
    for k, lot in numbered:
        yield k, pack_lot(job, lot)
        n_left = len(lots) - k - 1
        seconds_left = n_left * (time.monotonic() - started) / (k + 1)
        worth_it = WORTH_A_WARM_PROCESS if is_warm() else WORTH_A_PROCESS
        if n_processes > 1 and n_left > 1 and seconds_left > worth_it:
            n_others = min(n_processes, n_left) - 1
            with _processes(n_others) as submit:
                yield from _shared_out(submit, n_others, job, numbered[k + 1 :], helps=True)
            return


def refuse_in_a_starting_worker() -> None:
    """Stop a script that packs as soon as it is imported: its own workers import it too.

    Raises
    ------
    RuntimeError
        In such a worker, which would wait for ever for the lock of its parent.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError("put what packs stamps below `if __name__ == '__main__':`")


def _shared_out(
    submit: Submit, n_workers: int, job: PackJob, lots: Iterable[tuple[int, Lot]], *, helps: bool
) -> Iterator[Packed]:
    """Workers take lots from the front; this process, if it ``helps``, takes them from the back.

    Each worker has one lot to go on with, no more: what has not been handed out takes no memory
    elsewhere, and the last ones are shared evenly.
    """
    to_do = deque(lots)
    handed_out: dict[Future[list[Shard]], int] = {}
    while to_do or handed_out:
        while to_do and len(handed_out) < (n_workers + 1 if helps else 2 * n_workers):
            k, lot = to_do.popleft()
            handed_out[submit(pack_lot, job, lot)] = k
        if helps and to_do:
            k, lot = to_do.pop()
            yield k, pack_lot(job, lot)
        else:
            wait(handed_out, return_when=FIRST_COMPLETED)
        for future in [future for future in handed_out if future.done()]:
            yield handed_out.pop(future), future.result()


@contextmanager
def _processes(n_processes: int) -> Iterator[Submit]:
    """Other processes of this machine. They end with this block or this process, however it ends.

    Raises
    ------
    InputError
        If one of them is killed.
    """
    context = multiprocessing.get_context("forkserver")
    with servants():
        forkserver.ensure_running()
    leash, hold = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(
        n_processes, mp_context=context, initializer=_start_worker, initargs=(leash,)
    )
    try:
        yield pool.submit
        pool.shutdown()
    except BrokenProcessPool as error:
        raise InputError(
            "a process that packs was killed, perhaps for want of memory; what was packed stays: "
            "start again, with a smaller pack.n_processes. (A script of your own needs its "
            "`if __name__ == '__main__':`, or n_processes=1.)"
        ) from error
    finally:
        hold.close()  # nobody waits for the end of a lot that is not wanted any more
        pool.shutdown(cancel_futures=True)
        leash.close()


def _start_worker(leash: Connection) -> None:
    """Leave signals to the parent, and end when it lets go or is gone."""
    leave_to_parent()

    def follow() -> None:
        try:
            leash.recv()
        except (EOFError, OSError):
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextmanager
def _dask(address: str, n_processes: int) -> Iterator[tuple[Submit, int]]:
    """The workers of a Dask cluster behind the interface of a process pool, and their number."""
    try:
        from distributed import Client, LocalCluster
        from distributed.comm import CommClosedError
        from distributed.scheduler import KilledWorker
    except ImportError as error:
        raise InputError(
            f"pack.cluster={address} needs Dask: pip install 'vae-astro[dask]'"
        ) from error
    logging.getLogger("distributed").setLevel(logging.ERROR)  # it tells the user its whole life
    cluster = None
    try:
        if address == "local":
            cluster = LocalCluster(
                n_workers=n_processes,
                threads_per_worker=1,
                dashboard_address=None,
                silence_logs=logging.ERROR,
            )
        client = Client(address if cluster is None else cluster, timeout=PATIENCE)
    except (OSError, ValueError) as error:
        raise InputError(f"pack.cluster={address} cannot be reached: {error}") from error
    try:
        with client:
            n_workers = sum(client.nthreads().values())
            if not n_workers:
                log.warning("pack.cluster=%s has no workers yet; waiting for some", address)
            yield client.get_executor(pure=False).submit, max(1, n_workers)
    except (CancelledError, CommClosedError, KilledWorker) as error:
        raise InputError(
            f"pack.cluster={address}: {type(error).__name__}: {error}; what was packed stays"
        ) from error
    finally:
        if cluster is not None:
            cluster.close()
