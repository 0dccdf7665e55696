"""What ``Trainer.predict`` goes through, to a catalogue.

Every process of a run writes the rows of its own stretch of the store to a part of its own,
``NAME.part-RANK.parquet``; the first process then appends the others' to its own, row group by row
group, and puts the whole under its name, as Parquet or FITS. What has not been found complete and
in order never gets that name.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from vae_astro.catalogue.parts import Part
from vae_astro.catalogue.spool import part_path, remove_parts
from vae_astro.catalogue.write import publish
from vae_astro.errors import InputError

__all__ = ["CatalogueWriter"]


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
    overwrite : bool
        Whether an earlier catalogue is replaced.

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
        overwrite: bool = False,
    ) -> None:
        self.out = out
        self.n_written = 0
        self.seconds = 0.0
        self._began = 0.0
        self._schema = schema
        self._identity = identity
        self._n_rows = n_rows
        self._overwrite = overwrite
        self._part: Part | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:  # of an earlier command that was killed
            remove_parts(self.out, trainer.world_size)
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
            self._part.release()
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
        publish(self._part.path, self.out, self._schema, self._overwrite)
        self._part.discard()
        self.n_written = self._part.n_rows
        self.seconds = time.perf_counter() - self._began
        remove_parts(self.out)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        if self._part is not None:
            self._part.discard()
        remove_parts(self.out)  # the other processes may be killed before they can


def _wait_for_all(trainer: Trainer) -> None:
    try:
        trainer.strategy.barrier()
    except RuntimeError as error:
        raise InputError(
            "another of the processes that make the catalogue has ended before its time; it says "
            "why, and nothing was written"
        ) from error
