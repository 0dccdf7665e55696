"""Tables of any common format, column by column: FITS, VOTable, Parquet, CSV and others in text."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator
from io import BytesIO
from itertools import dropwhile
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from vae_astro.data.sources.files import RefusedError

__all__ = ["MAX_TEXT_BYTES", "Table", "open_tables"]

MAX_TEXT_BYTES = 2**30
"""Most bytes of a table that has to be in memory as a whole."""


class Table(NamedTuple):
    """A table whose columns are read one by one, N rows.

    Attributes
    ----------
    names : list of str
        Of the columns.
    column : callable
        ``column(name, as_text)``: its values, shape (N,), in native byte order; with ``as_text``
        and wherever they are text, an array of stripped str. What is missing is NaN or empty.
    unit : callable
        ``unit(name)``: as the table spells it, empty where it has none.
    is_text : callable
        ``is_text(name)``: whether its values are text.
    """

    names: list[str]
    column: Callable[[str, bool], np.ndarray]
    unit: Callable[[str], str]
    is_text: Callable[[str], bool]


def open_tables(stream: BinaryIO, head: bytes, n_bytes: int, as_text: set[str]) -> Iterator[Table]:
    """The tables of a file, whose format is told by how it begins.

    Parameters
    ----------
    stream : binary file
        At its first byte.
    head : bytes
        Its first bytes, up to 2048.
    n_bytes : int
        Its size.
    as_text : set of str
        Columns, in lower case, whose values stay as they are spelled: 007 is not 7.

    Raises
    ------
    RefusedError
        If it is too large or truncated. A broken file raises what its parser does.
    """
    start = head[:2048].lstrip(b"\xef\xbb\xbf \r\n\t")
    if start.startswith(b"SIMPLE"):
        yield from _fits_tables(stream)
    elif start.startswith(b"PAR1"):
        yield _parquet_table(stream)
    elif n_bytes > MAX_TEXT_BYTES:
        raise RefusedError(
            "too large",
            f"{n_bytes} bytes of text, at most {MAX_TEXT_BYTES}; convert it to Parquet",
        )
    elif start.startswith(b"<"):
        from astropy.io.votable import parse

        for table in parse(stream, verify="ignore").iter_tables():
            yield _astropy_table(table.to_table())
    else:
        yield _text_table(stream.read(), start, as_text)


def _fits_tables(stream: BinaryIO) -> Iterator[Table]:
    from astropy.io import fits

    n_held = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    with fits.open(stream, memmap=not isinstance(stream, BytesIO)) as hdus:
        for hdu in hdus:
            if not isinstance(hdu, fits.BinTableHDU | fits.TableHDU):
                continue
            place = hdu.fileinfo()
            n_bytes = int(hdu.header["NAXIS1"]) * int(hdu.header["NAXIS2"])
            if n_bytes < 0 or place["datLoc"] + n_bytes > n_held:
                raise RefusedError(
                    "truncated file",
                    f"{max(0, n_held - place['datLoc'])} bytes of rows, the header claims "
                    f"{n_bytes}",
                )

            def column(name: str, as_text: bool, hdu: Any = hdu) -> np.ndarray:
                # memory of its own: the file is closed when the catalogue is used
                return _plain(np.array(hdu.data[name]), as_text)

            kinds = {each.name: each.format for each in hdu.columns}
            units = {each.name: str(each.unit or "") for each in hdu.columns}
            yield Table(
                list(hdu.columns.names),
                column,
                units.__getitem__,
                lambda name, kinds=kinds: "A" in kinds[name],  # type: ignore[misc]
            )


def _astropy_table(table: Any) -> Table:
    def column(name: str, as_text: bool) -> np.ndarray:
        values = table[name]
        if hasattr(values, "filled"):
            missing: Any = np.nan if values.dtype.kind == "f" else None
            if values.dtype.kind in "iu" and np.any(values.mask) and not as_text:
                values, missing = values.astype(np.float64), np.nan
            if values.dtype.kind in "OUS":
                missing = ""
            values = values.filled(missing)
        return _plain(np.asarray(values), as_text)

    return Table(
        list(table.colnames),
        column,
        lambda name: str(table[name].unit or ""),
        lambda name: table[name].dtype.kind in "OUS",
    )


def _parquet_table(stream: BinaryIO) -> Table:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(stream)
    schema = file.schema_arrow
    return Table(
        schema.names,
        lambda name, as_text: _arrow_column(file.read([name]).column(0), as_text),
        lambda name: ((schema.field(name).metadata or {}).get(b"unit", b"")).decode(),
        lambda name: _is_arrow_text(schema.field(name).type),
    )


def _text_table(raw: bytes, start: bytes, as_text: set[str]) -> Table:
    """A table in text: CSV by pyarrow, which is fast; all others by astropy, which knows them."""
    lines = start.decode("utf-8", "replace").splitlines()
    is_ecsv = bool(lines) and lines[0].startswith("# %ECSV")
    comments = 0 if is_ecsv else len(lines) - len(list(dropwhile(_is_comment, lines)))
    header = lines[comments] if comments < len(lines) else ""
    if is_ecsv or "," not in header:
        from astropy.io import ascii as astropy_ascii

        return _astropy_table(astropy_ascii.read(raw.decode()))
    from pyarrow import csv as arrow_csv
    from pyarrow import string

    text = raw[raw.index(start[:16]) :] if start else raw
    first = text.split(b"\n", comments + 1)[comments].decode("utf-8").rstrip("\r")
    names = next(csv.reader([first], skipinitialspace=True))
    table = arrow_csv.read_csv(
        BytesIO(text),
        read_options=arrow_csv.ReadOptions(
            skip_rows=comments + 1, column_names=[name.strip() for name in names], use_threads=False
        ),
        convert_options=arrow_csv.ConvertOptions(
            # an identifier such as 007 is not a number
            column_types={
                name.strip(): string() for name in names if name.strip().lower() in as_text
            }
        ),
    )
    return Table(
        table.column_names,
        lambda name, as_text: _arrow_column(table.column(name), as_text),
        lambda name: "",
        lambda name: _is_arrow_text(table.schema.field(name).type),
    )


def _is_comment(line: str) -> bool:
    return line.startswith("#")


def _is_arrow_text(type: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(type):
        type = type.value_type
    return types.is_string(type) or types.is_large_string(type)


def _arrow_column(column: Any, as_text: bool) -> np.ndarray:
    from pyarrow import float64, string, types

    if as_text or _is_arrow_text(column.type):
        values = column.cast(string()).fill_null("").to_numpy()
        return _plain(values, True)
    if types.is_nested(column.type):
        raise RefusedError("wrong dimensions", f"a column of positions holds {column.type}")
    return column.cast(float64()).to_numpy()


def _plain(values: np.ndarray, as_text: bool) -> np.ndarray:
    """Values in native byte order; text as objects, stripped, where it is asked for."""
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8", "replace")
    if as_text or values.dtype.kind in "OU":
        return np.array([str(value).strip() for value in values.tolist()], dtype=object)
    return values.astype(values.dtype.newbyteorder("="), copy=False)
