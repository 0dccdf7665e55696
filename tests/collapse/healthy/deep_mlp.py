"""Eight hidden layers each way, log std, a bounded log-variance, a narrow code."""

from itertools import pairwise

import torch
from plain_vae import SIZE
from torch import Tensor, nn

STAMPS = "unit"
WIDTHS = (256, 192, 128, 96, 64, 48, 32, 32)


def dense(*widths: int) -> nn.Sequential:
    layers = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(widths)]
    return nn.Sequential(*layers)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Flatten(), dense(SIZE**2, *WIDTHS))
        self.mu = nn.Linear(WIDTHS[-1], 4)
        self.log_std = nn.Linear(WIDTHS[-1], 4)
        self.decoder = nn.Sequential(dense(4, *WIDTHS[::-1]), nn.Linear(WIDTHS[0], SIZE**2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        h = self.trunk(x)
        mu, log_std = self.mu(h), self.log_std(h)
        z = mu + torch.exp(log_std) * torch.randn_like(mu)
        return self.decoder(z).view(x.shape), x, (mu, log_std)
