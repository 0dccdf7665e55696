"""Bands in files of their own, joined by the name of the object."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from io import BytesIO
from typing import Literal

import numpy as np

from vae_astro.data.sources.files import RefusedError, as_reject, unpack
from vae_astro.data.sources.fits.headers import (
    first_text,
    header_position,
    header_seeing,
    quiet_astropy,
    scan_headers,
)
from vae_astro.data.sources.fits.images import first_image
from vae_astro.data.sources.fits.reader import FitsReader
from vae_astro.data.sources.reader import Source
from vae_astro.data.sources.root import FileVersion, Root
from vae_astro.data.stamp import LARGEST_STAMP, Reject, Stamp, StampBlock
from vae_astro.errors import InputError
from vae_astro.settings import check_choice, check_int, check_text

__all__ = ["BandReader"]

LABELS = ("CLASS", "LABEL")
LARGEST_PIXEL_BYTES = 8
_OWN_IMAGE = re.compile(r"(\[\d+\])?")  # and not one of many in a cube
HEADER_BYTES = 2**22  # of headers and what follows the image, beside its pixels


@dataclass(frozen=True)
class BandReader:
    """Stamps whose bands are FITS files of their own: the first image of each.

    The name of a file tells object and band. Position, seeing and label are those of the first
    band that is there. The source of a stamp is the file of that band.

    Parameters
    ----------
    pattern : str
        How files are called, with ``{id}`` and ``{band}``: ``{id}_{band}.fits``. It is the end of
        the path below the root, so ``{band}/{id}.fits`` has a folder for each band. Files in
        different folders before it are different stamps of one object.
    bands : sequence of str
        What ``{band}`` can be, in the order of the stamp's bands. Other files are left alone.
    missing : {"reject", "pad"}
        What becomes of an object without all bands: a reject, or a stamp with NaN in their place.
    label_keyword : str, optional
        Keyword with the class. By default CLASS, then LABEL, where present.
    max_pixels : int
        Most pixels of one band; a header that claims more is refused before any memory is taken.

    Raises
    ------
    InputError
        If a setting is out of range; the message names its key.
    """

    bands: tuple[str, ...] = ()
    pattern: str = "{id}_{band}.fits"
    missing: Literal["reject", "pad"] = "reject"
    label_keyword: str | None = None
    max_pixels: int = LARGEST_STAMP**2

    def __post_init__(self) -> None:
        is_list = not isinstance(self.bands, str | Mapping) and isinstance(self.bands, Iterable)
        if not is_list or not all(isinstance(band, str | int) for band in self.bands):
            raise InputError(f"data.bands must be a list such as [g,r,i], got {self.bands!r}")
        # A configuration gives a list, and numbers where bands are called 1 and 2.
        object.__setattr__(self, "bands", tuple(str(band) for band in self.bands))
        unfit = [band for band in self.bands if not band.strip() or "/" in band]
        if not self.bands or unfit or len(set(self.bands)) < len(self.bands):
            raise InputError(
                f"data.bands must be one or more names, each once and without a slash, such as "
                f"[g,r,i], got {list(self.bands)}"
            )
        text = check_text("data.pattern", self.pattern)
        fields = re.findall(r"\{([^{}]*)\}", text)
        if set(fields) != {"id", "band"} or re.search(r"[{}]", re.sub(r"\{\w*\}", "", text)):
            raise InputError(
                "data.pattern must have the fields {id} and {band} and no others, such as "
                f"{{id}}_{{band}}.fits, got {text!r}"
            )
        check_choice("data.missing", self.missing, ("reject", "pad"))
        if self.label_keyword is not None:
            check_text("data.label_keyword", self.label_keyword)
        check_int("data.max_pixels", self.max_pixels, minimum=1)

    @property
    def band_names(self) -> tuple[str, ...]:
        """The bands, in their order."""
        return self.bands

    @property
    def has_noise(self) -> bool:
        """False: files of bands come without noise."""
        return False

    def find(self, root: Root) -> list[Source]:
        """One source for each object: the files of its bands, in their order.

        Raises
        ------
        InputError
            If no file is called as ``data.pattern`` has it; the message says what is there.
        """
        objects: dict[tuple[str, str], dict[int, FileVersion]] = {}
        files = root.list_files()
        for file in files:
            if named := self._named(file.name):
                folder, id, band = named
                objects.setdefault((folder, id), {})[band] = file
        if not objects:
            first = f"; the first is {files[0].name}" if files else ""
            raise InputError(
                f"data.root={root.address} holds {len(files)} files, none called as data.pattern="
                f"{self.pattern} with data.bands={list(self.bands)}{first}"
            )
        return [
            Source(tuple(found[band] for band in sorted(found)), n_bytes=_sum_bytes(found.values()))
            for _, found in sorted(objects.items())
        ]

    def read(self, sources: Sequence[Source], root: Root) -> Iterator[Stamp | Reject]:
        """One stamp for each source, or a `Reject`."""
        files = [file for source in sources for file in source.files]
        # FitsReader has the fast way; what it finds odd in the least is joined by the slow one.
        images = FitsReader(
            cube="bands", label_keyword=self.label_keyword, max_pixels=self.max_pixels
        ).read([Source((file,), n_bytes=file.n_bytes) for file in files], root)
        in_order = _Images(images)
        for source in sources:
            of_bands = [in_order.first_of(file.name) for file in source.files]
            yield self._join_plain(source, of_bands) or self._join_any(source, root)

    def _join_plain(self, source: Source, images: Sequence[Stamp | None]) -> Stamp | None:
        """The stamp of an object, if nothing is odd about any of its bands."""
        if len(images) < len(self.bands) and self.missing == "reject":
            return None
        names = [self._named(file.name) for file in source.files]
        shapes = {None if image is None else image.pixels.shape for image in images}
        if len(shapes) > 1 or images[0] is None or images[0].pixels.shape[0] != 1:
            return None
        pixels = np.full((len(self.bands), *images[0].pixels.shape[1:]), np.nan, np.float32)
        for name, image in zip(names, images, strict=True):
            if name is None or image is None:
                return None
            id, pixels[name[2]] = name[1], image.pixels[0]
        return replace(images[0], pixels=pixels, id=id, object_id=id, source=source.name)

    def _join_any(self, source: Source, root: Root) -> Stamp | Reject:
        """The stamp of an object whatever its files are, or what is wrong with them."""
        max_bytes = LARGEST_PIXEL_BYTES * self.max_pixels + HEADER_BYTES
        try:
            contents = list(root.read_many(source.files, max_bytes))
            return self._join(source, contents, max_bytes)
        except Exception as error:
            return as_reject(source.name, error)

    def _join(
        self, source: Source, contents: list[bytes | RefusedError | OSError], max_bytes: int
    ) -> Stamp:
        present = [self._named(file.name) for file in source.files]
        bands = [named[2] for named in present if named is not None]
        if len(bands) < len(self.bands) and self.missing == "reject":
            lost = [band for k, band in enumerate(self.bands) if k not in bands]
            raise RefusedError(
                "missing band",
                f"no file of {', '.join(lost)} called as {self.pattern}, only "
                f"{', '.join(file.name for file in source.files)}; data.missing=pad keeps the rest",
            )
        images: list[np.ndarray] = []
        raw_first = b""
        for file, content in zip(source.files, contents, strict=True):
            try:
                if isinstance(content, Exception):
                    raise content
                raw = unpack(content, max_bytes)
                images.append(first_image(raw, self.max_pixels, max_bytes))
            except RefusedError as error:
                raise RefusedError(error.reason, f"{file.name}: {error.detail}") from error
            except OSError as error:
                gone = isinstance(error, FileNotFoundError | PermissionError)
                raise RefusedError(
                    "vanished" if gone else "unreadable",
                    f"{file.name}: {type(error).__name__}: {error}",
                ) from error
            raw_first = raw_first or raw
        shapes = {image.shape for image in images}
        if len(shapes) > 1:
            found = [f"{self.bands[b]} {i.shape}" for b, i in zip(bands, images, strict=True)]
            raise RefusedError(
                "bands of different shapes", f"{', '.join(found)}; expected one shape (H, W)"
            )
        pixels = np.full((len(self.bands), *images[0].shape), np.nan, np.float32)
        for band, image in zip(bands, images, strict=True):
            pixels[band] = image
        if not np.isfinite(pixels).any():
            raise RefusedError("all pixels bad", f"none of {pixels.size} pixels is finite")
        named = self._named(source.name)
        id = named[1] if named is not None else source.name
        return self._stamp(pixels, id, source.name, raw_first)

    def _stamp(self, pixels: np.ndarray, id: str, source: str, raw: bytes) -> Stamp:
        """The stamp with what the header of its first band tells."""
        hdus, _ = scan_headers(BytesIO(raw))
        number = next(k for k, hdu in enumerate(hdus) if len(getattr(hdu, "shape", ())) == 2)
        keywords = [self.label_keyword] if self.label_keyword else list(LABELS)
        with quiet_astropy():
            headers = [hdus[number].header] + ([hdus[0].header] if number else [])
            ra, dec = header_position(headers, pixels.shape)
            return Stamp(
                pixels=pixels,
                id=id,
                object_id=id,
                source=source,
                ra=ra,
                dec=dec,
                label=first_text(headers, keywords),
                seeing=header_seeing(headers),
            )

    @cached_property
    def _expression(self) -> re.Pattern[str]:
        """The pattern as a regular expression; a field that is there twice is the same twice."""
        longest_first = sorted(self.bands, key=len, reverse=True)
        groups = {"id": r"[^/]+", "band": "|".join(map(re.escape, longest_first))}
        text = r"(?P<folder>(?:.*/)?)"
        seen = set()
        for part in re.split(r"(\{id\}|\{band\})", self.pattern.lstrip("/")):
            name = part[1:-1]
            if part not in ("{id}", "{band}"):
                text += re.escape(part)
            elif name in seen:
                text += f"(?P={name})"
            else:
                text += f"(?P<{name}>{groups[name]})"
                seen.add(name)
        return re.compile(text, re.DOTALL)

    def _named(self, name: str) -> tuple[str, str, int] | None:
        """Folder, object and number of the band of a file, or None if it is not called so."""
        found = self._expression.fullmatch(name)
        if found is None:
            return None
        return found["folder"], found["id"], self.bands.index(found["band"])


def _sum_bytes(files: Iterable[FileVersion]) -> int:
    return sum(file.n_bytes for file in files)


class _Images:
    """The images that a `FitsReader` finds, asked for file by file."""

    def __init__(self, items: Iterable[Stamp | StampBlock | Reject]) -> None:
        self._rows = _rows(items)
        self._row = next(self._rows, None)

    def first_of(self, name: str) -> Stamp | None:
        """The first image of a file, or None if it is none or one of a cube's many.

        Files are asked for in their order.
        """
        found, is_first = None, True
        while self._row is not None and self._row[0].startswith(name):
            source, block, k = self._row
            own = _OWN_IMAGE.fullmatch(source[len(name) :])
            if own is None and not source.startswith(f"{name}["):
                break
            if is_first and own and block is not None:
                found = Stamp(
                    pixels=np.array(block.pixels[k]),  # the next block takes the memory
                    id=name,
                    object_id=name,
                    source=name,
                    ra=float(block.ra[k]),
                    dec=float(block.dec[k]),
                    label=block.label[k],
                    seeing=float(block.seeing[k]),
                )
            is_first = False
            self._row = next(self._rows, None)
        return found


def _rows(
    items: Iterable[Stamp | StampBlock | Reject],
) -> Iterator[tuple[str, StampBlock | None, int]]:
    """Source, block and row in it of every image; no block where there is no plain one."""
    for item in items:
        if isinstance(item, StampBlock):
            yield from ((source, item, k) for k, source in enumerate(item.source))
        else:
            yield item.source, None, 0
