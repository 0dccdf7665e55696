"""Stamps that a person holds in Python, brought to what a model takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from vae_astro.data.stamp import fit_to_size
from vae_astro.errors import InputError
from vae_astro.settings import check_int

__all__ = ["as_stamps", "in_batches"]


def as_stamps(raw: np.ndarray, band_names: Sequence[str]) -> np.ndarray:
    """``raw`` with all four axes, (N, C, H, W), in its own type.

    Parameters
    ----------
    raw : array, shape (N, C, H, W), or (N, H, W) with one band, or a single stamp
        Of any dtype and byte order; masked pixels become NaN.
    band_names : sequence of str
        One for each of the C bands.

    Raises
    ------
    InputError
        No array of numbers, or another number of bands or of axes.
    """
    if np.ma.isMaskedArray(raw):
        raw = np.ma.filled(raw.astype(np.float32), np.nan)
    try:
        raw = np.asarray(raw, dtype=None if isinstance(raw, np.ndarray) else np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"stamps must be an array of numbers: {error}") from error
    n_bands = len(band_names)
    given = raw.shape
    if raw.ndim == 2 or (raw.ndim == 3 and n_bands > 1):
        raw = raw[None]
    if raw.ndim == 3:
        raw = raw[:, None]
    if raw.ndim != 4 or raw.shape[1] != n_bands or not raw.size or raw.dtype.kind not in "biuf":
        raise InputError(
            f"stamps have shape {given} of {raw.dtype}; "
            f"this model takes (N, {n_bands}, H, W) with the bands {', '.join(band_names)}"
        )
    return raw


def in_batches(stamps: np.ndarray, size: int, batch_size: int) -> Iterator[Tensor]:
    """Up to ``batch_size`` stamps at a time, (B, C, size, size), float32.

    Stamps of another size are centre-cropped or padded with NaN.
    """
    for first in range(0, len(stamps), check_int("batch_size", batch_size, minimum=1)):
        # float32 and native byte order: torch refuses the big-endian arrays of FITS
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf, and is masked
            chunk = stamps[first : first + batch_size].astype(np.float32)
        yield torch.from_numpy(fit_to_size(chunk, size))
