"""A tiny run for the tests of its page: odd names, a broken file, classes and outliers."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from astropy.io import fits
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from vae_astro.classify import classify
from vae_astro.folders import register_resolvers
from vae_astro.outliers import outliers
from vae_astro.report.page import write_page
from vae_astro.run import train

CONF = Path(__file__).parents[2] / "conf"
AFTER_TRAINING = "after_training.html"
"""What the run itself wrote, before there were classes."""
ODD_LABEL = "<script>alert(1)</script>"
ODD_OBJECT = "</script><img src=x onerror=alert(2)>"
SMALL = (
    "data=fits", "data.batch_size=32", "model.width=8", "model.latent_dim=4", "log_every_n_steps=1",
    "trainer=cpu", "trainer.precision=32-true", "trainer.check_val_every_n_epoch=1",
    "trainer.max_epochs=3", "callbacks.progress=false",
    "optim.lr=3e-3", "optim.warmup_steps=0",
)  # fmt: skip


def page_run(folder: Path) -> Path:
    """Train on 150 stamps of two classes, look for classes and outliers, and make the page."""
    stamps, run_dir = folder / "stamps & more", folder / "run & <b>one"
    stamps.mkdir()
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:16, :16] - 7.5
    for k in range(150):
        wide = k % 2
        flux, at = 60 * rng.lognormal(), rng.normal(size=2)
        source = flux * np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / (20 if wide else 5))
        header = fits.Header({"OBJID": f"obj{k}", "CLASS": ODD_LABEL if wide else "compact & $x"})
        if k == 0:
            header["OBJID"] = ODD_OBJECT
        image = (100 + source + rng.normal(size=(16, 16))).astype("f4")
        fits.writeto(stamps / f"s{k}.fits", image, header)
    (stamps / "broken.fits").write_bytes(b"SIMPLE  = nothing")
    typed = [*SMALL, f"data.root='{stamps}'", f"data.store_dir='{folder / 'stores'}'"]
    settings = composed("config", *typed)
    record = run_dir / ".hydra"
    record.mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(settings), record / "config.yaml")
    OmegaConf.save(OmegaConf.create(typed), record / "overrides.yaml")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Lightning, as the command does
        train(settings, run_dir)
    (run_dir / "report.html").rename(run_dir / AFTER_TRAINING)
    quick = {"checkpoint": str(run_dir), "force": True, "progress": False}
    classify({**composed("classify"), **quick, "out": str(run_dir / "classes"), "n_seeds": 1,
              "n_classes": 2, "n_gallery": 2})  # fmt: skip
    outliers({**composed("outliers"), **quick, "out": str(run_dir / "outliers.parquet"),
              "figure": None, "n_samples": 2, "n_shown": 4})  # fmt: skip
    write_page(run_dir)
    return run_dir


def composed(name: str, *overrides: str) -> dict:
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(name, list(overrides))
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]
