"""Noise of standard deviation 0.1."""

import torch
from plain_vae import PlainVAE
from torch import Tensor

FINDINGS = {"noise-scale"}


class Model(PlainVAE):
    def reparameterize(self, mu: Tensor, log_var: Tensor) -> Tensor:
        return mu + torch.exp(0.5 * log_var) * torch.normal(torch.zeros_like(mu), 0.1)
