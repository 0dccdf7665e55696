"""What TensorBoard shows of a run besides its curves: forecast, verdict, table of runs, layout."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.plugins.hparams import (  # type: ignore[import-untyped]
    api_pb2,
    metadata,
    plugin_data_pb2,
)

from vae_astro.collapse.forecast import Forecast
from vae_astro.collapse.monitor import CollapseMonitor
from vae_astro.collapse.units import VERDICT_WORDS
from vae_astro.data.datamodule import StampDataModule
from vae_astro.objective.beta import final_beta
from vae_astro.report.full_disk import Curves
from vae_astro.report.words import held
from vae_astro.vae import VAE

__all__ = ["curves_of", "log_end", "log_hyperparameters", "log_start", "log_state"]

LAYOUT = {
    "1 objective": {
        "ELBO at beta = 1, validation [nats per stamp]": ["Multiline", ["val/elbo_nats"]],
        "reconstruction, validation [nats per stamp]": ["Multiline", ["val/reconstruction_nats"]],
        "KL, validation [nats per stamp]": ["Multiline", ["val/kl_nats"]],
        "chi-squared per pixel, validation": ["Multiline", ["val/chi2_per_pixel"]],
    },
    "2 schedule": {
        "beta": ["Multiline", ["schedule/beta"]],
        "KL, training [nats per stamp]": ["Multiline", ["train/kl_nats"]],
    },
    "3 latent code": {
        "active units": ["Multiline", ["collapse/active_units"]],
        "strongest unit [nats]": ["Multiline", ["collapse/strongest_unit_nats"]],
        "weakest unit [nats]": ["Multiline", ["collapse/weakest_unit_nats"]],
        "mutual information of stamp and code [nats]": [
            "Multiline",
            ["collapse/mutual_information_nats"],
        ],
        "mismatch of all codes and the prior [nats]": [
            "Multiline",
            ["collapse/aggregate_mismatch_nats"],
        ],
    },
}
"""One scalar a chart: the colours are then those of the runs, however many there are."""

SETTINGS = {
    "model.name": str,
    "model.latent_dim": float,
    "model.width": float,
    "prior.name": str,
    "likelihood.name": str,
    "data.normalize.stretch": str,
    "data.size": float,
    "data.batch_size": float,
    "beta.name": str,
    "beta.end": float,
    "optim.lr": float,
    "trainer.max_epochs": float,
    "seed": float,
}
"""Columns of the table of runs. TensorBoard takes the columns of all from one of the runs: they
have to be the same in every run, whatever its model and schedule have for settings."""

SHOWN_FIRST = {"beta.end", "likelihood.name", "model.latent_dim", "model.name", "verdict"}
"""Columns that are open when the table is: TensorBoard opens five of the settings, those that are
said to differ before the others, and the first five of the figures."""

FIGURES = {
    "elbo_nats": ("val.elbo_nats", "ELBO [nats]"),
    "kl_nats": ("val.kl_nats", "KL [nats]"),
    "active_units": ("collapse.active_units", "active units"),
    "nmi": ("classes.nmi", "NMI"),
    "chi2_per_pixel": ("val.chi2_per_pixel", "chi2 per pixel"),
    "ari": ("classes.ari", "ARI"),
    "reconstruction_nats": ("val.reconstruction_nats", "reconstruction [nats]"),
    "mutual_information_nats": ("collapse.mutual_information_nats", "mutual information [nats]"),
    "train_stamps_per_second": ("timing.train_stamps_per_second", "stamps per second"),
    "seconds_total": ("timing.seconds_total", "seconds"),
}
"""Final figures: where ``metrics.json`` has them, and what their column is called."""


def curves_of(trainer: Trainer) -> Iterator[Curves]:
    """The loggers that write for TensorBoard."""
    return (logger for logger in trainer.loggers if isinstance(logger, Curves))


def log_start(trainer: Trainer, foreseen: Forecast | None) -> None:
    """Arrange the curves that matter, and say what will come of the run, where that is known.

    Parameters
    ----------
    trainer : Trainer
        Of the run.
    foreseen : Forecast or None
        Shown in words, and as the spectrum of the stamps against the threshold.
    """
    for curves in curves_of(trainer):
        curves.add_layout(LAYOUT)
    if foreseen is None:
        return
    from vae_astro.report import figures  # Matplotlib: not before there is something to draw

    end = foreseen.end
    figure = figures.spectrum(
        end.eigenvalues, end.threshold, end.latent_dim, foreseen.passed_threshold
    )
    for curves in curves_of(trainer):
        curves.add_text("forecast", "\n\n".join(foreseen.lines), trainer.global_step)
        curves.add_figure("spectrum", figure, trainer.global_step)


def log_state(trainer: Trainer) -> None:
    """State of the latent code as of the last validation, in words."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for monitor in callbacks:
        if not isinstance(monitor, CollapseMonitor) or not monitor.validations:
            continue
        last = monitor.validations[-1]
        text = (
            f"**{last.state}** so far (step {last.step}): {last.active_units} of "
            f"{len(last.kl_per_unit_nats)} units active, KL {last.kl_nats:.3g} nats per stamp, "
            f"chi2 per pixel {last.chi2_per_pixel:.3g}"
        )
        for curves in curves_of(trainer):
            curves.add_text("verdict", text, last.step)


