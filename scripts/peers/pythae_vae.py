"""pythae's VAE and trainer around the same network.

python pythae_vae.py STAMPS.npz SETTINGS.json FOLDER
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from channel import Channel, take_turns
from pythae.data.datasets import BaseDataset
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from torch import Tensor

from vae_astro.model.networks import Network
from vae_astro.training import new_vae

__all__ = ["pythae_dataset", "pythae_model", "pythae_trainer"]


class Encoder(BaseEncoder):
    """Our encoder as pythae asks for one."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.encoder, self.latent_dim = network.encoder, network.latent_dim

    def forward(self, x: Tensor) -> ModelOutput:
        """Mean and log-variance of the code of ``x`` (B, C, H, W)."""
        posterior = self.encoder(x)
        return ModelOutput(embedding=posterior.mean, log_covariance=posterior.log_var)


class Decoder(BaseDecoder):
    """Our decoder as pythae asks for one."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.decoder = network.decoder

    def forward(self, z: Tensor) -> ModelOutput:
        """Pixels (B, C, H, W) of code ``z`` (B, Z)."""
        return ModelOutput(reconstruction=self.decoder(z))


def pythae_model(settings: dict[str, Any], shape: tuple[int, int, int], seed: int = 0) -> VAE:
    """The network of these settings in pythae's VAE: half the squared error, plus the KL."""
    torch.manual_seed(seed)
    network = new_vae(settings, shape).network
    config = VAEConfig(input_dim=shape, latent_dim=network.latent_dim, reconstruction_loss="mse")
    return VAE(config, encoder=Encoder(network), decoder=Decoder(network))


def pythae_dataset(image: np.ndarray) -> BaseDataset:
    """Stamps (N, C, H, W), normalised; the labels it asks for are empty."""
    return BaseDataset(torch.from_numpy(image), torch.zeros(len(image)))


def pythae_trainer(
    model: VAE,
    data: BaseDataset,
    validation: BaseDataset | None,
    settings: dict[str, Any],
    folder: Path,
    n_epochs: int,
    seed: int = 0,
) -> BaseTrainer:
    """pythae's trainer with our optimiser, learning rate and batch."""
    config = BaseTrainerConfig(
        output_dir=str(folder),
        num_epochs=n_epochs,
        learning_rate=settings["optim"]["lr"],
        per_device_train_batch_size=settings["data"]["batch_size"],
        per_device_eval_batch_size=settings["data"]["batch_size"],
        optimizer_cls="Adam",
        seed=seed,
    )
    return BaseTrainer(model, data, validation, config)


def main() -> None:
    channel = Channel()
    settings = json.loads(Path(sys.argv[2]).read_text())
    image = np.load(sys.argv[1])["image"]
    n_stamps = len(image) // settings["data"]["batch_size"] * settings["data"]["batch_size"]
    image = image[:n_stamps]
    model = pythae_model(settings, image.shape[1:])
    data = pythae_dataset(image)

    def epoch() -> tuple[int, float]:
        trainer = pythae_trainer(model, data, None, settings, Path(sys.argv[3]), n_epochs=1)
        began = time.perf_counter()
        trainer.train()
        return n_stamps, time.perf_counter() - began

    take_turns(channel, epoch)


if __name__ == "__main__":
    main()
