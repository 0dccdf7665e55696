"""From a composed configuration to a trained, judged model in a run folder.

The only place where configuration becomes Python. ``train_command`` is what ``train.py`` calls.
"""

from __future__ import annotations

import logging
import math
import os
import random
import shlex
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning import Trainer
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from vae_astro.acceleration import plain_parts
from vae_astro.checked import check, run_settings
from vae_astro.checkpoint import load_checkpoint, warm_start
from vae_astro.collapse.forecast import Forecast, forecast_run
from vae_astro.collapse.rescue import Plan, outlook_set_right, plan_rescue
from vae_astro.collapse.verdict import Circumstances, still_rising
from vae_astro.command.endings import wants_traceback
from vae_astro.data.datamodule import StampDataModule
from vae_astro.errors import InputError
from vae_astro.folders import is_first_process
from vae_astro.hardware import batch_size_for
from vae_astro.objective.beta import SCHEDULES
from vae_astro.processes import join, losses_told, open_together
from vae_astro.report import board, summary
from vae_astro.report.full_disk import file_handlers_that_give_up
from vae_astro.rescuing import rescue
from vae_astro.settings import build
from vae_astro.stopping import exit_status, heeded, last_words
from vae_astro.training import Attempt, Pace, fit, new_vae
from vae_astro.vae import VAE

__all__ = ["RunResult", "quieten", "train", "train_command"]

PREPARED_ON = 4096
"""Training stamps that a network may look at before the first step, at most."""

log = logging.getLogger(__name__)


def train_command(cfg: DictConfig) -> float:
    """Run ``train.py``; a user's mistake ends in one line and exit status 2.

    What is stopped by a signal says how to go on, and leaves with 128 and its number.

    Returns
    -------
    float
        Validation ELBO at beta = 1, in nats per stamp, for hyper-parameter searches.
    """
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    try:
        with warnings.catch_warnings(), heeded(lambda: last_words(run_dir)):
            quieten()
            file_handlers_that_give_up()
            settings = run_settings(cfg, HydraConfig.get().overrides.task)
            metrics = train(settings, run_dir).metrics
            return metrics["val"]["elbo_nats"] if metrics else math.nan
    except (InputError, OmegaConfBaseException) as error:
        if wants_traceback():
            raise
        log.error("%s", " ".join(str(error).split()))
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code in (1, 2):
            raise  # another process is gone, and that has been said
        if is_first_process():
            log.warning("%s", last_words(run_dir))
        sys.exit(exit_status())


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
    checked = check(settings, run_dir)
    seed, attempt, datamodule = checked.seed, checked.attempt, checked.datamodule
    trainer = attempt.trainer
    if not trainer.is_global_zero:
        logging.getLogger("vae_astro").setLevel(logging.ERROR)  # the first says it for all
    join(trainer, in_sweep=_in_sweep())
    run_dir = trainer.strategy.broadcast(run_dir.absolute())

    def look_at_the_data() -> None:
        _refuse_too_few(datamodule, trainer)
        _ = datamodule.labels  # an unusable label file is refused now

    open_together(datamodule, look_at_the_data)
    if settings["data"]["batch_size"] is None:
        n_train, n_ranks = len(datamodule.train_rows), trainer.world_size
        datamodule.batch_size = batch_size_for(attempt.machine, n_train, n_ranks)
        settings["data"]["batch_size"] = datamodule.batch_size  # a resumed run keeps it

    def begin(settings: dict[str, Any]) -> VAE:
        """The model that a run of these settings starts with."""
        _seed(seed)
        vae = new_vae(settings, datamodule.store.stamp_shape, datamodule.store.band_names)
        vae.prepare(datamodule.training_sample(PREPARED_ON))
        if checked.start is not None:
            _start_from(vae, checked.start)
        return vae

    vae = begin(settings)
    _say_what_is_trained(vae, datamodule, attempt)
    attempt.set_length(datamodule)
    with losses_told(run_dir):
        fitted = _fit_and_rescue(attempt, vae, datamodule, run_dir, checked.resume, begin)
    attempt, vae, trainer = fitted.attempt, fitted.vae, fitted.attempt.trainer
    best = run_dir / "checkpoints" / "best.ckpt"
    if best.exists():
        vae.load_state_dict(load_checkpoint(best)["state_dict"])
    vae.to(trainer.strategy.root_device)
    plain_parts(vae)
    if not trainer.is_global_zero:
        return RunResult(vae, {}, run_dir)
    log.info("judging the best checkpoint")
    if vae.prior.learns and not vae.prior.started:
        log.warning("the best checkpoint is of the warm-up: its prior is still a unit Gaussian")
    from vae_astro.report.judgement import judge_run  # scikit-learn: not before it is needed

    circumstances = _circumstances(fitted, best, datamodule)
    judgement = judge_run(vae, datamodule, datamodule.labels, fitted.foreseen, circumstances)
    shown = next(iter(datamodule.in_order(datamodule.val_rows[: attempt.panels.n_held])))
    kl_per_unit_nats = judgement.verdict.kl_per_unit_nats
    attempt.panels.draw_last(trainer, vae, shown, run_dir / "figures", kl_per_unit_nats)
    metrics = judgement.metrics
    metrics["collapse"] |= attempt.monitor.summary()
    metrics["timing"] = {"seconds_total": time.perf_counter() - began, **fitted.pace.as_dict()}
    summary.write_metrics(run_dir, metrics)
    board.log_end(trainer, vae, datamodule, attempt.settings, metrics, run_dir)
    page = None
    if settings["callbacks"]["page"]:
        from vae_astro.report.page import page_after_run

        page = page_after_run(run_dir, datamodule, vae.device)
    log.info("%s", summary.closing_lines(metrics, judgement.explanation, run_dir, page))
    return RunResult(vae, metrics, run_dir)


