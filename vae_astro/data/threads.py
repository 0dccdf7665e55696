"""A few threads that stay, for work of less than a millisecond that holds no interpreter lock."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue

__all__ = ["n_cores", "together"]

MAX_THREADS = 8
"""Beyond these, memory is what the work waits for."""


def n_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Helper:
    """A thread that waits for work: waking it costs less than starting one."""

    def __init__(self) -> None:
        self.jobs: SimpleQueue[tuple[Callable[[], None], threading.Lock]] = SimpleQueue()
        threading.Thread(target=self._serve, daemon=True, name="vae-astro-helper").start()

    def _serve(self) -> None:
        while True:
            self._do(*self.jobs.get())

    def _do(self, work: Callable[[], None], busy: threading.Lock) -> None:
        """In a function of its own, so that nothing of the work is held while waiting."""
        try:
            work()
        except BaseException:  # the caller's own call raises it; this thread has to stay
            pass
        finally:
            busy.release()


class _Team:
    """Helpers of this process; they do not come along into a forked one."""

    def __init__(self) -> None:
        self.helpers: list[_Helper] = []
        self.free = threading.Lock()


_team = _Team()


def _start_again() -> None:
    global _team
    _team = _Team()


if hasattr(os, "register_at_fork"):  # where processes are forked at all
    os.register_at_fork(after_in_child=_start_again)


def together(work: Callable[[], None], n_threads: int) -> None:
    """Call ``work()`` in this thread and in up to ``n_threads - 1`` others, and wait for all.

    ``work`` shares itself out: every call takes pieces until none is left, so that a thread that
    wakes late does less. While the threads are at work for another caller, this one does it alone.
    An error of ``work`` must be one that every call of it raises.
    """
    n_helpers = min(n_threads, MAX_THREADS) - 1
    team = _team
    if n_helpers < 1 or not team.free.acquire(blocking=False):
        work()
        return
    try:
        while len(team.helpers) < n_helpers:
            team.helpers.append(_Helper())
        at_work = [threading.Lock() for _ in range(n_helpers)]
        for helper, busy in zip(team.helpers, at_work, strict=False):
            busy.acquire()
            helper.jobs.put((work, busy))
        try:
            work()
        finally:
            for busy in at_work:
                busy.acquire()
    finally:
        team.free.release()
