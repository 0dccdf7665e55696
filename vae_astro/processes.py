"""Processes that train together: started or found, made to agree, and told when one is gone.

They meet before the data are looked at. The first process packs; the others wait for it, however
long that takes, and open the very shards that it names, so that stamps which arrive meanwhile
change nothing.
"""

from __future__ import annotations

import inspect
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from vae_astro.data.datamodule import StampDataModule
from vae_astro.data.store.layout import Manifest
from vae_astro.data.store.store import StampStore
from vae_astro.data.threads import n_cores
from vae_astro.errors import InputError
from vae_astro.ranks import n_ranks, rank
from vae_astro.settings import check_number

__all__ = ["join", "losses_told", "open_together", "strategy_of"]

PATIENCE = timedelta(days=30)
"""For packing: the end of the first process ends the wait at once, whatever this says."""

LOST = (
    "connection closed by peer", "connection reset", "connection refused", "broken pipe",
    "timed out", "connection was likely closed", "nccl", "gloo",
)  # fmt: skip
"""What torch says, among much else, where a process does not answer any more."""

log = logging.getLogger(__name__)


def strategy_of(name: str, timeout_s: float) -> str | Strategy:
    """What ``trainer.strategy`` names; ``ddp`` without what the model does not need.

    Parameters
    ----------
    name : str
        As Lightning has it.
    timeout_s : float
        Silence of a process after which the others end [s].

    Raises
    ------
    InputError
        If ``timeout_s`` is not above 0.
    """
    check_number("trainer.process_timeout_s", timeout_s, above=0)
    if name != "ddp":
        return name
    known = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    # every process computes the same buffers: sent around, they would cost a message a step
    options: dict[str, Any] = {buffers: False, "gradient_as_bucket_view": True}
    return DDPStrategy(timeout=timedelta(seconds=timeout_s), **options)


def join(trainer: Trainer, in_sweep: bool = False) -> None:
    """Start the other processes of ``trainer``, or find those that a launcher has started.

    Parameters
    ----------
    trainer : Trainer
        New.
    in_sweep : bool
        Whether other runs come before or after this one in the same process.

    Raises
    ------
    InputError
        Their number is not what the settings say, they cannot reach each other, or in a sweep that
        starts no processes for each of its runs.
    """
    launcher = trainer.strategy.launcher
    if trainer.world_size == 1 or launcher is None:
        return
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if in_sweep and not (environment and environment.creates_processes_externally):
        raise InputError(
            f"a sweep has its runs in one process, which cannot start {trainer.world_size - 1} more"
            " for each of them; set trainer.devices=1, or a launcher that starts the processes of "
            "a run (hydra/launcher=submitit_slurm)"
        )
    threads_were_given = os.environ.get("OMP_NUM_THREADS")
    n_threads = torch.get_num_threads()
    try:
        launcher.launch(trainer.strategy.setup_environment)
        torch.set_num_threads(n_threads)  # Lightning sets its own
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        raise InputError(
            f"{trainer.world_size} processes do not come together: {' '.join(str(error).split())}; "
            "set trainer.devices (for each machine) and trainer.num_nodes to what the launcher "
            "starts"
        ) from error
    share = n_cores() // max(1, trainer.num_devices)
    if dist.is_torchelastic_launched() and threads_were_given == "1" and share > 1:
        log.info("torchrun gives each process one thread; OMP_NUM_THREADS=%d uses all cores", share)


def open_together(
    datamodule: StampDataModule, check: Callable[[], None], stage: str | None = None
) -> None:
    """Open the store of the first process in all of them.

    Where another machine does not see it, it packs its own, which has to hold the same.

    Parameters
    ----------
    datamodule : StampDataModule
        Not set up yet.
    check : callable
        Called in the first process when the store is open, before the others go on.
    stage : str, optional
        As `StampDataModule.setup` has it.

    Raises
    ------
    InputError
        As `StampDataModule.prepare_data`; a store that is another one here.
    SystemExit
        In the other processes, where the first has ended.
    """
    if n_ranks() == 1:
        _open(datamodule, stage)
        check()
        return
    # a group of its own, whose silence means work
    waiting: Any = dist.new_group(backend="gloo", timeout=PATIENCE)
    told: list[Any] = [None]
    try:
        if rank() == 0:
            _open(datamodule, stage)
            check()
            told = [(datamodule.store.path.absolute(), datamodule.store.manifest)]
    finally:  # an error is said once, by the first process
        try:
            dist.broadcast_object_list(told, 0, group=waiting, device=torch.device("cpu"))
        except RuntimeError:
            log.error("another process of this run has ended before the training began")
            sys.exit(1)
    if told[0] is None:
        sys.exit(2)
    if rank() > 0:
        path, manifest = told[0]
        _open_the_same(datamodule, path, manifest, stage)


def _open(datamodule: StampDataModule, stage: str | None) -> None:
    datamodule.prepare_data()
    datamodule.setup(stage)


def _open_the_same(
    datamodule: StampDataModule, path: Path, manifest: Manifest, stage: str | None
) -> None:
    try:
        datamodule.use(StampStore(path, manifest), stage)
        return
    except (InputError, OSError) as error:
        log.warning("the store of the first process is not to be seen from here: %s", error)
    _open(datamodule, stage)
    ours = datamodule.store.manifest
    if (ours.form, ours.shards) != (manifest.form, manifest.shards):
        raise InputError(
            f"the store here, {datamodule.store.path.absolute()}, is not that of the first process "
            f"({ours.n_stamps} stamps, there {manifest.n_stamps}); set data.store_dir to a folder "
            "that all machines share, or copy the stamps again"
        )


@contextmanager
def losses_told(run_dir: Path) -> Iterator[None]:
    """End this process with one line and status 1 where another is gone, or silent for too long.

    Parameters
    ----------
    run_dir : Path
        Run folder, whose last checkpoint can be gone on with.
    """
    try:
        yield
    except RuntimeError as error:
        if n_ranks() == 1 or not _is_loss(error):
            raise
        log.error(
            "another process of this run is gone or silent (%s); go on from the last checkpoint "
            "with: python train.py resume=%s",
            _reason(error),
            shlex.quote(str(run_dir)),
        )
        sys.exit(1)


def _reason(error: RuntimeError) -> str:
    """The first sentence of what torch says, without the line of its own source."""
    sentence = str(error).splitlines()[0].split(". ")[0]
    return re.sub(r"^\[[^]]*\] *", "", sentence)


def _is_loss(error: RuntimeError) -> bool:
    said = str(error).lower()
    return isinstance(error, dist.DistError) or any(words in said for words in LOST)
