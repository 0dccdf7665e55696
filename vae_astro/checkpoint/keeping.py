"""Which checkpoints a run keeps, when they are written, and that each is written whole."""

from __future__ import annotations

import shutil
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import SIGTERMException

from vae_astro.command.files import whole
from vae_astro.errors import InputError
from vae_astro.ranks import Alarm
from vae_astro.settings import check_int
from vae_astro.stopping import SIGNALS, note, say

__all__ = ["AtomicCheckpoints", "BestCheckpoint", "LastCheckpoint"]


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its target and renames it: a full disk spoils no older one."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        for torn in target.parent.glob(f".{target.stem}.partial-*{target.suffix}"):
            torn.unlink(missing_ok=True)  # of a process that was killed while it wrote
        try:
            with whole(target) as partial:
                torch.save(checkpoint, partial)
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError
            reason = " ".join(str(error).split())
            free = shutil.disk_usage(target.parent).free / 2**20
            raise InputError(
                f"cannot write {target}: {reason} ({free:.1f} MiB are free there); make room and "
                f"go on with resume={target.parent.parent}"
            ) from error


class BestCheckpoint(ModelCheckpoint):
    """Keeps ``best.ckpt``: the highest validation ELBO at beta = 1.

    Parameters
    ----------
    folder : Path
        Where it goes.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(
            folder,
            filename="best",
            monitor="val/elbo_nats",
            mode="max",
            enable_version_counter=False,
            # when validation ends, so that the last checkpoint of the same epoch knows of it
            save_on_train_epoch_end=False,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best score also where the run folder has moved.

        Of the paths only their being there is taken over: what the best checkpoint was is removed
        when a better one comes, and a file of a stranger may name anything.
        """

        def here(path: str) -> str:
            return str(Path(str(self.dirpath)) / "best.ckpt") if path else ""

        state = dict(state_dict)
        state["dirpath"] = self.dirpath
        state["best_model_path"] = here(state["best_model_path"])
        state["kth_best_model_path"] = here(state["kth_best_model_path"])
        state["best_k_models"] = {here(k): v for k, v in state["best_k_models"].items()}
        super().load_state_dict(state)


class LastCheckpoint(Callback):
    """Keeps ``last.ckpt`` up to date, and leaves it exact when the run is interrupted.

    Saved after every validation, every ``every_n_steps`` optimiser steps, at the end of the run,
    and on Ctrl-C, SIGTERM or SIGUSR1 at the end of the step that was under way, so that a resumed
    run neither replays nor skips a stamp. A second Ctrl-C stops at once. Where processes train
    together, it is enough to tell one; they stop a step later.

    Parameters
    ----------
    folder : Path
        Where ``last.ckpt`` goes.
    every_n_steps : int
        Optimiser steps between saves within an epoch.
    """

    def __init__(self, folder: Path, every_n_steps: int = 500) -> None:
        self.path = Path(folder) / "last.ckpt"
        self.every_n_steps = check_int("callbacks.save_every_n_steps", every_n_steps, minimum=1)
        self._received: int | None = None
        self._previous_handlers: dict[int, Any] = {}
        self._alarm: Alarm | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._alarm = Alarm()
        if threading.current_thread() is threading.main_thread():
            self._previous_handlers = {
                number: signal.signal(number, self._receive) for number in SIGNALS
            }

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received == signal.SIGINT == number:
            raise KeyboardInterrupt
        self._received = number
        note(number)
        say("stopping after this step; Ctrl-C again to stop at once")

    def _stops(self) -> bool:
        """Whether any process was told to stop; asked by all at the same step, or they hang."""
        assert self._alarm is not None
        heard = self._alarm.heard(self._received or 0)
        if heard:
            self._received = heard  # all leave in the same way
            note(heard)
        return bool(heard)

    def _stop(self, trainer: Trainer) -> None:
        self._save(trainer)
        if self._received in (signal.SIGTERM, signal.SIGUSR1):
            raise SIGTERMException
        raise KeyboardInterrupt

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx + 1 == trainer.num_training_batches:
            return  # the epoch's own save follows, after validation
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # gathered gradients are not saved
        if self._stops():
            self._stop(trainer)
        if trainer.global_step % self.every_n_steps == 0:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        n_epochs = trainer.current_epoch + 1
        validated = n_epochs % (trainer.check_val_every_n_epoch or 1) == 0
        if self._stops():
            self._stop(trainer)
        if validated or n_epochs == trainer.max_epochs:
            self._save(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._alarm is not None:
            self._alarm.last()
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        self._previous_handlers.clear()

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.path, weights_only=False)  # with the optimiser
