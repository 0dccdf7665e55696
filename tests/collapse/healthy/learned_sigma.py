"""A Gaussian likelihood with a learned sigma, posterior and KL by torch.distributions."""

import torch
from plain_vae import SIZE
from torch import Tensor, nn
from torch.distributions import Independent, Normal, kl_divergence


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(SIZE**2, 96), nn.GELU())
        self.loc = nn.Linear(96, 12)
        self.raw_scale = nn.Linear(96, 12)
        self.decoder = nn.Sequential(
            nn.Linear(12, 96), nn.GELU(), nn.Linear(96, SIZE**2), nn.Unflatten(1, (1, SIZE, SIZE))
        )
        self.log_sigma = nn.Parameter(torch.zeros(()))

    def encode(self, x: Tensor) -> Independent:
        h = self.trunk(x)
        scale = nn.functional.softplus(self.raw_scale(h)) + 1e-4
        return Independent(Normal(self.loc(h), scale), 1)

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)

    def forward(self, x: Tensor) -> tuple[Independent, Tensor]:
        posterior = self.encode(x)
        return posterior, self.decode(posterior.rsample())

    def loss_function(self, recon: Tensor, x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        density = Normal(recon, self.log_sigma.exp()).log_prob(x).flatten(1).sum(1)
        posterior = Independent(Normal(mean, std), 1)
        prior = Independent(Normal(torch.zeros_like(mean), torch.ones_like(std)), 1)
        return (kl_divergence(posterior, prior) - density).mean()
