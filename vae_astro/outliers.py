"""From a checkpoint and stamps to a ranking of the odd ones, with calibrated p-values.

What ``scripts/outliers.py`` calls.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

import vae_astro
from vae_astro.bound import importance_weighted
from vae_astro.catalogue import (
    IDENTITY,
    OUTLIERS,
    QUALITY,
    SCORES,
    free_path,
    names,
    schema_of,
    write_catalogue,
)
from vae_astro.checkpoint import find_checkpoint, load_checkpoint
from vae_astro.collapse.refusal import refuse_collapsed
from vae_astro.collapse.verdict import judge
from vae_astro.command.files import figure_to_write, whole
from vae_astro.data.batches import Batch
from vae_astro.data.datamodule import StampDataModule
from vae_astro.data.one_pass import SPLITS
from vae_astro.embed import Identity, data_settings, quick_batch, refuse_other_stamps
from vae_astro.errors import InputError
from vae_astro.evaluate.anomalies import Calibration, Signs, calibrate, normally_below
from vae_astro.evaluate.residuals import residual_maps, residual_scores
from vae_astro.hardware import look, take
from vae_astro.progress import progress_of
from vae_astro.report.odd_stamps import draw_odd_stamps
from vae_astro.settings import check_bool, check_choice, check_int
from vae_astro.vae import VAE

__all__ = ["Ranked", "outliers", "signs_of"]

ROWS_IN_TABLE = 1 << 14
ENOUGH = 100
"""Calibration stamps from which a p-value can be below 0.01."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ranked:
    """What came of it.

    Attributes
    ----------
    out : Path
        The ranking.
    n_stamps, n_calibration : int
        Its rows, and the normal stamps that they were compared with.
    n_below : int
        Stamps with p < 0.01.
    smallest_p_value : float
        What the oddest stamps have.
    """

    out: Path
    n_stamps: int
    n_calibration: int
    n_below: int
    smallest_p_value: float

    def __str__(self) -> str:
        said = (
            f"{self.n_stamps} stamps ranked against {self.n_calibration} normal ones; p < 0.01: "
            f"{self.n_below}, {normally_below(self.n_stamps, self.n_calibration)}"
        )
        if self.n_calibration < ENOUGH:
            said += (
                f"\nno p-value is below {self.smallest_p_value:.2g}: for p < 0.01 it takes "
                f"{ENOUGH} calibration stamps"
            )
        return f"{said}\nwritten: {self.out}"


def outliers(settings: Mapping[str, Any], overrides: Sequence[str] = ()) -> Ranked:
    """Rank the stamps of a data group, or those that a run was trained on, the oddest first.

    Parameters
    ----------
    settings : mapping
        The keys of ``conf/outliers.yaml``, as plain Python.
    overrides : sequence of str
        What was typed; see `embed`.

    Raises
    ------
    InputError
        A mistake in the settings, the checkpoint or the stamps; a full collapse, unless forced; too
        few stamps to calibrate with.
    """
    overwrite = check_bool("overwrite", settings["overwrite"])
    out = free_path(settings["out"], overwrite)
    figure = figure_to_write("figure", settings["figure"])
    if figure is not None and figure.exists() and not overwrite:
        raise InputError(f"figure={figure} exists; choose another name, or give overwrite=true")
    force = check_bool("force", settings["force"])
    progress = check_bool("progress", settings["progress"])
    n_samples = check_int("n_samples", settings["n_samples"], minimum=1)
    n_shown = check_int("n_shown", settings["n_shown"], minimum=1, maximum=100)
    split = check_choice("split", settings["split"], SPLITS)
    path, vae = _model(settings, force)
    checkpoint = load_checkpoint(path)
    data = data_settings(settings["data"], overrides, checkpoint, vae)
    stamps = _opened(data, vae, settings, progress)
    identity = Identity(stamps)
    normal, normal_rows = stamps, _held_out(stamps)
    if settings["calibrate_on"] is not None:
        normal = _opened({**data, "root": settings["calibrate_on"]}, vae, settings, progress)
        normal_rows = np.arange(len(normal.store))
    most = check_int("max_calibration", settings["max_calibration"], minimum=1)
    if len(normal_rows) > most:
        drawn = np.random.default_rng(0).choice(normal_rows, most, replace=False)
        normal_rows = np.sort(drawn)
    calibration = _calibration(vae, normal, normal_rows, n_samples, force, progress)
    rows = _rows(stamps, split)
    found, _ = _pass(vae, stamps.in_order(rows), n_samples, len(rows), "ranking", progress)
    p_value, oddness = calibration.p_values(found), calibration.oddness(found)
    # what is not finite cannot be ranked, and stands at the end
    order = np.lexsort((np.nan_to_num(-oddness, nan=np.inf), np.nan_to_num(p_value, nan=2.0)))
    columns = {
        names.CHI2_PER_PIXEL: found.chi2_per_pixel,
        names.LOG_LIKELIHOOD_NATS: found.log_likelihood_nats,
        names.P_VALUE: p_value,
        names.LATENT_LOG_DENSITY: calibration.latent_log_density(found),
        names.NEIGHBOUR_DISTANCE: calibration.neighbour_distance(found),
        names.GOOD_FRACTION: found.n_good / np.prod(vae.stamp_shape),
    }
    provenance = {
        "checkpoint": str(path),
        "version": vae_astro.__version__,
        "split": split,
        "data": data,
        "n_samples": n_samples,
        "n_calibration": calibration.n_stamps,
        "calibrate_on": settings["calibrate_on"],
    }
    schema = schema_of(
        (*IDENTITY, *(column for column in SCORES if column.name in columns), *OUTLIERS, *QUALITY),
        vae.latent_dim,
        provenance,
    )
    tables = _tables(identity, rows, order, columns)
    write_catalogue(out, schema, tables, overwrite=overwrite)
    if figure is not None:
        shown = order[:n_shown]
        with whole(figure) as partial:
            draw_odd_stamps(vae, stamps, rows[shown], p_value[shown]).savefig(partial, dpi=110)
    below = int((p_value < 0.01).sum())
    return Ranked(out, len(rows), calibration.n_stamps, below, calibration.smallest_p_value)


