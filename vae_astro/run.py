"""From a composed configuration to a trained, judged model in a run folder.

The only place where configuration becomes Python. ``train_command`` is what ``train.py`` calls.
"""

from __future__ import annotations

import logging
import math
import os
import re
import signal
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.hydra_config import HydraConfig
from lightning import Callback, Trainer, seed_everything
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vae_astro.checkpoint import (
    AtomicCheckpoints,
    BestCheckpoint,
    LastCheckpoint,
    RandomState,
    find_checkpoint,
    load_checkpoint,
    refuse_other_shapes,
    warm_start,
)
from vae_astro.collapse.forecast import Forecast, forecast_run
from vae_astro.collapse.monitor import CollapseMonitor
from vae_astro.collapse.verdict import CollapseVerdict, judge
from vae_astro.data.datamodule import LARGEST_SEED, StampDataModule
from vae_astro.errors import InputError
from vae_astro.evaluate.clusters import labelled_rows, score_against_labels
from vae_astro.evaluate.scores import score_stamps
from vae_astro.objective.beta import SCHEDULES
from vae_astro.report import summary
from vae_astro.report.callbacks import StampPanels
from vae_astro.settings import build, check_bool, check_choice, check_int, check_number
from vae_astro.vae import VAE

__all__ = ["RunResult", "train", "train_command"]


USUAL_STEPS = 1500
"""Optimiser steps of a run whose length is not given, ..."""
EPOCHS = (10, 300)
"""... within these bounds."""
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
KEYS = {"seed", "resume", "init_from", "run_dir", "log_every_n_steps"}
COLLAPSE_KEYS = {"forecast_stamps"}
CALLBACK_KEYS = {"n_stamps", "time_share", "save_every_n_steps", "progress"}
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
STEPS_BETWEEN_VALIDATIONS = 50
"""So that a small data set does not spend its time on validation."""

log = logging.getLogger(__name__)


def train_command(cfg: DictConfig) -> float:
    """Run ``train.py``; a user's mistake ends in one line and exit status 2.

    Returns
    -------
    float
        Validation ELBO at beta = 1, in nats per stamp, for hyper-parameter searches.
    """
    try:
        with warnings.catch_warnings():
            _quieten()
            settings = run_settings(cfg)
            run_dir = Path(HydraConfig.get().runtime.output_dir)
            metrics = train(settings, run_dir).metrics
            return metrics["val"]["elbo_nats"] if metrics else math.nan
    except (InputError, OmegaConfBaseException) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        log.error("%s", error)
        sys.exit(2)


