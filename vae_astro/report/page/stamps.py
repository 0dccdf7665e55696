"""The model and the stamps of a run, for what the page shows of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from vae_astro.checkpoint import find_checkpoint, load_checkpoint
from vae_astro.collapse.monitor import CollapseMonitor
from vae_astro.data.datamodule import StampDataModule
from vae_astro.data.store.layout import is_store
from vae_astro.data.store.store import StampStore
from vae_astro.errors import InputError
from vae_astro.report.history import Run
from vae_astro.vae import VAE

__all__ = ["Looked", "Model", "Seen", "look_at", "open_model", "open_stamps", "rows_to_show"]

MOST_PIXELS = 2.5e7
"""Of the stamps that are looked at: a processor encodes so many in seconds."""
FEWEST = 200
THUMBNAIL = 48
"""Pixels of a side; a stamp that is smaller keeps its own."""
BANDS_SHOWN = 3
PARTS = ("validation", "test", "training")
"""Of the data, in the order in which their stamps are looked at."""


@dataclass(frozen=True)
class Model:
    """What a checkpoint of the run holds.

    Attributes
    ----------
    path : Path
        The checkpoint.
    checkpoint : dict
        All of it.
    vae : VAE
        In evaluation mode.
    monitor : CollapseMonitor
        With the history of the KL.
    """

    path: Path
    checkpoint: dict[str, Any]
    vae: VAE
    monitor: CollapseMonitor

    @property
    def trained_with(self) -> str:
        """Version of vae_astro that wrote the checkpoint."""
        return str(self.checkpoint["vae_astro"].get("version"))


@dataclass(frozen=True)
class Seen:
    """Stamps that are looked at, and which ones they are.

    Attributes
    ----------
    index : ndarray, shape (N,), int64
        Rows of the store, ascending.
    split : ndarray, shape (N,), str
        What the run did with each.
    """

    index: np.ndarray
    split: np.ndarray


@dataclass(frozen=True)
class Looked:
    """What the model says of the stamps that were looked at.

    Attributes
    ----------
    mean : ndarray, shape (N, Z)
        Posterior means.
    kl_nats, chi2_per_pixel : ndarray, shape (N,)
    kl_per_unit_nats : ndarray, shape (N, Z)
    stamps, models : ndarray, shape (N, C, S, S), float32
        Normalised stamps (bad pixels NaN) and expected pixels, made small; bands shown only.
    """

    mean: np.ndarray
    kl_nats: np.ndarray
    chi2_per_pixel: np.ndarray
    kl_per_unit_nats: np.ndarray
    stamps: np.ndarray
    models: np.ndarray


def open_model(run: Run) -> Model:
    """The best checkpoint of a run, or its last.

    Raises
    ------
    InputError
        There is none, or it cannot be loaded.
    """
    path = find_checkpoint("run", str(run.dir))
    checkpoint = load_checkpoint(path)
    vae = VAE.load_from_checkpoint(path, map_location="cpu", weights_only=True).eval()
    newest = checkpoint
    last = path.with_name("last.ckpt")
    if last != path and last.is_file():
        newest = load_checkpoint(last)  # its history goes on after the best
    monitor = CollapseMonitor()
    state = newest["callbacks"].get(CollapseMonitor.__qualname__)
    if state is not None:
        monitor.load_state_dict(state)
    return Model(path, checkpoint, vae, monitor)


def open_stamps(settings: Mapping[str, Any], vae: VAE) -> StampDataModule:
    """The packed stamps of a data group; nothing is drawn, packed or changed for a page.

    Parameters
    ----------
    settings : mapping
        The data group of a run.
    vae : VAE
        They must be such as it takes.

    Raises
    ------
    InputError
        They are not packed here, or are of another shape.
    """
    datamodule = StampDataModule(**{**settings, "progress": False})
    root, packer = datamodule.root, datamodule.packer
    path = Path(root.address) if is_store(Path(root.address)) else packer.path(root)
    try:
        store = StampStore.open(path)
    except InputError as error:
        raise InputError(
            f"the stamps of data.root={settings['root']} are not packed in "
            f"data.store_dir={settings.get('store_dir', 'stores')} ({error}); make the page in the "
            "folder that the run was started in"
        ) from error
    datamodule.use(store)
    if store.stamp_shape != vae.stamp_shape:
        raise InputError(
            f"the stamps of {path} have the shape {store.stamp_shape}, the model takes "
            f"{vae.stamp_shape}"
        )
    return datamodule


def rows_to_show(datamodule: StampDataModule, n_stamps: int) -> Seen:
    """Stamps for the map: those of the validation first, then of the test, then of the training."""
    room = int(MOST_PIXELS / math.prod(datamodule.store.stamp_shape))
    n_stamps = min(n_stamps, max(room, FEWEST))
    rng = np.random.default_rng(0)
    chosen: dict[str, np.ndarray] = {}
    rows_of = (datamodule.val_rows, datamodule.test_rows, datamodule.train_rows)
    for name, rows in zip(PARTS, rows_of, strict=True):
        n = min(n_stamps - sum(map(len, chosen.values())), len(rows))
        chosen[name] = rng.choice(rows, n, replace=False) if n < len(rows) else rows
    index = np.concatenate(list(chosen.values()))
    split = np.repeat(list(chosen), [len(rows) for rows in chosen.values()])
    order = np.argsort(index)  # as a store is read
    return Seen(index[order], split[order])


@torch.inference_mode()
def look_at(vae: VAE, datamodule: StampDataModule, index: np.ndarray) -> Looked:
    """Codes, scores and small pictures of some rows of the store.

    Parameters
    ----------
    vae : VAE
        On any device.
    datamodule : StampDataModule
        Set up.
    index : ndarray, shape (N,), int64
        Ascending.
    """
    vae.eval()
    columns: list[list[Tensor]] = [[], [], [], [], [], []]
    for batch in datamodule.in_order(index, on_device=True):
        here = {name: value.to(vae.device) for name, value in batch.items()}
        scores = vae.score(here, vae.evaluation_noise(here["index"]))
        seen = here["image"][:, :BANDS_SHOWN].float()
        values = (
            scores.posterior.mean,
            scores.elbo.kl,
            scores.chi2_per_pixel,
            vae.prior.kl_per_unit(scores.posterior),
            _small(seen, here["mask"][:, :BANDS_SHOWN]),
            _small(scores.location[:, :BANDS_SHOWN].float()),
        )
        for column, value in zip(columns, values, strict=True):
            column.append(value.float().cpu())
    return Looked(*(torch.cat(column).numpy() for column in columns))


def _small(images: Tensor, mask: Tensor | None = None) -> Tensor:
    """Means over blocks of the good pixels of (N, C, H, W); NaN where none is good."""
    size = min(THUMBNAIL, images.shape[-1])
    if mask is None:
        return F.adaptive_avg_pool2d(images, size)
    good = F.adaptive_avg_pool2d(mask.to(images.dtype), size)
    light = F.adaptive_avg_pool2d(images.where(mask, images.new_zeros(())), size)
    return torch.where(good > 0, light / good.clamp(min=1e-6), torch.nan)
