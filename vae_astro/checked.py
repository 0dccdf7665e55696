"""Settings of a run, and all that can be wrong with them, before anything is read or written."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vae_astro.checkpoint import (
    find_checkpoint,
    load_checkpoint,
    refuse_other_weights,
    refuse_without_state,
    warm_start,
)
from vae_astro.checkpoint_file.rebuild import made
from vae_astro.collapse.monitor import rescues_in
from vae_astro.command.typed import key_of, take_over
from vae_astro.data.batches import share_of_batch
from vae_astro.data.datamodule import DEFAULT_SIZE, LARGEST_SEED, StampDataModule
from vae_astro.data.simulated import is_finished, settings_of
from vae_astro.data.sources.registry import READERS
from vae_astro.errors import InputError
from vae_astro.folders import is_first_process, run_folder_of
from vae_astro.hardware import batch_size_for
from vae_astro.settings import check_bool, check_int, check_text, nearest
from vae_astro.training import Attempt, new_attempt, new_vae
from vae_astro.vae import VAE

__all__ = ["Checked", "check", "run_settings"]

GROUPS = {
    "data",
    "model",
    "prior",
    "likelihood",
    "beta",
    "optim",
    "trainer",
    "collapse",
    "callbacks",
}
KEYS = {"seed", "resume", "init_from", "run_dir", "log_every_n_steps", "progress", "plan"}
COLLAPSE_KEYS = {"forecast_stamps", "action"}
CALLBACK_KEYS = {"n_stamps", "time_share", "save_every_n_steps", "progress", "page"}
OF_ONE_CALL = {"progress": True, "plan": False}
"""Keys that say how a command runs and not what the run is; older settings do not have them."""


@dataclass(frozen=True)
class Checked:
    """What a run begins with, made without looking at a stamp.

    Attributes
    ----------
    seed : int
    resume, start : Path or None
        Checkpoint that is gone on from, and the one whose weights are taken.
    attempt : Attempt
        Trainer and callbacks.
    datamodule : StampDataModule
        Its batch is set; a preliminary one where the settings leave it to the number of stamps.
    """

    seed: int
    resume: Path | None
    start: Path | None
    attempt: Attempt
    datamodule: StampDataModule


def run_settings(cfg: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """Plain settings of this run: the composed ones, or those of the run that is resumed.

    A resumed run keeps its own settings; what is given on the command line now replaces them,
    whole groups (``trainer=cpu``) or single values.

    Parameters
    ----------
    cfg : DictConfig
        As Hydra composes ``conf/config.yaml``.
    overrides : sequence of str
        What was typed.

    Raises
    ------
    InputError
        The run cannot be resumed, or not with these overrides.
    """
    settings = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(settings, dict)
    if not cfg.resume:
        return settings  # type: ignore[return-value]
    saved = load_checkpoint(find_checkpoint("resume", cfg.resume))["vae_astro"]["settings"]
    if saved is None:
        raise InputError(f"resume={cfg.resume} was not made by train.py; use init_from=")
    resumed = OmegaConf.create(saved)
    # keys that a run of an earlier version does not have
    for group in ("collapse", "callbacks", "trainer"):
        resumed[group] = OmegaConf.merge(cfg[group], resumed.get(group, {}))
    for override in overrides:
        key = key_of(override)
        if key == "experiment" or (key == "debug" and not cfg.plan):
            raise InputError(
                f"{override} cannot be combined with resume=; give single values instead"
            )
    _refuse_unknown_of_stamps(resumed.data, overrides)
    take_over(resumed, cfg, (each for each in overrides if key_of(each) != "debug"))
    resumed.resume = cfg.resume
    for key in OF_ONE_CALL:
        resumed[key] = cfg[key]
    resumed.callbacks.progress = cfg.callbacks.progress
    resumed.callbacks.page = cfg.callbacks.page  # older runs did not have it
    return OmegaConf.to_container(resumed, resolve=True)  # type: ignore[return-value]


def check(settings: dict[str, Any], run_dir: Path) -> Checked:
    """Make of the settings whatever can be made without a stamp: all values are looked at.

    Parameters
    ----------
    settings : dict
        The groups and keys of ``conf/config.yaml``, as plain Python.
    run_dir : Path
        Run folder; nothing is written there.

    Raises
    ------
    InputError
        The first mistake that is found, by its key.
    """
    seed = check_int("seed", settings["seed"], minimum=0, maximum=LARGEST_SEED)
    _refuse_unknown(settings)
    for key, usual in OF_ONE_CALL.items():
        check_bool(key, settings.get(key, usual))
    for key in ("resume", "init_from"):
        if settings[key] is not None:
            check_text(key, settings[key])
    _refuse_run_dir(run_dir)
    going_on = run_folder_of(settings["resume"]) if settings["resume"] else None
    if going_on is None or going_on.resolve() != run_dir.resolve():
        _refuse_taken(run_dir)
    resume = find_checkpoint("resume", settings["resume"]) if settings["resume"] else None
    start = find_checkpoint("init_from", settings["init_from"]) if settings["init_from"] else None
    # a damaged one is refused before anything is read or packed
    saved = None if resume is None else load_checkpoint(resume)
    begun = None if start is None else load_checkpoint(start)
    attempt = new_attempt(settings, run_dir, [] if saved is None else rescues_in(saved))
    trainer = attempt.trainer
    progress = settings["callbacks"]["progress"] and trainer.is_global_zero
    datamodule = StampDataModule(**settings["data"], seed=seed, progress=progress)
    _refuse_missing(datamodule)
    new_vae(settings, stamp_shape=(1, 64, 64))
    if resume is not None and saved is not None:
        _refuse_another_to_go_on(settings, saved, resume)
    if start is not None and begun is not None:
        _refuse_where_nothing_fits(settings, begun, start)
    if settings["data"]["batch_size"] is None:  # until the stamps are counted
        datamodule.batch_size = batch_size_for(attempt.machine, 0, trainer.world_size)
    else:  # refused, if not in equal parts
        share_of_batch(datamodule.batch_size, trainer.world_size)
    return Checked(seed, resume, start, attempt, datamodule)


def _refuse_another_to_go_on(settings: dict[str, Any], saved: dict[str, Any], path: Path) -> None:
    """Raise `InputError` where these settings make another model than that of a checkpoint.

    Both are compared as they are made: what the stamps lay out, such as rings, is looked at when
    they are there.
    """
    refuse_without_state(saved, path)
    vae = _made_for_its_stamps(settings, saved, (saved["vae_astro"]["settings"] or {}).get("data"))
    if vae is not None:
        refuse_other_weights(vae, made(VAE, saved, path).state_dict(), path)


def _refuse_where_nothing_fits(settings: dict[str, Any], begun: dict[str, Any], path: Path) -> None:
    """Raise `InputError` where no weight of a checkpoint can be taken."""
    vae = _made_for_its_stamps(settings, begun, None)
    if vae is not None:
        warm_start(vae, path, begun)


def _made_for_its_stamps(
    settings: dict[str, Any], checkpoint: dict[str, Any], data: dict[str, Any] | None
) -> VAE | None:
    """A model of these settings, for stamps and bands as a checkpoint was made for.

    Of another size where ``data``, its own settings, had another. None where there is no such
    model: then the stamps have to say which there is.
    """
    theirs = checkpoint["hyper_parameters"]
    asked = settings["data"].get("size")
    try:
        n_bands, size, _ = theirs["stamp_shape"]
        if isinstance(asked, int) and data is not None and asked != data.get("size", asked):
            size = asked
        names = theirs.get("band_names")
        return new_vae(settings, (n_bands, size, size), None if names is None else tuple(names))
    except (InputError, TypeError, ValueError, LookupError):
        return None


def _refuse_unknown_of_stamps(data: DictConfig, overrides: Sequence[str]) -> None:
    """Raise `InputError` for a key of ``data`` that neither the run nor its reader has.

    Hydra has let them through (`overrides_of_resumed_run`).
    """
    if "data" in map(key_of, overrides):  # another choice, which Hydra knows
        return
    makers: list[Callable[..., Any]] = [StampDataModule, READERS[data.get("format", "fits")]]
    known = {*data, *(name for maker in makers for name in inspect.signature(maker).parameters)}
    for override in overrides:
        group, _, key = key_of(override).partition(".")
        if group == "data" and key.partition(".")[0] not in known:
            meant = nearest(key, map(str, data))
            guess = f"did you mean data.{meant}? " if meant else ""
            has = ", ".join(map(str, data))
            choice = "simulated" if data.get("n_stamps") is not None else data.get("format")
            raise InputError(f"data={choice} has no setting data.{key}; {guess}it has {has}")


def _refuse_unknown(settings: dict[str, Any]) -> None:
    """Raise `InputError` for a key that nobody reads: ``+key=`` adds any to the configuration."""
    known = {"": GROUPS | KEYS, "collapse": COLLAPSE_KEYS, "callbacks": CALLBACK_KEYS}
    missing = sorted(known[""] - set(settings) - set(OF_ONE_CALL))
    if missing:
        raise InputError(f"{missing[0]} is left out, and is needed")
    for group in sorted(GROUPS):
        if not isinstance(settings[group], dict):
            raise InputError(
                f"{group} must be one of its choices or its settings, got {settings[group]!r}"
            )
    for group, names in known.items():
        given = set(settings[group] if group else settings)
        missing = sorted(names - given) if group else []
        if missing:
            raise InputError(f"{group}.{missing[0]} is left out, and is needed")
        unknown = sorted(given - names)
        if unknown:
            key = f"{group}.{unknown[0]}" if group else unknown[0]
            meant = nearest(unknown[0], sorted(names))
            guess = f"did you mean {f'{group}.{meant}' if group else meant}? " if meant else ""
            raise InputError(f"{key} is no setting; {guess}known are {', '.join(sorted(names))}")


def _refuse_run_dir(run_dir: Path) -> None:
    """Raise `InputError` where no folder can be made."""
    there = next(path for path in (run_dir, *run_dir.absolute().parents) if path.exists())
    if not there.is_dir():
        raise InputError(f"run_dir={run_dir}: {there} is a file; choose another run_dir")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"run_dir={run_dir}: {there} cannot be written to; choose another run_dir")


def _refuse_taken(run_dir: Path) -> None:
    """Raise `InputError` where another run would be overwritten."""
    # other processes come here when the first has begun to write
    if is_first_process() and any(run_dir.glob("checkpoints/[!.]*.ckpt")):
        raise InputError(
            f"run_dir={run_dir} holds another run; choose another run_dir, or go on with that run: "
            f"resume={run_dir}"
        )


def _refuse_missing(datamodule: StampDataModule) -> None:
    """Raise `InputError` where files that the settings name are not there."""
    root = datamodule.root.address
    if datamodule.n_stamps is not None:
        size = datamodule.size or DEFAULT_SIZE
        is_finished(Path(root), settings_of(datamodule.n_stamps, datamodule.simulation_seed, size))
    elif "://" not in root and not os.path.exists(root):
        raise InputError(f"data.root={root} does not exist; give a folder or a file that does")
    labels = datamodule.labels_file
    if labels is not None and not labels.is_file():
        raise InputError(f"data.labels={labels} is not a file; give a CSV of labels, or null")
