"""The other end of `benchmarks.turns`: a word comes in, a line of JSON goes out."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["Channel", "take_turns"]


class Channel:
    """Standard output is for figures; what libraries print goes where errors go."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def wait(self) -> str:
        """The next word; empty when there are no more turns."""
        return sys.stdin.readline().strip()

    def say(self, **figures: Any) -> None:
        """Tell what a turn came to."""
        print(json.dumps(figures), file=self._out, flush=True)


def take_turns(channel: Channel, turn: Callable[[], tuple[int, float]]) -> None:
    """Work whenever told to; ``turn`` returns the stamps it did and the seconds they took."""
    while channel.wait():
        n_stamps, seconds = turn()
        channel.say(n_stamps=n_stamps, seconds=seconds)
