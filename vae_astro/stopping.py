"""What stops a run from outside: Ctrl-C, a scheduler's SIGTERM, SLURM's ``--signal=USR1``.

Light: imported before anything heavy. Training has its own way to stop, at the end of a step
(`vae_astro.checkpoint.LastCheckpoint`); everywhere else, in every command, the signal raises, and
what is under way is left as it is: files appear whole or not at all.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import active_children
from pathlib import Path
from types import FrameType
from typing import Any

__all__ = ["SIGNALS", "Stopped", "exit_status", "forget", "heeded", "is_told", "last_words",
           "leave", "leave_to_parent", "note", "raise_if_told", "servants"]  # fmt: skip

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

_told: int | None = None
"""The signal that stops this process, if one has come."""


class Stopped(KeyboardInterrupt):  # what is written for Ctrl-C works for all of them
    """A signal has told this process to stop."""


def exit_status() -> int:
    """What a process that was told to stop leaves with: 128 and the number of the signal."""
    return 128 + (_told or signal.SIGINT)


def note(number: int) -> None:
    """Keep in mind which signal has come."""
    global _told
    _told = number


def forget() -> None:
    """Begin anew: what stopped an earlier fit of this process does not stop the next."""
    global _told
    _told = None


def is_told() -> bool:
    """Whether a signal has come."""
    return _told is not None


def raise_if_told() -> None:
    """Raise `Stopped` where a signal has come and nobody has acted on it yet."""
    if is_told():
        raise Stopped


def last_words(run_dir: Path) -> str:
    """How to go on, or why that is not possible."""
    if (run_dir / "checkpoints" / "last.ckpt").exists():
        return f"stopped; go on with: python train.py resume={shlex.quote(str(run_dir))}"
    return "stopped before the first step was saved; there is nothing to go on from, start again"


def say(text: str) -> None:
    """A line on standard error, also from a signal handler, where a stream may be in use."""
    os.write(2, f"\n{text}\n".encode())


def leave(number: int, frame: FrameType | None) -> None:
    """A signal handler for when there is nothing to tidy up: while a command starts or ends."""
    say("stopped")
    os._exit(128 + number)


def leave_to_parent() -> None:
    """Let the parent alone answer what a terminal or a scheduler sends to all processes at once.

    SIGTERM still ends this one: that is how a pool gets rid of its processes.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def servants() -> Iterator[None]:
    """What multiprocessing starts within, to fork from or to tidy up, does not die of SIGUSR1.

    It takes care itself of Ctrl-C and SIGTERM. A scheduler sends its signal to every process, and
    would take them away before this one has ended.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def heeded(words: Callable[[], str]) -> Iterator[None]:
    """Signals raise `Stopped`; a Ctrl-C after that ends the process at once.

    Parameters
    ----------
    words : callable
        The last ones of a process that is ended at once.
    """
    global _told
    _told = None
    if threading.current_thread() is not threading.main_thread():
        yield  # where signals do not arrive
        return

    own_process = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() != own_process:  # a worker that was forked off
            os._exit(128 + number)
        if _told is not None:
            if number != signal.SIGINT:
                return  # schedulers repeat themselves: what tidies up may do so
            for child in active_children():
                child.kill()
            say(words())
            os._exit(exit_status())
        note(number)
        raise Stopped

    def not_lost(unraisable: Any) -> None:
        """Raise again what a destructor or a callback of C has swallowed."""
        if not issubclass(unraisable.exc_type, Stopped):
            hook(unraisable)
            return
        global _told
        number, _told = _told or signal.SIGINT, None
        # raised here it would be swallowed again
        threading.Timer(0.01, os.kill, (own_process, number)).start()

    hook = sys.unraisablehook
    sys.unraisablehook = not_lost
    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook
