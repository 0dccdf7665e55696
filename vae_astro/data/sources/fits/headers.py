"""The headers of a FITS file: found one by one, however damaged it is, and what they say.

Values are taken as they come: what is absent, undefined or impossible becomes an empty text or NaN,
never an error. astropy warns of such headers; `quiet_astropy` keeps that from the user.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, Protocol

import numpy as np
from astropy import log as astropy_log
from astropy.io import fits

from vae_astro.data.sources.files import RefusedError
from vae_astro.data.sources.fits.standard import BLOCK_BYTES, CARD_BYTES
from vae_astro.data.stamp import SEEING_LIMITS

__all__ = [
    "POSITION_KEYWORDS",
    "SCALE_KEYWORDS",
    "WCS_KEYWORD",
    "WCS_NUMBERS",
    "HeaderNumbers",
    "angle_degrees",
    "first_text",
    "has_distortion",
    "header_position",
    "header_seeing",
    "keyword_number",
    "keyword_text",
    "quiet_astropy",
    "scan_headers",
    "seeing_in_pixels",
    "simple_wcs",
    "sky_position",
]

POSITION_KEYWORDS = ("RA", "DEC")
_SEEING = ("SEEING", "PSF_FWHM", "PSFFWHM", "L1FWHM", "FWHM")
_PIXEL_SCALES = ("PIXSCALE", "PIXSCAL1", "SECPIX", "SECPIX1")  # arcsec
SCALE_KEYWORDS = (*_SEEING, *_PIXEL_SCALES)
"""What the seeing is read from, beside the WCS."""
_UNITS = {
    "pixel": re.compile(r"\bpix", re.IGNORECASE),
    "arcsec": re.compile(r"\barc-?s|\basec\b", re.IGNORECASE),
}
_CELESTIAL = re.compile(r"RA--|DEC-|[GE]L(ON|AT)")
WCS_NUMBERS = (
    *(f"{name}{axis}" for name in ("CRVAL", "CRPIX", "CDELT") for axis in (1, 2)),
    *(f"{name}{row}_{column}" for name in ("CD", "PC") for row in (1, 2) for column in (1, 2)),
)
"""Numbers of a WCS of two axes, which differ from image to image."""
WCS_KEYWORD = re.compile(
    r"(NAXIS|WCSAXES|WCSNAME|C(TYPE|UNIT|RVAL|RPIX|DELT|ROTA)|CUBEFACE|PC|CD\d|P[VS]\d|PROJP"
    r"|L(ON|AT)POLE|EQUINOX|EPOCH|RADE|VELREF|SPECSYS|REST(FRQ|FREQ|WAV))"
)
"""How the keywords begin that decide where a pixel lies on the sky, but for distortions."""
# Keywords of distortions: SIP, SCAMP's PV on a TAN projection, lookup tables.
_DISTORTION = re.compile(r"(A|B|AP|BP)_|PV|C[PQ]DIS|D[PQ]|D2IM|AXISCORR")


class HeaderNumbers(Protocol):
    """Numbers of one header, or of many that differ in nothing but their values."""

    @property
    def header(self) -> Any:
        """One of them: what holds for all, such as comments and axes."""

    def numbers(self, keyword: str) -> np.ndarray:
        """Of each header, shape (N,); NaN where the keyword is absent or no number."""


def scan_headers(stream: BinaryIO) -> tuple[list[Any], RefusedError | None]:
    """All HDUs of a file, headers only, and what broke off the list if it is not complete.

    Parameters
    ----------
    stream : binary file
        The unpacked file, at its first byte; astropy goes on reading pixels from it.

    Returns
    -------
    hdus : list
        astropy's HDUs in file order, up to the first that cannot be read.
    lost : RefusedError or None
        Why the list ends before the file does.

    Raises
    ------
    RefusedError
        If the stream is empty or does not begin like a FITS file.
    """
    _require_fits(stream)
    hdus: list[Any] = []
    end = 0
    error: Exception = ValueError("not a valid extension")
    with quiet_astropy():
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


def keyword_text(header: Any, keyword: str) -> str:
    """Value of a keyword as text; empty where it is absent, undefined or cannot be parsed."""
    try:
        value = header.get(keyword)
    except (ValueError, KeyError, fits.VerifyError):
        return ""
    undefined = value is None or isinstance(value, fits.card.Undefined)
    return "" if undefined else str(value).strip()


def keyword_number(header: Any, keyword: str) -> float:
    """Value of a keyword as a number, NaN where it is none."""
    try:
        return float(keyword_text(header, keyword))
    except ValueError:
        return math.nan


def first_text(headers: list[Any], keywords: list[str]) -> str:
    """The first `keyword_text` that is not empty, header by header; empty if all are."""
    texts = (keyword_text(header, keyword) for header in headers for keyword in keywords)
    return next(filter(None, texts), "")


def header_position(headers: list[Any], shape: tuple[int, ...]) -> tuple[float, float]:
    """Position of an image: its RA and DEC, its WCS, then RA and DEC of the primary header.

    The primary header comes last because it often holds where the telescope pointed.

    Parameters
    ----------
    headers : list
        The header of the image and, where that is another one, the primary header.
    shape : tuple of int
        Shape of the image in pixels, (..., H, W); its WCS is read at the centre.

    Returns
    -------
    ra, dec : float
        As `sky_position`: degrees, NaN where no header gives a position.
    """
    own, *primary = headers
    position = _keyword_position(own)
    if math.isnan(position[0]):
        position = _wcs_centre(own, shape)
    if math.isnan(position[0]) and primary:
        position = _keyword_position(primary[0])
    return position


def header_seeing(headers: list[Any]) -> float:
    """`seeing_in_pixels` of an image with these headers: its own, then the primary one."""
    return float(seeing_in_pixels([_OneHeader(header) for header in headers])[0])


def seeing_in_pixels(headers: Sequence[HeaderNumbers]) -> np.ndarray:
    """Full width at half maximum of a point source, in pixels; NaN where no header tells it.

    The first of SEEING, PSF_FWHM, PSFFWHM, L1FWHM and FWHM that is plausible, in the unit that its
    comment names; without one SEEING is arcsec, as observatories have it, and the others are
    nothing. Arcsec need a pixel scale: that of a celestial WCS, or PIXSCALE, PIXSCAL1, SECPIX or
    SECPIX1 in arcsec.

    Parameters
    ----------
    headers : sequence of HeaderNumbers
        Of N images and, where those are others, their primary headers.

    Returns
    -------
    ndarray, shape (N,)
    """
    seeing = np.array(math.nan)
    for own in headers:
        for keyword in filter(own.header.__contains__, _SEEING):
            unit = _width_unit(own.header, keyword)
            if not unit:
                continue
            width = own.numbers(keyword)
            if unit == "arcsec":
                width = width / _first_valid([_pixel_scale_arcsec(header) for header in headers])
            plausible = (width >= SEEING_LIMITS[0]) & (width <= SEEING_LIMITS[1])
            seeing = np.where(np.isnan(seeing) & plausible, width, seeing)
    return np.atleast_1d(seeing)


def sky_position(ra: float, dec: float) -> tuple[float, float]:
    """Right ascension in [0, 360) and declination; NaN for both if they are not on the sky.

    Both are degrees, before and after; a right ascension from -180 to 360 is on the sky.
    """
    if not (-180 <= ra <= 360 and -90 <= dec <= 90):
        return math.nan, math.nan
    return ra % 360.0, dec


@contextmanager
def quiet_astropy() -> Iterator[None]:
    """Keep astropy from warning and printing; never yield to a caller from inside."""
    level = astropy_log.level
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        astropy_log.setLevel("ERROR")
        try:
            yield
        finally:
            astropy_log.setLevel(level)


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


def _broken_header(stream: BinaryIO, start: int, error: Exception) -> RefusedError:
    """What to say of a header that astropy does not read."""
    if isinstance(error, RefusedError):
        return error
    stream.seek(start)
    header = stream.read(400 * BLOCK_BYTES)
    cards = [header[at : at + CARD_BYTES].rstrip() for at in range(0, len(header), CARD_BYTES)]
    # A header fills whole blocks.
    if b"END" not in cards or len(header) < BLOCK_BYTES:
        return RefusedError(
            "truncated file", f"the header at byte {start} has no END card or breaks off"
        )
    return RefusedError("unreadable", f"header at byte {start}: {type(error).__name__}: {error}")


def _keyword_position(header: Any) -> tuple[float, float]:
    return sky_position(
        angle_degrees(keyword_text(header, "RA"), "hourangle"),
        angle_degrees(keyword_text(header, "DEC"), "deg"),
    )


class _OneHeader:
    """`HeaderNumbers` of a single header."""

    def __init__(self, header: Any) -> None:
        self.header = header

    def numbers(self, keyword: str) -> np.ndarray:
        return np.array([keyword_number(self.header, keyword)])


def _width_unit(header: Any, keyword: str) -> str:
    """``pixel`` or ``arcsec`` as the comment of a keyword has it; empty if it has none or both."""
    comment = str(header.comments[keyword])
    named = [unit for unit, pattern in _UNITS.items() if pattern.search(comment)]
    if not named and keyword == "SEEING":
        return "arcsec"
    return named[0] if len(named) == 1 else ""


def _pixel_scale_arcsec(numbers: HeaderNumbers) -> np.ndarray:
    """Side of a pixel on the sky, NaN where the header does not tell it."""
    header = numbers.header
    axes = [keyword_text(header, f"CTYPE{axis}") for axis in (1, 2)]
    units = [keyword_text(header, f"CUNIT{axis}") for axis in (1, 2)]
    scales = []
    if all(map(_CELESTIAL.match, axes)) and all(u == "" or u.startswith("deg") for u in units):
        scales.append(3600.0 * np.sqrt(_pixel_area(numbers)))
    scales += [numbers.numbers(keyword) for keyword in _PIXEL_SCALES if keyword in header]
    return _first_valid(scales)


def _first_valid(columns: list[np.ndarray]) -> np.ndarray:
    """Of each row the first number that is positive and finite, NaN where none is."""
    first = np.array(math.nan)
    for column in columns:
        first = np.where(np.isnan(first) & (column > 0) & (column < math.inf), column, first)
    return first


def _pixel_area(numbers: HeaderNumbers) -> np.ndarray:
    """Determinant of the linear WCS, by CD or by PC and CDELT, in the square of its units."""
    prefix = "CD" if "CD1_1" in numbers.header or "CD1_2" in numbers.header else "PC"

    def element(row: int, column: int) -> np.ndarray:
        value = numbers.numbers(f"{prefix}{row}_{column}")
        absent = float(prefix == "PC" and row == column)  # as the standard has it
        return np.where(np.isnan(value), absent, value)

    area = np.abs(element(1, 1) * element(2, 2) - element(1, 2) * element(2, 1))
    if prefix == "PC":
        area = area * np.abs(numbers.numbers("CDELT1") * numbers.numbers("CDELT2"))
    return area


def angle_degrees(text: str, sexagesimal_unit: str) -> float:
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
    n_axes = keyword_text(header, "WCSAXES")
    if not keyword_text(header, "CTYPE1") or n_axes not in ("", "2", "3", "4"):
        return math.nan, math.nan
    # Slow to import, and not every stamp needs them.
    from astropy.coordinates import ICRS
    from astropy.wcs import WCS
    from astropy.wcs.utils import wcs_to_celestial_frame

    column, row = (shape[-1] - 1) / 2, (shape[-2] - 1) / 2
    try:
        # wcslib puts 0 for what is absent or no number, and that would pass for a position.
        if not all(isinstance(header.get(key), float | int) for key in ("CRVAL1", "CRVAL2")):
            return math.nan, math.nan
        wcs = WCS(header, naxis=2) if has_distortion(header) else simple_wcs(header)
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


def simple_wcs(header: Any) -> Any:
    """``WCS(header, naxis=2)`` of a header without distortions, put together by hand.

    Because WCS renders and parses the header several times over to find distortions. No card beside
    those of `WCS_KEYWORD` has a say in it. A simulated stamp of 63 pixels is read in half the time.
    """
    from astropy.wcs import WCS, Wcsprm

    cards = "".join(str(card) for card in header.cards if WCS_KEYWORD.match(card.keyword))
    parameters = Wcsprm(cards.encode("ascii"), relax=True)
    parameters.unitfix()  # or units such as "degree" are refused
    wcs = WCS(naxis=2)
    wcs.wcs = parameters.sub(2)  # refuses a singular matrix, which the next line would repair
    wcs.fix()
    return wcs


def has_distortion(header: Any) -> bool:
    """Whether a WCS is more than a linear one and a projection."""
    return any(map(_DISTORTION.match, header))
