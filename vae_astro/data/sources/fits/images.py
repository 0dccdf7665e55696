"""Images of FITS files as astropy has them: what is one, whether it is safe, and its pixels."""

from __future__ import annotations

import math
from io import BytesIO
from types import EllipsisType
from typing import Any

import numpy as np
from astropy.io import fits

from vae_astro.data.sources.files import MAX_UNPACKED_BYTES, RefusedError, unpack
from vae_astro.data.sources.fits.headers import quiet_astropy, scan_headers
from vae_astro.data.sources.fits.plain_fits import plain_image

__all__ = [
    "FITS_SUFFIXES",
    "Layout",
    "check_claims",
    "first_image",
    "holds_image",
    "image_by_astropy",
    "listing",
    "pixels_of",
]

FITS_SUFFIXES = (
    *(f".{name}{packed}" for name in ("fits", "fit", "fts") for packed in ("", ".gz", ".bz2")),
    ".fz",
)
Layout = tuple[int, int, int, int]
"""Stamps, bands, rows and columns of an image."""


def first_image(raw: bytes, max_pixels: int, max_bytes: int = MAX_UNPACKED_BYTES) -> np.ndarray:
    """The first image of a FITS file in memory.

    Parameters
    ----------
    raw : bytes
        The file, plain, gzip or bzip2.
    max_pixels, max_bytes : int
        Most pixels of the image and most bytes of the unpacked file.

    Returns
    -------
    ndarray, shape (H, W), float32
        Its pixels; BLANK is NaN.

    Raises
    ------
    RefusedError
        If it is no FITS file, is truncated, holds no 2-D image or claims too much.
    """
    content = unpack(raw, max_bytes)
    pixels = plain_image(content, max_pixels, image_by_astropy)
    return image_by_astropy(content, max_pixels) if pixels is None else pixels


def image_by_astropy(content: bytes, max_pixels: int) -> np.ndarray:
    """`first_image` of an unpacked file, by astropy."""
    stream = BytesIO(content)
    hdus, lost = scan_headers(stream)
    with quiet_astropy():
        for hdu in hdus:
            if holds_image(hdu):
                shape = tuple(hdu.shape)
                if len(shape) < 2 or math.prod(shape) != math.prod(shape[-2:]) or not all(shape):
                    raise RefusedError("wrong dimensions", f"shape {shape}, expected (H, W)")
                check_claims(hdu, (1, 1, *shape[-2:]), max_pixels)
                return pixels_of(hdu, ...).reshape(shape[-2:])
        raise lost or RefusedError("no image", f"holds {listing(hdus)}, expected an image")


def holds_image(hdu: Any) -> bool:
    """Whether an HDU of `scan_headers` has pixels."""
    kinds = (fits.PrimaryHDU, fits.ImageHDU, fits.CompImageHDU)
    return isinstance(hdu, kinds) and not isinstance(hdu, fits.GroupsHDU) and len(hdu.shape) > 0


def listing(hdus: list[Any]) -> str:
    """The first HDUs of a file in words."""
    words = [f"{number} {hdu.name} ({type(hdu).__name__})" for number, hdu in enumerate(hdus[:10])]
    more = f" and {len(hdus) - 10} more" if len(hdus) > 10 else ""
    return ", ".join(words) + more


def check_claims(hdu: Any, layout: Layout, max_pixels: int) -> None:
    """Refuse an image that is too large, that is cut short or that is not safe to unpack."""
    n_pixels = math.prod(layout[1:])
    if n_pixels > max_pixels:
        raise RefusedError(
            "too large",
            f"claims {layout[1:]} = {n_pixels} pixels a stamp, more than data.max_pixels="
            f"{max_pixels}",
        )
    if hdu.header["BITPIX"] not in (8, 16, 32, 64, -32, -64):
        raise RefusedError("unreadable", f"BITPIX is {hdu.header['BITPIX']}, no FITS pixel type")
    if isinstance(hdu, fits.CompImageHDU) and hdu.compression_type == "HCOMPRESS_1":
        # Its decoder trusts the sizes in the data and brings Python down if they are damaged.
        raise RefusedError("unsupported compression", "HCOMPRESS; unpack the file with funpack")
    place = hdu.fileinfo()
    n_bytes = place["datSpan"]
    if not isinstance(hdu, fits.CompImageHDU):
        # All pixels there, but not the zeros that fill the last block: nothing is missing.
        n_bytes = math.prod(layout) * abs(hdu.header["BITPIX"]) // 8
    n_held = place["file"].size - place["datLoc"]
    if n_held < n_bytes:
        raise RefusedError(
            "truncated file", f"{max(0, n_held)} bytes of pixels, the header claims {n_bytes}"
        )


def pixels_of(hdu: Any, where: slice | EllipsisType) -> np.ndarray:
    """Pixels in physical units, float32, in native byte order and memory of their own."""
    with quiet_astropy():
        header = hdu.header
        blank, integer = header.get("BLANK"), header["BITPIX"] > 0
        values = hdu.section[where]
        pixels = np.array(values, dtype=np.float32, order="C")
        if integer and isinstance(blank, int) and not isinstance(blank, bool):
            # astropy applies BLANK, but neither where it is 0 nor to unsigned images.
            if values.dtype.kind == "u":
                pixels[values == blank + 2 ** (8 * values.dtype.itemsize - 1)] = np.nan
            elif blank == 0:
                pixels[values == values.dtype.type(header.get("BZERO", 0))] = np.nan
    return pixels
