"""Catalogues of what a model says of each stamp: Parquet, written while the stamps go by.

Every process of a run writes the rows of its own stretch of the store to a part of its own,
``NAME.part-RANK.parquet``; the first process then appends the others' to its own, row group by row
group, and puts the whole under its name. What has not been found complete and in order never gets
that name.
"""

from __future__ import annotations

import fcntl
import glob
import json
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from vae_astro.errors import InputError

__all__ = [
    "IDENTITY",
    "LATENT",
    "SCORES",
    "CatalogueWriter",
    "Column",
    "Part",
    "part_path",
    "schema_of",
]

PROVENANCE = b"vae_astro"
"""Key of the schema's metadata under which the settings stand, as JSON."""
ROW_GROUP_BYTES = 1 << 23
"""Bytes of a row group, about: what is held in memory before it is written."""
MOST_ROWS_IN_GROUP = 1 << 14
IDENTITY_BYTES = 256
"""Bytes of the names of one stamp, about."""
MOST_WAITING = 4
"""Batches that wait for the writing thread before the pass waits for them."""

NUMBER, NATS = pa.float64(), pa.float32()


@dataclass(frozen=True)
class Column:
    """One column of a catalogue.

    Attributes
    ----------
    name : str
        As tables show it.
    type : pyarrow.DataType
        Of an entry; for a vector, of its elements.
    unit : str
        As the FITS standard writes it; empty for what has none.
    description : str
        One line.
    vector : bool
        Whether an entry is a list, one element for each latent unit.
    """

    name: str
    type: pa.DataType
    unit: str
    description: str
    vector: bool = False

    def field(self, latent_dim: int) -> pa.Field:
        """As Arrow has it, unit and description in its metadata."""
        kind = pa.list_(self.type, latent_dim) if self.vector else self.type
        about = {"unit": self.unit, "description": self.description}
        return pa.field(self.name, kind, metadata=about)


IDENTITY = (
    Column("index", pa.int64(), "", "row of the stamp store"),
    Column("id", pa.string(), "", "name of the stamp"),
    Column("object_id", pa.string(), "", "name of the object"),
    Column("source", pa.string(), "", "file below the root, with [hdu] or [hdu][plane]"),
    Column("ra", NUMBER, "deg", "right ascension, ICRS; NaN where unknown"),
    Column("dec", NUMBER, "deg", "declination, ICRS; NaN where unknown"),
    Column("label", pa.string(), "", "given label, never trained on; null where unknown"),
)
"""Which stamp a row is of."""
LATENT = (
    Column("latent_mean", pa.float32(), "", "mean of the posterior of each latent unit", True),
    Column("latent_std", pa.float32(), "", "its standard deviation", True),
    Column("kl_nats", NATS, "nat", "divergence of the posterior from the prior, all units"),
)
"""What the encoder says."""
SCORES = (
    Column("reconstruction_nats", NATS, "nat", "log-density of the good pixels, one code drawn"),
    Column("elbo_nats", NATS, "nat", "evidence lower bound at beta = 1"),
    Column("chi2_per_pixel", NATS, "", "mean squared residual in units of the pixel noise"),
)
"""What the decoder adds."""


def schema_of(
    columns: Sequence[Column], latent_dim: int, provenance: Mapping[str, Any]
) -> pa.Schema:
    """Arrow schema of a catalogue.

    Parameters
    ----------
    columns : sequence of Column
        In their order.
    latent_dim : int
        Z, the length of vectors.
    provenance : mapping
        What the catalogue was made from, in plain Python; kept as JSON in the metadata.
    """
    about = {PROVENANCE: json.dumps(dict(provenance)).encode()}
    return pa.schema([column.field(latent_dim) for column in columns], metadata=about)


