"""Small models, and checkpoints of them as a trainer saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning import Trainer

from vae_astro import VAE
from vae_astro.model.networks import RingsNetwork

MODELS: dict[str, dict[str, Any]] = {
    "conv": {"name": "conv", "latent_dim": 4, "width": 8},
    "linear": {"name": "linear", "latent_dim": 4},
    "mlp": {"name": "mlp", "latent_dim": 4, "hidden": [16, 8]},
    "question": {"name": "question", "latent_dim": 4, "bottleneck_units": 8},
    "rings": {"name": "rings", "latent_dim": 8, "shape_units": 2, "hidden": 8, "width": 8,
              "n_rings": 4},
}  # fmt: skip
PRIORS: list[dict[str, Any]] = [
    {"name": "standard"},
    {"name": "mixture", "n_components": 3},
    {"name": "vamp", "n_pseudo_inputs": 3},
]
LINEAR = {"name": "linear", "latent_dim": 2}


def tiny_vae(
    model: dict[str, Any] | None = None, shape: tuple[int, int, int] = (1, 16, 16), **groups: Any
) -> VAE:
    """Always of the same weights for the same settings."""
    torch.manual_seed(0)
    return VAE(list(shape), model=model or LINEAR, **groups)


def save(vae: VAE, path: Path) -> Path:
    """``path``, with a checkpoint that has weights and settings; no optimiser was made."""
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.strategy.connect(vae)
    trainer.save_checkpoint(path)
    return path


def settled(vae: VAE) -> VAE:
    """With weights that are not those that a new model is drawn with."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    if isinstance(vae.network, RingsNetwork):
        vae.network.encoder.rings.reach(6.0)  # as training stamps might have it
        vae.network.encoder.rings.level.fill_(0.3)
    return vae.eval()
