"""Small models, and checkpoints of them as a trainer saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning import Trainer

from vae_astro import VAE

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
