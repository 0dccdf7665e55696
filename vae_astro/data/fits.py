"""FITS files as stamps: single images, extensions and cubes, plain or compressed."""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import EllipsisType
from typing import Any, BinaryIO, Literal

import numpy as np
from astropy import log as astropy_log
from astropy.io import fits

from vae_astro.data.files import (
    GZIP_OR_BZIP2,
    MAX_UNPACKED_BYTES,
    RefusedError,
    as_reject,
    check_file,
    find_files,
    source_name,
    unpack,
)
from vae_astro.data.stamp import Reject, Stamp
from vae_astro.errors import InputError

__all__ = ["FITS_SUFFIXES", "FitsReader", "first_image", "sky_position"]

FITS_SUFFIXES = (
    *(f".{name}{packed}" for name in ("fits", "fit", "fts") for packed in ("", ".gz", ".bz2")),
    ".fz",
)
MAX_BANDS_AUTO = 6  # first axis up to which a cube is taken for the bands of one object
IN_MEMORY_BYTES = 2**26  # a larger uncompressed file is read piece by piece from disk
FITS_BLOCK_BYTES = 2880
# Keywords of distortions: SIP, SCAMP's PV on a TAN projection, lookup tables.
_DISTORTION = re.compile(r"(A|B|AP|BP)_|PV|C[PQ]DIS|D[PQ]|D2IM|AXISCORR")
_LABELS = ["CLASS", "LABEL"]
_SUFFIX = re.compile(r"(\.(fits|fit|fts))?(\.(gz|bz2|fz))?$", re.IGNORECASE)

Layout = tuple[int, int, int, int]  # stamps, bands, rows, columns


