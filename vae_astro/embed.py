"""From a checkpoint and stamps to a catalogue of their codes, on any number of devices.

What ``scripts/embed.py`` calls.
"""

from __future__ import annotations

import logging
import math
import re
import signal
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from lightning import Callback, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.exceptions import SIGTERMException

import vae_astro
from vae_astro.catalogue import IDENTITY, LATENT, SCORES, free_path, schema_of
from vae_astro.catalogue.writer import CatalogueWriter
from vae_astro.checkpoint import find_checkpoint, load_checkpoint
from vae_astro.command.typed import key_of
from vae_astro.data.datamodule import StampDataModule
from vae_astro.data.one_pass import Pass
from vae_astro.errors import InputError
from vae_astro.hardware import Setup, take
from vae_astro.processes import join, open_together
from vae_astro.settings import check_bool, check_int
from vae_astro.stopping import Stopped, note
from vae_astro.training import new_trainer, progress_bar
from vae_astro.vae import VAE

__all__ = ["Embedded", "Identity", "data_settings", "embed", "quick_batch", "refuse_other_stamps"]

BATCH_BYTES = {"cpu": 1 << 21, "other": 1 << 26}
"""Pixels in a batch: what stays in the caches of a core, and what keeps an accelerator busy."""
BATCH_ROWS = (16, 8192)
"""Fewest and most stamps in it."""
GENERIC_BAND = re.compile(r"band\d+")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Embedded:
    """What came of it.

    Attributes
    ----------
    out : Path
        The catalogue.
    n_stamps, latent_dim : int
        Its rows, and the length of its codes.
    seconds : float
        Of the pass, from its first batch to the finished file.
    """

    out: Path
    n_stamps: int
    latent_dim: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.n_stamps} stamps embedded in {self.latent_dim} units, "
            f"{self.n_stamps / self.seconds:.0f} a second\nwritten: {self.out}"
        )


def embed(settings: Mapping[str, Any], overrides: Sequence[str] = ()) -> Embedded | None:
    """Embed the stamps of a data group, or those that a run was trained on.

    Parameters
    ----------
    settings : mapping
        The keys of ``conf/embed.yaml``, as plain Python.
    overrides : sequence of str
        What was typed, ``data.root=FOLDER`` for example: it replaces single settings of the run.

    Returns
    -------
    Embedded or None
        None on all processes but the first.

    Raises
    ------
    InputError
        A mistake in the settings, the checkpoint or the stamps, before the pass begins where
        possible; a disk that is full.
    Stopped
        By a signal. Nothing is left of the catalogue then.
    """
    out = free_path(settings["out"], settings["overwrite"])
    with_scores = check_bool("scores", settings["scores"])
    path = _checkpoint(settings)
    checkpoint = load_checkpoint(path)
    vae = VAE.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    vae.predict_scores = with_scores
    data = data_settings(settings["data"], overrides, checkpoint, vae)
    progress = check_bool("progress", settings["progress"])
    callbacks: list[Callback] = [progress_bar()] if progress else []
    _, setup = take(settings["trainer"])
    trainer = _trainer(settings["trainer"], setup, callbacks)
    if setup.channels_last:
        vae.to(memory_format=torch.channels_last)
    log.info("hardware: %s", setup.reason)
    datamodule = StampDataModule(**data, progress=progress and trainer.is_global_zero)
    datamodule.predicted = Pass(
        settings["split"],
        _batch_size(settings["batch_size"], vae, trainer),
        ("image", "mask", "noise", "index") if with_scores else ("image", "index"),
    )
    join(trainer)
    open_together(datamodule, lambda: refuse_other_stamps(datamodule, vae), "predict")
    n_stamps = len(datamodule.predicted_rows())
    if n_stamps < trainer.world_size:
        raise InputError(
            f"{n_stamps} stamps (split={settings['split']}) cannot be shared by "
            f"{trainer.world_size} processes; set fewer trainer.devices or another split"
        )
    provenance = {
        "checkpoint": str(path),
        "version": vae_astro.__version__,
        "trained_with_version": checkpoint["vae_astro"]["version"],
        "steps": checkpoint["global_step"],
        "split": settings["split"],
        "data": data,
        "band_names": vae.band_names,
        "precision": str(trainer.precision),
    }
    schema = schema_of(
        (*IDENTITY, *LATENT, *(SCORES if with_scores else ())), vae.latent_dim, provenance
    )
    writer = CatalogueWriter(out, schema, Identity(datamodule), n_stamps, settings["overwrite"])
    trainer.callbacks.append(writer)  # type: ignore[attr-defined]  # set by a connector
    _predict(trainer, vae, datamodule)
    if not trainer.is_global_zero:
        return None
    return Embedded(out, writer.n_written, vae.latent_dim, writer.seconds)


