"""A VAE as textbooks have it, in parts that a fault can replace one by one, and its stamps."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

SIZE = 20
"""Height and width in pixels."""
LATENT_DIM = 8


class PlainVAE(nn.Module):
    """Dense layers, ``forward(x) -> (recon, mu, log_var)``, and a loss in nats per stamp."""

    def __init__(self, latent_dim: int = LATENT_DIM, hidden: int = 64) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Flatten(), nn.Linear(SIZE**2, hidden), nn.ReLU())
        self.fc_mu = nn.Linear(hidden, latent_dim)
        self.fc_log_var = nn.Linear(hidden, latent_dim)
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim, hidden), nn.ReLU(), nn.Linear(hidden, SIZE**2)
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.hidden(x)
        return self.fc_mu(h), self.fc_log_var(h)

    def reparameterize(self, mu: Tensor, log_var: Tensor) -> Tensor:
        return mu + torch.exp(0.5 * log_var) * torch.randn_like(mu)

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z).view(-1, 1, SIZE, SIZE)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        mu, log_var = self.encode(x)
        return self.decode(self.reparameterize(mu, log_var)), mu, log_var

    def reconstruction(self, recon: Tensor, x: Tensor) -> Tensor:
        return 0.5 * (recon - x).square().sum() / len(x)

    def kl(self, mu: Tensor, log_var: Tensor) -> Tensor:
        return -0.5 * (1 + log_var - mu.square() - log_var.exp()).sum() / len(mu)

    def loss_function(self, recon: Tensor, x: Tensor, mu: Tensor, log_var: Tensor) -> Tensor:
        return self.reconstruction(recon, x) + self.kl(mu, log_var)


def sky_stamps(n: int = 64, size: int = SIZE, seed: int = 0) -> Tensor:
    """One to three sources each on noise of 1, stretched: (n, 1, size, size), about -3 to 10."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, 1, 1, generator=generator)

    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    image = torch.randn(n, size, size, generator=generator)
    for source in range(3):
        reach = 0.1 if source == 0 else 0.35
        dx, dy = (axis - size / 2 - size * draw(-reach, reach) for axis in (x, y))
        angle, width = draw(0, math.pi), draw(1.0, 3.0)
        along = (dx * angle.cos() + dy * angle.sin()) / width
        across = (dy * angle.cos() - dx * angle.sin()) / (width * draw(0.4, 1.0))
        is_there = 1.0 if source == 0 else draw(0, 1) < 0.4
        image += is_there * 10 ** draw(0.8, 2.0) * torch.exp(-0.5 * (along**2 + across**2))
    return (3 * torch.asinh(image / 3))[:, None]


def unit_stamps(n: int = 64, size: int = SIZE, seed: int = 0) -> Tensor:
    """The same, each from 0 to 1."""
    stamps = sky_stamps(n, size, seed)
    low, high = stamps.amin((1, 2, 3), keepdim=True), stamps.amax((1, 2, 3), keepdim=True)
    return (stamps - low) / (high - low)
