"""Raw stamps to finished batches in one pass: normalised, masked and in their pose.

What `Normalizer` defines on tensors is done here stamp by stamp while its pixels lie in the cache,
read from where the store has them and written where the batch will lie; a few threads share a
batch. Only single pixels are computed, so that a stamp comes out the same to the last bit
in any batch, pose, thread or process.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vae_astro.data import kernels
from vae_astro.data.threads import together

__all__ = ["STRETCHES", "KernelSettings", "addresses_of", "copy_rows", "normalize_rows"]

STRETCHES = ("linear", "minmax", "asinh", "log")
"""Names, in the order of the numbers that the kernels know."""


class KernelSettings(NamedTuple):
    """Settings of a `Normalizer` as numbers.

    Attributes
    ----------
    stretch : int
        Position in `STRETCHES`.
    softening, noise_floor : float32
        As `Normalizer` has them.
    gain, saturation : ndarray, shape (C,), float32
        Of each band; infinite where there is none.
    """

    stretch: int
    softening: np.float32
    noise_floor: np.float32
    gain: np.ndarray
    saturation: np.ndarray


def addresses_of(planes: np.ndarray) -> np.ndarray:
    """Address of each entry of ``planes`` (B, P, H, W), contiguous; (B,) uint64."""
    return planes.ctypes.data + np.arange(len(planes), dtype=np.uint64) * np.uint64(
        planes.strides[0]
    )


def copy_rows(addresses: np.ndarray, out: np.ndarray, n_threads: int = 1) -> None:
    """Copy rows from anywhere in memory, faster than one after the other.

    Parameters
    ----------
    addresses : ndarray, shape (B,), uint64
        Where each row begins.
    out : ndarray, shape (B, ...)
        Contiguous; every entry takes as many bytes from its address as it has.
    n_threads : int
        Threads to share the rows.
    """
    if len(addresses) != len(out) or not out.flags.carray:
        raise ValueError(f"{len(addresses)} rows do not fit {out.shape}, or it is not contiguous")
    counter, n_bytes = _Counter(), np.uint64(out.nbytes // max(1, len(out)))

    def work() -> None:
        kernels.copy_rows(counter.address, addresses, np.uint64(out.ctypes.data), n_bytes)

    together(work, min(n_threads, _n_chunks(addresses)))


def normalize_rows(
    addresses: np.ndarray,
    settings: KernelSettings,
    sky_level: np.ndarray,
    sky_noise: np.ndarray,
    image: np.ndarray,
    mask: np.ndarray,
    noise: np.ndarray,
    *,
    symmetries: np.ndarray | None = None,
    with_noise: bool = False,
    n_threads: int = 1,
) -> None:
    """Normalise stamps that lie anywhere in memory.

    The image is within 4 units in the last place of the exact values, the noise within 5; the mask
    is exact.

    Parameters
    ----------
    addresses : ndarray, shape (B,), uint64
        Where the float32 planes of each stamp begin: C of pixels, then C of noise if it has any.
    settings : KernelSettings
        How.
    sky_level, sky_noise : ndarray, shape (B, C), float32
        Of each stamp and band, in raw units.
    image, noise : ndarray, shape (B, C, H, W), float32
        Written; contiguous.
    mask : ndarray, shape (B, C, H, W), bool
        Written; contiguous.
    symmetries : ndarray, shape (B,), int64, optional
        Pose of each stamp, 0 to 7 as `apply_symmetry` has it; H = W then.
    with_noise : bool
        The noise planes take the place of sky noise and gain; pixels of which they say nothing
        are masked.
    n_threads : int
        Threads to share the stamps.

    Raises
    ------
    ValueError
        Poses of stamps that are not square.
    """
    height, width = image.shape[-2:]
    if symmetries is not None and height != width:
        raise ValueError(f"stamps of {height} x {width} pixels cannot be turned")
    poses = np.zeros(len(image), dtype=np.int64) if symmetries is None else symmetries
    counter = _Counter()
    shape = (image.shape[1], height, width)
    sky = np.ascontiguousarray(sky_level), np.ascontiguousarray(sky_noise)

    def work() -> None:
        # given by address, but held by this function for as long as anyone writes
        scratch = np.empty((2, height, width), dtype=np.float32)
        memory = (np.uint64(array.ctypes.data) for array in (image, mask, noise))
        kernels.normalize_rows(
            counter.address,
            np.uint64(scratch.ctypes.data),
            *(addresses, poses, *shape, with_noise, *settings, *sky, *memory),
        )

    together(work, min(n_threads, _n_chunks(addresses)))


class _Counter:
    """What the threads of a batch count up together to take their share of the stamps."""

    def __init__(self) -> None:
        self._count = np.zeros(1, dtype=np.int64)
        self.address = np.uint64(self._count.ctypes.data)


def _n_chunks(addresses: np.ndarray) -> int:
    return -(-len(addresses) // kernels.CHUNK)