def data_settings(
    given: Mapping[str, Any],
    overrides: Sequence[str],
    checkpoint: Mapping[str, Any],
    vae: VAE,
) -> dict[str, Any]:
    """The data group of the stamps to embed, normalised and sized as the checkpoint has it.

    A group that is typed (``data=fits``) is taken as it is. Otherwise it is that of the run,
    with the single keys that are typed.

    Raises
    ------
    InputError
        A normalisation or size is typed that is not the checkpoint's.
    """
    typed = {key_of(override) for override in overrides}
    keys = [key.removeprefix("data.") for key in typed if key.startswith("data.")]
    run = checkpoint["vae_astro"]["settings"]
    if "data" in typed or run is None:
        data = dict(given)
    else:
        data = {**run["data"], **{key: given[key] for key in keys if key in given}}
        if data.get("n_stamps") is not None and "root" in keys:
            raise InputError(
                f"data.root={data['root']}: the run was trained on simulated stamps; say what lies "
                "there, for example data=fits"
            )
    normalize = dict(vae.hparams["normalize"] or {})
    size: int | None = vae.stamp_shape[1]
    wanted = {"size": size, **{f"normalize.{k}": v for k, v in vars(vae.normalizer).items()}}
    found = {"size": given.get("size")}
    found |= {f"normalize.{k}": v for k, v in (given.get("normalize") or {}).items()}
    for key in keys:
        if key in wanted and found.get(key) != wanted[key]:
            raise InputError(
                f"data.{key}={found.get(key)}, but the checkpoint was trained with {wanted[key]}, "
                "and that is what its stamps are brought to: leave this key away"
            )
    of_the_run = run is not None and "data" not in typed and "root" not in keys
    if of_the_run and run["data"].get("size") is None:
        size = None  # as the run had it, or the same stamps would be packed a second time
    return {**data, "size": size, "normalize": normalize}


def refuse_other_stamps(datamodule: StampDataModule, vae: VAE) -> None:
    """Raise `InputError` unless the stamps have the bands and the size of the model."""
    shape, names = datamodule.store.stamp_shape, datamodule.store.band_names
    root = datamodule.root.address
    if shape[0] != vae.stamp_shape[0] or not _may_be(names, vae.band_names):
        raise InputError(
            f"the stamps of data.root={root} have the bands {', '.join(names)}, the checkpoint "
            f"takes {', '.join(vae.band_names)}; give stamps with the same bands in that order"
        )
    if shape != vae.stamp_shape:  # a store is taken as it was packed
        raise InputError(
            f"the stamps of data.root={root} are packed as {shape[1]}x{shape[2]}, the checkpoint "
            f"takes {vae.stamp_shape[1]}x{vae.stamp_shape[2]}; give the folder of the files that "
            "they were packed from"
        )


def quick_batch(stamp_shape: tuple[int, int, int], device: torch.device) -> int:
    """Stamps in a batch with which an encoder is quick on ``device``."""
    n_bytes = BATCH_BYTES.get(device.type, BATCH_BYTES["other"])
    fewest, most = BATCH_ROWS
    return min(max(n_bytes // (4 * math.prod(stamp_shape)), fewest), most)


class Identity:
    """Which stamps some rows are: the columns of `IDENTITY` but for the index itself."""

    def __init__(self, datamodule: StampDataModule) -> None:
        self.store = datamodule.store
        self.labels: np.ndarray | None = None
        if datamodule.labels_file is not None or datamodule.classes is not None:
            self.labels = datamodule.labels  # an unusable label file is refused now

    def __call__(self, rows: np.ndarray) -> pa.Table:
        table = self.store.identity(rows)
        label = table["label"]
        if self.labels is not None:
            label = pa.array(self.labels[rows], pa.string())
        known = pc.if_else(pc.equal(label, ""), None, label)
        return table.set_column(table.schema.get_field_index("label"), "label", known)


def _may_be(found: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether bands are the same as far as they have names of their own."""
    pairs = zip(found, wanted, strict=True)
    return all(
        one == other or GENERIC_BAND.fullmatch(one) or GENERIC_BAND.fullmatch(other)
        for one, other in pairs
    )


def _checkpoint(settings: Mapping[str, Any]) -> Path:
    if settings["checkpoint"] is None:
        raise InputError("checkpoint is not set; give a run folder or a file: checkpoint=runs/NAME")
    return find_checkpoint("checkpoint", settings["checkpoint"])


def _trainer(options: Mapping[str, Any], setup: Setup, callbacks: list[Callback]) -> Trainer:
    for name in ("lightning.pytorch", "lightning.fabric"):  # what was found and what is started
        logging.getLogger(name).setLevel(logging.WARNING)
    return new_trainer(
        options,
        setup,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=bool(callbacks),
    )


def _batch_size(wanted: int | None, vae: VAE, trainer: Trainer) -> int:
    if wanted is None:
        return quick_batch(vae.stamp_shape, trainer.strategy.root_device)
    return check_int("batch_size", wanted, minimum=1)


def _predict(trainer: Trainer, vae: VAE, datamodule: StampDataModule) -> None:
    try:
        with warnings.catch_warnings():
            # of a type that Lightning itself still uses
            warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.. is dep.*")
            trainer.predict(vae, datamodule=datamodule, return_predictions=False)
    except MisconfigurationException as error:
        raise InputError(f"the trainer refuses: {' '.join(str(error).split())}") from error
    except SIGTERMException:
        note(signal.SIGTERM)
        raise Stopped from None
    except SystemExit:  # what Lightning makes of Ctrl-C, and of any other signal that is heeded
        raise Stopped from None
