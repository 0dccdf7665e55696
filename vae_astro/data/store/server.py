"""The server that packing processes are forked from; light to import."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing import forkserver

from vae_astro.data.threads import n_cores
from vae_astro.stopping import servants

__all__ = ["is_warm", "warm_up"]

SECONDS_TO_WARM_UP = 2.0
PRELOADED = ["__main__", "vae_astro.data.store.preload"]
"""What processes that pack have imported when they start."""

_began: float | None = None


def warm_up() -> None:
    """Import what packing needs in a process beside this one, from which others are forked later.

    It returns at once. Commands that pack much call it first and then do their own imports.
    """
    global _began
    if _began is None and n_cores() > 1:
        multiprocessing.set_forkserver_preload(PRELOADED)
        with servants():
            forkserver.ensure_running()
        _began = time.monotonic()


def is_warm() -> bool:
    """Whether processes can be had at once."""
    return _began is not None and time.monotonic() > _began + SECONDS_TO_WARM_UP
