"""ZTF alert packets as stamps: the cutouts of one Avro record, stacked as bands."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import fastavro
import numpy as np

from vae_astro.data.sources.files import RefusedError, as_reject, check_file, find_files, source_name
from vae_astro.data.sources.fits import FITS_SUFFIXES, first_image
from vae_astro.data.sources.headers import sky_position
from vae_astro.data.stamp import Reject, Stamp, fit_to_size, plausible_seeing
from vae_astro.errors import InputError

__all__ = ["CUTOUTS", "AlertReader"]

CUTOUTS = ("science", "template", "difference")
FULL_CUTOUT = 63  # rows and columns of a ZTF cutout that no detector edge has shortened
QUADRANT_CENTRE = 1536.0  # half a side of the CCD quadrant that xpos and ypos count along
MAX_PACKET_BYTES = 2**30
MAX_BLOCK_BYTES = 2**28  # largest Avro block once unpacked


@dataclass(frozen=True)
class AlertReader:
    """Stamps from ZTF alert packets, every schema from the first to 4.02.

    NaN pixels stay NaN, and so does the finite fill value -3.4028235e38 of some templates: the
    normaliser masks it. A cutout shortened by the edge of its detector is padded with NaN on the
    side that is missing, which keeps the object on the central pixel.

    The seeing is that of the difference image, to which science image and template are matched:
    ``fwhm * seeratio``. The ``fwhm`` of a packet is the object's own, and ``seeratio`` the ratio of
    the image's to it. Where only the template is read the seeing is unknown.

    Parameters
    ----------
    cutouts : tuple of str
        Which of ``science``, ``template`` and ``difference`` become bands, in this order.
    size : int
        Rows and columns of every stamp, in pixels; larger cutouts are cropped, smaller ones
        padded with NaN.
    max_cutout_bytes : int
        Most bytes of one cutout once unpacked; what unpacks to more is refused.

    Raises
    ------
    InputError
        If a setting is out of range; the message names its key.
    """

    cutouts: tuple[str, ...] = CUTOUTS
    size: int = FULL_CUTOUT
    max_cutout_bytes: int = 2**26

    def __post_init__(self) -> None:
        # A configuration gives a list; a tuple keeps the reader hashable and its repr one.
        if not isinstance(self.cutouts, Iterable):
            raise InputError(f"data.cutouts must be a list of cutouts, got {self.cutouts!r}")
        if not isinstance(self.cutouts, str):
            object.__setattr__(self, "cutouts", tuple(self.cutouts))
        unique = set(self.cutouts)
        if not unique or not unique <= set(CUTOUTS) or len(unique) < len(self.cutouts):
            raise InputError(
                f"data.cutouts must be one or more of {', '.join(CUTOUTS)}, each once, "
                f"got {self.cutouts}"
            )
        for key, value in (("size", self.size), ("max_cutout_bytes", self.max_cutout_bytes)):
            if value < 1:
                raise InputError(f"data.{key} must be at least 1, got {value}")

    @property
    def band_names(self) -> tuple[str, ...]:
        """The cutouts, in the order of the bands."""
        return self.cutouts

    def find(self, root: Path) -> list[Path]:
        """Every ``.avro`` file below ``root``, or ``root`` itself; see `find_files`."""
        return find_files(root, (".avro",), FITS_SUFFIXES, "These are FITS files: use data=fits")

    def read(self, path: Path, root: Path) -> Iterator[Stamp | Reject]:
        """One stamp per record of the packet; what cannot be read becomes a `Reject`.

        The source carries ``[k]`` where a packet holds several records.
        """
        name = source_name(path, root)
        # One record is held back: only the next one tells whether the file holds several.
        held: dict[str, Any] | None = None
        n_seen = 0
        try:
            for record in _records(path, root):
                if held is not None:
                    yield self._stamp(held, f"{name}[{n_seen - 1}]")
                held, n_seen = record, n_seen + 1
            if held is None:
                raise RefusedError("no record", "an Avro file without a record")
            yield self._stamp(held, f"{name}[{n_seen - 1}]" if n_seen > 1 else name)
        except Exception as error:
            if held is not None:
                yield self._stamp(held, f"{name}[{n_seen - 1}]")
            yield as_reject(f"{name}[{n_seen}]" if n_seen else name, error)

    def _stamp(self, record: dict[str, Any], source: str) -> Stamp | Reject:
        """The stamp of one record."""
        try:
            candidate = record.get("candidate") or {}
            candid = record.get("candid") or candidate.get("candid")
            if not candid:
                raise RefusedError(
                    "no identifier", "neither the packet nor its candidate has candid"
                )
            pixels = np.stack([self._cutout(record, candidate, name) for name in self.cutouts])
            if not np.isfinite(pixels).any():
                raise RefusedError("all pixels bad", f"none of {pixels.size} pixels is finite")
            ra, dec = sky_position(_number(candidate, "ra"), _number(candidate, "dec"))
            object_id = str(record.get("objectId") or "").strip() or str(candid)
            seeing = math.nan if self.cutouts == ("template",) else _seeing(candidate)
            return Stamp(pixels, str(candid), object_id, source, ra, dec, seeing=seeing)
        except Exception as error:
            return as_reject(source, error)

    def _cutout(self, record: dict[str, Any], candidate: dict[str, Any], name: str) -> np.ndarray:
        """One cutout, (size, size), float32, the object on its central pixel."""
        field = f"cutout{name.capitalize()}"
        cutout = record.get(field)
        raw = cutout.get("stampData") if isinstance(cutout, dict) else cutout
        if not raw:
            raise RefusedError("missing cutout", f"no {field}; see data.cutouts")
        try:
            pixels = first_image(raw, self.max_cutout_bytes // 4, self.max_cutout_bytes)
        except RefusedError as error:
            not_fits = error.reason == "not a FITS file"
            reason = "cutout is not FITS" if not_fits else error.reason
            raise RefusedError(reason, f"{field}: {error.detail}") from error
        x, y = _number(candidate, "xpos"), _number(candidate, "ypos")
        return fit_to_size(_restore_edge(pixels, y, x), self.size)


def _restore_edge(pixels: np.ndarray, ypos: float, xpos: float) -> np.ndarray:
    """Pad a cutout that the detector edge shortened, on the side where the sky is missing.

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


