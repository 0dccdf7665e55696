"""Catalogues of any common format: where the sources are, what they are called and what they are.

FITS, VOTable, Parquet, CSV and the other tables in text that astropy reads are told apart by how
they begin. Only the columns that are needed are kept, and those once per process.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from io import BytesIO

import numpy as np

from vae_astro.data.sources.files import GZIP_OR_BZIP2, RefusedError, unpack
from vae_astro.data.sources.fits.headers import angle_degrees, quiet_astropy
from vae_astro.data.sources.mosaics.table_formats import MAX_TEXT_BYTES, Table, open_tables
from vae_astro.data.sources.root import FileVersion, Root, open_root
from vae_astro.errors import InputError, first_of

__all__ = ["ROLES", "Catalogue", "check_columns", "find_catalogue", "read_catalogue"]

ROLES = ("ra", "dec", "x", "y", "id", "label", "file")
"""What a column can say of a source."""

_SKY = (
    ("ra", "dec"),
    ("raj2000", "dej2000"),
    ("_raj2000", "_dej2000"),
    ("raj2000", "decj2000"),
    ("ra_icrs", "de_icrs"),
    ("ra_icrs", "dec_icrs"),
    ("alpha_j2000", "delta_j2000"),
    ("alphawin_j2000", "deltawin_j2000"),
    ("right_ascension", "declination"),
    ("ra_deg", "dec_deg"),
    ("radeg", "decdeg"),
    ("radeg", "dedeg"),
)
_PIXEL = (
    ("xwin_image", "ywin_image"),
    ("x_image", "y_image"),
    ("xcentroid", "ycentroid"),
    ("x_centroid", "y_centroid"),
    ("x", "y"),
    ("xpos", "ypos"),
)
_ONE_COLUMN = {
    "id": ("id", "object_id", "objectid", "objid", "source_id", "sourceid", "number", "name"),
    "label": ("label", "class"),
    "file": ("file", "filename", "file_name", "mosaic"),
}
_TEXT_ONLY = ("label", "file")
"""Found by themselves only as text: photutils numbers its sources in a column ``label``."""


@dataclass(frozen=True, eq=False)
class Catalogue:
    """Columns of a catalogue, N rows.

    Attributes
    ----------
    ra, dec : ndarray, shape (N,), float64, or None
        ICRS position in degrees, NaN where it is not on the sky.
    x, y : ndarray, shape (N,), float64, or None
        Position in pixels, (0, 0) the centre of the first.
    id, label, file : ndarray of str, shape (N,), or None
        None where the catalogue does not tell.
    stem : str
        Name of the catalogue without its ending.
    """

    ra: np.ndarray | None
    dec: np.ndarray | None
    x: np.ndarray | None
    y: np.ndarray | None
    id: np.ndarray | None
    label: np.ndarray | None
    file: np.ndarray | None
    stem: str

    def __len__(self) -> int:
        longitude = self.x if self.ra is None else self.ra
        return 0 if longitude is None else len(longitude)

    @classmethod
    def of_pixels(cls, x: np.ndarray, y: np.ndarray, stem: str) -> Catalogue:
        """Sources that were found at these pixels, counted from (0, 0); `ids` number them."""
        return cls(None, None, x, y, None, None, None, stem)

    def ids(self, rows: np.ndarray) -> list[str]:
        """Names of the sources in these rows; catalogue and row where they have none."""
        if self.id is None:
            return [f"{self.stem}:{row}" for row in rows.tolist()]
        names = self.id[rows].tolist()
        return [
            name or f"{self.stem}:{row}" for name, row in zip(names, rows.tolist(), strict=True)
        ]

    @cached_property
    def by_dec(self) -> np.ndarray:
        """Rows in the order of their declination."""
        assert self.dec is not None
        return np.argsort(self.dec, kind="stable")

    @cached_property
    def by_file(self) -> dict[str, np.ndarray]:
        """Rows by the mosaic that they name, as a path in one spelling; empty where they do not."""
        assert self.file is not None
        rows = np.argsort(self.file, kind="stable")
        texts, firsts = np.unique(self.file[rows], return_index=True)
        by_file: dict[str, np.ndarray] = {}
        for text, part in zip(texts, np.split(rows, firsts[1:]), strict=True):
            path = posixpath.normpath(text) if text else ""
            by_file[path] = np.sort(np.append(by_file.get(path, part[:0]), part))
        return by_file

    def labels(self, rows: np.ndarray) -> list[str]:
        """Classes of the sources in these rows, empty where unknown."""
        return [""] * len(rows) if self.label is None else self.label[rows].tolist()


def check_columns(columns: Mapping[str, str] | Sequence | None) -> tuple[tuple[str, str], ...]:
    """``data.columns`` as sorted pairs of a role and the column that has it.

    Raises
    ------
    InputError
        If it is no mapping of roles to names.
    """
    if columns is None:
        return ()
    pairs = columns.items() if isinstance(columns, Mapping) else columns
    try:
        checked = sorted((role, name) for role, name in pairs)
    except (TypeError, ValueError):
        checked = [("", "")]
    if not all(role in ROLES and isinstance(name, str) and name for role, name in checked):
        raise InputError(
            "data.columns must map some of " + ", ".join(ROLES) + f" to columns, got {columns!r}"
        )
    for one, other in (("ra", "dec"), ("x", "y")):
        if (one in dict(checked)) != (other in dict(checked)):
            raise InputError(f"data.columns must name both {one} and {other}, got {columns!r}")
    return tuple(checked)


def find_catalogue(address: str, root: Root) -> FileVersion:
    """The catalogue at an address relative to the current folder or to the root.

    Its name is absolute if it is not below the root.

    Raises
    ------
    InputError
        If it is at neither place.
    """
    path = os.path.realpath(os.path.expanduser(address))
    try:
        if not os.path.isfile(path):
            return root.describe(address)
        folder = os.path.realpath(root.folder)
        if os.path.commonpath([folder, path]) == folder:
            return root.describe(os.path.relpath(path, folder).replace(os.sep, "/"))
        status = os.stat(path)
        return FileVersion(path, status.st_size, str(status.st_mtime_ns))
    except (OSError, RefusedError) as error:
        raise InputError(
            f"data.catalogue={address} is neither in the current folder nor below data.root="
            f"{root.address} ({error}); give a table of sources, or data.catalogue=detect"
        ) from error


@lru_cache(maxsize=2)
def read_catalogue(
    root: Root, file: FileVersion, columns: tuple[tuple[str, str], ...], pixel_origin: int | None
) -> Catalogue:
    """What a catalogue says of its sources; kept until two others are read.

    Parameters
    ----------
    root : Root
        What the file's name is relative to, unless it is absolute.
    file : FileVersion
        The catalogue, from `find_catalogue`.
    columns : tuple of pairs
        From `check_columns`; columns that are not named are found by their usual names.
    pixel_origin : {0, 1}, optional
        Number of the first pixel. By default 1 in columns of SExtractor (``X_IMAGE``), else 0.

    Raises
    ------
    RefusedError
        If it cannot be read, or has no positions; the message lists its columns.
    OSError
        If it is not there.
    """
    if os.path.isabs(file.name):
        root = open_root(os.path.dirname(file.name))
        file = file._replace(name=os.path.basename(file.name))
    as_text = {name.lower() for role, name in columns if role in _ONE_COLUMN}
    as_text.update(word for word in _ONE_COLUMN["id"])
    with root.open(file) as stream, quiet_astropy():
        head = stream.read(2048)
        stream.seek(0)
        if head.startswith(GZIP_OR_BZIP2):
            head = unpack(root.read(file, MAX_TEXT_BYTES), MAX_TEXT_BYTES)
            stream = BytesIO(head)
        try:
            return _choose(
                open_tables(stream, head, file.n_bytes, as_text),
                dict(columns),
                pixel_origin,
                file.name,
            )
        except (RefusedError, MemoryError):
            raise
        except Exception as error:  # five parsers, each with its own ways to fail
            raise RefusedError(
                "unreadable", f"not a catalogue: {type(error).__name__}: {error}"
            ) from error


def _choose(
    tables: Iterator[Table], named: dict[str, str], pixel_origin: int | None, file_name: str
) -> Catalogue:
    """The first table that has positions."""
    stem = posixpath.basename(file_name).partition(".")[0]
    seen: list[str] = []
    for table in tables:
        roles = _find_roles(table, named)
        seen += table.names
        missing = [name for name in named.values() if name not in table.names]
        if not missing and ("ra" in roles or "x" in roles):
            return _catalogue(table, roles, pixel_origin, stem)
    if unknown := [name for name in named.values() if name not in seen]:
        what = f"has no column {unknown[0]} of data.columns"
    else:
        what = "has no positions: no ra and dec, no x and y by any usual name"
    raise RefusedError(
        "no such column",
        f"the catalogue {what}; its columns are {first_of(seen, 40) or 'none'}; name them as "
        "data.columns={ra: RA_COLUMN, dec: DEC_COLUMN} or {x: X_COLUMN, y: Y_COLUMN}",
    )


def _find_roles(table: Table, named: dict[str, str]) -> dict[str, str]:
    """Which column says what: those that are named, then the usual names in any case."""
    lower: dict[str, str] = {}
    for name in table.names:
        lower.setdefault(name.strip().lower(), name)
    roles = {role: name for role, name in named.items() if name in table.names}
    for one, other, pairs in (("ra", "dec", _SKY), ("x", "y", _PIXEL)):
        # pixels that the user names are meant, though the table may have the sky as well
        if one in roles or (one == "ra" and "x" in roles):
            continue
        pair = next((pair for pair in pairs if pair[0] in lower and pair[1] in lower), None)
        if pair:
            roles |= {one: lower[pair[0]], other: lower[pair[1]]}
    for role, words in _ONE_COLUMN.items():
        found = [
            lower[word]
            for word in words
            if word in lower and (role not in _TEXT_ONLY or table.is_text(lower[word]))
        ]
        if role not in roles and found:
            roles[role] = found[0]
    return roles


def _catalogue(
    table: Table, roles: dict[str, str], pixel_origin: int | None, stem: str
) -> Catalogue:
    columns: dict[str, np.ndarray | None] = dict.fromkeys(ROLES)
    for role, name in roles.items():
        values = np.asarray(table.column(name, role in _ONE_COLUMN))
        if values.ndim != 1:
            raise RefusedError(
                "wrong dimensions", f"column {name} has {values.shape[1:]} values a row, not one"
            )
        if role in ("ra", "dec"):
            columns[role] = _degrees(values, table.unit(name), role, name)
        elif role in ("x", "y"):
            if pixel_origin is None:
                first = float(name.lower().endswith("_image"))
            else:
                first = float(pixel_origin)
            columns[role] = values.astype(np.float64) - first
        else:
            columns[role] = values
    ra, dec = columns["ra"], columns["dec"]
    if ra is not None and dec is not None:
        # as `headers.sky_position`, for whole columns
        on_sky = (ra >= -180) & (ra <= 360) & (dec >= -90) & (dec <= 90)
        columns["ra"] = np.where(on_sky, ra % 360.0, np.nan)
        columns["dec"] = np.where(on_sky, dec, np.nan)
    return Catalogue(**columns, stem=stem)


def _degrees(values: np.ndarray, unit: str, role: str, name: str) -> np.ndarray:
    """A column of angles: of its unit, degrees without one, sexagesimal where a text has parts."""
    if values.dtype.kind in "iuf":
        degrees = values.astype(np.float64)
        if unit.strip().lower() in ("", "deg", "degree", "degrees", "d"):
            return degrees
        from astropy import units as u

        in_hours = unit.strip().lower() in ("h", "hr", "hour", "hours", "hourangle")
        try:
            return (degrees * (u.hourangle if in_hours else u.Unit(unit))).to_value(u.deg)
        except (ValueError, TypeError) as error:  # UnitConversionError is a TypeError
            raise RefusedError(
                "unreadable", f"column {name} has the unit {unit!r}, which is no angle"
            ) from error
    texts = np.char.strip(values.astype(str))
    hours = role == "ra" and not unit.strip().lower().startswith("d")
    return np.array(
        [angle_degrees(text, "hourangle" if hours else "deg") for text in texts.tolist()]
    )