@dataclass(frozen=True)
class _Fitted:
    """The last fit of a run, what was forecast of it, and the pace of all."""

    attempt: Attempt
    vae: VAE
    foreseen: Forecast | None
    pace: Pace


def _fit_and_rescue(
    attempt: Attempt,
    vae: VAE,
    datamodule: StampDataModule,
    run_dir: Path,
    resume: Path | None,
    begin: Callable[[dict[str, Any]], VAE],
) -> _Fitted:
    """Fit; and where the monitor asks for a rescue, change what is planned and fit again."""
    pace = Pace()
    while True:
        foreseen = _forecast(attempt, vae, datamodule)
        attempt.monitor.planner = _planner(attempt, foreseen, attempt.total_steps(datamodule))
        fit(attempt, vae, datamodule, resume, pace)
        plan = attempt.monitor.plan
        if plan is None:
            return _Fitted(attempt, vae, foreseen, pace)
        attempt, vae, resume = rescue(attempt, plan, datamodule, run_dir, begin)


def _forecast(attempt: Attempt, vae: VAE, datamodule: StampDataModule) -> Forecast | None:
    """Say what the fit will come to, also to its monitor; None where that cannot be said."""
    n_stamps = attempt.settings["collapse"]["forecast_stamps"]
    if not (attempt.trainer.is_global_zero and n_stamps):
        return None
    total_steps = attempt.total_steps(datamodule)
    schedule = build("beta", SCHEDULES, vae.beta_settings, total_steps=total_steps)
    stamps = datamodule.training_sample(n_stamps)
    try:
        foreseen = forecast_run(stamps, vae.likelihood, vae.latent_dim, schedule, total_steps)
    except InputError as error:  # a run may still be wanted, to try things out
        log.warning("no forecast: %s", error)
        return None
    for line in foreseen.lines:
        log.info("%s", line)
    if vae.prior.learns:
        log.info(
            "the forecast is that of a unit Gaussian prior; prior=%s learns, and at its best costs "
            "no more than that",
            vae.prior.name,
        )
    attempt.panels.foreseen = foreseen
    right = outlook_set_right(foreseen.spectrum, vae.latent_dim)
    attempt.monitor.expect(right.active_units, may_live=foreseen.verdict != "full")
    return foreseen


