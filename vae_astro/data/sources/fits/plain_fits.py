"""Plain FITS images, many files at once, at the pace of the disk.

The headers of a chunk of files are told by `HeaderTemplate`; values and pixels are then taken as
columns. Whatever makes a template is read by astropy as well and must come out the same, bit for
bit. A file that holds anything unusual is left to astropy as a whole.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from vae_astro.data.sources.fits.headers import quiet_astropy
from vae_astro.data.sources.fits.plain_chunks import Chunk, Memory
from vae_astro.data.sources.fits.plain_stamps import Identity, ImageRows, PlainStamps, header_words
from vae_astro.data.sources.fits.plain_values import CentreWcs
from vae_astro.data.sources.fits.standard import BLOCK_BYTES
from vae_astro.data.sources.fits.templates import (
    Columns,
    HeaderTemplate,
    NotPlainError,
    Wanted,
    find_header,
)
from vae_astro.data.stamp import Reject, StampBlock

__all__ = ["PlainReader", "plain_image"]

MAX_TEMPLATES = 64
_FIRST_ATTEMPTS = 32  # to make a template; more are granted as files come
_FILES_PER_ATTEMPT = 20
_XTENSION = np.frombuffer(b"XTENSION", np.uint64)[0]
_WORDS = BLOCK_BYTES // 8
_NONE = np.iinfo(np.int64).max

Item = StampBlock | Reject
Astropy = Callable[[str, BinaryIO], Iterator[Item]]


class _Headers(NamedTuple):
    """Headers of a chunk in their order; each attribute is a column."""

    start: np.ndarray  # in blocks
    file: np.ndarray
    kind: np.ndarray  # of its template

    def where(self, chosen: np.ndarray) -> _Headers:
        return _Headers(*(column[chosen] for column in self))


class PlainReader:
    """Reads what is plain, and hands on what is not.

    It remembers templates from call to call, and is not for two threads at a time.

    Parameters
    ----------
    hdu : int or str or None
        Number or EXTNAME of the one image to read of each file; all if None.
    identity : Identity
        How stamps are named.
    accepts : callable
        Whether an image of some shape is one stamp of an allowed size.
    read_all : callable
        All images of the file with this name and content, by astropy.
    """

    def __init__(
        self,
        hdu: int | str | None,
        identity: Identity,
        accepts: Callable[[tuple[int, ...]], bool],
        read_all: Astropy,
    ) -> None:
        self._hdu = hdu.strip().upper() if isinstance(hdu, str) else hdu
        self._identity, self._accepts, self._read_all = identity, accepts, read_all
        names = ("EXTNAME",) if isinstance(hdu, str) else ()
        self._wanted = Wanted((*identity.keywords, *names))
        self._templates: list[HeaderTemplate] = []
        self._wcs: dict[HeaderTemplate, CentreWcs | None] = {}
        self._n_attempts = self._n_files = 0

    def read(
        self,
        chunk: Chunk,
        others: Callable[[Any], Iterator[Item]],
        memory: Memory,
    ) -> Iterator[Item]:
        """All stamps of a chunk in the order of its files.

        Parameters
        ----------
        chunk : Chunk
            The files.
        others : callable
            What comes of an item of the chunk that is no plain file.
        memory : Memory
            Blocks of pixels, to be used again by the next call.
        """
        with quiet_astropy():
            self._n_files += len(chunk.names)
            templates = list(self._templates)
            headers = self._recognise(chunk, templates)
            plain, stamps = self._stamps(chunk, headers, templates, self._hdu)
            if len(self._wcs) > MAX_TEMPLATES:  # also of templates that are forgotten by now
                self._wcs = {t: self._wcs[t] for t in self._templates if t in self._wcs}
        item_of_file = [k for k, item in enumerate(chunk.items) if isinstance(item, int)]
        is_plain = np.zeros(len(chunk.items), dtype=bool)
        is_plain[item_of_file] = plain
        n_others = np.cumsum(~is_plain)
        next_item = 0
        if stamps is not None:
            item_of_row = np.array(item_of_file)[stamps.rows.file]
            before = n_others[item_of_row]
            breaks = np.concatenate(([False], before[1:] != before[:-1]))
            for row, item in stamps.items(breaks, memory):
                for k in range(next_item, item_of_row[row]):
                    if not is_plain[k]:
                        yield from others(chunk.items[k])
                next_item = item_of_row[row]
                yield item
        for k in range(next_item, len(chunk.items)):
            if not is_plain[k]:
                yield from others(chunk.items[k])

    def _recognise(self, chunk: Chunk, templates: list[HeaderTemplate]) -> _Headers:
        """The headers of all files that consist of nothing but images of known templates.

        Templates that are new are added to the list.
        """
        n_full = chunk.n_bytes // BLOCK_BYTES
        plain = n_full > 0
        if not self._wanted.is_plain or not plain.any():
            return _Headers(*np.zeros((3, 0), dtype=np.int64))
        begins = chunk.memory.view(np.uint64)[::_WORDS] == _XTENSION
        begins[chunk.first[plain]] = True
        start = np.flatnonzero(begins)
        file = np.searchsorted(chunk.first, start, side="right") - 1
        is_first = start == chunk.first[file]
        # Beyond the last full block there is no header of this file.
        room = chunk.first[file] + n_full[file] - start
        kind = np.full(len(start), -1)

        def match(k: int) -> None:
            unknown = (kind < 0) & plain[file] & (is_first == templates[k].is_primary)
            unknown &= room >= templates[k].n_bytes // BLOCK_BYTES
            if unknown.any():
                candidates = np.flatnonzero(unknown)
                words = header_words(chunk, templates[k], start[candidates])
                kind[candidates[templates[k].matches(words)]] = k

        for k in range(len(templates)):
            match(k)
        while len(unknown := np.flatnonzero((kind < 0) & plain[file])):
            header = int(unknown[0])
            place = int(file[header])
            at = int(start[header] - chunk.first[place]) * BLOCK_BYTES
            primary = None if is_first[header] else templates[kind[file == place][0]]
            learned = self._learn(chunk.names[place], chunk.content(place), at, primary)
            if learned is None:
                plain[place] = False
            else:
                templates.append(learned)
                match(len(templates) - 1)
        return _complete(chunk, _Headers(start, file, kind).where(plain[file]), templates)

    def _learn(
        self, name: str, content: memoryview, at: int, primary: HeaderTemplate | None
    ) -> HeaderTemplate | None:
        """The template of the header at some byte, if astropy gives the same stamp of its image.

        The primary header's template is that of another header of the file, or None.
        """
        allowed = _FIRST_ATTEMPTS + self._n_files // _FILES_PER_ATTEMPT
        if self._n_attempts > allowed or (raw := find_header(content[at:])) is None:
            return None
        try:
            template = HeaderTemplate.of(raw, self._wanted)
            if template.image is not None and not self._accepts(template.image.shape):
                return None
            before = b"" if primary is None else bytes(content[: primary.n_blocks * BLOCK_BYTES])
            sample = before + bytes(content[at : at + template.n_blocks * BLOCK_BYTES])
            templates = [template] if primary is None else [primary, template]
            if not self._is_confirmed(name, sample, len(before), templates):
                return None
        except NotPlainError:
            return None
        self._templates.append(template)
        if len(self._templates) > MAX_TEMPLATES:
            self._wcs.pop(self._templates.pop(0), None)
        return template

    def _is_confirmed(
        self, name: str, content: bytes, at: int, templates: list[HeaderTemplate]
    ) -> bool:
        """Whether astropy gives the same stamps of a file with one HDU for each template.

        The last HDU begins at byte ``at``.
        """
        chunk = Chunk.of(name, content)
        start = np.array([0, at // BLOCK_BYTES])[: len(templates)]
        headers = _Headers(start, np.zeros_like(start), np.arange(len(templates)))
        headers = _complete(chunk, headers, templates)
        _, stamps = self._stamps(chunk, headers, templates, hdu=None)
        if templates[-1].image is None:  # there is nothing to compare
            return len(headers.start) == len(templates)
        self._n_attempts += 1
        if stamps is None:
            return False
        found = stamps.items(np.zeros(len(stamps.rows), dtype=bool), {})
        return _parts(item for _, item in found) == _parts(self._read_all(name, BytesIO(content)))

    def _stamps(
        self,
        chunk: Chunk,
        headers: _Headers,
        templates: list[HeaderTemplate],
        hdu: int | str | None,
    ) -> tuple[np.ndarray, PlainStamps | None]:
        """Which files can be read, and their stamps; None if there is no such file."""
        plain = np.zeros(len(chunk.names), dtype=bool)
        if not len(headers.start):
            return plain, None
        order = np.arange(len(headers.start))
        is_first = np.concatenate(([True], headers.file[1:] != headers.file[:-1]))
        first = np.maximum.accumulate(np.where(is_first, order, 0))
        number = order - first
        is_image = np.array([template.image is not None for template in templates])[headers.kind]
        n_images = np.bincount(headers.file[is_image], minlength=len(plain))
        rows = ImageRows(
            file=headers.file,
            number=number,
            start=headers.start,
            kind=headers.kind,
            primary_start=headers.start[first],
            primary_kind=headers.kind[first],
            is_only=n_images[headers.file] == 1,
        )
        if isinstance(hdu, str):
            number_of_file = self._find_named(chunk, headers, templates, number, hdu)
            chosen = is_image & (number == number_of_file[headers.file])
        else:
            chosen = is_image if hdu is None else is_image & (number == hdu)
        rows = rows.where(chosen)
        plain[rows.file] = True
        while len(rows):
            stamps = PlainStamps(chunk, rows, templates, self._wcs_of, self._identity)
            if not stamps.odd.any():
                return plain, stamps
            plain[rows.file[stamps.odd]] = False
            rows = rows.where(plain[rows.file])
        return plain, None

    def _find_named(
        self,
        chunk: Chunk,
        headers: _Headers,
        templates: list[HeaderTemplate],
        number: np.ndarray,
        name: str,
    ) -> np.ndarray:
        """Number of the first HDU called so in each file, a very large one where there is none."""
        found = np.full(len(chunk.names), _NONE)
        odd = np.zeros(len(chunk.names), dtype=bool)
        for kind in np.unique(headers.kind).tolist():
            template = templates[kind]
            of_kind = np.flatnonzero(headers.kind == kind)
            column = Columns(template, header_words(chunk, template, headers.start[of_kind]))
            texts = column.texts("EXTNAME")
            if "EXTNAME" not in template.fields and template.is_primary:
                texts = ["PRIMARY"] * len(texts)
            same = of_kind[[text.upper() == name for text in texts]]
            np.minimum.at(found, headers.file[same], number[same])
            odd[headers.file[of_kind[column.odd]]] = True
        return np.where(odd, _NONE, found)

    def _wcs_of(self, template: HeaderTemplate) -> CentreWcs | None:
        if template not in self._wcs:
            self._wcs[template] = CentreWcs.of(template)
        return self._wcs[template]


def _complete(chunk: Chunk, headers: _Headers, templates: list[HeaderTemplate]) -> _Headers:
    """The headers of those files in which HDU follows HDU to the last byte."""
    if not len(headers.start):
        return headers
    start, file, kind = headers
    n_blocks = np.array([template.n_blocks for template in templates])[kind]
    n_header = np.array([template.n_bytes for template in templates])[kind]
    n_pixels = np.array([t.image.n_bytes if t.image else 0 for t in templates])[kind]
    end = start + n_blocks
    is_last = np.concatenate((file[1:] != file[:-1], [True]))
    file_end = chunk.first * BLOCK_BYTES + chunk.n_bytes
    # What fills the last block may be missing.
    ends_well = (start * BLOCK_BYTES + n_header + n_pixels <= file_end[file]) & (
        end * BLOCK_BYTES >= file_end[file]
    )
    follows = np.concatenate((start[1:] == end[:-1], [False]))
    broken = np.zeros(len(chunk.names), dtype=bool)
    broken[file[~np.where(is_last, ends_well, follows)]] = True
    return headers.where(~broken[file])


def _parts(items: Iterable[Item]) -> list[tuple[object, ...]]:
    """Everything about some stamps, so that equal means equal bit for bit."""
    parts: list[tuple[object, ...]] = []
    for item in items:
        if isinstance(item, Reject):
            parts.append((item.source, item.reason, item.detail))
            continue
        names = zip(item.id, item.object_id, item.source, item.label, strict=True)
        for k, name in enumerate(names):
            numbers = [repr(float(column[k])) for column in (item.ra, item.dec, item.seeing)]
            parts.append((*name, *numbers, _bits(item.pixels[k])))
    return parts


def _bits(pixels: np.ndarray) -> tuple[tuple[int, ...], bytes]:
    return pixels.shape, pixels.tobytes()


class _Images(threading.local):
    """Templates of first images, of one thread."""

    def __init__(self) -> None:
        self.templates: list[HeaderTemplate] = []
        self.n_attempts = self.n_images = 0


_images = _Images()


def plain_image(
    content: bytes, max_pixels: int, read: Callable[[bytes, int], np.ndarray]
) -> np.ndarray | None:
    """The image that a plain file begins with; None where astropy is needed.

    Parameters
    ----------
    content : bytes
        The unpacked file.
    max_pixels : int
        Most pixels; an image with more is left to astropy, which refuses it.
    read : callable
        Reads it by astropy, to check each new template.

    Returns
    -------
    ndarray, shape (H, W), float32
    """
    _images.n_images += 1
    for template in _images.templates:
        if len(content) < template.n_bytes:
            continue
        header = np.frombuffer(content, np.uint64, template.n_bytes // 8)
        if template.matches(header[np.newaxis])[0]:
            return _plain_pixels(content, template, max_pixels)
    with quiet_astropy():
        return _learn_image(content, max_pixels, read)


def _learn_image(
    content: bytes, max_pixels: int, read: Callable[[bytes, int], np.ndarray]
) -> np.ndarray | None:
    """As `plain_image`, with a template that is new."""
    raw = find_header(memoryview(content))
    allowed = _FIRST_ATTEMPTS + _images.n_images // _FILES_PER_ATTEMPT
    if raw is None or _images.n_attempts > allowed:
        return None
    _images.n_attempts += 1
    try:
        template = HeaderTemplate.of(raw, Wanted(values=False))
    except NotPlainError:
        return None
    pixels = _plain_pixels(content, template, max_pixels)
    if pixels is None or _bits(pixels) != _bits(read(content, max_pixels)):
        return None
    _images.templates = [*_images.templates[-MAX_TEMPLATES + 1 :], template]
    return pixels


def _plain_pixels(content: bytes, template: HeaderTemplate, max_pixels: int) -> np.ndarray | None:
    image = template.image
    if image is None or len(image.shape) != 2 or math.prod(image.shape) > max_pixels:
        return None
    if not template.is_primary or len(content) < template.n_bytes + image.n_bytes:
        return None
    n = math.prod(image.shape)
    pixels = np.empty((1, n), np.float32)
    image.convert(np.frombuffer(content, image.dtype, n, template.n_bytes)[np.newaxis], pixels)
    return pixels.reshape(image.shape)
