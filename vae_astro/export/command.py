"""From a checkpoint to a folder that others can use.

What ``scripts/export.py`` calls.
"""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vae_astro.checkpoint import find_checkpoint, load_checkpoint
from vae_astro.data.datamodule import StampDataModule
from vae_astro.embed import data_settings, quick_batch, refuse_other_stamps
from vae_astro.errors import InputError
from vae_astro.export.card import card_of, is_judged
from vae_astro.export.hub import push_to_hub
from vae_astro.export.programs import (
    Programs,
    probe_codes,
    probe_stamps,
    write_onnx,
    write_torch_export,
)
from vae_astro.export.prune import Pruning, prune
from vae_astro.export.target_folder import publish, usable_folder
from vae_astro.export.weights import WEIGHTS, load_safetensors, save_safetensors, write_config
from vae_astro.folders import run_folder_of
from vae_astro.settings import check_bool, check_int, check_number, check_text
from vae_astro.vae import VAE

__all__ = ["FORMATS", "Exported", "export_model"]

FORMATS = ("torch_export", "onnx", "safetensors", "checkpoint")
CHECKPOINT = "model.ckpt"
OF_TRAINING = ("loops", "callbacks", "optimizer_states", "lr_schedulers")
"""What a checkpoint holds for going on, and a model for use does not need."""


@dataclass(frozen=True)
class Exported:
    """What came of it.

    Attributes
    ----------
    out : Path
        The folder.
    files : tuple of str
        Names in it.
    failures : dict of str to str
        Formats that could not be written, and why.
    pruning : Pruning or None
        What became of the units, where that was asked for.
    url : str or None
        Where it was uploaded to.
    """

    out: Path
    files: tuple[str, ...]
    failures: dict[str, str]
    pruning: Pruning | None = None
    url: str | None = None

    def __str__(self) -> str:
        lines = [] if self.pruning is None else [str(self.pruning), ""]
        sizes = ((self.out / name).stat().st_size for name in self.files)
        lines += [
            f"{size / 1e6:9.2f} MB  {self.out / name}"
            for name, size in zip(self.files, sizes, strict=True)
        ]
        if self.url is not None:
            lines.append(f"uploaded: {self.url}")
        return "\n".join(lines)


def export_model(settings: Mapping[str, Any], overrides: Sequence[str] = ()) -> Exported:
    """Write a checkpoint in formats that others read, with a model card beside them.

    Every format is read back and compared with the model before anything lies in ``out``: the codes
    of safetensors and checkpoint bit for bit, the outputs of the others to 1e-4.

    Parameters
    ----------
    settings : mapping
        The keys of ``conf/export.yaml``, as plain Python.
    overrides : sequence of str
        What was typed; see `vae_astro.embed.data_settings`. Stamps are read only to prune.

    Returns
    -------
    Exported
        With ``failures``, where some formats could be written and others not.

    Raises
    ------
    InputError
        A mistake in the settings, the checkpoint or the stamps; a folder that is taken; no format
        that could be written. What was there before stays.
    """
    formats = _formats(settings["formats"])
    overwrite = check_bool("overwrite", settings["overwrite"])
    out = usable_folder(settings["out"], overwrite)
    prunes = check_bool("prune", settings["prune"])
    private = check_bool("hub_private", settings["hub_private"])
    for key in ("licence", "hub_repo", "hub_revision"):
        if settings[key] is not None:
            check_text(key, settings[key])
    if settings["hub_repo"] is not None and "safetensors" not in formats:
        raise InputError("hub_repo needs formats=[safetensors], which alone is loaded from a hub")
    if settings["checkpoint"] is None:
        raise InputError("checkpoint is not set; give a run folder or a file: checkpoint=runs/NAME")
    path = find_checkpoint("checkpoint", settings["checkpoint"])
    checkpoint = load_checkpoint(path)
    vae = VAE.load_from_checkpoint(path, map_location="cpu", weights_only=True).eval()
    pruning = None
    if prunes:
        pruning = _prune(vae, checkpoint, settings, overrides)
        vae = pruning.vae
        checkpoint = _checkpoint_of(vae, checkpoint)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as beside:
        folder = Path(beside)
        files, failures = _write(formats, vae, checkpoint, folder)
        if not files:
            raise InputError("; ".join(failures.values()))
        judged = is_judged(path, run_folder_of(path))
        pictures = _pictures(path, folder) if judged else []
        card = card_of(
            vae,
            checkpoint,
            run_folder_of(path),
            licence=settings["licence"],
            name=out.name,
            files=files,
            pictures=pictures,
            pruned=None if pruning is None else str(pruning),
            judged=judged,
        )
        (folder / "README.md").write_text(card, "utf-8")
        publish(folder, out)
    url = None
    if settings["hub_repo"] is not None and not failures:
        revision = settings["hub_revision"]
        url = push_to_hub(out, settings["hub_repo"], private=private, revision=revision)
    names = ("README.md", "config.json", *files, *pictures)
    return Exported(out, tuple(dict.fromkeys(names)), failures, pruning, url)


