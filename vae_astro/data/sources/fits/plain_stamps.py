"""The stamps in the plain images of a chunk: who they are, where, and their pixels, as columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vae_astro.data.sources.files import RefusedError, as_reject
from vae_astro.data.sources.fits.plain_chunks import Chunk, Memory
from vae_astro.data.sources.fits.plain_values import (
    CentreWcs,
    image_labels,
    image_position,
    image_seeing,
    says_anything,
)
from vae_astro.data.sources.fits.standard import BLOCK_BYTES
from vae_astro.data.sources.fits.templates import Columns, HeaderTemplate
from vae_astro.data.stamp import Reject, StampBlock

__all__ = ["Identity", "ImageRows", "PlainStamps", "header_words"]

_WORD = np.dtype(np.uint64)


@dataclass(frozen=True)
class Identity:
    """How stamps are named and labelled.

    Attributes
    ----------
    keyword : str
        Keyword that names the object.
    is_required : bool
        Whether an image without it is refused; else it is called after its file.
    label_keywords : tuple of str
        Keywords of the class, the first that says anything.
    stem : callable
        Name of an object from that of its file.
    """

    keyword: str
    is_required: bool
    label_keywords: tuple[str, ...]
    stem: Callable[[str], str]

    @property
    def keywords(self) -> tuple[str, ...]:
        """All of them."""
        return (self.keyword, *self.label_keywords)


class ImageRows(NamedTuple):
    """Images of a chunk in their order; each attribute is a column.

    Attributes
    ----------
    file, number : ndarray of int
        Of the file in the chunk, and of the HDU in the file.
    start, kind : ndarray of int
        The block where its header begins, and the number of its template.
    primary_start, primary_kind : ndarray of int
        The same of the primary header of its file.
    is_only : ndarray of bool
        Whether its file has no other image.
    """

    file: np.ndarray
    number: np.ndarray
    start: np.ndarray
    kind: np.ndarray
    primary_start: np.ndarray
    primary_kind: np.ndarray
    is_only: np.ndarray

    def where(self, chosen: np.ndarray) -> ImageRows:
        """Some of the rows."""
        return ImageRows(*(column[chosen] for column in self))

    def __len__(self) -> int:
        return len(self.file)


def header_words(chunk: Chunk, template: HeaderTemplate, starts: np.ndarray) -> np.ndarray:
    """Headers that begin at some blocks, shape (N, n_bytes / 8), as `HeaderTemplate.matches` has
    them."""
    return chunk.columns(starts * BLOCK_BYTES, template.n_bytes // 8, _WORD)


class PlainStamps:
    """The stamps of some images, all of them from templates.

    Parameters
    ----------
    chunk : Chunk
        Where the files are.
    rows : ImageRows
        The images.
    templates : list of HeaderTemplate
        That ``rows.kind`` counts.
    wcs : callable
        The WCS of a template, or None.
    identity : Identity
        How they are named.

    Attributes
    ----------
    odd : ndarray of bool, shape (N,)
        Images that only astropy may read; what the others are is right nevertheless.
    """

    def __init__(
        self,
        chunk: Chunk,
        rows: ImageRows,
        templates: list[HeaderTemplate],
        wcs: Callable[[HeaderTemplate], CentreWcs | None],
        identity: Identity,
    ) -> None:
        self.rows = rows
        self._chunk, self._templates = chunk, templates
        self._identity, self._wcs = identity, wcs
        n = len(rows)
        self.odd = np.zeros(n, dtype=bool)
        self._ra, self._dec, self._seeing = (np.empty(n) for _ in range(3))
        self._texts: list[list[str]] = [[""] * n for _ in range(4)]
        pairs = rows.kind * len(templates) + rows.primary_kind
        for pair in np.unique(pairs).tolist():
            chosen = np.flatnonzero(pairs == pair)
            self._describe(chosen, *divmod(pair, len(templates)))

    def _describe(self, chosen: np.ndarray, kind: int, primary_kind: int) -> None:
        """Fill in the images of one template, in files that begin with another one."""
        rows, template = self.rows.where(chosen), self._templates[kind]
        headers = [Columns(template, header_words(self._chunk, template, rows.start))]
        primary = self._templates[primary_kind]
        if not template.is_primary and says_anything(primary, self._identity.keywords):
            words = header_words(self._chunk, primary, rows.primary_start)
            headers.append(Columns(primary, words))
        image = template.image
        assert image is not None
        self._ra[chosen], self._dec[chosen] = image_position(
            headers, image.shape, self._wcs(template)
        )
        self._seeing[chosen] = image_seeing(headers)
        columns = [
            *self._identify(headers, rows),
            image_labels(headers, self._identity.label_keywords),
        ]
        if len(chosen) == len(self.rows):
            self._texts = columns
        else:
            for whole, column in zip(self._texts, columns, strict=True):
                for row, text in zip(chosen.tolist(), column, strict=True):
                    whole[row] = text
        self.odd[chosen] = np.logical_or.reduce([header.odd for header in headers])

    def _identify(self, headers: list[Columns], rows: ImageRows) -> tuple[list[str], ...]:
        """Identifiers, objects and sources of some images."""
        names = [self._chunk.names[file] for file in rows.file.tolist()]
        sources = names
        if not rows.is_only.all():
            columns = zip(names, rows.number.tolist(), rows.is_only.tolist(), strict=True)
            sources = [
                name if is_only else f"{name}[{number}]" for name, number, is_only in columns
            ]
        own = headers[0].texts(self._identity.keyword)
        if all(own):
            return own, own, sources
        inherited = (
            headers[1].texts(self._identity.keyword) if len(headers) > 1 else [""] * len(own)
        )
        if self._identity.is_required:
            headers[0].odd |= [not (a or b) for a, b in zip(own, inherited, strict=True)]
        ids, objects = [], []
        for id, text, name, source in zip(own, inherited, names, sources, strict=True):
            # What is not the image's own name is told from the others' by where the image stands.
            called = id or (text or self._identity.stem(name)) + source[len(name) :]
            ids.append(called)
            objects.append(id or text or called)
        return ids, objects, sources

    def items(
        self, breaks: np.ndarray, memory: Memory
    ) -> Iterator[tuple[int, StampBlock | Reject]]:
        """All of them in order, as large blocks as can be.

        Parameters
        ----------
        breaks : ndarray of bool, shape (N,)
            Images before which something else comes.
        memory : Memory
            Blocks of pixels by shape, to be used again.

        Yields
        ------
        row : int
            The first image of the item.
        item : StampBlock or Reject
            Images of one shape; or one without a finite pixel.
        """
        shapes = [template.image.shape if template.image else () for template in self._templates]
        shapes = [(1, *shape)[-3:] for shape in shapes]
        unique = sorted(set(shapes))
        shape = np.array([unique.index(shape) for shape in shapes])[self.rows.kind]
        place = np.empty(len(self.rows), dtype=np.int64)  # of each image in the block of its shape
        bad = np.empty(len(self.rows), dtype=bool)
        blocks = {}
        for k in np.unique(shape).tolist():
            members = np.flatnonzero(shape == k)
            place[members] = np.arange(len(members))
            if len(memory.get(unique[k], ())) < len(members):
                memory[unique[k]] = np.empty((len(members), *unique[k]), np.float32)
            block = blocks[k] = memory[unique[k]][: len(members)]
            self._fill(block.reshape(len(members), -1), self.rows.kind[members], members)
            bad[members] = ~np.isfinite(block).any(axis=(1, 2, 3))
        change = shape[1:] != shape[:-1]
        breaks = breaks | bad | np.concatenate(([True], change | bad[:-1]))
        first_rows = np.flatnonzero(breaks).tolist()
        for first, after in zip(first_rows, [*first_rows[1:], len(self.rows)], strict=True):
            block = blocks[int(shape[first])][place[first] : place[first] + after - first]
            if bad[first]:
                error = RefusedError("all pixels bad", f"none of {block.size} pixels is finite")
                yield first, as_reject(self._texts[2][first], error)
            else:
                yield first, self._block(slice(first, after), block)

    def _fill(self, pixels: np.ndarray, kinds: np.ndarray, rows: np.ndarray) -> None:
        """The pixels of some images, shape (N, n), as their templates have them."""
        for kind in np.unique(kinds).tolist():
            template = self._templates[kind]
            assert template.image is not None
            chosen = np.flatnonzero(kinds == kind)
            starts = self.rows.start[rows[chosen]] * BLOCK_BYTES + template.n_bytes
            stored = self._chunk.columns(starts, pixels.shape[1], template.image.dtype)
            if len(chosen) == len(pixels):
                template.image.convert(stored, pixels)
            else:
                some = np.empty(stored.shape, np.float32)
                template.image.convert(stored, some)
                pixels[chosen] = some

    def _block(self, rows: slice, pixels: np.ndarray) -> StampBlock:
        """Consecutive images of one shape."""
        id, object_id, source, label = (column[rows] for column in self._texts)
        return StampBlock(
            pixels=pixels,
            id=id,
            object_id=object_id,
            source=source,
            label=label,
            ra=self._ra[rows],
            dec=self._dec[rows],
            seeing=self._seeing[rows],
        )