def run_settings(cfg: DictConfig) -> dict[str, Any]:
    """Plain settings of this run: the composed ones, or those of the run that is resumed.

    A resumed run keeps its own settings; what is given on the command line now replaces them,
    whole groups (``trainer=cpu``) or single values.
    """
    settings = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(settings, dict)
    if not cfg.resume:
        return settings  # type: ignore[return-value]
    saved = load_checkpoint(find_checkpoint("resume", cfg.resume))["vae_astro"]["settings"]
    if saved is None:
        raise InputError(f"resume={cfg.resume} was not made by train.py; use init_from=")
    resumed = OmegaConf.create(saved)
    for override in HydraConfig.get().overrides.task:
        key = re.sub(r"@.*", "", override.split("=")[0].lstrip("+~")).replace("/", ".")
        if key in ("experiment", "debug"):
            raise InputError(
                f"{override} cannot be combined with resume=; give single values instead"
            )
        OmegaConf.update(resumed, key, OmegaConf.select(cfg, key), merge=False)
    resumed.resume = cfg.resume
    return OmegaConf.to_container(resumed, resolve=True)  # type: ignore[return-value]


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes
    ----------
    vae : VAE
        With the weights of the best checkpoint.
    metrics : dict
        What ``metrics.json`` holds; empty on all processes but the first.
    run_dir : Path
    """

    vae: VAE
    metrics: dict[str, Any]
    run_dir: Path


def train(settings: dict[str, Any], run_dir: Path) -> RunResult:
    """Read, train, judge and write down.

    Parameters
    ----------
    settings : dict
        The groups and keys of ``conf/config.yaml``, as plain Python.
    run_dir : Path
        Run folder.

    Raises
    ------
    InputError
        A mistake in the settings or the data, before any training starts where possible.
    """
    began = time.perf_counter()
    seed = check_int("seed", settings["seed"], minimum=0, maximum=LARGEST_SEED)
    _refuse_unknown(settings)
    if not settings["resume"]:
        _refuse_taken(run_dir)
    # what is wrong with the settings should not wait for the data to be read
    panels = StampPanels(settings["callbacks"]["n_stamps"], settings["callbacks"]["time_share"])
    trainer = _trainer(settings, run_dir, [panels, *_callbacks(settings["callbacks"], run_dir)])
    if not trainer.is_global_zero:
        logging.getLogger("vae_astro").setLevel(logging.WARNING)
    resume = find_checkpoint("resume", settings["resume"]) if settings["resume"] else None
    start = find_checkpoint("init_from", settings["init_from"]) if settings["init_from"] else None
    progress = settings["callbacks"]["progress"] and trainer.is_global_zero
    datamodule = StampDataModule(**settings["data"], seed=seed, progress=progress)
    _vae(settings, stamp_shape=(1, 64, 64), band_names=None)

    datamodule.prepare_data()
    datamodule.setup()
    _refuse_too_few(datamodule, trainer)
    labels = datamodule.labels  # an unusable label file is refused now
    seed_everything(seed, workers=True, verbose=False)
    vae = _vae(settings, datamodule.store.stamp_shape, datamodule.store.band_names)
    _say_what_is_trained(vae, datamodule, trainer)
    if start is not None:
        started_from = warm_start(vae, start)
        log.info("init_from: %d weight tensors taken over", started_from.taken)
        for line in started_from.lines():
            log.warning("init_from: %s", line)

    _set_length(trainer, settings["trainer"], datamodule.steps_per_epoch(trainer.world_size))
    foreseen = _forecast(vae, datamodule, trainer, settings["collapse"]["forecast_stamps"])
    timing = _fit(trainer, vae, datamodule, resume)
    best = run_dir / "checkpoints" / "best.ckpt"
    if best.exists():
        vae.load_state_dict(load_checkpoint(best)["state_dict"])
    vae.to(trainer.strategy.root_device)
    if not trainer.is_global_zero:
        return RunResult(vae, {}, run_dir)
    log.info("judging the best checkpoint")
    shown = next(iter(datamodule.in_order(datamodule.val_rows[: panels.n_stamps])))
    panels.draw_last(trainer, vae, shown, run_dir / "figures")
    metrics, verdict = _judge(vae, datamodule, labels)
    metrics["collapse"]["forecast"] = None if foreseen is None else foreseen.as_dict()
    metrics["timing"] = {"seconds_total": time.perf_counter() - began, **timing}
    summary.write_metrics(run_dir, metrics)
    summary.log_hyperparameters(trainer, settings, metrics)
    log.info("%s", summary.closing_lines(metrics, verdict, run_dir))
    return RunResult(vae, metrics, run_dir)


def _fit(
    trainer: Trainer,
    vae: VAE,
    datamodule: StampDataModule,
    resume: Path | None,
) -> dict[str, float]:
    """Train, and say how long it took and how fast it went."""
    n_steps_before = 0
    if resume is not None:
        refuse_other_shapes(vae, resume)
        n_steps_before = load_checkpoint(resume)["global_step"]
    began = time.perf_counter()
    try:
        trainer.fit(vae, datamodule=datamodule, ckpt_path=resume, weights_only=True)
    except MisconfigurationException as error:
        raise InputError(f"the trainer refuses: {' '.join(str(error).split())}") from error
    except SIGTERMException:
        sys.exit(128 + signal.SIGTERM)
    except SystemExit:  # what Lightning makes of Ctrl-C
        sys.exit(128 + signal.SIGINT)
    seconds = time.perf_counter() - began
    # the step count is that of the whole run, the time only of this part of it
    n_stamps = (trainer.global_step - n_steps_before) * _global_batch_size(trainer, datamodule)
    return {"seconds_fit": seconds, "train_stamps_per_second": n_stamps / seconds}


def _forecast(
    vae: VAE, datamodule: StampDataModule, trainer: Trainer, n_stamps: int
) -> Forecast | None:
    """Say what the run will come to; None where that cannot be said."""
    if not (trainer.is_global_zero and n_stamps):
        return None
    total_steps = int(trainer.fit_loop.max_epochs or 1) * datamodule.steps_per_epoch(
        trainer.world_size
    )
    schedule = build("beta", SCHEDULES, vae.beta_settings, total_steps=total_steps)
    try:
        foreseen = forecast_run(
            datamodule.training_sample(n_stamps),
            vae.likelihood,
            vae.latent_dim,
            schedule,
            total_steps,
        )
    except InputError as error:  # a run may still be wanted, to try things out
        log.warning("no forecast: %s", error)
        return None
    for line in foreseen.lines:
        log.info("%s", line)
    return foreseen


def _judge(
    vae: VAE, datamodule: StampDataModule, labels: np.ndarray
) -> tuple[dict[str, Any], CollapseVerdict]:
    """Score what was held out and what is labelled; no more, however large the store is."""
    labelled = labelled_rows(labels)
    rows = np.unique(np.concatenate([datamodule.val_rows, datamodule.test_rows, labelled]))
    table = score_stamps(vae, datamodule.in_order(rows))
    held_out, test = table.of(datamodule.val_rows), table.of(datamodule.test_rows)
    verdict = judge(held_out.mean, held_out.kl_per_unit)
    classes = score_against_labels(
        table.of(labelled).mean, labels[labelled], datamodule.in_order(labelled)
    )
    return summary.metrics_of(held_out, test, verdict, classes, datamodule), verdict


def _vae(
    settings: dict[str, Any], stamp_shape: tuple[int, int, int], band_names: tuple[str, ...] | None
) -> VAE:
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
    vae.run_settings = settings
    return vae


def _callbacks(settings: dict[str, Any], run_dir: Path) -> list[Callback]:
    checkpoints = run_dir / "checkpoints"
    callbacks: list[Callback] = [
        CollapseMonitor(),
        RandomState(),
        LastCheckpoint(checkpoints, settings["save_every_n_steps"]),
        BestCheckpoint(checkpoints),
    ]
    if settings["progress"]:
        # a terminal is redrawn often, a batch log gets a line now and then
        callbacks.append(TQDMProgressBar(refresh_rate=1 if sys.stderr.isatty() else 50))
    return callbacks


def _trainer(settings: dict[str, Any], run_dir: Path, callbacks: list[Callback]) -> Trainer:
    options = dict(settings["trainer"])
    for key in ("max_epochs", "check_val_every_n_epoch"):
        if options[key] is None:
            options[key] = 1  # set when the data are known: see _set_length
        check_int(f"trainer.{key}", options[key], minimum=1)
    for key in ("limit_train_batches", "limit_val_batches"):
        if options[key] is not None:
            check_number(f"trainer.{key}", options[key], above=0)
    if options["gradient_clip_val"] is not None:
        check_number("trainer.gradient_clip_val", options["gradient_clip_val"], above=0)
    check_choice("trainer.precision", options["precision"], PRECISIONS)
    check_bool("trainer.deterministic", options["deterministic"])
    check_bool("callbacks.progress", settings["callbacks"]["progress"])
    check_int("collapse.forecast_stamps", settings["collapse"]["forecast_stamps"], minimum=0)
    try:
        return Trainer(
            **options,
            plugins=[AtomicCheckpoints()],
            callbacks=callbacks,
            logger=TensorBoardLogger(run_dir, name="", version="", default_hp_metric=False),
            default_root_dir=run_dir,
            enable_progress_bar=settings["callbacks"]["progress"],
            enable_model_summary=False,
            log_every_n_steps=1,  # the model itself decides at which steps it logs
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # the sampler shares out the stamps itself
        )
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"these trainer settings do not work on this machine: {reason} trainer=auto takes what "
            "there is; trainer=cpu always works"
        ) from error


def _refuse_unknown(settings: dict[str, Any]) -> None:
    """Raise `InputError` for a key that nobody reads: ``+key=`` adds any to the configuration."""
    known = {"": GROUPS | KEYS, "collapse": COLLAPSE_KEYS, "callbacks": CALLBACK_KEYS}
    for group, names in known.items():
        unknown = sorted(set(settings[group] if group else settings) - names)
        if unknown:
            key = f"{group}.{unknown[0]}" if group else unknown[0]
            raise InputError(f"{key} is no setting; known are {', '.join(sorted(names))}")


def _refuse_taken(run_dir: Path) -> None:
    """Raise `InputError` where another run would be overwritten."""
    # the processes that ddp starts come here when the first has begun to write
    if int(os.environ.get("LOCAL_RANK", 0)) == 0 and any(run_dir.glob("checkpoints/*.ckpt")):
        raise InputError(
            f"run_dir={run_dir} holds another run; choose another run_dir, or go on with that run: "
            f"resume={run_dir}"
        )


def _refuse_too_few(datamodule: StampDataModule, trainer: Trainer) -> None:
    """Raise `InputError` unless every process gets stamps to train on and to validate."""
    n_val, n_ranks = len(datamodule.val_rows), trainer.world_size
    if n_val < n_ranks:
        raise InputError(
            f"{n_val} validation stamps cannot be shared by {n_ranks} processes; set fewer "
            "trainer.devices or a larger data.val_fraction"
        )


def _set_length(trainer: Trainer, options: dict[str, Any], steps_per_epoch: int) -> None:
    """Fill in what the trainer's settings leave to the number of stamps."""
    if options["max_epochs"] is None:
        fewest, most = EPOCHS
        trainer.fit_loop.max_epochs = min(max(-(-USUAL_STEPS // steps_per_epoch), fewest), most)
        log.info(
            "length: %d epochs of %d steps; set trainer.max_epochs for another",
            trainer.fit_loop.max_epochs,
            steps_per_epoch,
        )
    if options["check_val_every_n_epoch"] is None:
        n_epochs = max(1, STEPS_BETWEEN_VALIDATIONS // steps_per_epoch)
        trainer.check_val_every_n_epoch = min(n_epochs, trainer.fit_loop.max_epochs or n_epochs)


def _global_batch_size(trainer: Trainer, datamodule: StampDataModule) -> int:
    per_rank = min(datamodule.batch_size, len(datamodule.train_rows) // trainer.world_size)
    return per_rank * trainer.world_size


def _say_what_is_trained(vae: VAE, datamodule: StampDataModule, trainer: Trainer) -> None:
    n_bands, height, width = vae.stamp_shape
    log.info(
        "stamps: %d for training, %d for validation, %d for test, %d set aside; %dx%d, %s (%s)",
        len(datamodule.train_rows),
        len(datamodule.val_rows),
        len(datamodule.test_rows),
        datamodule.store.n_rejected,
        height,
        width,
        f"{n_bands} bands" if n_bands > 1 else "1 band",
        ", ".join(vae.band_names),
    )
    log.info(
        "model: %s, %d latent units, %.2f million parameters, on %s (%s)",
        vae.hparams["model"]["name"],
        vae.latent_dim,
        sum(parameter.numel() for parameter in vae.parameters()) / 1e6,
        trainer.strategy.root_device,
        trainer.precision,
    )
    if not vae.likelihood.is_density:
        log.warning("this likelihood is not a density: beta has no fixed meaning in training")
    if vae.normalizer.gain is None:
        log.info("noise: the sky's only; set data.normalize.gain for the Poisson noise of sources")


def _quieten() -> None:
    """Advice of Lightning that does not apply: batches are gathered whole, in the main process."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.. is deprecated.*")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
