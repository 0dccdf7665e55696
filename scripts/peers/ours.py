"""Our side: ``train.py`` as it is, an epoch a turn.

python ours.py SETTINGS.json RUN_DIR

``go`` is an epoch as the command does it, with bar, logs and checkpoints; validation passes are not
timed, since the other sides have none. ``bare`` is an epoch of the same step without Lightning: the
same model, precision, optimiser and loader. ``profile`` is ``go`` under torch's profiler.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from channel import Channel
from lightning import Callback, LightningModule, Trainer
from parts import profiled_parts

from vae_astro import run
from vae_astro.vae import VAE


class Turns(Callback):
    """Holds the training at each epoch's start until it is its turn; comes before all others."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._began: float | None = None
        self._first_step = self._validation = self._validation_began = 0.0
        self._n_steps = self._n_stamps = 0
        self._profile: Any = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, VAE)
        if self._began is not None:  # the epoch before, its checkpoints included
            self._tell(trainer)
        while (word := self._wait(trainer)) == "bare":
            began = time.perf_counter()
            n_stamps = bare_epoch(trainer, pl_module)
            self._say(trainer, n_stamps=n_stamps, seconds=time.perf_counter() - began)
        if not word:
            os._exit(0)  # what follows a training is not asked for
        if word == "profile":
            self._profile = profiled_parts(trainer, pl_module)
            self._profile.__enter__()
        self._n_steps = self._n_stamps = 0
        self._validation = 0.0
        self._began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert self._began is not None
        if not self._n_steps:
            self._first_step = time.perf_counter() - self._began
        self._n_steps += 1
        self._n_stamps += len(batch["index"]) * trainer.world_size

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation_began = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation += time.perf_counter() - self._validation_began

    def _tell(self, trainer: Trainer) -> None:
        assert self._began is not None
        said = {
            "seconds": time.perf_counter() - self._began - self._validation,
            "n_stamps": self._n_stamps,
            "n_steps": self._n_steps,
            "first_step": self._first_step,
        }
        if self._profile is not None:
            self._profile.__exit__(None, None, None)
            said["parts"] = self._profile.seconds()
            self._profile = None
        self._say(trainer, **said)

    def _say(self, trainer: Trainer, **figures: Any) -> None:
        if trainer.is_global_zero:
            self.channel.say(**figures)

    def _wait(self, trainer: Trainer) -> str:
        """The next word, which the first process hears and tells the others."""
        word = self.channel.wait() if trainer.is_global_zero else ""
        return trainer.strategy.broadcast(word)


def bare_epoch(trainer: Trainer, vae: VAE) -> int:
    """The steps of an epoch without hooks, bar, logs and checkpoints; returns their stamps."""
    optimizer = trainer.optimizers[0]
    parameters = list(vae.parameters())
    assert trainer.train_dataloader is not None
    logged_every, vae.log_every_n_steps = vae.log_every_n_steps, sys.maxsize
    vae.train()
    n_stamps = 0
    for k, batch in enumerate(trainer.train_dataloader):
        if k == trainer.num_training_batches:
            break
        batch = trainer.strategy.batch_to_device(batch)
        with trainer.precision_plugin.train_step_context():
            loss = vae.training_step(batch, k)
        optimizer.zero_grad(set_to_none=True)
        vae.backward(loss)
        if trainer.gradient_clip_val is not None:
            torch.nn.utils.clip_grad_norm_(parameters, trainer.gradient_clip_val)
        optimizer.step()
        n_stamps += len(batch["index"])
    vae.log_every_n_steps = logged_every
    return n_stamps


def main() -> None:
    turns = Turns(Channel())
    settings, run_dir = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    fit = Trainer.fit

    def fit_in_turns(trainer: Trainer, *arguments: Any, **options: Any) -> None:
        trainer.callbacks.insert(0, turns)  # type: ignore[attr-defined]  # set by a connector
        fit(trainer, *arguments, **options)

    Trainer.fit = fit_in_turns  # type: ignore[assignment,method-assign]
    warnings.simplefilter("ignore")
    run.train(settings, run_dir)


if __name__ == "__main__":
    main()