def _planner(
    attempt: Attempt, foreseen: Forecast | None, total_steps: int
) -> Callable[[], Plan | None]:
    """What the monitor asks when the fit is to be rescued."""

    def plan() -> Plan | None:
        if foreseen is None:
            return None
        tried = [record["kind"] for record in attempt.monitor.rescues]
        spectrum, latent_dim = foreseen.spectrum, foreseen.latent_dim
        return plan_rescue(attempt.settings, spectrum, latent_dim, total_steps, tried)

    return plan


def _circumstances(fitted: _Fitted, best: Path, datamodule: StampDataModule) -> Circumstances:
    """What a verdict may have to point to."""
    monitor, total_steps = fitted.attempt.monitor, fitted.attempt.total_steps(datamodule)
    step = load_checkpoint(best)["global_step"] if best.exists() else total_steps
    return Circumstances(
        total_steps=total_steps,
        judged_step=step if step < total_steps else None,
        still_rising=still_rising([sum(nats) for nats in monitor.kl_per_unit]),
        beta_moves=fitted.vae.schedule.controller is not None,
        end_state=monitor.health.state if monitor.health else "starting",
        rescues=tuple(f"{record['kind']}, {_told(record)}" for record in monitor.rescues),
        beta=fitted.vae.beta_settings,
        run=shlex.quote(str(best.parent.parent)),
    )


def _told(record: dict[str, Any]) -> str:
    changed = (f"{key}={new}" for key, (_, new) in record["change"].items() if new is not None)
    return f"{' '.join(changed)} from step {record['from_step']}"


def _start_from(vae: VAE, checkpoint: Path) -> None:
    started_from = warm_start(vae, checkpoint)
    log.info("init_from: %d weight tensors taken over", started_from.taken)
    for line in started_from.lines():
        log.info("init_from: %s", line)


def _refuse_too_few(datamodule: StampDataModule, trainer: Trainer) -> None:
    """Raise `InputError` unless every process gets stamps to train on and to validate."""
    n_val, n_ranks = len(datamodule.val_rows), trainer.world_size
    datamodule.stamps_per_step(n_ranks)
    if n_val < n_ranks:
        raise InputError(
            f"{n_val} validation stamps cannot be shared by {n_ranks} processes; set fewer "
            "trainer.devices or a larger data.val_fraction"
        )


def _in_sweep() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _seed(seed: int) -> None:
    """Seed everything; Lightning's own way would do it again where processes come together."""
    os.environ.pop("PL_GLOBAL_SEED", None)  # so would one that was left in the environment
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # what scikit-learn draws from
    torch.manual_seed(seed)


def _say_what_is_trained(vae: VAE, datamodule: StampDataModule, attempt: Attempt) -> None:
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
        "model: %s, %d latent units, %.2f million parameters",
        vae.hparams["model"]["name"],
        vae.latent_dim,
        sum(parameter.numel() for parameter in vae.parameters()) / 1e6,
    )
    log.info("hardware: %s, batches of %d", attempt.setup.reason, datamodule.batch_size)
    if not vae.likelihood.is_density:
        log.warning("this likelihood is not a density: beta has no fixed meaning in training")
    if vae.normalizer.gain is None and not datamodule.store.has_noise:
        log.info("noise: the sky's only; set data.normalize.gain for the Poisson noise of sources")


def quieten() -> None:
    """Advice of Lightning that does not apply: batches are gathered whole, in the main process."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.. is deprecated.*")
    for name in ("pytorch.utilities.rank_zero", "fabric.utilities.distributed"):
        logging.getLogger(f"lightning.{name}").setLevel(logging.WARNING)
