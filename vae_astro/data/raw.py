"""Arrays of stamps, brought to what a model takes: four axes, its size, float32."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vae_astro.data.stamp import LARGEST_STAMP, SMALLEST_STAMP, fit_to_size
from vae_astro.errors import InputError
from vae_astro.settings import check_int

__all__ = ["RawStamps", "as_stamps", "filled", "in_batches", "refuse_other_sizes"]


@dataclass(frozen=True)
class RawStamps:
    """Stamps as they were given, all of one size.

    Attributes
    ----------
    pixels : ndarray, shape (N, C, H, W)
        Raw values of any real type; NaN where masked.
    noise : ndarray, shape (N, C, H, W), optional
        Standard deviation of each pixel in the same units.
    """

    pixels: np.ndarray
    noise: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    def fitted(self, rows: slice, size: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Pixels and noise of some rows, (B, C, size, size), float32, native and writable."""
        noise = None if self.noise is None else _fitted(self.noise[rows], size)
        return _fitted(self.pixels[rows], size), noise


def as_stamps(raw: np.ndarray, band_names: Sequence[str] | None) -> np.ndarray:
    """``raw`` with all four axes, (N, C, H, W), in its own type.

    Parameters
    ----------
    raw : array, shape (N, C, H, W), or (N, H, W) with one band, or a single stamp
        Of any real dtype and byte order; masked pixels become NaN.
    band_names : sequence of str or None
        One for each of the C bands. None: as many as there are, one if there are three axes.

    Raises
    ------
    InputError
        No array of numbers, another number of bands or of axes, or stamps that are too small.
    """
    if isinstance(raw, np.ma.MaskedArray):
        raw = filled(raw)
    try:
        raw = np.asarray(raw, dtype=None if isinstance(raw, np.ndarray) else np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"stamps must be an array of numbers: {error}") from error
    given = raw.shape
    if not raw.size:
        raise InputError(f"there are no stamps: the array has shape {given}")
    n_bands = len(band_names) if band_names is not None else 1 if raw.ndim < 4 else given[1]
    if raw.ndim == 2 or (raw.ndim == 3 and n_bands > 1):
        raw = raw[None]
    if raw.ndim == 3:
        raw = raw[:, None]
    if raw.dtype.kind not in "biuf":
        hint = {
            "c": "; np.abs(stamps) or stamps.real makes them of complex ones",
            "O": "; lists of different lengths become objects: give a list of arrays of one shape",
        }.get(raw.dtype.kind, "")
        raise InputError(f"stamps must be real numbers, got an array of {raw.dtype}{hint}")
    if raw.ndim != 4 or raw.shape[1] != n_bands:
        bands_last = len(given) > 2 and given[-1] == n_bands and given[-2] > n_bands
        raise InputError(
            f"stamps have shape {given} of {raw.dtype}; {_wanted(n_bands, band_names)}"
            + ("; the bands come before the rows: np.moveaxis(stamps, -1, -3)" * bands_last)
        )
    refuse_other_sizes(given)
    return raw


def refuse_other_sizes(shape: tuple[int, ...]) -> None:
    """Raise `InputError` unless stamps of this shape have a size that a model can take."""
    height, width = shape[-2:]
    if min(height, width) < SMALLEST_STAMP or max(height, width) > LARGEST_STAMP:
        raise InputError(
            f"stamps have shape {shape}, so {height}x{width} pixels each; they must be "
            f"{SMALLEST_STAMP} to {LARGEST_STAMP} pixels wide and high"
        )


def filled(pixels: np.ndarray) -> np.ndarray:
    """``pixels`` in float32, NaN where a masked array masks them.

    Raises
    ------
    InputError
        They are no numbers.
    """
    try:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf, and is masked
            values = pixels.astype(np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"stamps must be an array of numbers: {error}") from error
    return np.ma.filled(values, np.nan) if isinstance(values, np.ma.MaskedArray) else values


def in_batches(
    pieces: Iterable[RawStamps], size: int, batch_size: int
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Up to ``batch_size`` stamps at a time, and their noise, both (B, C, size, size), float32.

    Stamps of another size are centre-cropped or padded with NaN. Either all pieces have noise or
    none has.
    """
    check_int("batch_size", batch_size, minimum=1)
    waiting: list[tuple[np.ndarray, np.ndarray | None]] = []
    n_waiting = 0
    for piece in pieces:
        first = 0
        while first < len(piece):
            rows = slice(first, min(len(piece), first + batch_size - n_waiting))
            waiting.append(piece.fitted(rows, size))
            n_waiting += rows.stop - first
            first = rows.stop
            if n_waiting == batch_size:
                yield _joined(waiting)
                waiting, n_waiting = [], 0
    if waiting:
        yield _joined(waiting)


def _joined(parts: list[tuple[np.ndarray, np.ndarray | None]]) -> tuple[Tensor, Tensor | None]:
    pixels = torch.from_numpy(np.concatenate([pixels for pixels, _ in parts]))
    noise = [noise for _, noise in parts if noise is not None]
    return pixels, torch.from_numpy(np.concatenate(noise)) if noise else None


def _fitted(values: np.ndarray, size: int) -> np.ndarray:
    # float32 and native byte order: torch refuses the big-endian arrays of FITS
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf, and is masked
        return fit_to_size(values.astype(np.float32), size)


def _wanted(n_bands: int, band_names: Sequence[str] | None) -> str:
    if band_names is None:
        return "give (N, H, W), or (N, C, H, W) with C bands"
    return f"this model takes (N, {n_bands}, H, W) with the bands {', '.join(band_names)}"