def _formats(given: object) -> list[str]:
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, Sequence) or not given or not set(given) <= set(FORMATS):
        raise InputError(f"formats must be a list out of {', '.join(FORMATS)}, got {given!r}")
    return [name for name in FORMATS if name in given]


def _write(
    formats: Sequence[str], vae: VAE, checkpoint: Mapping[str, Any], folder: Path
) -> tuple[list[str], dict[str, str]]:
    """Write what can be written; the files, and why others are not among them."""
    programs = Programs.of(vae)

    def safetensors(_: Programs, folder: Path) -> list[str]:
        save_safetensors(vae, folder)
        _refuse_other_codes("safetensors", vae, load_safetensors(folder))
        return [WEIGHTS]

    def lean_checkpoint(_: Programs, folder: Path) -> list[str]:
        torch.save(_checkpoint_of(vae, checkpoint), folder / CHECKPOINT)
        load_checkpoint(folder / CHECKPOINT)
        loaded = VAE.load_from_checkpoint(
            folder / CHECKPOINT, map_location="cpu", weights_only=True
        )
        _refuse_other_codes("checkpoint", vae, loaded)
        return [CHECKPOINT]

    writers: dict[str, Callable[[Programs, Path], list[str]]] = {
        "torch_export": write_torch_export,
        "onnx": write_onnx,
        "safetensors": safetensors,
        "checkpoint": lean_checkpoint,
    }
    files: list[str] = []
    failures: dict[str, str] = {}
    write_config(vae, folder)
    for name in formats:
        with tempfile.TemporaryDirectory(prefix=f"{name}.", dir=folder) as own:
            try:
                written = writers[name](programs, Path(own))
            except InputError as error:
                failures[name] = str(error)
                continue
            except OSError as error:
                raise InputError(f"cannot write beside {folder.parent}: {error}") from error
            for file in Path(own).iterdir():
                os.replace(file, folder / file.name)
            files += written
    return files, failures


def _refuse_other_codes(name: str, vae: VAE, loaded: VAE) -> None:
    stamps = probe_stamps(vae.stamp_shape)
    here, there = probe_codes(vae, stamps), probe_codes(loaded, stamps)
    if not np.array_equal(here, there, equal_nan=True):
        raise InputError(
            f"formats=[{name}]: the model that was read back gives other codes; the disk may be "
            "faulty, export again"
        )


def _checkpoint_of(vae: VAE, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint of ``vae`` for use and warm starts, without the state of a training."""
    lean = {key: value for key, value in checkpoint.items() if key not in OF_TRAINING}
    lean["state_dict"] = {name: value.detach().cpu() for name, value in vae.state_dict().items()}
    lean["hyper_parameters"] = copy.deepcopy(dict(vae.hparams))
    if vae.run_settings is not None:
        lean["vae_astro"] = {**lean["vae_astro"], "settings": vae.run_settings}
    return lean


def _prune(
    vae: VAE,
    checkpoint: Mapping[str, Any],
    settings: Mapping[str, Any],
    overrides: Sequence[str],
) -> Pruning:
    """Judge the units by stamps of the run, or by those that were asked for."""
    limit = check_number("active_variance", settings["active_variance"], above=0, maximum=1)
    most = check_int("prune_stamps", settings["prune_stamps"], minimum=2)
    data = data_settings(settings["data"], overrides, checkpoint, vae)
    datamodule = StampDataModule(**data, progress=False)
    datamodule.prepare_data()
    datamodule.setup("predict")
    refuse_other_stamps(datamodule, vae)
    datamodule.batch_size = quick_batch(vae.stamp_shape, torch.device("cpu"))
    rows = datamodule.predicted_rows()
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(0).choice(rows, most, replace=False))
    vae.run_settings = checkpoint["vae_astro"]["settings"]

    return prune(vae, datamodule.in_order(rows), limit)


def _pictures(checkpoint: Path, folder: Path) -> list[str]:
    """Copy the figures of the run beside the card; their names there."""
    run_dir = run_folder_of(checkpoint)
    if run_dir is None:
        return []
    found = sorted((run_dir / "figures").glob("*.png"))
    if found:
        (folder / "figures").mkdir()
    for picture in found:
        shutil.copyfile(picture, folder / "figures" / picture.name)
    return [f"figures/{picture.name}" for picture in found]
