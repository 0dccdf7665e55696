"""Stamps cut from mosaics at the positions of a catalogue, or of the sources found in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from vae_astro.data.sources.files import RefusedError, as_reject
from vae_astro.data.sources.fits.images import FITS_SUFFIXES
from vae_astro.data.sources.fits.planes import Planes
from vae_astro.data.sources.mosaics.catalogue import (
    Catalogue,
    check_columns,
    find_catalogue,
    read_catalogue,
)
from vae_astro.data.sources.mosaics.catalogue_rows import (
    overlapping,
    rows_inside_grid,
    rows_inside_mosaics,
    rows_naming,
    unnamed_mosaics,
)
from vae_astro.data.sources.mosaics.cuts import MosaicCuts
from vae_astro.data.sources.mosaics.detect import find_sources, require_photutils
from vae_astro.data.sources.mosaics.field import OpenFields, files_per_band
from vae_astro.data.sources.mosaics.files import check_bands, group_bands
from vae_astro.data.sources.reader import Source
from vae_astro.data.sources.root import FileVersion, Root
from vae_astro.data.stamp import LARGEST_STAMP, SMALLEST_STAMP, Reject, StampBlock
from vae_astro.errors import InputError
from vae_astro.settings import check_bool, check_choice, check_int, check_number, check_text

__all__ = ["MosaicReader"]

DETECT = "detect"
"""In place of a catalogue: find the sources."""
PART_ROWS = 16384
"""Catalogue rows of a source: several processes share a large mosaic."""
NOWHERE = (0, 0)
"""Part of a mosaic that no row can be placed in; reading it says why."""

Files = tuple[FileVersion, ...]


@dataclass(frozen=True)
class MosaicReader:
    """Stamps cut from FITS mosaics, one for each row of a catalogue.

    A stamp is centred on the pixel that its position lies in; beyond the edge of the mosaic it is
    padded with NaN. Nothing is resampled. Where a catalogue has positions on the sky they are used
    if the mosaic has a celestial WCS, else those in pixels.

    With a column that names the mosaic each row is cut from its own. Without one, and with several
    mosaics, rows are placed by their position on the sky.

    ``noise_hdu`` to ``mask_good`` are those of `Planes`.

    Parameters
    ----------
    catalogue : str
        FITS, VOTable, Parquet, CSV, ECSV or another table in text, relative to the current folder
        or to the root; or ``detect``: every source that photutils finds.
    columns : mapping of str to str, optional
        Columns that do not have a usual name: of ``ra``, ``dec``, ``x``, ``y``, ``id``, ``label``
        and ``file``. Angles are in their column's unit, in degrees without one; text is
        sexagesimal. Naming ``x`` and ``y`` puts them before the sky.
    pixel_origin : {0, 1}, optional
        Number of the first pixel. By default 1 in columns of SExtractor (``X_IMAGE``), else 0.
    size : int
        Rows and columns of a stamp, in pixels.
    hdu : int or str, optional
        Extension of the mosaics, by number or EXTNAME; by default the first image.
    bands : sequence of str or mapping of str to str, optional
        Parts of file names that stand for the bands, or names of bands and their parts. Mosaics
        whose names differ in nothing else are the bands of one field and must share their pixels.
    overlap : {"first", "all"}
        Where several mosaics hold a position: cut from the first by name whose pixel there is
        finite, or from all.
    outside : {"reject", "skip"}
        Whether positions that no mosaic holds are listed among the rejects.
    detect_sigma : float
        Threshold of ``detect``, in units of the noise of the sky.
    detect_pixels : int
        Pixels of the smallest source that is found.
    deblend : bool
        Take found sources apart that touch.

    Raises
    ------
    InputError
        If a setting is out of range; the message names its key.
    """

    catalogue: str | None = None
    columns: Mapping[str, str] | tuple[tuple[str, str], ...] | None = None
    pixel_origin: int | None = None
    size: int = 63
    hdu: int | str | None = None
    bands: Sequence[str] | Mapping[str, str] | tuple[tuple[str, str], ...] | None = None
    overlap: Literal["first", "all"] = "first"
    outside: Literal["reject", "skip"] = "reject"
    detect_sigma: float = 3.0
    detect_pixels: int = 5
    deblend: bool = False
    noise_hdu: int | str | None = None
    noise_files: str | None = None
    noise_kind: Literal["std", "variance", "inverse_variance", "weight"] = "std"
    mask_hdu: int | str | None = None
    mask_files: str | None = None
    mask_bits: tuple[int, ...] | None = None
    mask_good: bool = False

    def __post_init__(self) -> None:
        if self.catalogue is not None:
            check_text("data.catalogue", self.catalogue)
        # a configuration gives mappings and lists; tuples keep the reader hashable and its repr one
        object.__setattr__(self, "columns", check_columns(self.columns))
        object.__setattr__(self, "bands", check_bands(self.bands))
        if self.pixel_origin is not None:
            check_int("data.pixel_origin", self.pixel_origin, minimum=0, maximum=1)
        check_int("data.size", self.size, minimum=SMALLEST_STAMP, maximum=LARGEST_STAMP)
        if isinstance(self.hdu, str):
            check_text("data.hdu", self.hdu)
        elif self.hdu is not None:
            check_int("data.hdu", self.hdu, minimum=0)
        check_choice("data.overlap", self.overlap, ("first", "all"))
        check_choice("data.outside", self.outside, ("reject", "skip"))
        check_number("data.detect_sigma", self.detect_sigma, above=0)
        check_int("data.detect_pixels", self.detect_pixels, minimum=1)
        check_bool("data.deblend", self.deblend)
        object.__setattr__(self, "mask_bits", self._planes.mask_bits)

    @cached_property
    def _planes(self) -> Planes:
        return Planes(
            noise_hdu=self.noise_hdu,
            noise_files=self.noise_files,
            noise_kind=self.noise_kind,
            mask_hdu=self.mask_hdu,
            mask_files=self.mask_files,
            mask_bits=self.mask_bits,
            mask_good=self.mask_good,
        )

    @property
    def band_names(self) -> tuple[str, ...] | None:
        """Those of ``bands``, None for single mosaics."""
        return tuple(name for name, _ in check_bands(self.bands)) or None

    @property
    def has_noise(self) -> bool:
        """Whether there is a plane of noise."""
        return self._planes.has_noise

    @cached_property
    def _n_files(self) -> int:
        """Files of a field."""
        return max(1, len(self.bands or ())) * files_per_band(self._planes)

    def find(self, root: Root) -> list[Source]:
        """Parts of every mosaic below ``root``, sorted by its name, then rows that none holds.

        A source is the files of one field, the catalogue, and the fields that overlap with it;
        its part counts the rows that belong to the field.

        Raises
        ------
        InputError
            If there is no mosaic or no catalogue, the catalogue has no positions, or pixel
            positions do not tell which of several mosaics they belong to.
        """
        if self.catalogue is None:
            raise InputError(
                "data.catalogue is not set; give a table of positions, data.catalogue=FILE, or let "
                "photutils find the sources, data.catalogue=detect"
            )
        if self.catalogue == DETECT:
            require_photutils(self.deblend)
            return [
                Source(files, None, sum(file.n_bytes for file in files))
                for files in self._fields(root, None)
            ]
        file = find_catalogue(self.catalogue, root)
        try:
            table = self._table(root, file)
        except (RefusedError, OSError) as error:
            raise InputError(f"data.catalogue={self.catalogue}: {error}") from error
        fields = self._fields(root, file)
        if table.file is not None:
            sources = self._placed_by_name(root, file, table, fields)
        elif table.ra is not None:
            sources = self._placed_by_sky(root, file, table, fields)
        elif len(fields) > 1:
            raise InputError(
                f"data.catalogue={self.catalogue} has positions in pixels and there are "
                f"{len(fields)} mosaics: it needs a column with the file of each, "
                "data.columns={file: COLUMN}, or positions on the sky"
            )
        else:
            sources = self._parts((*fields[0], file), len(table))
        if not sources:
            raise InputError(
                f"data.catalogue={self.catalogue}: none of its {len(table)} rows lies in one of "
                f"{len(fields)} mosaics below data.root={root.address}"
            )
        return sources

    def read(self, sources: Sequence[Source], root: Root) -> Iterator[StampBlock | Reject]:
        """Stamps in blocks, source by source in the order of the catalogue; see `StampReader`."""
        with OpenFields(root, self.hdu, self._planes) as fields:
            for source in sources:
                try:
                    yield from self._read(source, root, fields)
                except Exception as error:
                    yield as_reject(source.name, error)

    def _read(
        self, source: Source, root: Root, fields: OpenFields
    ) -> Iterator[StampBlock | Reject]:
        cuts = MosaicCuts(fields, self.size, self.outside == "reject")
        own, rest = source.files[: self._n_files], source.files[self._n_files :]
        if self.catalogue == DETECT:
            x, y = find_sources(
                fields.open(own),
                sigma=self.detect_sigma,
                min_pixels=self.detect_pixels,
                deblend=self.deblend,
            )
            table = Catalogue.of_pixels(x, y, own[0].name)
            yield from cuts.cut(table, np.arange(len(table)), own)
            return
        if source.part is None:
            yield from self._nowhere(source, root)
            return
        table = self._table(root, rest[0])
        others = self._grouped(rest[1:])
        rows = self._rows(root, table, own, others, source.part)
        if table.file is not None:
            try:
                root.describe(own[0].name)  # a name in a catalogue may lead outside
            except Exception as error:
                yield from (as_reject(f"{source.name}[{row}]", error) for row in rows.tolist())
                return
        later = [files for files in others if files[0].name > own[0].name]
        if source.part == NOWHERE:
            fields.open(own)  # most often this fails, and says what is wrong
            raise RefusedError(
                "no sky coordinates",
                "the mosaic has no celestial WCS and the catalogue only ra and dec; give "
                "positions in pixels, data.columns={x: COLUMN, y: COLUMN}",
            )
        yield from cuts.cut(table, rows, own, later if self.overlap == "first" else ())

    def _rows(
        self,
        root: Root,
        table: Catalogue,
        own: Files,
        others: list[Files],
        part: tuple[int, int],
    ) -> np.ndarray:
        """Catalogue rows of a part of a field."""
        if table.file is not None:
            rows = rows_naming(table, self._names(own))
        elif part == NOWHERE:
            rows = np.empty(0, np.int64)
        else:
            grid_rows = rows_inside_grid(root, table, own[0], self.hdu)
            if grid_rows is None:
                rows = np.arange(len(table))
            elif self.overlap == "first":
                earlier = [files[0] for files in others if files[0].name < own[0].name]
                taken = rows_inside_mosaics(root, table, earlier, self.hdu)
                rows = np.setdiff1d(grid_rows, taken, assume_unique=True)
            else:
                rows = grid_rows
        return rows[slice(*part)]

    def _nowhere(self, source: Source, root: Root) -> Iterator[Reject]:
        """Rows that no mosaic holds."""
        file, *files = source.files
        table = self._table(root, file)
        if table.file is not None:
            rows, why = rows_naming(table, ("",)), "the row names no mosaic"
        else:
            mosaics = [group[0] for group in self._grouped(files)]
            held = rows_inside_mosaics(root, table, mosaics, self.hdu)
            rows = np.setdiff1d(np.arange(len(table)), held, assume_unique=True)
            why = f"in none of {len(mosaics)} mosaics; data.outside=skip leaves such rows out"
        for row in rows.tolist():
            yield as_reject(f"{file.name}[{row}]", RefusedError("outside the mosaic", why))

    def _table(self, root: Root, file: FileVersion) -> Catalogue:
        return read_catalogue(root, file, check_columns(self.columns), self.pixel_origin)

    def _fields(self, root: Root, catalogue: FileVersion | None) -> list[Files]:
        """The files of every field, sorted."""
        files = root.find(
            FITS_SUFFIXES, (".npy", ".npz", ".h5", ".hdf5"), "These are arrays: use data=arrays"
        )
        files = [file for file in files if catalogue is None or file.name != catalogue.name]
        fields = group_bands(self._planes.group(files), check_bands(self.bands))
        if not fields:
            raise InputError(
                f"data.root={root.address} holds no mosaic beside the catalogue and the planes of "
                "data.noise_files and data.mask_files"
            )
        return fields

    def _names(self, files: Sequence[FileVersion]) -> tuple[str, ...]:
        """Names of the mosaics among the files of a field."""
        return tuple(file.name for file in files[:: files_per_band(self._planes)])

    def _grouped(self, files: Sequence[FileVersion]) -> list[Files]:
        """Files of several fields, field by field."""
        n = self._n_files
        return [tuple(files[k : k + n]) for k in range(0, len(files), n)]

    def _parts(self, files: Files, n_rows: int) -> list[Source]:
        n_bands = max(1, len(self.bands or ()))
        stamp_bytes = 4 * self.size**2 * n_bands * (1 + self.has_noise)
        parts = [(k, min(k + PART_ROWS, n_rows)) for k in range(0, n_rows, PART_ROWS)]
        return [Source(files, part, stamp_bytes * (part[1] - part[0])) for part in parts]

    def _placed_by_name(
        self, root: Root, file: FileVersion, table: Catalogue, fields: list[Files]
    ) -> list[Source]:
        """Every row in the mosaic that it names."""
        of_base: dict[str, str] = {}
        for name in (name for files in fields for name in self._names(files)):
            base = name.rpartition("/")[2]
            if of_base.setdefault(base, name) != name and len(rows_naming(table, (base,))):
                raise InputError(
                    f"data.catalogue={self.catalogue} names the mosaic {base}, which could be "
                    f"{of_base[base]} or {name}; it must give paths below data.root"
                )
        listed = {name for files in fields for name in self._names(files)}
        for name in unnamed_mosaics(table, listed):
            try:
                version = root.describe(name)
            except (RefusedError, OSError):  # reading it will say so
                version = FileVersion(name, 0, "")
            fields.append((version,) * self._n_files)
        sources = [
            source
            for files in sorted(fields)
            for source in self._parts((*files, file), len(rows_naming(table, self._names(files))))
        ]
        if self.outside == "reject" and len(rows_naming(table, ("",))):
            sources.append(Source((file,)))
        return sources

    def _placed_by_sky(
        self, root: Root, file: FileVersion, table: Catalogue, fields: list[Files]
    ) -> list[Source]:
        """Every row in the mosaics that hold its position."""
        inside: list[np.ndarray | None] = []
        for files in fields:
            try:
                inside.append(rows_inside_grid(root, table, files[0], self.hdu))
            except (RefusedError, OSError):  # reading it will say so
                inside.append(None)
        if len(inside) == 1 and inside[0] is None and table.x is not None:
            return self._parts((*fields[0], file), len(table))
        held = [np.empty(0, np.int64) if rows is None else rows for rows in inside]
        beside = overlapping(held, len(table))
        taken = np.zeros(len(table), bool)
        sources: list[Source] = []
        for k, files in enumerate(fields):
            others = tuple(other for n in beside[k] for other in fields[n])
            n_rows = int((~taken[held[k]]).sum()) if self.overlap == "first" else len(held[k])
            taken[held[k]] = True
            sources += self._parts((*files, file, *others), n_rows)
            if inside[k] is None:
                sources.append(Source((*files, file), NOWHERE))
        with_sky = [files for files, rows in zip(fields, inside, strict=True) if rows is not None]
        if self.outside == "reject" and with_sky and not taken.all():
            everything = tuple(other for files in with_sky for other in files)
            sources.append(Source((file, *everything)))
        return sources
