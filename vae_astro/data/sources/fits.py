"""FITS files as stamps: single images, extensions and cubes, plain or compressed."""

from __future__ import annotations

import math
import os
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import pairwise
from types import EllipsisType
from typing import Any, BinaryIO, Literal

import numpy as np
from astropy.io import fits

from vae_astro.data.sources.files import (
    GZIP_OR_BZIP2,
    MAX_UNPACKED_BYTES,
    RefusedError,
    as_reject,
    unpack,
)
from vae_astro.data.sources.headers import (
    first_text,
    header_position,
    header_seeing,
    keyword_text,
    quiet_astropy,
    scan_headers,
)
from vae_astro.data.sources.plain_chunks import Chunk, Memory, read_chunks
from vae_astro.data.sources.plain_fits import PlainReader, plain_image
from vae_astro.data.sources.plain_stamps import Identity
from vae_astro.data.sources.reader import Source
from vae_astro.data.sources.root import FileVersion, Root
from vae_astro.data.stamp import LARGEST_STAMP, Reject, StampBlock
from vae_astro.errors import InputError
from vae_astro.settings import check_text

__all__ = ["FITS_SUFFIXES", "FitsReader", "first_image"]

FITS_SUFFIXES = (
    *(f".{name}{packed}" for name in ("fits", "fit", "fts") for packed in ("", ".gz", ".bz2")),
    ".fz",
)
MAX_BANDS_AUTO = 6  # first axis up to which a cube is taken for the bands of one object
IN_MEMORY_BYTES = 2**26  # a larger uncompressed file is read piece by piece from disk
KEPT_BYTES = 2**24  # of memory that is used again by the next call
MAX_READERS = 16  # whose templates are remembered
_LABELS = ["CLASS", "LABEL"]
_SUFFIX = re.compile(r"(\.(fits|fit|fts))?(\.(gz|bz2|fz))?$", re.IGNORECASE)

Layout = tuple[int, int, int, int]  # stamps, bands, rows, columns
Item = StampBlock | Reject

_of_thread = threading.local()  # a template has a WCS whose numbers are set image by image


