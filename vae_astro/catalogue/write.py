"""Tables to a catalogue: Parquet or FITS by its name, in bounded memory, never half-written."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from vae_astro.catalogue.fits_table import write_fits
from vae_astro.catalogue.spool import Spool, cannot_write, part_path, rows_in_group
from vae_astro.errors import InputError
from vae_astro.settings import check_bool, check_text

__all__ = ["SUFFIXES", "free_path", "publish", "write_catalogue"]

SUFFIXES = (".parquet", ".fits")


def write_catalogue(
    out: Path, schema: pa.Schema, tables: Iterable[pa.Table], overwrite: bool = False
) -> int:
    """Write tables one after the other as one catalogue.

    They are asked for one at a time and kept beside ``out`` as compressed Parquet, so that
    memory holds one table and one row group. A FITS table is made of that, for its header tells
    the width of every text and the number of rows before the first of them.

    Parameters
    ----------
    out : Path
        Catalogue to write, by its suffix ``.parquet`` or ``.fits``. Until it is whole, it goes by
        other names.
    schema : pyarrow.Schema
        As `schema_of` makes it.
    tables : iterable of pyarrow.Table
        With the columns of the schema, in any order and in types that cast to it.
    overwrite : bool
        Whether an earlier catalogue is replaced.

    Returns
    -------
    int
        Its rows.

    Raises
    ------
    InputError
        ``out`` exists, has another suffix or no folder, cannot be written, is being written by
        another command, or the disk is full: nothing is left then but what was there before.
    """
    out = free_path(str(out), overwrite)
    spool = Spool(part_path(out, 0), schema)
    try:
        for group in _regrouped(schema, tables):
            try:
                spool.write(group)
            except OSError as error:
                raise cannot_write(spool.path, error) from error
        spool.close()
        publish(spool.path, out, schema, overwrite)
    finally:
        spool.discard()
    return spool.n_rows


def free_path(out: object, overwrite: object, suffixes: tuple[str, ...] = SUFFIXES) -> Path:
    """Where a file may go; nothing that is there is lost unless that is wanted.

    Parameters
    ----------
    out, overwrite : object
        The keys of these names, as they were given.
    suffixes : tuple of str
        Of the formats there are.

    Raises
    ------
    InputError
        The keys ``out`` or ``overwrite`` have to change.
    """
    path = Path(check_text("out", out)).expanduser()
    replace = check_bool("overwrite", overwrite)
    if path.suffix not in suffixes:
        raise InputError(f"out={path} must be a name that ends in {' or '.join(suffixes)}")
    if path.is_dir() or not path.parent.is_dir():
        found = "is a folder" if path.is_dir() else f"lies in {path.parent}, which is no folder"
        raise InputError(f"out={path} {found}; give a file in a folder that exists")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"out={path}: {path.parent} cannot be written to; choose another folder")
    if path.exists() and not replace:
        raise InputError(f"out={path} exists; choose another name, or give overwrite=true")
    return path


def publish(parquet: Path, out: Path, schema: pa.Schema, overwrite: bool) -> None:
    """Give complete rows the name of the catalogue, in the format that it asks for.

    Parameters
    ----------
    parquet : Path
        The rows, in a file beside ``out`` that is gone afterwards.

    Raises
    ------
    InputError
        ``out`` has come into being meanwhile, or cannot be written.
    """
    whole = parquet.with_suffix(out.suffix)
    try:
        if out.suffix == ".fits":
            write_fits(parquet, whole, schema)
        free_path(str(out), overwrite)
        os.replace(whole, out)
    except OSError as error:
        raise cannot_write(out, error) from error
    finally:
        whole.unlink(missing_ok=True)
        parquet.unlink(missing_ok=True)


def _regrouped(schema: pa.Schema, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The rows of some tables in row groups, none of them tiny however small the tables are."""
    n_rows = rows_in_group(schema)
    waiting: list[pa.Table] = []
    for table in tables:
        table = table.select(schema.names).cast(schema)
        while (room := n_rows - sum(map(len, waiting))) <= len(table):
            yield pa.concat_tables([*waiting, table.slice(0, room)])
            waiting, table = [], table.slice(room)
        waiting.append(table)
    if any(map(len, waiting)):
        yield pa.concat_tables(waiting)