@torch.inference_mode()
def signs_of(vae: VAE, batch: Batch, n_samples: int) -> tuple[Signs, np.ndarray]:
    """Signs of a batch that lies on the model's device, and the divergence of each unit (B, Z).

    Parameters
    ----------
    vae : VAE
        In evaluation mode.
    batch : dict of str to Tensor
        As `importance_weighted` takes it.
    n_samples : int
        Codes for each stamp's log-likelihood.
    """
    image, mask, noise = batch["image"], batch["mask"], batch["noise"]
    scores = vae.score(batch, vae.evaluation_noise(batch["index"]))
    maps = residual_maps(vae.normalizer, image, scores.location, mask, noise)
    columns = (
        importance_weighted(vae, batch, n_samples),
        mask.flatten(1).sum(1),
        scores.chi2_per_pixel,
        residual_scores(maps, mask),
        scores.posterior.mean,
    )
    found = Signs(*(column.double().cpu().numpy() for column in columns))
    return found, scores.elbo.kl_per_unit.double().cpu().numpy()


def _model(settings: Mapping[str, Any], force: bool) -> tuple[Path, VAE]:
    if settings["checkpoint"] is None:
        raise InputError("checkpoint is not set; give a run folder or a file: checkpoint=runs/NAME")
    path = find_checkpoint("checkpoint", settings["checkpoint"])
    refuse_collapsed(load_checkpoint(path), force)
    vae = VAE.load_from_checkpoint(path, map_location="cpu", weights_only=True).eval()
    _, setup = take(settings["trainer"])
    log.info("hardware: %s", setup.reason)
    return path, vae.to(look(settings["trainer"]["accelerator"]).accelerator)


def _opened(
    data: Mapping[str, Any], vae: VAE, settings: Mapping[str, Any], progress: bool
) -> StampDataModule:
    datamodule = StampDataModule(**data, progress=progress)
    datamodule.prepare_data()
    datamodule.setup("predict")
    refuse_other_stamps(datamodule, vae)
    datamodule.batch_size = quick_batch(vae.stamp_shape, vae.device)
    if settings["batch_size"] is not None:
        datamodule.batch_size = check_int("batch_size", settings["batch_size"], minimum=1)
    return datamodule


def _rows(datamodule: StampDataModule, split: str) -> np.ndarray:
    datamodule.predicted = type(datamodule.predicted)(split)
    return datamodule.predicted_rows()


def _held_out(datamodule: StampDataModule) -> np.ndarray:
    """Rows that a run of these stamps does not train on."""
    return np.sort(np.concatenate([_rows(datamodule, split) for split in ("val", "test")]))


def _calibration(
    vae: VAE,
    datamodule: StampDataModule,
    rows: np.ndarray,
    n_samples: int,
    force: bool,
    progress: bool,
) -> Calibration:
    """Of held-out stamps; a code that says nothing of them is refused."""
    if not len(rows):
        raise InputError(
            "no normal stamps to calibrate with: give more stamps, or the folder of normal ones, "
            "calibrate_on=FOLDER"
        )
    loader = datamodule.in_order(rows)
    found, kl = _pass(vae, loader, n_samples, len(rows), "calibration", progress)
    usable = found.is_usable
    if usable.sum() > 1:
        unit_std = vae.prior.unit_std().cpu().numpy()
        refuse_collapsed(judge(found.mean[usable], kl[usable], unit_std), force)
    calibration = calibrate(found)
    if calibration.n_stamps < ENOUGH:
        log.warning(
            "%d calibration stamps: no p-value can be below %.2g",
            calibration.n_stamps,
            calibration.smallest_p_value,
        )
    return calibration


def _pass(
    vae: VAE, loader: Any, n_samples: int, n_stamps: int, what: str, progress: bool
) -> tuple[Signs, np.ndarray]:
    parts = []
    with progress_of(n_stamps, what, "stamp", show=progress) as bar:
        for batch in loader:
            here = {name: value.to(vae.device) for name, value in batch.items()}
            parts.append(signs_of(vae, here, n_samples))
            bar.update(len(here["index"]))
    return Signs.joined([each for each, _ in parts]), np.concatenate([kl for _, kl in parts])


def _tables(
    identity: Identity,
    rows: np.ndarray,
    order: np.ndarray,
    columns: Mapping[str, np.ndarray],
) -> Iterator[pa.Table]:
    """The ranking in pieces, the oddest first."""
    for first in range(0, len(order), ROWS_IN_TABLE):
        chosen = order[first : first + ROWS_IN_TABLE]
        ascending = np.argsort(rows[chosen])  # as a store is read
        back = np.argsort(ascending)
        picked = rows[chosen][ascending]
        table = identity(picked).take(pa.array(back))
        if "index" not in table.column_names:
            table = table.append_column("index", pa.array(rows[chosen]))
        for name, values in columns.items():
            table = table.append_column(name, pa.array(values[chosen].astype(np.float32)))
        yield table