@dataclass(frozen=True)
class FitsReader:
    """Stamps from FITS files: one per image, or many from a cube.

    Every image HDU of a file is one stamp, also weight maps and masks: choose one with ``hdu``.
    BSCALE, BZERO and BLANK are applied as astropy does. Identifier, label, position and seeing are
    looked up in the header of the image, then in the primary header, and hold for all planes of a
    cube.
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
    max_pixels: int = LARGEST_STAMP**2

    def __post_init__(self) -> None:
        unfit = isinstance(self.hdu, bool) or not isinstance(self.hdu, int | str | None)
        if unfit or (isinstance(self.hdu, int) and self.hdu < 0):
            raise InputError(f"data.hdu must be a number from 0, a name or null, got {self.hdu}")
        if self.cube not in ("auto", "bands", "stamps"):
            raise InputError(f"data.cube must be auto, bands or stamps, got {self.cube!r}")
        for key, word in (("id", self.id_keyword), ("label", self.label_keyword)):
            if word is not None:
                check_text(f"data.{key}_keyword", word)
        if self.max_pixels < 1:
            raise InputError(f"data.max_pixels must be at least 1, got {self.max_pixels}")

    @property
    def band_names(self) -> None:
        """None: only the files can tell how many bands there are."""

    @property
    def has_noise(self) -> bool:
        """False: no plane is taken for the noise of another."""
        return False

    def find(self, root: Root) -> list[Source]:
        """One source for each FITS file below ``root``; see `Root.find`."""
        advice = "These are alert packets: use data=alerts"
        files = root.find(FITS_SUFFIXES, (".avro",), advice)
        return [Source((file,), n_bytes=file.n_bytes) for file in files]

    def read(self, sources: Sequence[Source], root: Root) -> Iterator[Item]:
        """All stamps of some files, in file order; what cannot be read becomes a `Reject`.

        Stamps of plain images come in blocks whose memory is used again for the next one.
        """
        plain = self._plain_reader()
        # Fresh memory costs as much as filling it. Who stops half-way does not give it back.
        memory: Memory = _of_thread.__dict__.pop("memory", {})
        for chunk in read_chunks(sources, root, IN_MEMORY_BYTES, memory):

            def others(item: Any, chunk: Chunk = chunk) -> Iterator[Item]:
                if isinstance(item, Reject):
                    yield item
                elif isinstance(item, FileVersion):
                    yield from self._read_from_disk(item, root)
                elif isinstance(item, tuple):
                    yield from self._read_stream(item[0], BytesIO(item[1]))
                else:
                    content = BytesIO(chunk.content(item))
                    yield from self._read_stream(chunk.names[item], content)

            yield from plain.read(chunk, others, memory)
        _of_thread.memory = {k: a for k, a in memory.items() if a.nbytes <= KEPT_BYTES}

    def _plain_reader(self) -> PlainReader:
        """The one of this thread that remembers what headers look like."""
        readers: dict[FitsReader, PlainReader] = _of_thread.__dict__.setdefault("readers", {})
        if self not in readers:
            if len(readers) == MAX_READERS:
                del readers[next(iter(readers))]
            labels = [self.label_keyword] if self.label_keyword else _LABELS
            identity = Identity(
                keyword=(self.id_keyword or "OBJID").upper(),
                is_required=self.id_keyword is not None,
                label_keywords=tuple(label.upper() for label in labels),
                stem=_stem,
            )
            everything = replace(self, hdu=None)
            readers[self] = PlainReader(
                self.hdu, identity, self._is_one_stamp, everything._read_stream
            )
        return readers[self]

    def _is_one_stamp(self, shape: tuple[int, ...]) -> bool:
        """Whether an image of this shape is a single stamp of an allowed size."""
        try:
            n_stamps, *stamp_shape = self._layout(shape)
        except RefusedError:
            return False
        return n_stamps == 1 and math.prod(stamp_shape) <= self.max_pixels

    def _read_from_disk(self, file: FileVersion, root: Root) -> Iterator[Item]:
        """All stamps of a file that is too large for memory, unless it is packed."""
        try:
            with root.open(file) as stream:
                packed = stream.read(3).startswith(GZIP_OR_BZIP2)
                stream.seek(0)
                if packed and file.n_bytes > MAX_UNPACKED_BYTES:
                    detail = f"{file.n_bytes} compressed bytes; unpack it first"
                    raise RefusedError("too large", detail)
                unpacked = BytesIO(unpack(stream.read())) if packed else stream
                yield from self._read_stream(file.name, unpacked)
        except Exception as error:
            yield as_reject(file.name, error)

    def _read_stream(self, name: str, stream: BinaryIO) -> Iterator[Item]:
        """All stamps of an unpacked file, by astropy."""
        try:
            hdus, lost = scan_headers(stream)
            images = [number for number, hdu in enumerate(hdus) if _holds_image(hdu)]
            with quiet_astropy():
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
            names = [str(hdu.name).strip().upper() for hdu in hdus]
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
    ) -> Iterator[Item]:
        """The stamps of one image HDU: one by one, or a cube's in blocks."""
        source, hdu = name + suffix, hdus[number]
        try:
            with quiet_astropy():
                n_stamps, *stamp_shape = layout = self._layout(hdu.shape)
                _check_claims(hdu, layout, self.max_pixels, stream)
                headers = [hdu.header] if number == 0 else [hdu.header, hdus[0].header]
                text, origin = self._identify(headers, name)
                label = first_text(headers, [self.label_keyword] if self.label_keyword else _LABELS)
                ra, dec = header_position(headers, hdu.shape)
                seeing = header_seeing(headers)
            n_block = max(1, self.max_pixels // math.prod(stamp_shape))
            for first in range(0, n_stamps, n_block):
                block = slice(first, min(first + n_block, n_stamps)) if n_stamps > 1 else ...
                stamps = _pixels(hdu, block).reshape(-1, *stamp_shape)
                for planes, good in _alike(np.isfinite(stamps).any(axis=(1, 2, 3))):
                    whole = range(first + planes.start, first + planes.stop)
                    places = [f"[{k}]" if n_stamps > 1 else "" for k in whole]
                    sources = [name + (f"[{number}]{p}" if p else suffix) for p in places]
                    if not good:
                        detail = f"none of {math.prod(stamp_shape)} pixels is finite"
                        error = RefusedError("all pixels bad", detail)
                        yield from (as_reject(source, error) for source in sources)
                        continue
                    tails = places if origin == "image" else [s[len(name) :] for s in sources]
                    ids = [text + tail for tail in tails]
                    n = len(ids)
                    yield StampBlock(
                        pixels=stamps[planes],
                        id=ids,
                        object_id=ids if origin == "file" else [text] * n,
                        source=sources,
                        label=[label] * n,
                        ra=np.full(n, ra),
                        dec=np.full(n, dec),
                        seeing=np.full(n, seeing),
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
        if text := keyword_text(headers[0], keyword):
            return text, "image"
        if text := keyword_text(headers[-1], keyword):
            return text, "primary"
        if self.id_keyword:
            raise RefusedError(
                "no identifier",
                f"the header has no {keyword}; change data.id_keyword, or null to use file names",
            )
        return _stem(name), "file"


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
    pixels = plain_image(content, max_pixels, _first_image)
    return _first_image(content, max_pixels) if pixels is None else pixels


def _first_image(content: bytes, max_pixels: int) -> np.ndarray:
    """`first_image` of an unpacked file, by astropy."""
    stream = BytesIO(content)
    hdus, lost = scan_headers(stream)
    with quiet_astropy():
        for hdu in hdus:
            if _holds_image(hdu):
                if len(hdu.shape) != 2 or min(hdu.shape) < 1:
                    raise RefusedError("wrong dimensions", f"shape {hdu.shape}, expected (H, W)")
                _check_claims(hdu, (1, 1, *hdu.shape), max_pixels, stream)
                return _pixels(hdu, ...)
        raise lost or RefusedError("no image", f"holds {_listing(hdus)}, expected an image")


def _stem(name: str) -> str:
    """Name of a file without folders and suffix."""
    return _SUFFIX.sub("", name.rpartition("/")[2])


def _alike(flags: np.ndarray) -> Iterator[tuple[slice, bool]]:
    """Runs of equal flags, each with its flag."""
    edges = [0, *(np.flatnonzero(flags[1:] != flags[:-1]) + 1).tolist(), len(flags)]
    for first, after in pairwise(edges):
        yield slice(first, after), bool(flags[first])


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
