"""The rows that one process makes, to a part of a catalogue of its own, while the stamps go by."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
from torch import Tensor

from vae_astro.catalogue.spool import Spool, cannot_write, row_groups, rows_in_group
from vae_astro.errors import InputError

__all__ = ["Part"]

MOST_WAITING = 4
"""Batches that wait for the writing thread before the pass waits for them."""


class Part:
    """Rows in rising order of their index to one Parquet file, in bounded memory.

    Batches are taken over, completed by the names of their stamps and written in a thread, so that
    the device works on meanwhile.

    Parameters
    ----------
    path : Path
        File to write; an earlier one that nobody writes any more is replaced.
    schema : pyarrow.Schema
        Of the catalogue.
    identity : callable
        Rows of the store, ascending, to the columns that tell which stamps they are.

    Raises
    ------
    InputError
        It cannot be written, there or later, or another command is writing it.
    """

    def __init__(
        self, path: Path, schema: pa.Schema, identity: Callable[[np.ndarray], pa.Table]
    ) -> None:
        self._spool = Spool(path, schema)
        self._identity = identity
        self._last_index = -1
        self._group_rows = rows_in_group(schema)
        self._batches: list[dict[str, np.ndarray]] = []
        self._waiting: deque[Future[None]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="catalogue")

    @property
    def path(self) -> Path:
        """Of the file."""
        return self._spool.path

    @property
    def n_rows(self) -> int:
        """Written so far."""
        return self._spool.n_rows

    def add(self, columns: Mapping[str, Tensor]) -> None:
        """Take the rows of a batch: ``index`` and what the schema has beside the names."""
        while len(self._waiting) >= MOST_WAITING:
            self._check(self._waiting.popleft())
        self._waiting.append(self._thread.submit(self._take, dict(columns)))

    def finish(self) -> None:
        """Write what is left of the batches."""
        self._waiting.append(self._thread.submit(self._flush))
        while self._waiting:
            self._check(self._waiting.popleft())

    def append(self, part: Path) -> None:
        """Copy the rows of another part behind these, one row group at a time."""
        try:
            for group in row_groups(part):
                self._write(group)
        except (OSError, pa.ArrowException) as error:
            raise InputError(
                f"cannot put the parts of the catalogue together: {part} ({error}); its folder "
                "must be one that all processes see, and have space for the catalogue twice"
            ) from error

    def close(self) -> None:
        """Have the file complete and on the disk; still no other command writes it."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._spool.close()

    def release(self) -> None:
        """Let go of a file that is closed."""
        self._spool.release()

    def discard(self) -> None:
        """Leave nothing behind, whatever has happened; harmless after `close`."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._spool.discard()

    def _check(self, written: Future[None]) -> None:
        try:
            written.result()
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def _take(self, columns: dict[str, Tensor]) -> None:
        # waits for the device here, and not where the next batch is sent to it
        self._batches.append({name: values.cpu().numpy() for name, values in columns.items()})
        if sum(len(batch["index"]) for batch in self._batches) >= self._group_rows:
            self._flush()

    def _flush(self) -> None:
        if not self._batches:
            return
        batches, self._batches = self._batches, []
        values = {name: np.concatenate([each[name] for each in batches]) for name in batches[0]}
        identity = self._identity(values["index"])
        columns = [
            _array(values[field.name], field.type)
            if field.name in values
            else identity[field.name].cast(field.type)
            for field in self._spool.schema
        ]
        self._write(pa.Table.from_arrays(columns, schema=self._spool.schema))

    def _write(self, table: pa.Table) -> None:
        index = table["index"].to_numpy()
        if not (np.diff(index, prepend=self._last_index) > 0).all():
            raise RuntimeError(f"{self.path}: rows repeat or are out of order at {index[0]}")
        self._spool.write(table)
        self._last_index = int(index[-1])


def _array(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    if pa.types.is_fixed_size_list(kind):
        flat = pa.array(np.ascontiguousarray(values).reshape(-1), kind.value_type)
        return pa.FixedSizeListArray.from_arrays(flat, type=kind)
    return pa.array(values, kind)
