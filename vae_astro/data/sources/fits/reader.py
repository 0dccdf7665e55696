"""FITS files as stamps: single images, extensions and cubes, plain or compressed."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from io import BytesIO
from itertools import pairwise
from typing import Any, BinaryIO, Literal

import numpy as np

from vae_astro.data.sources.files import (
    GZIP_OR_BZIP2,
    MAX_UNPACKED_BYTES,
    RefusedError,
    as_reject,
    unpack,
)
from vae_astro.data.sources.fits.headers import (
    first_text,
    header_position,
    header_seeing,
    keyword_text,
    quiet_astropy,
    scan_headers,
)
from vae_astro.data.sources.fits.images import (
    FITS_SUFFIXES,
    Layout,
    check_claims,
    holds_image,
    listing,
    pixels_of,
)
from vae_astro.data.sources.fits.plain_chunks import Chunk, Memory, read_chunks
from vae_astro.data.sources.fits.plain_fits import PlainReader
from vae_astro.data.sources.fits.plain_stamps import Identity
from vae_astro.data.sources.fits.planes import Planes, plane_values
from vae_astro.data.sources.reader import Source
from vae_astro.data.sources.root import FileVersion, Root
from vae_astro.data.stamp import LARGEST_STAMP, Reject, StampBlock
from vae_astro.errors import InputError
from vae_astro.settings import check_text

__all__ = ["FitsReader"]

MAX_BANDS_AUTO = 6  # first axis up to which a cube is taken for the bands of one object
IN_MEMORY_BYTES = 2**26  # a larger uncompressed file is read piece by piece from disk
KEPT_BYTES = 2**24  # of memory that is used again by the next call
MAX_READERS = 16  # whose templates are remembered
_LABELS = ["CLASS", "LABEL"]
_SUFFIX = re.compile(r"(\.(fits|fit|fts))?(\.(gz|bz2|fz))?$", re.IGNORECASE)

Item = StampBlock | Reject

_of_thread = threading.local()  # a template has a WCS whose numbers are set image by image


@dataclass(frozen=True)
class FitsReader:
    """Stamps from FITS files: one per image, or many from a cube.

    Every image HDU of a file is one stamp, unless it is named as the noise or the mask of others;
    choose one with ``hdu``.
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
    noise_hdu, noise_files, noise_kind, mask_hdu, mask_files, mask_bits, mask_good
        Where the noise and the mask of an image are; see `Planes`. Files with planes are read by
        astropy.

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
    noise_hdu: int | str | None = None
    noise_files: str | None = None
    noise_kind: Literal["std", "variance", "inverse_variance", "weight"] = "std"
    mask_hdu: int | str | None = None
    mask_files: str | None = None
    mask_bits: tuple[int, ...] | None = None
    mask_good: bool = False

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
        object.__setattr__(self, "mask_bits", self.planes.mask_bits)

    @cached_property
    def planes(self) -> Planes:
        """Where noise and mask are."""
        return Planes(
            self.noise_hdu,
            self.noise_files,
            self.noise_kind,
            self.mask_hdu,
            self.mask_files,
            self.mask_bits,
            self.mask_good,
        )

    @property
    def band_names(self) -> None:
        """None: only the files can tell how many bands there are."""

    @property
    def has_noise(self) -> bool:
        """Whether a plane with it was named."""
        return self.planes.has_noise

    def find(self, root: Root) -> list[Source]:
        """One source for each FITS file below ``root``; see `Root.find`."""
        advice = "These are alert packets: use data=alerts"
        files = root.find(FITS_SUFFIXES, (".avro",), advice)
        return [
            Source(group, n_bytes=sum(file.n_bytes for file in group))
            for group in self.planes.group(files)
        ]

    def read(self, sources: Sequence[Source], root: Root) -> Iterator[Item]:
        """All stamps of some files, in file order; what cannot be read becomes a `Reject`.

        Stamps of plain images come in blocks whose memory is used again for the next but one.
        """
        if self.planes.has_noise or self.planes.has_mask:
            for source in sources:
                yield from self._read_with_planes(source, root)
            return
        plain = self._plain_reader()
        # Fresh memory costs as much as filling it. Who stops half-way does not give it back.
        memory: list[Memory] = _of_thread.__dict__.pop("memory", [{}, {}])
        for chunk in read_chunks(sources, root, IN_MEMORY_BYTES, memory[0]):

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

            is_taken = False
            for item in plain.read(chunk, others, memory[0]):
                is_taken |= isinstance(item, StampBlock)
                yield item
            if is_taken:  # and may be worked on while the next chunk is read
                memory.reverse()
        _of_thread.memory = [
            {shape: array for shape, array in each.items() if array.nbytes <= KEPT_BYTES}
            for each in memory
        ]

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

    def _read_with_planes(self, source: Source, root: Root) -> Iterator[Item]:
        """All stamps of a file, with their noise and without what is masked."""
        try:
            self.planes.require(source.files)
            with ExitStack() as opened:
                streams = [opened.enter_context(_unpacked(file, root)) for file in source.files]
                yield from self._read_stream(source.name, streams[0], streams[1:])
        except Exception as error:
            yield as_reject(source.name, error)

    def _read_from_disk(self, file: FileVersion, root: Root) -> Iterator[Item]:
        """All stamps of a file that is too large for memory, unless it is packed."""
        try:
            with _unpacked(file, root) as stream:
                yield from self._read_stream(file.name, stream)
        except Exception as error:
            yield as_reject(file.name, error)

    def _read_stream(
        self, name: str, stream: BinaryIO, plane_streams: Sequence[BinaryIO] = ()
    ) -> Iterator[Item]:
        """All stamps of an unpacked file, by astropy."""
        try:
            hdus, lost = scan_headers(stream)
            images = [number for number, hdu in enumerate(hdus) if holds_image(hdu)]
            images = self.planes.without_planes(hdus, images)
            others = [scan_headers(plane_stream)[0] for plane_stream in plane_streams]
            with quiet_astropy():
                chosen = self._choose(hdus, images, lost)
            for number in chosen:
                suffix = f"[{number}]" if len(images) > 1 else ""
                try:
                    planes = self.planes.of_image(hdus, images, chosen, number, others)
                except RefusedError as error:
                    yield as_reject(name + suffix, error)
                    continue
                yield from self._read_image(hdus, number, name, suffix, planes)
            if lost is not None and self.hdu is None:
                raise lost
        except Exception as error:
            yield as_reject(name, error)

    def _choose(self, hdus: list[Any], images: list[int], lost: RefusedError | None) -> list[int]:
        """Numbers of the HDUs to read."""
        if self.hdu is None:
            if images:
                return images
            raise lost or RefusedError("no image", f"holds {listing(hdus)}, expected an image")
        if isinstance(self.hdu, int):
            number = self.hdu if self.hdu < len(hdus) else None
        else:
            names = [str(hdu.name).strip().upper() for hdu in hdus]
            wanted = self.hdu.strip().upper()
            number = names.index(wanted) if wanted in names else None
        if number is None:
            raise lost or RefusedError(
                "no such HDU", f"data.hdu={self.hdu} asked for, but it holds {listing(hdus)}"
            )
        if number not in images:
            raise RefusedError(
                "no image", f"data.hdu={self.hdu} is no image; it holds {listing(hdus)}"
            )
        return [number]

    def _read_image(
        self, hdus: list[Any], number: int, name: str, suffix: str, planes: dict[str, Any]
    ) -> Iterator[Item]:
        """The stamps of one image HDU: one by one, or a cube's in blocks."""
        source, hdu = name + suffix, hdus[number]
        try:
            with quiet_astropy():
                n_stamps, *stamp_shape = layout = self._layout(hdu.shape)
                for claiming in (hdu, *planes.values()):
                    check_claims(claiming, layout, self.max_pixels)
                headers = [hdu.header] if number == 0 else [hdu.header, hdus[0].header]
                text, origin = self._identify(headers, name)
                label = first_text(headers, [self.label_keyword] if self.label_keyword else _LABELS)
                ra, dec = header_position(headers, hdu.shape)
                seeing = header_seeing(headers)
            n_block = max(1, self.max_pixels // math.prod(stamp_shape))
            for first in range(0, n_stamps, n_block):
                block = slice(first, min(first + n_block, n_stamps)) if n_stamps > 1 else ...
                stamps = pixels_of(hdu, block).reshape(-1, *stamp_shape)
                values = {what: plane_values(plane, block) for what, plane in planes.items()}
                stamps, noise = self.planes.apply(stamps, values.get("noise"), values.get("mask"))
                for run, good in _alike(np.isfinite(stamps).any(axis=(1, 2, 3))):
                    whole = range(first + run.start, first + run.stop)
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
                        pixels=stamps[run],
                        id=ids,
                        object_id=ids if origin == "file" else [text] * n,
                        source=sources,
                        label=[label] * n,
                        ra=np.full(n, ra),
                        dec=np.full(n, dec),
                        seeing=np.full(n, seeing),
                        noise=None if noise is None else noise[run],
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


@contextmanager
def _unpacked(file: FileVersion, root: Root) -> Iterator[BinaryIO]:
    """A file as a stream of its unpacked content."""
    with root.open(file) as stream:
        packed = stream.read(3).startswith(GZIP_OR_BZIP2)
        stream.seek(0)
        if packed and file.n_bytes > MAX_UNPACKED_BYTES:
            detail = f"{file.n_bytes} compressed bytes; unpack it first"
            raise RefusedError("too large", detail)
        yield BytesIO(unpack(stream.read())) if packed else stream


def _stem(name: str) -> str:
    """Name of a file without folders and suffix."""
    return _SUFFIX.sub("", name.rpartition("/")[2])


def _alike(flags: np.ndarray) -> Iterator[tuple[slice, bool]]:
    """Runs of equal flags, each with its flag."""
    edges = [0, *(np.flatnonzero(flags[1:] != flags[:-1]) + 1).tolist(), len(flags)]
    for first, after in pairwise(edges):
        yield slice(first, after), bool(flags[first])