def part_path(out: Path, rank: int) -> Path:
    """Where process ``rank`` writes its rows until the catalogue ``out`` is whole."""
    return out.with_name(f"{out.stem}.part-{rank}.parquet")


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
        self.path = path
        self.n_rows = 0
        self._schema = schema
        self._identity = identity
        self._last_index = -1
        widths = [field.type for field in schema if pa.types.is_fixed_size_list(field.type)]
        row_bytes = IDENTITY_BYTES + sum(4 * each.list_size for each in widths)
        self._group_rows = max(1, min(MOST_ROWS_IN_GROUP, ROW_GROUP_BYTES // row_bytes))
        self._batches: list[dict[str, np.ndarray]] = []
        self._waiting: deque[Future[None]] = deque()
        try:
            self._lock = _lock(path)
            self._parquet = pq.ParquetWriter(
                path, schema, compression="zstd", use_dictionary=["object_id", "label"]
            )
        except OSError as error:
            raise _cannot_write(path, error) from error
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="catalogue")

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
            with pq.ParquetFile(part) as other:
                for k in range(other.num_row_groups):
                    self._write(other.read_row_group(k))
        except (OSError, pa.ArrowException) as error:
            raise InputError(
                f"cannot put the parts of the catalogue together: {part} ({error}); its folder "
                "must be one that all processes see, and have space for the catalogue twice"
            ) from error

    def close(self) -> None:
        """Have the file complete and on the disk."""
        try:
            self._parquet.close()
            os.fsync(self._lock.fileno())
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        self._release()

    def discard(self) -> None:
        """Leave nothing behind, whatever has happened; harmless after `close`."""
        self._release()
        self.path.unlink(missing_ok=True)

    def _release(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
        with suppress(OSError, pa.ArrowException):  # a full disk: the file is thrown away
            self._parquet.close()
        self._parquet.is_open = False  # or it tries again when it is forgotten
        self._lock.close()

    def _check(self, written: Future[None]) -> None:
        try:
            written.result()
        except OSError as error:
            raise _cannot_write(self.path, error) from error

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
            for field in self._schema
        ]
        self._write(pa.Table.from_arrays(columns, schema=self._schema))

    def _write(self, table: pa.Table) -> None:
        index = table["index"].to_numpy()
        if not (np.diff(index, prepend=self._last_index) > 0).all():
            raise RuntimeError(f"{self.path}: rows repeat or are out of order at {index[0]}")
        self._parquet.write_table(table, row_group_size=len(table))
        self._last_index = int(index[-1])
        self.n_rows += len(table)


class CatalogueWriter(Callback):
    """Writes what ``predict_step`` returns to a catalogue, as one of the processes that make it.

    For ``Trainer.predict(..., return_predictions=False)``. If any process fails or is stopped, no
    part is left, and an earlier catalogue stays as it was.

    Parameters
    ----------
    out : Path
        The catalogue.
    schema : pyarrow.Schema
        Its columns: those of ``predict_step`` and of ``identity``.
    identity : callable
        As `Part` has it.
    n_rows : int
        Rows that all processes make together.

    Attributes
    ----------
    n_written : int
        Rows of the catalogue, on the first process, once it is whole.
    seconds : float
        From the first batch to then.
    """

    def __init__(
        self,
        out: Path,
        schema: pa.Schema,
        identity: Callable[[np.ndarray], pa.Table],
        n_rows: int,
    ) -> None:
        self.out = out
        self.n_written = 0
        self.seconds = 0.0
        self._began = 0.0
        self._schema = schema
        self._identity = identity
        self._n_rows = n_rows
        self._part: Part | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:  # of an earlier command that was killed
            _remove_parts(self.out, trainer.world_size)
        path = part_path(self.out, trainer.global_rank)
        self._part = Part(path, self._schema, self._identity)
        _wait_for_all(trainer)  # one that fails here leaves no part that another begins later
        self._began = time.perf_counter()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.received_sigterm:  # the trainer itself looks at it in training only
            raise SIGTERMException
        assert self._part is not None
        self._part.add(outputs)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._part is not None
        self._part.finish()
        if not trainer.is_global_zero:
            self._part.close()
        _wait_for_all(trainer)
        if not trainer.is_global_zero:
            return
        for rank in range(1, trainer.world_size):
            self._part.append(part_path(self.out, rank))
        if self._part.n_rows != self._n_rows:
            raise InputError(
                f"{self._part.n_rows} of {self._n_rows} stamps went by, so that {self.out} was not "
                "written: leave trainer.limit_predict_batches away"
            )
        self._part.close()
        os.replace(self._part.path, self.out)
        self.n_written = self._part.n_rows
        self.seconds = time.perf_counter() - self._began
        _remove_parts(self.out)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        if self._part is not None:
            self._part.discard()
        _remove_parts(self.out)  # the other processes may be killed before they can


def _wait_for_all(trainer: Trainer) -> None:
    try:
        trainer.strategy.barrier()
    except RuntimeError as error:
        raise InputError(
            "another of the processes that make the catalogue has ended before its time; it says "
            "why, and nothing was written"
        ) from error


def _remove_parts(out: Path, first_rank: int = 0) -> None:
    """Remove the parts of a catalogue from a rank on."""
    for path in out.parent.glob(f"{glob.escape(out.stem)}.part-*.parquet"):
        rank = path.stem.rpartition("-")[2]
        if rank.isdecimal() and int(rank) >= first_rank and path.is_file():
            path.unlink(missing_ok=True)


def _array(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    if pa.types.is_fixed_size_list(kind):
        flat = pa.array(np.ascontiguousarray(values).reshape(-1), kind.value_type)
        return pa.FixedSizeListArray.from_arrays(flat, type=kind)
    return pa.array(values, kind)


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


def _cannot_write(path: Path, error: OSError) -> InputError:
    reason = os.strerror(error.errno) if error.errno else error
    return InputError(f"cannot write {path}: {reason}; free space there or choose another out=")
