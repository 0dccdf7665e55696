"""A catalogue as a FITS binary table.

Header by astropy, rows as they are: numpy's big-endian records. Texts have the width of the
longest, which a first pass finds. What FITS has no way to say is written as near as it can:
text outside printable ASCII as Python's ``unicode_escape``, a missing text as an empty one, a
missing number as NaN or the smallest integer (``TNULLn``), a missing truth value as byte 0.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from astropy import units
from astropy.io import fits

from vae_astro.catalogue.columns import PROVENANCE
from vae_astro.catalogue.spool import ROW_GROUP_BYTES, row_groups
from vae_astro.data.sources.fits.standard import BLOCK_BYTES

__all__ = ["PROVENANCE_CARD", "write_fits"]

PROVENANCE_CARD = "VAEASTRO"
"""Keyword of the table's header that holds the settings, as JSON."""
LETTERS = {"int16": "I", "int32": "J", "int64": "K", "float": "E", "double": "D", "bool": "L"}
"""Of Arrow types, in ``TFORMn``."""


@dataclass(frozen=True)
class _Entry:
    """One column as FITS has it: ``width`` bytes of text, or ``length`` numbers of ``kind``."""

    field: pa.Field
    kind: pa.DataType
    length: int
    width: int

    @property
    def dtype(self) -> tuple[str, str, tuple[int, ...]]:
        if pa.types.is_string(self.kind):
            return self.field.name, f"S{self.width}", ()
        if pa.types.is_boolean(self.kind):
            return self.field.name, "u1", ()
        code = np.dtype(self.kind.to_pandas_dtype()).newbyteorder(">").str
        return self.field.name, code, (self.length,) if self.is_vector else ()

    @property
    def is_vector(self) -> bool:
        return bool(pa.types.is_fixed_size_list(self.field.type))

    def column(self) -> fits.Column:
        if pa.types.is_string(self.kind):
            return fits.Column(self.field.name, f"{self.width}A")
        null = np.iinfo(self.kind.to_pandas_dtype()).min if pa.types.is_integer(self.kind) else None
        form = f"{self.length}{LETTERS[str(self.kind)]}"
        dim = f"({self.length})" if self.is_vector else None
        return fits.Column(self.field.name, form, null=null, dim=dim)

    def values(self, entries: pa.ChunkedArray) -> np.ndarray:
        """Entries as `dtype` takes them."""
        flat = entries.combine_chunks()
        if self.is_vector:
            if flat.null_count:
                missing = pa.scalar([None] * self.length, flat.type)
                flat = pc.if_else(flat.is_valid(), flat, missing)
            return _numbers(flat.flatten()).reshape(-1, self.length)
        if pa.types.is_string(self.kind):
            texts = _escaped(flat.fill_null("")).to_numpy(zero_copy_only=False)
            return texts.astype(f"S{self.width}")
        if pa.types.is_boolean(self.kind):
            truth = pc.if_else(flat, pa.scalar(ord("T"), pa.uint8()), ord("F"))
            return truth.fill_null(0).to_numpy()
        return _numbers(flat)


def write_fits(parquet: Path, out: Path, schema: pa.Schema) -> None:
    """Write the rows of a Parquet file as a FITS file with one binary table.

    Parameters
    ----------
    parquet : Path
        The rows; read twice, one row group at a time.
    out : Path
        File to write; an earlier one is replaced.
    schema : pyarrow.Schema
        Of the catalogue, with its metadata.

    Raises
    ------
    OSError
        It cannot be written; what was written of it is left to the caller.
    """
    widths = _text_widths(parquet, schema)
    entries = [_entry(field, widths.get(field.name, 0)) for field in schema]
    row = np.dtype([entry.dtype for entry in entries])
    rows_at_once = max(1, ROW_GROUP_BYTES // row.itemsize)
    n_rows = pq.read_metadata(parquet).num_rows
    with out.open("wb") as file:
        file.write(fits.PrimaryHDU().header.tostring().encode("ascii"))
        file.write(_header(entries, schema, n_rows).tostring().encode("ascii"))
        for group in row_groups(parquet):
            for first in range(0, len(group), rows_at_once):
                table = group.slice(first, rows_at_once)
                records = np.empty(len(table), row)
                for entry in entries:
                    records[entry.field.name] = entry.values(table[entry.field.name])
                file.write(records.data)
        file.write(bytes(-n_rows * row.itemsize % BLOCK_BYTES))
        file.flush()
        os.fsync(file.fileno())


def _entry(field: pa.Field, width: int) -> _Entry:
    if pa.types.is_fixed_size_list(field.type):
        return _Entry(field, field.type.value_type, field.type.list_size, width)
    return _Entry(field, field.type, 1, width)


def _header(entries: list[_Entry], schema: pa.Schema, n_rows: int) -> fits.Header:
    """Header of the table: what each column is, and what the catalogue was made from."""
    table = fits.BinTableHDU.from_columns([entry.column() for entry in entries], nrows=0)
    header = table.header
    header["NAXIS2"] = n_rows
    header["EXTNAME"] = "CATALOGUE"
    for n, entry in enumerate(entries, start=1):
        about = {k.decode(): v.decode() for k, v in (entry.field.metadata or {}).items()}
        unit, description = about.get("unit", ""), about.get("description", "")
        if unit and not _is_fits_unit(unit):  # the standard does not know the nat
            unit, description = "", f"{description} [{unit}]"
        for keyword, value in (("TUNIT", unit), ("TUCD", about.get("ucd")), ("TCOMM", description)):
            if value:
                header.set(f"{keyword}{n}", _ascii(value))
    header[PROVENANCE_CARD] = (schema.metadata or {}).get(PROVENANCE, b"{}").decode("ascii")
    header.add_comment(f"{PROVENANCE_CARD} tells what this was made from, as JSON.")
    header.add_comment("TCOMMn describes column n, TUCDn is its UCD.")
    return header


def _is_fits_unit(unit: str) -> bool:
    return not isinstance(
        units.Unit(unit, format="fits", parse_strict="silent"), units.UnrecognizedUnit
    )


def _text_widths(parquet: Path, schema: pa.Schema) -> dict[str, int]:
    """Bytes of the longest text of each column that holds texts; at least one."""
    widths = {field.name: 1 for field in schema if pa.types.is_string(field.type)}
    if not widths:
        return {}
    for group in row_groups(parquet, list(widths)):
        for name in widths:
            longest = pc.max(pc.binary_length(_escaped(group[name].combine_chunks()))).as_py()
            widths[name] = max(widths[name], longest or 0)
    return widths


def _escaped(texts: pa.Array) -> pa.Array:
    """Texts in the characters that FITS allows; null stays null."""
    if pc.all(pc.or_(pc.ascii_is_printable(texts), pc.equal(texts, ""))).as_py() is not False:
        return texts
    return pa.array([None if text is None else _ascii(text) for text in texts.to_pylist()])


def _ascii(text: str) -> str:
    plain = text.isascii() and text.isprintable()
    return text if plain else text.encode("unicode_escape").decode("ascii")


def _numbers(values: pa.Array) -> np.ndarray:
    kind = values.type.to_pandas_dtype()
    missing = np.iinfo(kind).min if pa.types.is_integer(values.type) else np.nan
    filled: np.ndarray = values.fill_null(missing).to_numpy()
    return filled
