"""A run as TensorBoard sees it: a model that has learned nothing, logged whole."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from astropy.io import fits

from vae_astro import VAE
from vae_astro.collapse.forecast import forecast_run
from vae_astro.data.datamodule import StampDataModule
from vae_astro.objective.beta import SCHEDULES
from vae_astro.report import board
from vae_astro.report.callbacks import StampPanels
from vae_astro.report.full_disk import Curves
from vae_astro.settings import build

SETTINGS: dict[str, Any] = {
    "model": {"name": "linear", "latent_dim": 3},
    "prior": {"name": "standard"},
    "likelihood": {"name": "sigma"},
    "data": {"size": 20, "batch_size": 64, "normalize": {"stretch": "asinh"}},
    "beta": {"name": "constant", "value": 0.5},
    "optim": {"name": "adam", "lr": 1e-3},
    "trainer": {"max_epochs": 2},
    "seed": 0,
}
METRICS: dict[str, Any] = {
    "val": {
        "elbo_nats": -321.5,
        "reconstruction_nats": -320.5,
        "kl_nats": 1.0,
        "chi2_per_pixel": 1.1,
    },
    "collapse": {
        "verdict": "partial",
        "active_units": 2,
        "explanation": "Partial collapse: 2 of 3.",
        "mutual_information_nats": None,
    },
    "classes": {"nmi": None, "ari": None},
    "timing": {"seconds_total": 12.0, "train_stamps_per_second": 100.0},
}


def moving_stamps(folder: Path) -> StampDataModule:
    """80 stamps of a source that moves, set up."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:20, :20] - 9.5
    moved = rng.normal(size=(2, 80, 1, 1))
    source = 60 * np.exp(-((x - moved[0]) ** 2 + (y - moved[1]) ** 2) / 6)
    (folder / "sky").mkdir(parents=True)
    cube = (rng.normal(size=(80, 20, 20)) + source).astype("f4")
    fits.writeto(folder / "sky" / "cube.fits", cube)
    datamodule = StampDataModule(
        str(folder / "sky"),
        cube="stamps",
        store_dir=str(folder / "stores"),
        val_fraction=0.4,
        progress=False,
    )
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


def log_run(run_dir: Path, datamodule: StampDataModule, *, layout: bool = True) -> None:
    """Log all that a run logs into ``run_dir``, as its callbacks and its end do."""
    torch.manual_seed(0)
    vae = VAE([1, 20, 20], model=SETTINGS["model"])
    curves = Curves(run_dir, name="", version="", default_hp_metric=False)
    trainer: Any = SimpleNamespace(
        loggers=[curves], callbacks=[], global_step=40, is_global_zero=True
    )
    schedule = build("beta", SCHEDULES, SETTINGS["beta"], total_steps=40)
    stamps = datamodule.training_sample(64)
    panels = StampPanels(n_stamps=4)
    if layout:
        panels.foreseen = forecast_run(stamps, vae.likelihood, 3, schedule, 40)
    panels.on_train_start(trainer, vae)
    for step in (0, 20, 40):
        curves.log_metrics({"beta": 0.5, "epoch": step // 20, "val/elbo_nats": step - 400.0}, step)
    shown = next(iter(datamodule.in_order(datamodule.val_rows[: panels.n_held])))
    panels.draw_last(trainer, vae, shown, run_dir / "figures")
    board.log_end(trainer, vae, datamodule, SETTINGS, METRICS, run_dir)
