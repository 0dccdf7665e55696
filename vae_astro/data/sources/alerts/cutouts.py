"""What alerts of every shape share: cutouts to pixels, and stamps gathered into blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from vae_astro.data.sources.files import RefusedError, as_reject
from vae_astro.data.sources.fits.headers import sky_position
from vae_astro.data.sources.fits.images import first_image
from vae_astro.data.stamp import Reject, StampBlock, fit_to_size, plausible_seeing
from vae_astro.errors import InputError

__all__ = [
    "CUTOUTS",
    "FULL_CUTOUT",
    "CatalogueRow",
    "check_any_finite",
    "check_cutouts",
    "cutout_field",
    "fill_ztf_stamp",
    "in_blocks",
    "number",
    "renamed",
    "restore_edge",
    "ztf_fields",
]

CUTOUTS = ("science", "template", "difference")
FULL_CUTOUT = 63  # rows and columns of a ZTF cutout that no detector edge has shortened
QUADRANT_CENTRE = 1536.0  # half a side of the CCD quadrant that xpos and ypos count along
BLOCK_BYTES = 2**21  # of pixels in a block: what a processor's cache holds


class CatalogueRow(NamedTuple):
    """What is known of a stamp beside its pixels; see `Stamp`."""

    id: str
    object_id: str
    ra: float
    dec: float
    seeing: float
    label: str = ""


Fill = Callable[[dict[str, Any], np.ndarray, np.ndarray | None], CatalogueRow]


def check_cutouts(cutouts: object) -> tuple[str, ...]:
    """The setting ``data.cutouts`` as a tuple, else an `InputError`."""
    # A configuration gives a list; a tuple keeps the reader hashable and its repr one.
    if not isinstance(cutouts, Iterable):
        raise InputError(f"data.cutouts must be a list of cutouts, got {cutouts!r}")
    names = () if isinstance(cutouts, str) else tuple(cutouts)
    known = all(name in CUTOUTS for name in names)
    if not names or not known or len(set(names)) < len(names):
        raise InputError(
            f"data.cutouts must be one or more of {', '.join(CUTOUTS)}, each once, got {cutouts}"
        )
    return names


def cutout_field(cutout: str) -> str:
    """What ZTF and Rubin call a cutout in their packets."""
    return f"cutout{cutout.capitalize()}"


def ztf_fields(cutouts: tuple[str, ...]) -> tuple[str, ...]:
    """The fields of a ZTF packet that `fill_ztf_stamp` reads."""
    candidate = ("candid", "ra", "dec", "xpos", "ypos", "fwhm", "seeratio")
    return (
        "objectId",
        "candid",
        *(f"candidate.{key}" for key in candidate),
        *map(cutout_field, cutouts),
    )


def fill_ztf_stamp(
    alert: Mapping[str, Any], pixels: np.ndarray, cutouts: tuple[str, ...], max_bytes: int
) -> CatalogueRow:
    """Put the cutouts of a ZTF alert where its stamp goes.

    Parameters
    ----------
    alert : mapping
        Those of `ztf_fields` that it has; a cutout is gzipped FITS or a record with ``stampData``.
    pixels : ndarray, shape (C, H, W), float32
        Filled: the object is on the central pixel of every band, padding is NaN.
    cutouts : tuple of str
        The bands.
    max_bytes : int
        Most bytes of a cutout once unpacked.

    Returns
    -------
    CatalogueRow
        The rest of the stamp.

    Raises
    ------
    RefusedError
        If a cutout is missing or no image, no pixel is finite, or nothing names the alert.
    """
    candid = alert.get("candid") or alert.get("candidate.candid")
    if not candid:
        raise RefusedError("no identifier", "neither the packet nor its candidate has candid")
    x, y = number(alert, "candidate.xpos"), number(alert, "candidate.ypos")
    size = pixels.shape[-1]
    for band, name in zip(pixels, cutouts, strict=True):
        field = cutout_field(name)
        cutout = alert.get(field)
        raw = cutout.get("stampData") if isinstance(cutout, dict) else cutout
        if not isinstance(raw, bytes) or not raw:
            raise RefusedError("missing cutout", f"no {field}; see data.cutouts")
        try:
            image = first_image(raw, max_bytes // 4, max_bytes)
        except RefusedError as error:
            raise renamed(error, field) from error
        band[...] = fit_to_size(restore_edge(image, y, x), size)
    check_any_finite(pixels)
    ra, dec = sky_position(number(alert, "candidate.ra"), number(alert, "candidate.dec"))
    return CatalogueRow(
        id=str(candid),
        object_id=str(alert.get("objectId") or "").strip() or str(candid),
        ra=ra,
        dec=dec,
        seeing=math.nan if cutouts == ("template",) else _seeing(alert),
    )


def check_any_finite(pixels: np.ndarray) -> None:
    """Refuse a stamp, (C, H, W), without a finite pixel."""
    centre = pixels[:, pixels.shape[1] // 2, pixels.shape[2] // 2]
    if not np.isfinite(centre).any() and not np.isfinite(pixels).any():
        raise RefusedError("all pixels bad", f"none of {pixels.size} pixels is finite")


def renamed(error: RefusedError, field: str) -> RefusedError:
    """Why the image in a field is refused, with the name of the field."""
    reason = "cutout is not FITS" if error.reason == "not a FITS file" else error.reason
    return RefusedError(reason, f"{field}: {error.detail}")


def restore_edge(pixels: np.ndarray, ypos: float, xpos: float) -> np.ndarray:
    """Pad a ZTF cutout that the detector edge shortened, on the side where the sky is missing.

    The packet does not say which side was cut, but the position on the CCD quadrant does: a cutout
    of 63 x 48 at column 3056 of 3072 lost its last 15 columns, so its object lies at column 31 and
    not in the middle.

    Parameters
    ----------
    pixels : ndarray, shape (H, W)
        A cutout.
    ypos, xpos : float
        Row and column of the object on the quadrant, in pixels; NaN where unknown.

    Returns
    -------
    ndarray, shape (max(H, 63), max(W, 63))
        The input itself where nothing is missing or the position is unknown.
    """
    padding = [(0, 0), (0, 0)]
    for axis, position in enumerate((ypos, xpos)):
        n_missing = FULL_CUTOUT - pixels.shape[axis]
        if n_missing > 0 and position >= 0:
            padding[axis] = (n_missing, 0) if position < QUADRANT_CENTRE else (0, n_missing)
    if padding == [(0, 0), (0, 0)]:
        return pixels
    return np.pad(pixels, padding, constant_values=np.nan)


def number(alert: Mapping[str, Any], field: str) -> float:
    """A catalogue value; NaN where it is absent, null or text."""
    value = alert.get(field)
    return float(value) if isinstance(value, int | float) else math.nan


def in_blocks(
    alerts: Iterable[tuple[str, dict[str, Any] | Exception]],
    fill: Fill,
    shape: tuple[int, int, int],
    has_noise: bool = False,
) -> Iterator[StampBlock | Reject]:
    """Stamps of alerts, gathered in their order.

    Parameters
    ----------
    alerts : iterable of (str, dict or Exception)
        Source of each alert and its fields, or why it could not be read.
    fill : callable
        Puts an alert into the memory for its pixels and its noise (None without noise), and
        returns the rest; what it raises makes the alert a `Reject`.
    shape : tuple of int
        Of a stamp, (C, H, W).
    has_noise : bool
        Whether stamps have noise.
    """
    block = _OpenBlock(shape, has_noise)
    for source, alert in alerts:
        reject = None
        if isinstance(alert, Exception):
            reject = as_reject(source, alert)
        else:
            try:
                block.add(source, fill(alert, *block.next_slot()))
            except Exception as error:
                reject = as_reject(source, error)
        if block.is_full or (reject is not None and block.sources):
            yield block.close()
            block = _OpenBlock(shape, has_noise)
        if reject is not None:
            yield reject
    if block.sources:
        yield block.close()


class _OpenBlock:
    """A block that stamps are still put into."""

    def __init__(self, shape: tuple[int, int, int], has_noise: bool) -> None:
        length = max(1, BLOCK_BYTES // (4 * math.prod(shape)))
        self._pixels = np.empty((length, *shape), dtype=np.float32)
        self._noise = np.empty_like(self._pixels) if has_noise else None
        self._rows: list[CatalogueRow] = []
        self.sources: list[str] = []

    @property
    def is_full(self) -> bool:
        return len(self.sources) == len(self._pixels)

    def next_slot(self) -> tuple[np.ndarray, np.ndarray | None]:
        k = len(self.sources)
        return self._pixels[k], None if self._noise is None else self._noise[k]

    def add(self, source: str, row: CatalogueRow) -> None:
        self.sources.append(source)
        self._rows.append(row)

    def close(self) -> StampBlock:
        n = len(self.sources)
        ids, object_ids, ra, dec, seeing, labels = zip(*self._rows, strict=True)
        return StampBlock(
            pixels=self._pixels[:n],
            id=list(ids),
            object_id=list(object_ids),
            source=self.sources,
            label=list(labels),
            ra=np.array(ra),
            dec=np.array(dec),
            seeing=np.array(seeing),
            noise=None if self._noise is None else self._noise[:n],
        )


def _seeing(alert: Mapping[str, Any]) -> float:
    """FWHM of a point source on the difference image, in pixels; NaN where it is not told.

    The schema calls ``seeratio`` "difffwhm / fwhm", so their product is a figure of the image: it
    is the same for all candidates of an image, also where the ratio stops at 2.
    """
    fwhm, ratio = number(alert, "candidate.fwhm"), number(alert, "candidate.seeratio")
    return plausible_seeing(fwhm * ratio) if fwhm > 0 and ratio > 0 else math.nan
