"""Checkpoints: the one door to ``torch.load``, resuming bit for bit, and warm starts."""

from __future__ import annotations

import copy
import logging
import pickle
import random
import re
import shutil
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import SIGTERMException

from vae_astro.errors import InputError
from vae_astro.ranks import Alarm
from vae_astro.settings import check_int, check_text
from vae_astro.stopping import SIGNALS, note, say
from vae_astro.vae import CHECKPOINT_FORMAT, VAE

__all__ = [
    "AtomicCheckpoints",
    "BestCheckpoint",
    "LastCheckpoint",
    "RandomState",
    "WarmStart",
    "carry_over",
    "find_checkpoint",
    "load_checkpoint",
    "refuse_other_shapes",
    "warm_start",
]

log = logging.getLogger(__name__)


def find_checkpoint(key: str, path: str) -> Path:
    """The checkpoint that a user means by a file or a run folder.

    Parameters
    ----------
    key : str
        ``resume``, which takes a run's last checkpoint, or ``init_from`` or ``checkpoint``, which
        take its best, or the last of a run that was stopped before its first validation.
    path : str
        File, run folder or its ``checkpoints`` folder.

    Raises
    ------
    InputError
        If there is none.
    """
    given = Path(check_text(key, path)).expanduser()
    names = ("last.ckpt",) if key == "resume" else ("best.ckpt", "last.ckpt")
    folders = (given / "checkpoints", given)
    for candidate in (given, *(folder / name for name in names for folder in folders)):
        if candidate.is_file():
            return candidate
    if not given.exists():
        raise InputError(f"{key}={path} does not exist; give a run folder or a .ckpt file")
    raise InputError(f"{key}={path} holds no checkpoint: there is no checkpoints/{names[0]} in it")


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its target and renames it: a full disk spoils no older one."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        try:
            torch.save(checkpoint, partial)
            partial.replace(target)
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError
            reason = " ".join(str(error).split())
            free = shutil.disk_usage(target.parent).free / 2**20
            raise InputError(
                f"cannot write {target}: {reason} ({free:.1f} MiB are free there); make room and "
                f"go on with resume={target.parent.parent}"
            ) from error
        finally:
            partial.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this project onto the CPU; code that it may hold is never run.

    Raises
    ------
    InputError
        If it cannot be read, is not one of ours, or is of a format this version does not know.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{path} cannot be read as a checkpoint, it is damaged or something else ({reason}); "
            "give a run folder or a .ckpt file of one"
        ) from error
    ours = checkpoint.get("vae_astro") if isinstance(checkpoint, dict) else None
    if not isinstance(ours, dict) or "format" not in ours:
        raise InputError(f"{path} is not a checkpoint of vae_astro")
    if ours["format"] != CHECKPOINT_FORMAT:
        raise InputError(
            f"{path} has checkpoint format {ours['format']} (vae_astro {ours.get('version')}); "
            f"this version reads format {CHECKPOINT_FORMAT}"
        )
    return checkpoint


@dataclass(frozen=True)
class WarmStart:
    """What a warm start took over.

    Attributes
    ----------
    taken : int
        Weight tensors that fit.
    other_shape : dict of str to tuple of tuple
        Name to (shape in the checkpoint, shape here); these start anew.
    missing : tuple of str
        Weights of this model that the checkpoint lacks.
    unused : tuple of str
        Weights of the checkpoint that this model lacks.
    """

    taken: int
    other_shape: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    missing: tuple[str, ...]
    unused: tuple[str, ...]

    def lines(self) -> list[str]:
        """One line for each weight that did not fit."""
        return [
            *(
                f"{name}: {theirs} in the checkpoint, {ours} here"
                for name, (theirs, ours) in self.other_shape.items()
            ),
            *(f"{name}: not in the checkpoint" for name in self.missing),
            *(f"{name}: not in this model" for name in self.unused),
        ]


_PRIOR, _RINGS = re.compile(r"prior\."), re.compile(r"network\.\w+\.rings\.")
_WHOLE = (_PRIOR, _RINGS)
_PROGRESS = re.compile(r"prior\.(epoch|occupied|n_batches|n_reseeded)$")


def _is_given(vae: VAE, group: re.Pattern[str], theirs: Mapping[str, torch.Tensor]) -> bool:
    """Whether the rings have a radius that is asked for and is not that of the checkpoint."""
    radius = getattr(vae.network, "outer_radius", None)
    if group is not _RINGS or radius is None:
        return False
    found = theirs.get("network.encoder.rings.outer_radius")
    return found is not None and abs(float(found) - radius) > 1e-6 * radius


