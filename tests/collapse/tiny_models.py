"""Models of one layer each way, to be put together in every manner that people do."""

from __future__ import annotations

import torch
from torch import Tensor, nn

N, Z, D = 4, 3, 16
DRAW = torch.Generator().manual_seed(0)
STAMPS = torch.randn(N, 1, 4, 4, generator=DRAW)
CODES = torch.randn(N, Z, generator=DRAW)


class Parts(nn.Module):
    """Encoder and decoder of one layer each; how they are put together is for subclasses."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(D, 2 * Z)
        self.out = nn.Linear(Z, D)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_var = self.into(x.flatten(1)).chunk(2, 1)
        return mean, log_var

    def picture(self, z: Tensor) -> Tensor:
        return self.out(z).view(-1, 1, 4, 4)

    def drawn(self, mean: Tensor, log_var: Tensor) -> Tensor:
        return mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)


class Plain(Parts):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        mean, log_var = self.posterior(x)
        return self.picture(self.drawn(mean, log_var)), mean, log_var


def same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and torch.equal(a, b)


class HasParts(Parts):
    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.posterior(x)

    def decode(self, z: Tensor) -> Tensor:
        return self.picture(z)
