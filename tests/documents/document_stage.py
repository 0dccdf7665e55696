"""A folder in which the documents are followed: the project, stamps of every shape, runs.

Files and folders bear the names that stand for a reader's own in the documents: ``FOLDER``,
``runs/NAME``, ``stores/KEY``. Every page gets a copy of its own.
"""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
from astropy.io import fits
from document_pages import ROOT

from vae_astro.data.simulate import simulate

N_STAMPS = 160
SIZE = 63

MODEL = '''\
"""A model of the reader's own."""

import torch
from torch import nn


class Class(nn.Module):
    def __init__(self, latent_dim=4, n_pixels=63 * 63):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(n_pixels, 64), nn.SiLU())
        self.mean, self.log_var = nn.Linear(64, latent_dim), nn.Linear(64, latent_dim)
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim, 64), nn.SiLU(), nn.Linear(64, n_pixels)
        )

    def forward(self, x):
        hidden = self.encoder(x)
        mean, log_var = self.mean(hidden), self.log_var(hidden)
        z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
        return self.decoder(z).view_as(x), mean, log_var


def function(recon, x, mean, log_var):
    kl = 0.5 * (mean**2 + log_var.exp() - log_var - 1).sum(1)
    return (0.5 * (recon - x) ** 2).flatten(1).sum(1).mean() + kl.mean()
'''


def environment(stage: Path) -> dict[str, str]:
    """Of what runs in a stage: its own copy of the package, one thread, no GPU, no display."""
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith("PYTEST")},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(stage),
        "CUDA_VISIBLE_DEVICES": "",
        "MPLBACKEND": "Agg",
        "OMP_NUM_THREADS": "1",
    }


def build(stage: Path) -> Path:
    """Everything that the documents take for granted, below ``stage``."""
    for name in ("conf", "scripts", "vae_astro", "docs"):
        shutil.copytree(ROOT / name, stage / name)
    for name in ("train.py", "pyproject.toml", "README.md"):
        shutil.copy2(ROOT / name, stage / name)
    simulate(stage / "FOLDER", n_stamps=N_STAMPS, size=SIZE, n_processes=1, progress=False)
    files = sorted((stage / "FOLDER").glob("*/*.fits"))
    stamps = np.stack([fits.getdata(file) for file in files]).astype(np.float32)
    _alerts(stage, stamps)
    _mosaic(stage / "mosaics")
    _planes(stage / "planes", stamps)
    _bands(stage / "stamps", stamps)
    (stage / "arrays").mkdir()
    np.save(stage / "arrays" / "stamps.npy", stamps)
    (stage / "package").mkdir()
    (stage / "package" / "module.py").write_text(MODEL)
    _runs(stage)
    return stage


def _alerts(stage: Path, stamps: np.ndarray) -> None:
    """Packets like ZTF's below ``ztf_alerts``; made-up labels of them, and of ``FOLDER``."""
    folder = stage / "ztf_alerts"
    folder.mkdir()
    cutout = {
        "type": "record",
        "name": "cutout",
        "fields": [{"name": "fileName", "type": "string"}, {"name": "stampData", "type": "bytes"}],
    }
    names = ("cutoutScience", "cutoutTemplate", "cutoutDifference")
    kinds: list[Any] = [cutout, "cutout", "cutout"]
    schema = fastavro.parse_schema(
        {
            "type": "record",
            "name": "alert",
            "fields": [{"name": "objectId", "type": "string"}, {"name": "candid", "type": "long"}]
            + [{"name": name, "type": kind} for name, kind in zip(names, kinds, strict=True)],
        }
    )
    labels = ["file,label_weak"]
    for k, science in enumerate(stamps):
        template = stamps[(k + 1) % len(stamps)]
        record: dict[str, Any] = {"objectId": f"ZTF{k:05d}", "candid": k}
        for name, pixels in zip(names, (science, template, science - template), strict=True):
            record[name] = {"fileName": f"{k}.fits.gz", "stampData": _packed(pixels)}
        with (folder / f"{k}.avro").open("wb") as file:
            fastavro.writer(file, schema, [record])
        labels.append(f"{k}.avro,{('asteroid', 'star', 'bogus')[k % 3]}")
    (stage / "ztf_alerts_labels.csv").write_text("\n".join(labels) + "\n")
    files = sorted((stage / "FOLDER").glob("*/*.fits"))
    kinds_of = [f"{file.parent.name}/{file.name},kind {k % 3}" for k, file in enumerate(files)]
    (stage / "labels.csv").write_text("\n".join(["file,label", *kinds_of]) + "\n")


def _packed(pixels: np.ndarray) -> bytes:
    stream = BytesIO()
    fits.PrimaryHDU(pixels).writeto(stream)
    return gzip.compress(stream.getvalue())


def _mosaic(folder: Path) -> None:
    """A field of Gaussian sources, and ``sources.csv`` with their positions in pixels."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    field = rng.normal(100, 5, (700, 700)).astype(np.float32)
    y, x = np.mgrid[-15:16, -15:16]
    rows = ["x,y"]
    for _ in range(N_STAMPS):
        column, row = rng.integers(40, 660, 2)
        width = rng.uniform(1.5, 4)
        field[row - 15 : row + 16, column - 15 : column + 16] += rng.uniform(50, 900) * np.exp(
            -(x**2 + y**2) / (2 * width**2)
        )
        rows.append(f"{column},{row}")
    fits.writeto(folder / "field.fits", field)
    (folder / "sources.csv").write_text("\n".join(rows) + "\n")


def _planes(folder: Path, stamps: np.ndarray) -> None:
    """Files of three extensions: SCI, its standard deviation ERR, and a mask DQ."""
    folder.mkdir()
    for k, pixels in enumerate(stamps):
        noise = np.full_like(pixels, 1.4826 * np.median(np.abs(pixels - np.median(pixels))))
        hdus = [fits.PrimaryHDU()]
        hdus += [fits.ImageHDU(pixels, name="SCI"), fits.ImageHDU(noise, name="ERR")]
        hdus += [fits.ImageHDU(np.zeros(pixels.shape, np.int16), name="DQ")]
        fits.HDUList(hdus).writeto(folder / f"{k}.fits")


def _bands(folder: Path, stamps: np.ndarray) -> None:
    """Three files for each object, one a band."""
    folder.mkdir(exist_ok=True)
    for k, pixels in enumerate(stamps[:120]):
        for factor, band in enumerate("gri", start=1):
            fits.writeto(folder / f"object{k}_{band}.fits", pixels * factor)


def _runs(stage: Path) -> None:
    """``runs/NAME`` with copies, short but not collapsed, and ``stores/KEY``."""
    overrides = [
        f"data.n_stamps={N_STAMPS}", "data.batch_size=16", "trainer=cpu", "trainer.max_epochs=8",
        "callbacks.progress=false", "run_dir=runs/NAME",
    ]  # fmt: skip
    subprocess.run(
        [sys.executable, "train.py", *overrides],
        cwd=stage,
        env=environment(stage),
        check=True,
        capture_output=True,
        timeout=300,
    )
    for name in "ABC":
        shutil.copytree(stage / "runs" / "NAME", stage / "runs" / name)
    (store,) = (stage / "stores").glob("*/manifest.json")
    shutil.copytree(store.parent, stage / "stores" / "KEY")