def _seeing(candidate: dict[str, Any]) -> float:
    """FWHM of a point source on the difference image, in pixels; NaN where it is not told.

    The schema calls ``seeratio`` "difffwhm / fwhm", so their product is a figure of the image: it
    is the same for all candidates of an image, also where the ratio stops at 2.
    """
    fwhm, ratio = _number(candidate, "fwhm"), _number(candidate, "seeratio")
    return plausible_seeing(fwhm * ratio) if fwhm > 0 and ratio > 0 else math.nan


def _number(candidate: dict[str, Any], key: str) -> float:
    """A catalogue value; NaN where it is absent, null or text."""
    value = candidate.get(key)
    return float(value) if isinstance(value, int | float) else math.nan


def _records(path: Path, root: Path) -> Iterator[dict[str, Any]]:
    """The records of an Avro file, one by one.

    Raises
    ------
    RefusedError
        If the file is no Avro file, claims too much memory, or is packed with an unknown codec.
    """
    n_bytes = check_file(path, root)
    if n_bytes > MAX_PACKET_BYTES:
        raise RefusedError("too large", f"{n_bytes} bytes, at most {MAX_PACKET_BYTES} are read")
    # In memory, a length that lies about the file cannot make Python reserve it.
    stream = BytesIO(path.read_bytes())
    head = stream.read(16)
    if not head.startswith(b"Obj\x01"):
        raise RefusedError("not an Avro file", f"begins with {head!r}, expected Obj and a 1")
    stream.seek(0)
    try:
        packet = fastavro.reader(stream)
        codec = packet.metadata.get("avro.codec", "null")
        if codec not in ("null", "deflate", "snappy"):
            raise RefusedError("unsupported codec", f"{codec}, expected null, deflate or snappy")
        if codec == "deflate":
            _check_blocks(stream)
        # A record takes at least a byte; a claim of more would never end.
        for record in islice(packet, n_bytes):
            if not isinstance(record, dict):
                kind = type(record).__name__
                raise RefusedError("unreadable", f"the Avro item is a {kind}, expected a record")
            yield record
    except (EOFError, ValueError) as error:
        text = str(error)
        if "codec is supported but you need to install" in text:
            raise RefusedError("unsupported codec", f"{text}: pip install cramjam") from error
        # fastavro meets the end of the file in a record, in the header or in a block's marker.
        if isinstance(error, EOFError) or "cannot read header" in text or "sync marker" in text:
            raise RefusedError("truncated file", f"the packet breaks off: {text}") from error
        raise


def _check_blocks(stream: BytesIO) -> None:
    """Refuse a deflate block that unpacks beyond the limit; the stream stays where it is.

    fastavro unpacks a block in one piece, a thousand times its size if it was made to.
    """
    start = stream.tell()
    while (n_records := _long(stream)) is not None and (n_bytes := _long(stream)) is not None:
        block = stream.read(max(0, n_bytes))
        if len(zlib.decompressobj(-15).decompress(block, MAX_BLOCK_BYTES + 1)) > MAX_BLOCK_BYTES:
            detail = f"a block of {n_records} records unpacks to more than {MAX_BLOCK_BYTES} bytes"
            raise RefusedError("too large", detail)
        stream.seek(16, 1)  # the marker after each block
    stream.seek(start)


def _long(stream: BytesIO) -> int | None:
    """An Avro integer, zigzag in 7-bit groups; None at the end of the file."""
    value = shift = 0
    while byte := stream.read(1):
        value |= (byte[0] & 0x7F) << shift
        shift += 7
        if not byte[0] & 0x80:
            return (value >> 1) ^ -(value & 1)
        if shift > 70:
            break
    return None
