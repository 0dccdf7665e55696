"""Opening the images of a mosaic: mapped where the file is plain, unpacked where it is not."""

from __future__ import annotations

import math
import os
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
from astropy.io import fits

from vae_astro.data.sources.files import (
    GZIP_OR_BZIP2,
    MAX_UNPACKED_BYTES,
    RefusedError,
    unpack,
)
from vae_astro.data.sources.fits.headers import quiet_astropy, scan_headers
from vae_astro.data.sources.fits.planes import Planes
from vae_astro.data.sources.mosaics.image import MosaicImage
from vae_astro.data.sources.mosaics.sky_grid import SkyGrid, sky_grid
from vae_astro.data.sources.root import FileVersion, Root

__all__ = ["open_grid", "open_images", "open_plane"]

UNPACKED_ROWS_BYTES = 2**24  # of a tile-compressed image, unpacked at a time


def open_images(
    root: Root, file: FileVersion, hdu: int | str | None, planes: Planes
) -> dict[str, MosaicImage]:
    """A mosaic and the planes that are in its file, with nothing read but headers.

    A plain file on this machine is mapped, so that memory does not grow with it. What is
    compressed or remote is held in memory, up to 1 GiB.

    Parameters
    ----------
    root : Root
        What the file's name is relative to.
    file : FileVersion
        A FITS file, plain, gzip, bzip2 or with tile-compressed images.
    hdu : int or str, optional
        Number or name of the extension; by default the first image.
    planes : Planes
        Which extensions are planes.

    Returns
    -------
    dict
        The mosaic as ``band``; ``noise`` and ``mask`` where they are in the file. They share it.

    Raises
    ------
    RefusedError
        If there is no such image, or it is truncated, too large or of a kind that is not read.
    OSError
        If the file is not there.
    """
    stream = _open(root, file)
    try:
        hdus, lost = scan_headers(stream)
        number = _choose(hdus, lost, hdu)
        others = planes.without_planes(hdus, _images(hdus))
        places = planes.locate(hdus, others, [number], number)
        return {
            what: _image(file, hdus, place, stream)
            for what, place in {"band": number, **places}.items()
        }
    except BaseException:
        stream.close()
        raise


def open_plane(root: Root, file: FileVersion, number: int) -> MosaicImage:
    """The plane of a mosaic in a file of its own: its image of that number, or its only one.

    Raises as `open_images`.
    """
    stream = _open(root, file)
    try:
        hdus, lost = scan_headers(stream)
        images = _images(hdus)
        if number not in images and len(images) > 1:
            raise RefusedError(
                "ambiguous plane",
                f"{file.name} has {len(images)} images and none of them is HDU {number}, the "
                "number of the mosaic in its file",
            )
        return _image(file, hdus, number if number in images else _choose(hdus, lost, None), stream)
    except BaseException:
        stream.close()
        raise


def open_grid(root: Root, file: FileVersion, hdu: int | str | None) -> SkyGrid | None:
    """The celestial WCS of an image, from its header alone; see `open_images`."""
    with _open(root, file) as stream:
        hdus, lost = scan_headers(stream)
        chosen = hdus[_choose(hdus, lost, hdu)]
        return sky_grid(chosen.header, chosen.shape[-2:], hdus)


def _open(root: Root, file: FileVersion) -> BinaryIO:
    if not file.version:
        raise RefusedError("no such file", f"{file.name} is not below data.root={root.address}")
    stream = root.open(file)
    try:
        packed = stream.read(3).startswith(GZIP_OR_BZIP2)
        stream.seek(0)
        if not packed and _can_be_mapped(stream):
            return stream
    except BaseException:
        stream.close()
        raise
    stream.close()
    return BytesIO(unpack(root.read(file, MAX_UNPACKED_BYTES)))


def _image(file: FileVersion, hdus: list[Any], number: int, stream: BinaryIO) -> MosaicImage:
    hdu = hdus[number]
    if isinstance(hdu, fits.CompImageHDU):
        return MosaicImage(file, number, _unpacked(hdu, stream), hdus, stream)
    data = _mapped(hdu, stream)
    blank = hdu.header.get("BLANK") if data.dtype.kind != "f" else None
    return MosaicImage(
        file,
        number,
        data,
        hdus,
        stream,
        scale=_number(hdu.header, "BSCALE", 1.0),
        zero=_number(hdu.header, "BZERO", 0.0),
        blank=blank if isinstance(blank, int) and not isinstance(blank, bool) else None,
    )


def _can_be_mapped(stream: BinaryIO) -> bool:
    try:
        stream.fileno()
    except (OSError, AttributeError):
        return False
    return True


