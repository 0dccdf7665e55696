"""Noise that belongs to a stamp, so that one validation compares with the next."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["noise_of_stamps"]

SEED = 20_260


def noise_of_stamps(index: Tensor, latent_dim: int, first: int = 0) -> Tensor:
    """Standard normal noise that each stamp keeps in every evaluation.

    A hash of the stamp's row in the catalogue, so that it does not matter how stamps are batched or
    shared out between processes, and no random state moves.

    Parameters
    ----------
    index : Tensor of int64, shape (B,)
        Rows.
    latent_dim : int
        Z.
    first : int
        Where in the endless row of numbers that a stamp has; ``k * Z`` for its draw ``k``.

    Returns
    -------
    Tensor, shape (B, Z), float32
        On the device of ``index``.
    """
    if index.is_cuda:
        return _on_device(index, latent_dim, first)
    rows = index.cpu().numpy().astype(np.uint64)[:, None] + np.uint64(SEED)
    units = np.arange(first, first + latent_dim, dtype=np.uint64)
    mixed = _splitmix64(_splitmix64(rows) ^ units)
    noise = _as_normal(torch.from_numpy((mixed >> np.uint64(11)).astype(np.float64)))
    return noise.to(index.device)


def _on_device(index: Tensor, latent_dim: int, first: int) -> Tensor:
    """The same in torch alone, so that the device is not waited for."""
    unit = torch.arange(first, first + latent_dim, device=index.device)
    hashed = _splitmix64_of_signed(_splitmix64_of_signed(index[:, None] + SEED) ^ unit)
    return _as_normal(_shifted(hashed, 11).double())


def _as_normal(bits: Tensor) -> Tensor:
    """Standard normal numbers of whole ones below 2^53, in float64."""
    return torch.special.ndtri((bits + 0.5) / 2**53).float()


def _splitmix64(x: np.ndarray) -> np.ndarray:
    """A hash of 64-bit integers (Steele, Lea & Flood 2014); wraps around by design."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def _splitmix64_of_signed(x: Tensor) -> Tensor:
    """`_splitmix64` of the bits of int64, which torch computes with on every device."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, n_bits: int) -> Tensor:
    """Bits moved down, zeros from above: int64 itself would repeat its sign."""
    return (x >> n_bits) & ((1 << (64 - n_bits)) - 1)


def _signed(constant: int) -> int:
    return constant - (1 << 64) if constant >= 1 << 63 else constant
