"""Alerts in Parquet files, as brokers deliver them: every row one stamp."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import unquote

import numpy as np

from vae_astro.data.sources.alerts.cutouts import (
    CUTOUTS,
    FULL_CUTOUT,
    CatalogueRow,
    check_cutouts,
    cutout_field,
    fill_ztf_stamp,
    in_blocks,
    ztf_fields,
)
from vae_astro.data.sources.files import RefusedError
from vae_astro.data.sources.fits.images import FITS_SUFFIXES
from vae_astro.data.sources.reader import Source
from vae_astro.data.sources.root import FileVersion, Root
from vae_astro.data.stamp import LARGEST_STAMP, SMALLEST_STAMP, Reject, StampBlock
from vae_astro.errors import first_of
from vae_astro.settings import check_int, check_text

if TYPE_CHECKING:  # slow to import, and few need it
    from pyarrow import DataType, Schema
    from pyarrow.parquet import ParquetFile

__all__ = ["AlertTableReader"]

PARQUET_SUFFIXES = (".parquet", ".parq", ".pq")
PART_BYTES = 2**26  # of a file: larger ones are shared out by their row groups
BATCH_BYTES = 2**24  # unpacked at a time
BATCH_ROWS = 256
READ_BYTES = 2**20  # of a column at a time; else pyarrow reads all of it in a row group

Column = tuple[str, ...]  # a column and, where it is a struct, a field of it


@dataclass(frozen=True)
class AlertTableReader:
    """Stamps from Parquet files of ZTF alerts, such as those of Fink and ALeRCE.

    Columns have the names of ZTF's packets. Those of ``candidate`` may be a struct, as they are in
    the packets, or flat (``ra``, ``candidate.ra``, ``candidate_ra``, ``i:ra``). A cutout is gzipped
    FITS, in a column of its own or in a struct's ``stampData``, also flat
    (``cutoutScience.stampData``, ``cutoutScience_stampData``, ``b:cutoutScience_stampData``).
    Only the columns that are needed are read. Pixels, edges and seeing are those of `AlertReader`.

    A source carries ``[row]`` where its file has several.

    Parameters
    ----------
    cutouts, size, max_cutout_bytes
        As in `AlertReader`.
    id_field : str, optional
        Column that names the alert. By default ``candid`` where present, else ``objectId``.
    label_field : str, optional
        Column with the class, or the key of a folder such as ``class=SN``. By default ``label``
        where present.

    Raises
    ------
    InputError
        If a setting is out of range; the message names its key.
    """

    cutouts: tuple[str, ...] = CUTOUTS
    size: int = FULL_CUTOUT
    max_cutout_bytes: int = 2**26
    id_field: str | None = None
    label_field: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "cutouts", check_cutouts(self.cutouts))
        check_int("data.size", self.size, minimum=SMALLEST_STAMP, maximum=LARGEST_STAMP)
        check_int("data.max_cutout_bytes", self.max_cutout_bytes, minimum=1)
        for key, name in (("id_field", self.id_field), ("label_field", self.label_field)):
            if name is not None:
                check_text(f"data.{key}", name)

    @property
    def band_names(self) -> tuple[str, ...]:
        """The cutouts, in the order of the bands."""
        return self.cutouts

    @property
    def has_noise(self) -> bool:
        """False: alerts hold no uncertainties of pixels."""
        return False

    def find(self, root: Root) -> list[Source]:
        """Every Parquet file below ``root``, large ones in parts; see `Root.find`."""
        advice = "Alert packets are read with data=alerts, FITS files with data=fits"
        files = root.find(PARQUET_SUFFIXES, (".avro", *FITS_SUFFIXES), advice)
        return [source for file in files for source in _parts(file, root)]

    def read(self, sources: Sequence[Source], root: Root) -> Iterator[StampBlock | Reject]:
        """One stamp per row; what cannot be read becomes a `Reject`.

        A file that lacks a column is one reject; of damaged data the rest of a row group is lost.
        In memory are a batch of rows and a page of each column.
        """
        alerts = (alert for source in sources for alert in self._alerts(source, root))
        yield from in_blocks(alerts, self._fill, (len(self.cutouts), self.size, self.size))

    def _alerts(
        self, source: Source, root: Root
    ) -> Iterator[tuple[str, dict[str, Any] | Exception]]:
        """The rows of a source, their fields named as in ZTF's packets."""
        try:
            stream = root.open(source.files[0])
        except Exception as error:
            yield source.name, error
            return
        with stream:
            folder_label = _folder_value(source.name, self.label_field or "label")
            try:
                table = _open(stream)
                columns = self._columns(table.schema_arrow, bool(folder_label))
            except Exception as error:
                if source.part is None or source.part[0] == 0:  # once a file
                    yield source.name, error
                return
            n_rows, row = table.metadata.num_rows, 0
            begin, end = source.part or (0, n_rows)
            for k in range(table.num_row_groups):
                place, row = row, row + table.metadata.row_group(k).num_rows
                if not begin <= place < end:
                    continue
                try:
                    for alert in _rows(table, k, columns):
                        suffix = f"[{place}]" if n_rows > 1 else ""
                        yield source.name + suffix, {"label": folder_label, **alert}
                        place += 1
                except Exception as error:
                    if type(error) is MemoryError:  # pyarrow's own stands for a page that lies
                        raise
                    detail = f"rows {place} to {row - 1} are lost: {type(error).__name__}: {error}"
                    yield f"{source.name}[{place}]", RefusedError("unreadable", detail)

    def _columns(self, schema: Schema, has_folder_label: bool) -> dict[str, Column]:
        """Where each field is found.

        Raises
        ------
        RefusedError
            If one that is needed is not there.
        """
        leaves = {".".join(path): (path, kind) for path, kind in _leaves(schema, ())}
        spellings = {field: _spellings(field) for field in ztf_fields(self.cutouts)}
        spellings["label"] = (self.label_field or "label",)
        if self.id_field:
            spellings["candid"] = (self.id_field,)
        elif not any(name in leaves for name in _spellings("candidate.candid")):
            spellings["candid"] = _spellings("objectId")
        cutouts = [cutout_field(cutout) for cutout in self.cutouts]
        needed = dict.fromkeys(cutouts, "data.cutouts") | {"candid": "data.id_field"}
        if self.label_field and not has_folder_label:
            needed["label"] = "data.label_field"
        columns = {}
        for field, names in spellings.items():
            name = next((name for name in names if name in leaves), None)
            if name is not None:
                columns[field], kind = leaves[name]
            if name is None and field in needed:
                raise RefusedError(
                    "missing column",
                    f"has {_listing(leaves)}; expected {' or '.join(names)}, see {needed[field]}",
                )
            if name is not None and field in cutouts and "binary" not in str(kind):
                raise RefusedError(
                    "wrong column", f"{name} holds {kind}, expected binary: gzipped FITS"
                )
        return columns

    def _fill(
        self, alert: dict[str, Any], pixels: np.ndarray, noise: np.ndarray | None
    ) -> CatalogueRow:
        row = fill_ztf_stamp(alert, pixels, self.cutouts, self.max_cutout_bytes)
        label = alert["label"]
        return row._replace(label="" if label is None else str(label).strip())


