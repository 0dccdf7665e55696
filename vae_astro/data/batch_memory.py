"""Memory of batches, used again once nobody holds a batch: fresh memory costs more than filling it.

The system hands out fresh memory page by page, and clears each page first.
"""

from __future__ import annotations

import os
import weakref
from collections import deque

import numpy as np
import torch
from torch import Tensor

__all__ = ["batch_tensors"]

N_KEPT = 4
"""Batches kept: one in training, those that are fetched ahead of it."""

_kept: deque[tuple[np.ndarray, list[weakref.ref[np.ndarray]]]] = deque()
"""Memory, and what was made of it; free when all of those are gone."""

if hasattr(os, "register_at_fork"):
    # what others hold there, a forked process would never see them let go
    os.register_at_fork(after_in_child=_kept.clear)


def batch_tensors(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Image (float32), mask (bool) and noise (float32), each of ``shape`` and of any content.

    Pinned where batches go to a GPU; torch keeps and reuses that memory itself.
    """
    if torch.cuda.is_available() and torch.utils.data.get_worker_info() is None:
        kinds = (torch.float32, torch.bool, torch.float32)
        image, mask, noise = (torch.empty(shape, dtype=kind, pin_memory=True) for kind in kinds)
        return image, mask, noise
    n = int(np.prod(shape))
    memory = _free_memory(9 * n)
    floats = memory[: 8 * n].view(np.float32).reshape(2, *shape)
    bools = memory[8 * n :].view(np.bool_).reshape(shape)
    # a tensor holds the array that it was made from for as long as anything looks at its storage
    made: list[np.ndarray] = [floats[0], bools, floats[1]]
    _kept.append((memory, [weakref.ref(array) for array in made]))
    if len(_kept) > N_KEPT:
        _kept.popleft()
    image, mask, noise = (torch.from_numpy(array) for array in made)
    return image, mask, noise


def _free_memory(n_bytes: int) -> np.ndarray:
    """Memory that nobody looks at, taken out of what is kept, or fresh memory."""
    for _ in range(len(_kept)):
        try:  # each step is safe among threads: an entry is in one hand at a time
            memory, made = _kept.popleft()
        except IndexError:
            break
        if len(memory) == n_bytes and all(reference() is None for reference in made):
            return memory
        _kept.append((memory, made))
    return np.empty(n_bytes, dtype=np.uint8)
