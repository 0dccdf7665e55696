"""Convolutions only: the code is a small image; the log-variance is clamped."""

import torch
from torch import Tensor, nn


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc = nn.Sequential(
            nn.Conv2d(1, 32, 4, stride=2, padding=1), nn.ELU(), nn.Conv2d(32, 4, 5, stride=5)
        )
        self.dec = nn.Sequential(
            nn.ConvTranspose2d(2, 32, 5, stride=5),
            nn.ELU(),
            nn.ConvTranspose2d(32, 1, 4, stride=2, padding=1),
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_var = self.enc(x).chunk(2, dim=1)
        return mean, log_var.clamp(-10, 10)

    def decode(self, z: Tensor) -> Tensor:
        return self.dec(z)

    def reparameterize(self, mean: Tensor, log_var: Tensor) -> Tensor:
        return mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)

    def elbo_loss(self, recon: Tensor, x: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
        kl = 0.5 * (mean**2 + log_var.exp() - log_var - 1)
        return ((recon - x) ** 2).sum() + kl.sum()
