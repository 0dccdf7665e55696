"""Residual convolutions with group norm; the loss comes out of forward, in a dataclass."""

from dataclasses import dataclass

import torch
from plain_vae import SIZE
from torch import Tensor, nn


@dataclass
class Output:
    loss: Tensor
    reconstruction: Tensor
    mu: Tensor
    log_var: Tensor


class Block(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(4, n), nn.SiLU(), nn.Conv2d(n, n, 3, padding=1), nn.Dropout2d(0.1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        side = SIZE // 4
        self.down = nn.Sequential(nn.Conv2d(1, 16, 4, stride=4), Block(16), Block(16), nn.Flatten())
        self.to_mu = nn.Linear(16 * side**2, 16)
        self.to_log_var = nn.Linear(16 * side**2, 16)
        self.up = nn.Sequential(
            nn.Linear(16, 16 * side**2),
            nn.Unflatten(1, (16, side, side)),
            Block(16),
            Block(16),
            nn.ConvTranspose2d(16, 1, 4, stride=4),
        )

    def forward(self, x: Tensor) -> Output:
        h = self.down(x)
        mu, log_var = self.to_mu(h), self.to_log_var(h)
        std = (0.5 * log_var).exp()
        z = mu + std * torch.randn_like(mu) if self.training else mu
        recon = self.up(z)
        error = 0.5 * (recon - x).square().flatten(1).sum(1)
        kl = -0.5 * (1 + log_var - mu.square() - log_var.exp()).sum(1)
        return Output((error + kl).mean(), recon, mu, log_var)