def log_end(
    trainer: Trainer,
    vae: VAE,
    datamodule: StampDataModule,
    settings: Mapping[str, Any],
    metrics: Mapping[str, Any],
    run_dir: Path,
) -> None:
    """Show what has come of a run: verdict in words, table of runs, codes with their stamps.

    Parameters
    ----------
    trainer, vae, datamodule : Trainer, VAE, StampDataModule
        Of the run; the model with the weights that were judged.
    settings, metrics : mapping
        What it was made of, and what ``metrics.json`` holds.
    run_dir : Path
        Run folder.
    """
    from vae_astro.report.projector import write_projector

    said = f"**{metrics['collapse']['explanation']}**"
    for curves in curves_of(trainer):
        curves.add_text("verdict", said, trainer.global_step)
    write_projector(vae, datamodule, run_dir)
    log_hyperparameters(trainer, settings, metrics)


def log_hyperparameters(
    trainer: Trainer, settings: Mapping[str, Any], metrics: Mapping[str, Any]
) -> None:
    """Put the settings and the final figures of the run into TensorBoard's table of runs.

    Parameters
    ----------
    trainer : Trainer
        Of the run.
    settings : mapping
        Of the run, in plain Python.
    metrics : mapping
        What ``metrics.json`` holds.
    """
    chosen = {name: _chosen(settings, name, kind) for name, kind in SETTINGS.items()}
    known = {name: value for name, value in chosen.items() if value is not None}
    verdict = str(metrics["collapse"]["verdict"])
    known["verdict"] = VERDICT_WORDS.get(verdict, verdict)
    kinds = {**SETTINGS, "verdict": str}
    final = {f"final/{name}": held(metrics, place) for name, (place, _) in FIGURES.items()}
    columns = api_pb2.Experiment(
        hparam_infos=[
            api_pb2.HParamInfo(
                name=name,
                type=api_pb2.DATA_TYPE_STRING if kind is str else api_pb2.DATA_TYPE_FLOAT64,
                differs=name in SHOWN_FIRST,
            )
            for name, kind in kinds.items()
        ],
        metric_infos=[
            api_pb2.MetricInfo(name=api_pb2.MetricName(tag=f"final/{name}"), display_name=column)
            for name, (_, column) in FIGURES.items()
        ],
    )
    begun = plugin_data_pb2.SessionStartInfo()
    for name, value in known.items():
        if isinstance(value, str):
            begun.hparams[name].string_value = value
        else:
            begun.hparams[name].number_value = value
    ended = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=time.time())
    begun.start_time_secs = ended.end_time_secs - (held(metrics, "timing.seconds_total") or 0.0)
    summaries = [
        _summary(metadata.EXPERIMENT_TAG, experiment=columns),
        _summary(metadata.SESSION_START_INFO_TAG, session_start_info=begun),
        _summary(metadata.SESSION_END_INFO_TAG, session_end_info=ended),
    ]
    for curves in curves_of(trainer):
        logged = {name: float(value) for name, value in final.items() if value is not None}
        curves.log_metrics(logged, trainer.global_step)
        curves.add_summaries(summaries, trainer.global_step)
        curves.finalize("success")


def _summary(tag: str, **content: Any) -> Any:
    """What the plugin of that table reads; its own functions for this need TensorFlow."""
    data = plugin_data_pb2.HParamsPluginData(**content)
    value = Summary.Value(
        tag=tag, metadata=metadata.create_summary_metadata(data), tensor=metadata.NULL_TENSOR
    )
    return Summary(value=[value])


def _chosen(settings: Mapping[str, Any], name: str, kind: type) -> str | float | None:
    # each schedule has its own key for that
    value = final_beta(settings.get("beta")) if name == "beta.end" else held(settings, name)
    return None if value is None else kind(value)