def warm_start(vae: VAE, path: Path) -> WarmStart:
    """Copy every weight of a checkpoint that fits ``vae``; leave the rest as it is.

    A learned prior, and the rings that stamps are measured in, are taken whole or not at all; how
    far the earlier run had come is not taken.

    Raises
    ------
    InputError
        As `load_checkpoint`, and if nothing fits.
    """
    theirs: dict[str, torch.Tensor] = load_checkpoint(path)["state_dict"]
    ours = vae.state_dict()
    fitting = {
        name: value
        for name, value in theirs.items()
        if name in ours and ours[name].shape == value.shape
    }
    for group in _WHOLE:
        of_both = {name for name in {*theirs, *ours} if group.match(name)}
        if not of_both <= fitting.keys() or _is_given(vae, group, theirs):
            fitting = {name: value for name, value in fitting.items() if name not in of_both}
    fitting = {name: value for name, value in fitting.items() if not _PROGRESS.match(name)}
    result = WarmStart(
        taken=len(fitting),
        other_shape={
            name: (tuple(value.shape), tuple(ours[name].shape))
            for name, value in theirs.items()
            if name in ours and name not in fitting
        },
        missing=tuple(name for name in ours if name not in theirs),
        unused=tuple(name for name in theirs if name not in ours),
    )
    if not fitting:
        raise InputError(
            f"init_from={path}: no weight fits this model ({'; '.join(result.lines()[:3])}); "
            "choose the model= of the checkpoint"
        )
    vae.load_state_dict(fitting, strict=False)
    return result


def refuse_other_shapes(vae: VAE, path: Path) -> None:
    """Raise `InputError` unless every weight of the checkpoint fits ``vae`` exactly."""
    theirs = {
        name: tuple(value.shape) for name, value in load_checkpoint(path)["state_dict"].items()
    }
    ours = {name: tuple(value.shape) for name, value in vae.state_dict().items()}
    if theirs != ours:
        different = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
        name = different[0]
        raise InputError(
            f"resume={path} is of another model: {len(different)} weights differ, the first "
            f"{name}: {theirs.get(name, 'absent')} there, {ours.get(name, 'absent')} here; "
            "keep the settings of the model as they were, or take over what fits with init_from="
        )


def carry_over(checkpoint: dict[str, Any], vae: VAE) -> dict[str, Any]:
    """A checkpoint from which ``vae`` goes on, though its objective has other settings.

    Weights, steps, order of the stamps and random state stay. The best score is forgotten: bounds
    of other objectives do not compare. With another likelihood, what that learns starts anew, and
    so do the optimiser's moments, which are in units of the old gradients. Network and number of
    trained parameters must be the same.
    """
    carried = copy.deepcopy(checkpoint)
    theirs, ours = carried["state_dict"], vae.state_dict()
    carried["state_dict"] = {
        name: theirs[name] if name in theirs and theirs[name].shape == value.shape else value
        for name, value in ours.items()
    }
    other_likelihood = dict(carried["hyper_parameters"]["likelihood"]) != vae.hparams["likelihood"]
    if other_likelihood:
        for state in carried["optimizer_states"]:
            state["state"] = {}
    carried["callbacks"] = {
        name: state
        for name, state in carried["callbacks"].items()
        if not name.startswith(BestCheckpoint.__qualname__)
    }
    carried["hyper_parameters"] = copy.deepcopy(dict(vae.hparams))
    carried["vae_astro"]["settings"] = vae.run_settings
    return carried


class RandomState(Callback):
    """Carries the random state, so that a resumed run goes on exactly.

    Processes that train together have the same one: each draws the noise of the whole batch. So it
    does not matter how many go on.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"ranks": [_random_state()]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # earlier versions kept one for each process
        self._loaded = state_dict["ranks"][0]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        state = self._loaded
        if state is None and trainer.world_size > 1:
            state = _random_state()  # the first process may have drawn what others have not
        if state is None:
            return
        state = trainer.strategy.broadcast(state)
        torch.set_rng_state(state["torch"])
        if state["cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])
        version, internal, gauss = state["python"]
        random.setstate((version, tuple(internal), gauss))
        self._loaded = None


def _random_state() -> dict[str, Any]:
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
        "python": [version, list(internal), gauss],
    }


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
        """Take over the best score also where the run folder has moved."""

        def here(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else path

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
