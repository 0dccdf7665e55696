"""Stamps in 16 bits a pixel: in units of their own noise, around their own sky.

A pixel is stored as ``(raw - sky_level) / unit`` in IEEE half precision. The unit of a stamp and
band is its sky noise, or more where its brightest pixel would leave the range. What comes back is
within ``2^-11 |raw - sky_level| + 2^-25 unit`` of the raw value, and the rounding of float32 that
the two steps of arithmetic bring (``2^-22`` of the larger of ``|raw|`` and ``|sky_level|``). Bad
pixels are NaN.
"""

from __future__ import annotations

import numpy as np

__all__ = ["decode_float16", "encode_float16"]

LARGEST = np.float32(6e4)
SMALLEST = np.float32(2**-24)
"""The first number above 0: noise of 0 would weigh a pixel infinitely."""


def encode_float16(
    planes: np.ndarray, good: np.ndarray, level: np.ndarray, sky_noise: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What is stored.

    Parameters
    ----------
    planes : ndarray, shape (N, P, H, W), float32
        C planes of pixels, and C of their noise where it is known.
    good : ndarray, shape (N, C, H, W), bool
        Pixels to keep; finite.
    level, sky_noise : ndarray, shape (N, C), float32
        Of the sky.

    Returns
    -------
    stored : ndarray, shape (N, P, H, W), float16
        Noise beyond 60000 units or below 2^-24 is stored as that: such a pixel says nothing, or
        all there is.
    unit : ndarray, shape (N, C), float32
        Of each band.
    """
    n_bands = level.shape[1]
    scaled = np.empty(planes.shape, np.float32)
    pixels, noise = scaled[:, :n_bands], scaled[:, n_bands:]
    with np.errstate(over="ignore", invalid="ignore"):  # of what is bad
        np.subtract(planes[:, :n_bands], level[:, :, None, None], out=pixels)
        np.copyto(pixels, np.nan, where=~good)
        flat = np.abs(pixels).reshape(*level.shape, -1)  # much faster along one axis
        brightest = np.fmax.reduce(flat, axis=2, initial=0)
        unit = np.maximum(sky_noise, brightest / LARGEST)
        pixels /= unit[:, :, None, None]
        if noise.size:
            np.divide(planes[:, n_bands:], unit[:, :, None, None], out=noise)
            np.clip(noise, SMALLEST, LARGEST, out=noise)
            np.copyto(noise, np.nan, where=~good)
    return scaled.astype(np.float16), unit


def decode_float16(stored: np.ndarray, level: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """The inverse of `encode_float16`.

    Parameters
    ----------
    stored : ndarray, shape (N, P, H, W), float16
        As on disk.
    level, unit : ndarray, shape (N, C), float32
        Zero point and unit of each band.

    Returns
    -------
    ndarray, shape (N, P, H, W), float32
        Raw planes.
    """
    n_bands = level.shape[1]
    raw = stored.astype(np.float32)
    pixels, noise = raw[:, :n_bands], raw[:, n_bands:]
    pixels *= unit[:, :, None, None]
    pixels += level[:, :, None, None]
    if noise.size:
        noise *= unit[:, :, None, None]
    return raw