def _choose(hdus: list[Any], lost: RefusedError | None, wanted: int | str | None) -> int:
    """Number of the HDU that is asked for, or of the first image."""
    with quiet_astropy():
        images = _images(hdus)
        names = [str(hdu.name).strip().upper() for hdu in hdus]
        if wanted is None:
            number = images[0] if images else -1
        elif isinstance(wanted, int):
            number = wanted
        else:
            wanted = wanted.strip().upper()
            number = names.index(wanted) if wanted in names else -1
        if number in images:
            return number
        if lost is not None:
            raise lost
        listed = ", ".join(
            f"{k} {name} ({type(hdu).__name__})"
            for k, (name, hdu) in enumerate(zip(names[:10], hdus, strict=False))
        )
        found = wanted is None or 0 <= number < len(hdus)
    asked = "an image (H, W) expected" if wanted is None else f"extension {wanted} asked for"
    raise RefusedError(
        "no image" if found else "no such HDU",
        f"{asked}, but it holds {listed}; see data.hdu",
    )


def _images(hdus: list[Any]) -> list[int]:
    return [number for number, hdu in enumerate(hdus) if _is_image(hdu)]


def _is_image(hdu: Any) -> bool:
    """Whether an HDU holds one plane of pixels; axes of one pixel before it do not count."""
    kinds = (fits.PrimaryHDU, fits.ImageHDU, fits.CompImageHDU)
    if not isinstance(hdu, kinds) or isinstance(hdu, fits.GroupsHDU):
        return False
    shape = hdu.shape
    return len(shape) >= 2 and min(shape) >= 1 and math.prod(shape[:-2]) == 1


def _mapped(hdu: Any, stream: BinaryIO) -> np.ndarray:
    """Pixels of an uncompressed image, as they lie in the file."""
    bitpix = hdu.header["BITPIX"]
    if bitpix not in (8, 16, 32, 64, -32, -64):
        raise RefusedError("unreadable", f"BITPIX is {bitpix}, no FITS pixel type")
    kind = "u" if bitpix == 8 else "i" if bitpix > 0 else "f"
    dtype = np.dtype(f">{kind}{abs(bitpix) // 8}")
    offset, n_pixels = hdu.fileinfo()["datLoc"], math.prod(hdu.shape)
    n_held = stream.seek(0, os.SEEK_END) - offset
    if n_held < n_pixels * dtype.itemsize:
        raise RefusedError(
            "truncated file",
            f"{max(0, n_held)} bytes of pixels, the header claims {n_pixels * dtype.itemsize}",
        )
    if isinstance(stream, BytesIO):
        flat = np.frombuffer(stream.getvalue(), dtype, n_pixels, offset)
    else:
        flat = np.asarray(np.memmap(stream, dtype, "r", offset, (n_pixels,)))
    return flat.reshape(hdu.shape[-2:])


def _unpacked(hdu: Any, stream: BinaryIO) -> np.ndarray:
    """Physical values of a tile-compressed image: integers where they are, else float32."""
    if hdu.compression_type == "HCOMPRESS_1":
        # its decoder trusts the sizes in the data and brings Python down if they are damaged
        raise RefusedError("unsupported compression", "HCOMPRESS; unpack the file with funpack")
    height, width = hdu.shape[-2:]
    n_bytes = max(4, abs(hdu.header["BITPIX"]) // 8) * height * width
    if n_bytes > MAX_UNPACKED_BYTES:
        raise RefusedError(
            "too large",
            f"claims {height} x {width} pixels, {n_bytes} bytes once unpacked, more than "
            f"{MAX_UNPACKED_BYTES}; unpack it with funpack",
        )
    place = hdu.fileinfo()
    n_held = stream.seek(0, os.SEEK_END) - place["datLoc"]
    if n_held < place["datSpan"]:
        raise RefusedError(
            "truncated file",
            f"{max(0, n_held)} bytes of pixels, the header claims {place['datSpan']}",
        )
    leading = (0,) * (len(hdu.shape) - 2)
    n_rows = max(1, UNPACKED_ROWS_BYTES // (4 * width))
    blank = hdu.header.get("BLANK") if hdu.header["BITPIX"] > 0 else None
    pixels = np.empty(0)
    with quiet_astropy():
        for first in range(0, height, n_rows):
            rows = slice(first, min(first + n_rows, height))
            values = hdu.section[(*leading, rows)]
            if first == 0:
                # a mask needs its integers, a blank its NaN
                exact = values.dtype.kind in "iu" and blank is None
                pixels = np.empty((height, width), values.dtype if exact else np.float32)
            pixels[rows] = values
            if isinstance(blank, int) and not isinstance(blank, bool):
                # astropy applies it, but neither where it is 0 nor to unsigned images
                if values.dtype.kind == "u":
                    blank_here = blank + 2 ** (8 * values.dtype.itemsize - 1)
                    pixels[rows][values == blank_here] = np.nan
                elif blank == 0:
                    pixels[rows][values == hdu.header.get("BZERO", 0)] = np.nan
    return pixels


def _number(header: Any, keyword: str, absent: float) -> float:
    value = header.get(keyword, absent)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RefusedError("unreadable", f"{keyword} is {value!r}, no number")
    return float(value)