@dataclass(frozen=True)
class FitsReader:
    """Stamps from FITS files: one per image, or many from a cube.

    Every image HDU of a file is one stamp, also weight maps and masks: choose one with ``hdu``.
    BSCALE, BZERO and BLANK are applied as astropy does. Identifier, label and position are looked
    up in the header of the image, then in the primary header, and hold for all planes of a cube.
    A source, and an identifier made from a file name, carries ``[hdu]`` where its file has several
    images and ``[hdu][plane]`` where the image has several stamps. An identifier from a keyword
    carries ``[hdu]`` only if it is inherited from the primary header.

    Parameters
    ----------
    hdu : int or str, optional
        The one extension to read, by number (0 is the primary) or EXTNAME; by default all images.
    cube : {"auto", "bands", "stamps"}
        How a 3-D image is read: ``bands`` as one stamp (C, H, W), ``stamps`` as N stamps of one
        band (N, H, W), ``auto`` as bands if the first axis is at most 6. A 4-D image is always
        N stamps with bands (N, C, H, W).
    id_keyword : str, optional
        Keyword that names the object. By default OBJID where present, else the file name
        without its suffix.
    label_keyword : str, optional
        Keyword with the class. By default CLASS, then LABEL, where present.
    max_pixels : int
        Most pixels of one stamp, all bands together. A header that claims more is refused before
        any memory is taken.

    Raises
    ------
    InputError
        If a setting is out of range; the message names its key.
    """

    hdu: int | str | None = None
    cube: Literal["auto", "bands", "stamps"] = "auto"
    id_keyword: str | None = None
    label_keyword: str | None = None
    max_pixels: int = 4096 * 4096

    def __post_init__(self) -> None:
        if isinstance(self.hdu, bool) or (isinstance(self.hdu, int) and self.hdu < 0):
            raise InputError(f"data.hdu must be a number from 0, a name or null, got {self.hdu}")
        if self.cube not in ("auto", "bands", "stamps"):
            raise InputError(f"data.cube must be auto, bands or stamps, got {self.cube!r}")
        for key, word in (("id", self.id_keyword), ("label", self.label_keyword)):
            if word is not None and not word.strip():
                raise InputError(f"data.{key}_keyword must be a FITS keyword or null, got {word!r}")
        if self.max_pixels < 1:
            raise InputError(f"data.max_pixels must be at least 1, got {self.max_pixels}")

    @property
    def band_names(self) -> None:
        """None: only the files can tell how many bands there are."""

    def find(self, root: Path) -> list[Path]:
        """Every FITS file below ``root``, or ``root`` itself if it is one; see `find_files`."""
        advice = "These are alert packets: use data=alerts"
        return find_files(root, FITS_SUFFIXES, (".avro",), advice)

    def read(self, path: Path, root: Path) -> Iterator[Stamp | Reject]:
        """All stamps of one file, in file order; what cannot be read becomes a `Reject`."""
        name = source_name(path, root)
        try:
            with _open(path, root) as stream:
                hdus, lost = _scan(stream)
                images = [number for number, hdu in enumerate(hdus) if _holds_image(hdu)]
                with _quiet():
                    chosen = self._choose(hdus, images, lost)
                for number in chosen:
                    suffix = f"[{number}]" if len(images) > 1 else ""
                    yield from self._read_image(hdus, number, name, suffix, stream)
                if lost is not None and self.hdu is None:
                    raise lost
        except Exception as error:
            yield as_reject(name, error)

    def _choose(self, hdus: list[Any], images: list[int], lost: RefusedError | None) -> list[int]:
        """Numbers of the HDUs to read."""
        if self.hdu is None:
            if images:
                return images
            raise lost or RefusedError("no image", f"holds {_listing(hdus)}, expected an image")
        if isinstance(self.hdu, int):
            number = self.hdu if self.hdu < len(hdus) else None
        else:
            names = [str(hdu.name).upper() for hdu in hdus]
            wanted = self.hdu.strip().upper()
            number = names.index(wanted) if wanted in names else None
        if number is None:
            raise lost or RefusedError(
                "no such HDU", f"data.hdu={self.hdu} asked for, but it holds {_listing(hdus)}"
            )
        if number not in images:
            raise RefusedError(
                "no image", f"data.hdu={self.hdu} is no image; it holds {_listing(hdus)}"
            )
        return [number]

    def _read_image(
        self, hdus: list[Any], number: int, name: str, suffix: str, stream: BinaryIO
    ) -> Iterator[Stamp | Reject]:
        """The stamps of one image HDU."""
        source, hdu = name + suffix, hdus[number]
        try:
            with _quiet():
                n_stamps, *stamp_shape = layout = self._layout(hdu.shape)
                _check_claims(hdu, layout, self.max_pixels, stream)
                headers = [hdu.header] if number == 0 else [hdu.header, hdus[0].header]
                text, origin = self._identify(headers, name)
                label = _first_text(
                    headers, [self.label_keyword] if self.label_keyword else _LABELS
                )
                ra, dec = _header_position(headers, hdu.shape)
            n_block = max(1, self.max_pixels // math.prod(stamp_shape))
            for first in range(0, n_stamps, n_block):
                block = slice(first, min(first + n_block, n_stamps)) if n_stamps > 1 else ...
                stamps = _pixels(hdu, block).reshape(-1, *stamp_shape)
                for k, pixels in enumerate(stamps, start=first):
                    plane = f"[{k}]" if n_stamps > 1 else ""
                    place = f"[{number}]{plane}" if plane else suffix
                    if not np.isfinite(pixels).any():
                        detail = f"none of {pixels.size} pixels is finite"
                        yield as_reject(name + place, RefusedError("all pixels bad", detail))
                        continue
                    id = text + (plane if origin == "image" else place)
                    yield Stamp(
                        pixels=pixels.copy() if plane else pixels,
                        id=id,
                        object_id=id if origin == "file" else text,
                        source=name + place,
                        ra=ra,
                        dec=dec,
                        label=label,
                    )
        except Exception as error:
            yield as_reject(source, error)

    def _layout(self, shape: tuple[int, ...]) -> Layout:
        """Stamps, bands, rows and columns of an image of this shape."""
        if len(shape) not in (2, 3, 4) or min(shape) < 1:
            raise RefusedError(
                "wrong dimensions",
                f"the image has shape {shape}, expected (H, W), (C, H, W), (N, H, W) or "
                "(N, C, H, W) with no empty axis; see data.cube and data.hdu",
            )
        n, height, width = (1, *shape)[-3:]
        if len(shape) == 4:
            return shape[0], n, height, width
        as_bands = self.cube == "bands" or (self.cube == "auto" and n <= MAX_BANDS_AUTO)
        return (1, n, height, width) if as_bands or len(shape) == 2 else (n, 1, height, width)

    def _identify(
        self, headers: list[Any], name: str
    ) -> tuple[str, Literal["image", "primary", "file"]]:
        """A name and where it is from: the image's own header, the primary one, the file name."""
        keyword = self.id_keyword or "OBJID"
        if text := _text(headers[0], keyword):
            return text, "image"
        if text := _text(headers[-1], keyword):
            return text, "primary"
        if self.id_keyword:
            raise RefusedError(
                "no identifier",
                f"the header has no {keyword}; change data.id_keyword, or null to use file names",
            )
        return _SUFFIX.sub("", name.rpartition("/")[2]), "file"


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
    stream = BytesIO(unpack(raw, max_bytes))
    hdus, lost = _scan(stream)
    for hdu in hdus:
        if _holds_image(hdu):
            if len(hdu.shape) != 2 or min(hdu.shape) < 1:
                raise RefusedError("wrong dimensions", f"shape {hdu.shape}, expected (H, W)")
            _check_claims(hdu, (1, 1, *hdu.shape), max_pixels, stream)
            return _pixels(hdu, ...)
    with _quiet():
        raise lost or RefusedError("no image", f"holds {_listing(hdus)}, expected an image")


def sky_position(ra: float, dec: float) -> tuple[float, float]:
    """Right ascension in [0, 360) and declination in degrees; NaN for both if not on the sky."""
    if not (-180 <= ra <= 360 and -90 <= dec <= 90):
        return math.nan, math.nan
    return ra % 360.0, dec


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep astropy from warning and printing; never yield to a caller from inside."""
    level = astropy_log.level
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        astropy_log.setLevel("ERROR")
        try:
            yield
        finally:
            astropy_log.setLevel(level)


def _open(path: Path, root: Path) -> BinaryIO:
    """The unpacked file: in memory if it is small or compressed, else on disk."""
    n_bytes = check_file(path, root)
    if n_bytes > IN_MEMORY_BYTES:
        with path.open("rb") as stream:
            packed = stream.read(3).startswith(GZIP_OR_BZIP2)
        if not packed:
            return path.open("rb")
        if n_bytes > MAX_UNPACKED_BYTES:
            raise RefusedError("too large", f"{n_bytes} compressed bytes; unpack it first")
    return BytesIO(unpack(path.read_bytes()))


def _require_fits(stream: BinaryIO) -> None:
    """Refuse what does not begin like a FITS file, saying what it looks like."""
    head = stream.read(16)
    if not head:
        raise RefusedError("empty file", "0 bytes once unpacked")
    if not head.startswith(b"SIMPLE"):
        kinds = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"PK": "ZIP", b"Obj\x01": "Avro"}
        kind = next((f" ({kinds[magic]})" for magic in kinds if head.startswith(magic)), "")
        raise RefusedError(
            "not a FITS file", f"begins with {head!r}{kind}, expected the keyword SIMPLE"
        )


class _HeadersOnDemand(fits.HDUList):
    """An HDU list that does not lose a good primary image to what follows it."""

    def update_extend(self) -> None:
        """Leave EXTEND alone: astropy reads the second HDU to set it, and fails where that does."""


def _scan(stream: BinaryIO) -> tuple[list[Any], RefusedError | None]:
    """All HDUs of a file, headers only, and what broke off the list if it is not complete."""
    _require_fits(stream)
    hdus: list[Any] = []
    end = 0
    error: Exception = ValueError("not a valid extension")
    with _quiet():
        try:
            stream.seek(0)
            hdu_list = _HeadersOnDemand.fromfile(stream, memmap=False, lazy_load_hdus=True)
            while True:
                try:
                    hdu = hdu_list[len(hdus)]
                except IndexError:
                    break
                if not hasattr(hdu, "fileinfo"):
                    raise ValueError("a required keyword is missing or has a wrong value")
                place = hdu.fileinfo()
                # A negative size would send astropy back to read the same header for ever.
                if place["datSpan"] < 0:
                    raise RefusedError("unreadable", f"HDU {len(hdus)} claims a negative size")
                end = place["datLoc"] + place["datSpan"]
                hdus.append(hdu)
        except MemoryError:
            raise
        except Exception as failure:
            error = failure
        stream.seek(end)
        # Junk after the last image is harmless, an extension that cannot be read is not; astropy
        # may take either for the other.
        if not hdus or stream.read(8) == b"XTENSION":
            return hdus, _broken_header(stream, end, error)
    return hdus, None


def _broken_header(stream: BinaryIO, start: int, error: Exception) -> RefusedError:
    """What to say of a header that astropy does not read."""
    if isinstance(error, RefusedError):
        return error
    stream.seek(start)
    header = stream.read(400 * FITS_BLOCK_BYTES)
    cards = [header[at : at + 80].rstrip() for at in range(0, len(header), 80)]
    # A header fills whole blocks.
    if b"END" not in cards or len(header) < FITS_BLOCK_BYTES:
        return RefusedError(
            "truncated file", f"the header at byte {start} has no END card or breaks off"
        )
    return RefusedError("unreadable", f"header at byte {start}: {type(error).__name__}: {error}")


def _holds_image(hdu: Any) -> bool:
    kinds = (fits.PrimaryHDU, fits.ImageHDU, fits.CompImageHDU)
    return isinstance(hdu, kinds) and not isinstance(hdu, fits.GroupsHDU) and len(hdu.shape) > 0


def _listing(hdus: list[Any]) -> str:
    """The first HDUs of a file in words."""
    words = [f"{number} {hdu.name} ({type(hdu).__name__})" for number, hdu in enumerate(hdus[:10])]
    more = f" and {len(hdus) - 10} more" if len(hdus) > 10 else ""
    return ", ".join(words) + more


def _check_claims(hdu: Any, layout: Layout, max_pixels: int, stream: BinaryIO) -> None:
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
    n_held = stream.seek(0, os.SEEK_END) - place["datLoc"]
    if n_held < n_bytes:
        raise RefusedError(
            "truncated file", f"{max(0, n_held)} bytes of pixels, the header claims {n_bytes}"
        )


def _pixels(hdu: Any, where: slice | EllipsisType) -> np.ndarray:
    """Pixels in physical units, float32, in native byte order and memory of their own."""
    with _quiet():
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


def _text(header: Any, keyword: str) -> str:
    """Value of a keyword as text; empty where it is absent, undefined or cannot be parsed."""
    try:
        value = header.get(keyword)
    except (ValueError, KeyError, fits.VerifyError):
        return ""
    undefined = value is None or isinstance(value, fits.card.Undefined)
    return "" if undefined else str(value).strip()


def _first_text(headers: list[Any], keywords: list[str]) -> str:
    texts = (_text(header, keyword) for header in headers for keyword in keywords)
    return next(filter(None, texts), "")


def _header_position(headers: list[Any], shape: tuple[int, ...]) -> tuple[float, float]:
    """Position in degrees: RA and DEC of the image, its WCS, then those of the primary header.

    The primary header comes last because it often holds where the telescope pointed.
    """
    own, *primary = headers
    position = _keyword_position(own)
    if math.isnan(position[0]):
        position = _wcs_centre(own, shape)
    if math.isnan(position[0]) and primary:
        position = _keyword_position(primary[0])
    return position


def _keyword_position(header: Any) -> tuple[float, float]:
    return sky_position(
        _degrees(_text(header, "RA"), "hourangle"), _degrees(_text(header, "DEC"), "deg")
    )


def _degrees(text: str, sexagesimal_unit: str) -> float:
    """An angle in degrees from a plain number of degrees or from hours or degrees with minutes."""
    try:
        return float(text)
    except ValueError:
        pass
    if not any(map(str.isdigit, text)):
        return math.nan
    from astropy.coordinates import Angle  # slow to import, and few headers need it

    try:
        return float(Angle(text, unit=sexagesimal_unit).deg)
    except (ValueError, TypeError):
        return math.nan


def _wcs_centre(header: Any, shape: tuple[int, ...]) -> tuple[float, float]:
    """ICRS position of the image centre in degrees, NaN without a celestial WCS."""
    # wcslib allocates a matrix of WCSAXES squared before it looks at anything else.
    if not _text(header, "CTYPE1") or _text(header, "WCSAXES") not in ("", "2", "3", "4"):
        return math.nan, math.nan
    # Slow to import, and not every stamp needs them.
    from astropy.coordinates import ICRS
    from astropy.wcs.utils import wcs_to_celestial_frame

    column, row = (shape[-1] - 1) / 2, (shape[-2] - 1) / 2
    try:
        # wcslib puts 0 for what is absent or no number, and that would pass for a position.
        if not all(isinstance(header.get(key), float | int) for key in ("CRVAL1", "CRVAL2")):
            return math.nan, math.nan
        wcs = _wcs(header)
        if isinstance(wcs_to_celestial_frame(wcs), ICRS):
            world = wcs.all_pix2world(column, row, 0)
            # Unlike a keyword RA, a longitude may have any number of turns too many.
            return sky_position(float(world[wcs.wcs.lng]) % 360.0, float(world[wcs.wcs.lat]))
        centre = wcs.celestial.pixel_to_world(column, row).icrs
        return sky_position(float(centre.ra.deg), float(centre.dec.deg))
    except MemoryError:
        raise
    except Exception:  # wcslib has dozens of ways to refuse; none costs us the pixels
        return math.nan, math.nan


def _wcs(header: Any) -> Any:
    """``WCS(header, naxis=2)``, in a third of its time where wcslib alone can do the work.

    astropy parses and writes the header three times over to find distortions.
    """
    from astropy.wcs import WCS, Wcsprm

    if any(map(_DISTORTION.match, header)):
        return WCS(header, naxis=2)
    cards = header.tostring(endcard=False, padding=False)
    parameters = Wcsprm(cards.encode("ascii"), relax=True)
    parameters.unitfix()  # or units such as "degree" are refused
    wcs = WCS(naxis=2)
    wcs.wcs = parameters.sub(2)  # refuses a singular matrix, which the next line would repair
    wcs.fix()
    return wcs
