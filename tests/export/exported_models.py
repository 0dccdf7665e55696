"""Tiny models of every network, prior and normalisation, and raw stamps with all defects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Trainer

from vae_astro import VAE
from vae_astro.data.batches import Batch
from vae_astro.data.normalize import Normalizer

SIZE, N_BANDS = 20, 2

MODELS: dict[str, dict[str, Any]] = {
    "conv": {"name": "conv", "latent_dim": 4, "width": 8},
    "linear": {"name": "linear", "latent_dim": 4},
    "mlp": {"name": "mlp", "latent_dim": 4, "hidden": [12, 8]},
    "question": {"name": "question", "latent_dim": 4, "bottleneck_units": 6},
    "rings": {
        "name": "rings",
        "latent_dim": 8,
        "shape_units": 3,
        "n_rings": 4,
        "harmonics": 2,
        "hidden": 8,
        "width": 8,
    },
    "d4": {"name": "conv", "latent_dim": 4, "width": 8, "symmetry": "d4"},
    "pose": {"name": "conv", "latent_dim": 4, "width": 8, "pose": "rotation_shift"},
    "minimum_rate": {"name": "conv", "latent_dim": 4, "width": 8, "minimum_rate_nats": 2.0},
}
PRIORS: dict[str, dict[str, Any]] = {
    "standard": {"name": "standard"},
    "mixture": {"name": "mixture", "n_components": 3, "warmup_epochs": 0},
    "vamp": {"name": "vamp", "n_pseudo_inputs": 6},
}
NORMALIZE: dict[str, dict[str, Any]] = {
    "asinh": {},
    "linear": {"stretch": "linear"},
    "log": {"stretch": "log"},
    "minmax": {"stretch": "minmax"},
    "gain": {"gain": [2.0, 6.0], "saturation": [280.0, 300.0]},
}


def raw_stamps(n: int = 24, size: int = SIZE) -> np.ndarray:
    """Raw stamps (n, 2, size, size) of a source and sky; the first dozen each with a defect."""
    rng = np.random.default_rng(3)
    x = rng.normal(100, 5, (n, N_BANDS, size, size))
    middle = slice(size // 2 - 2, size // 2 + 2)
    x[:, :, middle, middle] += 250 * rng.random((n, 1, 1, 1)) * rng.random((n, N_BANDS, 4, 4))
    if n >= 12:
        x[0, :, :3] = np.nan
        x[1] = np.nan
        x[2] = 7
        x[3] = np.round(x[3] / 40)
        x[4, :, 0, 0] = np.inf
        x[5] += 1e5
        x[6, :, :, 1:] = -3.4e38
        x[7], x[7, :, 5, 5] = 0, 3
        x[8, 0] = np.nan  # one band is missing
        x[9], x[9, :, 0, 0] = np.nan, 3
        x[10] *= -1
    return x.astype(np.float32)


def tiny_vae(
    model: str = "linear", prior: str = "standard", normalize: str = "asinh", seed: int = 0
) -> VAE:
    """Weights far from where they start, so that every part counts."""
    torch.manual_seed(seed)
    likelihood = {"name": "bernoulli"} if normalize == "minmax" else None
    vae = VAE(
        [N_BANDS, SIZE, SIZE],
        model=MODELS[model],
        prior=PRIORS[prior],
        normalize=NORMALIZE[normalize],
        likelihood=likelihood,
        band_names=["g", "r"],
    )
    stamps = vae.normalizer(torch.from_numpy(raw_stamps()[12:]))
    batch = {"image": stamps.image, "mask": stamps.mask, "noise": stamps.noise}
    vae.prepare([batch])
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in vae.named_buffers():
            if name.endswith("started"):
                buffer.fill_(True)
    return vae.eval()


def images(normalizer: Normalizer, size: int = SIZE) -> torch.Tensor:
    """Normalised stamps without defects that leave nothing to see."""
    return normalizer(torch.from_numpy(raw_stamps(n=11, size=size))).image


def batch_of(vae: VAE) -> Batch:
    """The same stamps with their masks and noise."""
    stamps = vae.normalizer(torch.from_numpy(raw_stamps(n=11)))
    return {"image": stamps.image, "mask": stamps.mask, "noise": stamps.noise}


def save_checkpoint(vae: VAE, path: Path) -> Path:
    """As a training would."""
    path.parent.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(vae)
    trainer.save_checkpoint(path)
    return path