def _parts(file: FileVersion, root: Root) -> Iterator[Source]:
    """A file as one source or, where it is large, as one for every few row groups."""
    sizes: list[tuple[int, int]] = []
    if file.n_bytes > PART_BYTES:
        try:
            with root.open(file) as stream:
                metadata = _open(stream).metadata
                groups = [metadata.row_group(k) for k in range(metadata.num_row_groups)]
                sizes = [(group.num_rows, group.total_byte_size) for group in groups]
        except Exception:  # reading it will say why
            sizes = []
    if not sizes:
        yield Source((file,), n_bytes=file.n_bytes)
        return
    begin = end = n_bytes = 0
    for k, (n_rows, group_bytes) in enumerate(sizes):
        end, n_bytes = end + n_rows, n_bytes + group_bytes
        if n_bytes >= PART_BYTES or k == len(sizes) - 1:
            yield Source((file,), (begin, end), n_bytes)
            begin, n_bytes = end, 0


def _open(stream: BinaryIO) -> ParquetFile:
    """A Parquet file, of which only the schema is read."""
    from pyarrow import parquet

    begins = stream.read(4)
    if begins != b"PAR1":
        raise RefusedError("not a Parquet file", f"begins with {begins!r}, expected PAR1")
    stream.seek(-4, 2)
    ends = stream.read(4)
    stream.seek(0)
    if ends != b"PAR1":
        raise RefusedError("truncated file", f"ends with {ends!r}, expected PAR1")
    try:
        return parquet.ParquetFile(
            stream, buffer_size=READ_BYTES, pre_buffer=False, page_checksum_verification=True
        )
    except MemoryError as error:  # pyarrow's, of a footer that lies
        raise RefusedError("unreadable", f"its footer claims too much memory: {error}") from error


def _rows(table: ParquetFile, group: int, columns: dict[str, Column]) -> Iterator[dict[str, Any]]:
    """The rows of a row group, a batch of bounded size in memory at a time."""
    from pyarrow import compute

    metadata = table.metadata.row_group(group)
    row_bytes = metadata.total_byte_size // max(1, metadata.num_rows)
    batches = table.iter_batches(
        batch_size=max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, row_bytes))),
        row_groups=[group],
        columns=sorted({".".join(path) for path in columns.values()}),
        use_threads=False,  # the store reads in several processes already
    )
    for batch in batches:
        values = []
        for top, *inner in columns.values():
            column = batch.column(top)
            values.append((compute.struct_field(column, inner) if inner else column).to_pylist())
        for row in zip(*values, strict=True):
            yield dict(zip(columns, row, strict=True))


def _leaves(fields: Iterable[Any], prefix: Column) -> Iterator[tuple[Column, DataType]]:
    """Columns, and the fields of those that are structs."""
    from pyarrow import types

    for field in fields:
        path = (*prefix, field.name)
        if types.is_struct(field.type):
            yield from _leaves(field.type, path)
        else:
            yield path, field.type


def _spellings(field: str) -> tuple[str, ...]:
    """The names under which brokers deliver a field of ZTF's packets, ours first."""
    if field.startswith("cutout"):
        flat = f"{field}_stampData"
        return f"{field}.stampData", flat, field, f"b:{flat}", f"b:{field}"
    outer, _, name = field.rpartition(".")
    return (field, *((name, f"{outer}_{name}") if outer else ()), f"i:{name}")


def _folder_value(name: str, key: str) -> str:
    """What a folder ``key=value`` on the way to a file says, empty if there is none."""
    folders = dict(folder.split("=", 1) for folder in name.split("/")[:-1] if "=" in folder)
    return unquote(folders.get(key, ""))


def _listing(names: Iterable[str]) -> str:
    """Names of columns, the first of many."""
    return first_of(sorted(names), 20) or "none"
