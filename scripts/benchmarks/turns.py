"""Sides of a comparison in processes of their own, which work in turns.

Settings of one (threads, precision) cannot reach the other, imports are not timed, and what else
the machine does falls on all of them alike.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["ROOT", "Side", "SideError", "interleave", "rate", "side", "with_peers"]

ROOT = Path(__file__).parents[2]
SECONDS_TO_END = 20


class SideError(RuntimeError):
    """A side ended before its turns were over."""


class Side:
    """One process that waits for its turns; see ``scripts/peers/channel.py`` for its end.

    Parameters
    ----------
    script : str
        File below ``scripts/peers/``.
    arguments : sequence of str
        Of its command line.
    log : Path
        Takes what it prints.
    environment : mapping of str to str
        Variables that are not as they are here.
    """

    def __init__(
        self, script: str, arguments: list[str], log: Path, environment: Mapping[str, str]
    ) -> None:
        self.log = log
        with log.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "scripts" / "peers" / script), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={**os.environ, **environment},
            )

    def turn(self, word: str = "go") -> dict[str, Any]:
        """Have it do something once; returns what it says of that.

        Raises
        ------
        SideError
            It has ended; the last line of its log says why.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(f"{word}\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            told = self.log.read_text(errors="replace").strip().splitlines()
            raise SideError(told[-1] if told else "it ended without a word")
        said: dict[str, Any] = json.loads(line)
        return said

    def rate(self, word: str = "go") -> float:
        """Stamps per second of one turn."""
        said = self.turn(word)
        return said["n_stamps"] / said["seconds"]

    def close(self) -> None:
        """Tell it that there are no more turns."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
            self.process.wait(SECONDS_TO_END)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def side(
    script: str, arguments: list[str], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[Side]:
    """A side for as long as it is needed."""
    started = Side(script, arguments, log, environment or {})
    try:
        yield started
    finally:
        started.close()


def with_peers(folder: Path) -> dict[str, str]:
    """Environment in which the packages of ``folder`` come first, and this one is found too."""
    return {"PYTHONPATH": os.pathsep.join([str(folder.absolute()), str(ROOT)])}


def interleave(
    turns: Mapping[str, Callable[[], float]], n_rounds: int, warm_up: bool = True
) -> dict[str, list[float]]:
    """What each returns, once a round; with ``warm_up`` a first turn of each is not counted.

    Every other round goes backwards, so that none always follows the same other.
    """
    for turn in turns.values() if warm_up else ():
        turn()
    found: dict[str, list[float]] = {name: [] for name in turns}
    for k in range(n_rounds):
        for name in list(turns)[:: -1 if k % 2 else 1]:
            found[name].append(turns[name]())
    return found


def rate(work: Callable[[], int]) -> float:
    """Stamps per second of ``work``, which returns how many it did."""
    began = time.perf_counter()
    n_stamps = work()
    return n_stamps / (time.perf_counter() - began)
