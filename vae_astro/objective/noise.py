"""Noise that belongs to a stamp, so that one validation compares with the next."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["noise_of_stamps"]

SEED = 20_260


def noise_of_stamps(index: Tensor, latent_dim: int) -> Tensor:
    """Standard normal noise that each stamp keeps in every evaluation.

    A hash of the stamp's row in the catalogue, so that it does not matter how stamps are batched or
    shared out between processes, and no random state moves.

    Parameters
    ----------
    index : Tensor of int64, shape (B,)
        Rows.
    latent_dim : int
        Z.

    Returns
    -------
    Tensor, shape (B, Z), float32
        On the device of ``index``.
    """
    unit = np.arange(latent_dim, dtype=np.uint64)
    rows = index.cpu().numpy().astype(np.uint64)[:, None] + np.uint64(SEED)
    mixed = _splitmix64(_splitmix64(rows) ^ unit)
    uniform = (torch.from_numpy((mixed >> np.uint64(11)).astype(np.float64)) + 0.5) / 2**53
    return torch.special.ndtri(uniform).float().to(index.device)


def _splitmix64(x: np.ndarray) -> np.ndarray:
    """A hash of 64-bit integers (Steele, Lea & Flood 2014); wraps around by design."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
