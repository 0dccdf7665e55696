"""Functions compiled when they are first called, and kept on disk where that is possible."""

from __future__ import annotations

from typing import Any

from numba import njit

__all__ = ["compiled"]


def compiled(function: Any, **options: Any) -> Any:
    """Compile a function to machine code that needs no interpreter lock.

    Parameters
    ----------
    function : callable
        Of numbers and arrays only.
    **options
        Of `numba.njit`.
    """
    try:
        return njit(nogil=True, cache=True, **options)(function)
    except RuntimeError:  # neither beside the package nor in the home folder can be written
        return njit(nogil=True, **options)(function)
