"""How far something has come: a bar on a terminal, a line now and then in a log.

Light, and without torch: processes that pack import it.
"""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from tqdm import tqdm

__all__ = ["Progress", "Sparse", "can_draw", "duration", "in_words", "mute", "progress_of", "say"]

LINE_EVERY_S = 30.0
"""Between two lines of a log; what is done sooner leaves none."""


class Progress(Protocol):
    """What a bar and lines have in common: a part of `tqdm`."""

    n: float
    total: float | None

    def __enter__(self) -> Self: ...
    def __exit__(self, *error: Any) -> None: ...
    def update(self, n: float = 1) -> bool | None:
        """``n`` more are done."""


def progress_of(
    total: float | None, what: str, unit: str = "it", *, show: bool = True, **options: Any
) -> Progress:
    """A bar where it can be drawn, else `Sparse` lines; nothing with ``show`` false.

    Parameters
    ----------
    total : float or None
        How many there are; None where that is not known.
    what : str
        What is being done: ``packing stamps``.
    unit : str
        Of what: ``stamp``; ``B`` is written in MiB.
    show : bool
        Whether to show it at all.
    **options
        Of `tqdm`, for the bar.
    """
    if show and not can_draw():
        return Sparse(total, what, unit)
    if unit == "B":
        options = {"unit_scale": True, "unit_divisor": 1024, **options}
    bar: Progress = tqdm(total=total, desc=what, unit=unit, disable=not show, **options)
    return bar


def can_draw() -> bool:
    """Whether standard error is a terminal that can go back to the start of a line."""
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"


class Sparse:
    """Writes a line to standard error every `LINE_EVERY_S`, without a control character.

    Parameters
    ----------
    total, what, unit
        As `progress_of` has them.
    """

    def __init__(self, total: float | None, what: str, unit: str) -> None:
        self.n: float = 0
        self.total = total
        self.what = what
        self.unit = unit
        self._began = self._said = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and self._said > self._began:  # who has read the first wants the last
            self._say()

    def update(self, n: float = 1) -> bool:
        """``n`` more are done; True where that is written."""
        self.n += n
        if time.monotonic() - self._said < LINE_EVERY_S:
            return False
        self._say()
        return True

    def _say(self) -> None:
        self._said = time.monotonic()
        say(in_words(self.what, self.n, self.total, self.unit, self._said - self._began))


def say(line: str) -> None:
    """Write a line to standard error; where nobody reads that any more, go on without."""
    try:
        print(line, file=sys.stderr, flush=True)
    except BrokenPipeError:
        mute(sys.stderr)


def mute(stream: TextIO) -> None:
    """Lead a stream of this process, and what is still to be written to it, to nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def in_words(what: str, n: float, total: float | None, unit: str, seconds: float) -> str:
    """One line: how many of how many, how fast, and how long still.

    >>> in_words("packing stamps", 1500, 6000, "stamp", 30.0)
    'packing stamps: 1500 of 6000 (25 %), 50 stamp/s, 90 s left'
    """
    scale, shown = (2**20, "MiB") if unit == "B" else (1, unit)
    of = "" if not total else f" of {total / scale:.0f} ({100 * n / total:.0f} %)"
    per_second = n / seconds if seconds > 0 else 0.0
    left = ""
    if total and per_second > 0 and n < total:
        left = f", {duration((total - n) / per_second)} left"
    return f"{what}: {n / scale:.0f}{of}, {per_second / scale:.3g} {shown}/s{left}"


def duration(seconds: float) -> str:
    """Seconds as a person says them: ``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
