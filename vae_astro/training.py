"""One fit and what it is made of.

`run` decides what is trained; here it is built from the settings and fitted.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.exceptions import SIGTERMException

from vae_astro import length
from vae_astro.acceleration import allow_tf32, check_compile, compile_mode, compile_parts
from vae_astro.checkpoint import (
    AtomicCheckpoints,
    BestCheckpoint,
    LastCheckpoint,
    RandomState,
    load_checkpoint,
    refuse_other_weights,
    refuse_without_state,
)
from vae_astro.collapse.monitor import CollapseMonitor
from vae_astro.data.datamodule import StampDataModule
from vae_astro.errors import InputError
from vae_astro.faults import FiniteGuard
from vae_astro.hardware import Machine, Setup, take
from vae_astro.model.micro_batches import micro_batch_size
from vae_astro.processes import strategy_of
from vae_astro.progress import can_draw
from vae_astro.report.callbacks import ProgressBar, ProgressLines, StampPanels
from vae_astro.report.full_disk import Curves
from vae_astro.settings import check_bool, check_int, check_number, check_text
from vae_astro.stopping import Stopped, forget, raise_if_told
from vae_astro.vae import VAE

__all__ = [
    "Attempt",
    "Pace",
    "fit",
    "new_attempt",
    "new_trainer",
    "new_vae",
    "progress_bar",
]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Attempt:
    """What one fit is made of.

    Attributes
    ----------
    settings : dict
        Of the run, as far as rescues have changed them.
    machine : Machine
        Where it computes.
    setup : Setup
        How it uses that.
    trainer : Trainer
        With its callbacks.
    monitor : CollapseMonitor
        One of them; knows the rescues so far.
    panels : StampPanels
        Another.
    """

    settings: dict[str, Any]
    machine: Machine
    setup: Setup
    trainer: Trainer
    monitor: CollapseMonitor
    panels: StampPanels

    def set_length(self, datamodule: StampDataModule) -> None:
        """Fill in what the settings leave to the number of stamps; see `vae_astro.length`."""
        length.set_length(self.trainer, self.settings["trainer"], self._n_batches(datamodule))

    def steps_per_epoch(self, datamodule: StampDataModule) -> int:
        """Optimiser steps of an epoch, on all processes together."""
        return length.steps_per_epoch(self.trainer, self._n_batches(datamodule))

    def total_steps(self, datamodule: StampDataModule) -> int:
        """Optimiser steps of the run, once its length is set."""
        return length.total_steps(self.trainer, self._n_batches(datamodule))

    def _n_batches(self, datamodule: StampDataModule) -> int:
        return datamodule.batches_per_epoch(self.trainer.world_size)


def new_attempt(
    settings: dict[str, Any], run_dir: Path, rescues: Sequence[dict[str, Any]] = ()
) -> Attempt:
    """Trainer and callbacks for a fit in ``run_dir``, after ``rescues``.

    Raises
    ------
    InputError
        A setting out of range, or one that this machine cannot do.
    """
    chosen = settings["callbacks"]
    checkpoints = run_dir / "checkpoints"
    check_bool("callbacks.page", chosen["page"])
    check_int("collapse.forecast_stamps", settings["collapse"]["forecast_stamps"], minimum=0)
    action = settings["collapse"]["action"]
    healthy = checkpoints / "healthy.ckpt" if action == "rescue" else None
    monitor = CollapseMonitor(action, healthy, rescues)
    panels = StampPanels(chosen["n_stamps"], chosen["time_share"])
    callbacks: list[Callback] = [
        FiniteGuard(),  # first: the others need not know of what is not finite
        panels,
        monitor,
        RandomState(),
        LastCheckpoint(checkpoints, chosen["save_every_n_steps"]),
        BestCheckpoint(checkpoints),
    ]
    if check_bool("callbacks.progress", chosen["progress"]):
        callbacks.append(progress_bar())
    # steps go back in a rescue: its curves lie beside those of the run that collapsed
    version = f"rescue_{len(rescues)}" if rescues else ""
    machine, setup = take(settings["trainer"])
    trainer = _new_trainer(settings, setup, run_dir, callbacks, version)
    if monitor.action == "rescue":
        _refuse_rescue_where_it_cannot_be(settings, trainer)
    return Attempt(settings, machine, setup, trainer, monitor, panels)


def progress_bar() -> ProgressBar | ProgressLines:
    """A bar on a terminal; a batch log gets a line now and then."""
    return ProgressBar() if can_draw() else ProgressLines()


def _new_trainer(
    settings: dict[str, Any], setup: Setup, run_dir: Path, callbacks: list[Callback], version: str
) -> Trainer:
    return new_trainer(
        settings["trainer"],
        setup,
        plugins=[AtomicCheckpoints()],
        callbacks=callbacks,
        logger=Curves(run_dir, name="", version=version, default_hp_metric=False),
        default_root_dir=run_dir,
        enable_progress_bar=settings["callbacks"]["progress"],
        log_every_n_steps=1,  # the model itself decides at which steps it logs
    )


def new_trainer(options: Mapping[str, Any], setup: Setup, **parts: Any) -> Trainer:
    """A trainer of the settings of the group ``trainer``, as ``setup`` fills them in.

    Raises
    ------
    InputError
        A setting out of range, or one that this machine cannot do.
    """
    options = {**options, "precision": setup.precision}
    check_compile(options["compile"])
    for ours in ("channels_last", "compile", "micro_batch_size", "threads"):  # not Lightning's
        del options[ours]
    for key in ("max_epochs", "check_val_every_n_epoch"):
        if options[key] is None:
            options[key] = 1  # set when the data are known: see set_length
        check_int(f"trainer.{key}", options[key], minimum=1)
    check_int("trainer.num_nodes", options["num_nodes"], minimum=1)
    for key in ("accelerator", "strategy"):
        check_text(f"trainer.{key}", options[key])
    if options["devices"] != "auto" and not isinstance(options["devices"], list):
        check_int("trainer.devices", options["devices"], minimum=1)
    for key in ("limit_train_batches", "limit_val_batches"):
        value = options[key]
        if value is not None and check_number(f"trainer.{key}", value, above=0) > 1:
            check_int(f"trainer.{key}", value, minimum=1)  # a share is at most 1
    if options["gradient_clip_val"] is not None:
        check_number("trainer.gradient_clip_val", options["gradient_clip_val"], above=0)
    check_bool("trainer.deterministic", options["deterministic"])
    timeout_s = options.pop("process_timeout_s")
    options["strategy"] = strategy_of(options["strategy"], timeout_s)
    try:
        trainer = Trainer(
            **options,
            **parts,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # the sampler shares out the stamps itself
        )
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        ours = "|".join(options)  # as a user types them
        reason = re.sub(rf"`({ours})\b([^`]*)`", r"trainer.\1\2", " ".join(str(error).split()))
        raise InputError(
            f"these trainer settings do not work on this machine: {reason} trainer=auto takes what "
            "there is; trainer=cpu always works"
        ) from error
    if trainer.world_size > 1:
        # Lightning would wait for the device at each step; `LastCheckpoint` asks by the processor
        loop: Any = trainer.fit_loop.epoch_loop
        loop._broadcast_sigterm_tensor = lambda: None
    return trainer


def _refuse_rescue_where_it_cannot_be(settings: dict[str, Any], trainer: Trainer) -> None:
    if trainer.world_size > 1:
        raise InputError(
            f"collapse.action=rescue works in one process, not in {trainer.world_size}; set "
            "trainer.devices=1, or collapse.action=stop and resume= with other settings"
        )
    if not settings["collapse"]["forecast_stamps"]:
        raise InputError(
            "collapse.action=rescue plans with the forecast; set collapse.forecast_stamps above 0"
        )


def new_vae(
    settings: dict[str, Any],
    stamp_shape: tuple[int, int, int],
    band_names: tuple[str, ...] | None = None,
) -> VAE:
    """The model of these settings, its weights drawn from the random state."""
    vae = VAE(
        list(stamp_shape),
        model=settings["model"],
        likelihood=settings["likelihood"],
        prior=settings["prior"],
        beta=settings["beta"],
        optim=settings["optim"],
        normalize=settings["data"]["normalize"],
        band_names=None if band_names is None else list(band_names),
        log_every_n_steps=settings["log_every_n_steps"],
    )
    vae.micro_batches.n_training = micro_batch_size(settings["trainer"]["micro_batch_size"])
    vae.run_settings = settings
    return vae


@dataclass
class Pace:
    """How long all fits of a run took, and how many stamps they trained on."""

    seconds: float = 0.0
    n_stamps: int = 0

    def as_dict(self) -> dict[str, float]:
        """For ``metrics.json``."""
        per_second = self.n_stamps / self.seconds if self.seconds else 0.0
        return {"seconds_fit": self.seconds, "train_stamps_per_second": per_second}


def fit(
    attempt: Attempt, vae: VAE, datamodule: StampDataModule, resume: Path | None, pace: Pace
) -> None:
    """Train, from a checkpoint if there is one, and add to ``pace``.

    Raises
    ------
    InputError
        The checkpoint is of another model, or Lightning refuses.
    Stopped
        By a signal; the run can be resumed.
    """
    n_steps_before = 0
    if resume is not None:
        checkpoint = load_checkpoint(resume)
        refuse_other_weights(vae, checkpoint["state_dict"], resume)
        refuse_without_state(checkpoint, resume)
        n_steps_before = checkpoint["global_step"]
        del checkpoint  # Lightning reads it again
    trainer = attempt.trainer
    _accelerate(attempt, vae, datamodule, n_steps_before)
    forget()
    began = time.perf_counter()
    try:
        trainer.fit(vae, datamodule=datamodule, ckpt_path=resume, weights_only=True)
    except MisconfigurationException as error:
        raise InputError(f"the trainer refuses: {' '.join(str(error).split())}") from error
    except (SIGTERMException, SystemExit):  # the latter of Ctrl-C
        raise Stopped from None
    raise_if_told()  # after the last step
    pace.seconds += time.perf_counter() - began
    # the step count is that of the whole run, the time only of this part of it
    n_steps = trainer.global_step - n_steps_before
    n_batches = n_steps * int(trainer.num_training_batches) // attempt.steps_per_epoch(datamodule)
    pace.n_stamps += n_batches * datamodule.stamps_per_step(trainer.world_size)


def _accelerate(attempt: Attempt, vae: VAE, datamodule: StampDataModule, n_done: int) -> None:
    """What makes the machine faster at the same work, as the settings of the trainer say."""
    options, trainer = attempt.settings["trainer"], attempt.trainer
    if attempt.setup.channels_last:
        vae.to(memory_format=torch.channels_last)
    device = trainer.strategy.root_device
    allow_tf32(device, str(trainer.precision), options["deterministic"])
    mode = compile_mode(
        options["compile"],
        device,
        attempt.total_steps(datamodule) - n_done,
        (datamodule.batch_size, *vae.stamp_shape),
        n_ranks=trainer.world_size,
        accumulates=trainer.accumulate_grad_batches > 1,
    )
    if mode is not None:
        log.info("the step is compiled (%s); the first one takes longer for it", mode)
        compile_parts(vae, mode)
        datamodule.compile_batches = True
