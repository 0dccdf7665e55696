"""A Parquet file that one command writes, complete or not there: what becomes a catalogue."""

from __future__ import annotations

import fcntl
import glob
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from vae_astro.catalogue import names
from vae_astro.errors import InputError

__all__ = ["Spool", "cannot_write", "part_path", "remove_parts", "row_groups", "rows_in_group"]

ROW_GROUP_BYTES = 1 << 23
"""Bytes of a row group, about: what is held in memory before it is written."""
MOST_ROWS_IN_GROUP = 1 << 14
TEXT_BYTES = 64
"""Bytes of a text, about."""
REPEATED = [names.OBJECT_ID, names.LABEL, names.CLASS]
"""Columns whose texts are worth a dictionary."""


def part_path(out: Path, rank: int) -> Path:
    """Where process ``rank`` writes its rows until the catalogue ``out`` is whole."""
    return out.with_name(f"{out.stem}.part-{rank}.parquet")


def remove_parts(out: Path, first_rank: int = 0) -> None:
    """Remove the parts of a catalogue from a rank on."""
    for path in out.parent.glob(f"{glob.escape(out.stem)}.part-*.*"):
        rank = path.stem.rpartition("-")[2]
        if rank.isdecimal() and int(rank) >= first_rank and path.is_file():
            path.unlink(missing_ok=True)


def rows_in_group(schema: pa.Schema) -> int:
    """Rows that are written at a time."""
    row_bytes = 0
    for kind in schema.types:
        length, kind = (
            (kind.list_size, kind.value_type) if pa.types.is_fixed_size_list(kind) else (1, kind)
        )
        row_bytes += length * (TEXT_BYTES if pa.types.is_string(kind) else kind.bit_width // 8 or 1)
    return max(1, min(MOST_ROWS_IN_GROUP, ROW_GROUP_BYTES // row_bytes))


def row_groups(path: Path, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The rows of a Parquet file, one row group at a time."""
    with pq.ParquetFile(path) as parquet:
        for k in range(parquet.num_row_groups):
            yield parquet.read_row_group(k, columns)


class Spool:
    """A Parquet file that nobody else writes, and that is there in whole or not at all.

    Parameters
    ----------
    path : Path
        File to write; an earlier one that nobody writes any more is replaced.
    schema : pyarrow.Schema
        Of the catalogue.

    Raises
    ------
    InputError
        It cannot be written, there or later, or another command is writing it.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self.schema = schema
        self.n_rows = 0
        try:
            self._lock = _lock(path)
            self._parquet = pq.ParquetWriter(
                path, schema, compression="zstd", use_dictionary=REPEATED
            )
        except OSError as error:
            raise cannot_write(path, error) from error

    def write(self, table: pa.Table) -> None:
        """Append rows as one row group. Raises `OSError`."""
        self._parquet.write_table(table, row_group_size=max(1, len(table)))
        self.n_rows += len(table)

    def close(self) -> None:
        """Have the file complete and on the disk; still nobody else writes it."""
        try:
            self._parquet.close()
            os.fsync(self._lock.fileno())
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def release(self) -> None:
        """Let go of a file that is closed."""
        self._lock.close()

    def discard(self) -> None:
        """Leave nothing behind, whatever has happened; harmless after `close`."""
        with suppress(OSError, pa.ArrowException):  # a full disk: the file is thrown away
            self._parquet.close()
        self._parquet.is_open = False  # or it tries again when it is forgotten
        self.path.unlink(missing_ok=True)
        self.release()


def cannot_write(path: Path, error: OSError) -> InputError:
    """What to say of a file that cannot be written."""
    reason = os.strerror(error.errno) if error.errno else error
    return InputError(f"cannot write {path}: {reason}; free space there or choose another out=")


def _lock(path: Path) -> IO[bytes]:
    """A file that no other process may open this way until this one closes it."""
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise InputError(
            f"another command is writing {path}; wait for it, or choose another out="
        ) from error
    except OSError:  # a file system without locks
        pass
    return file
