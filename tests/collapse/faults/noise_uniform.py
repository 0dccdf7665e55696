"""rand_like where randn_like is meant."""

import torch
from plain_vae import PlainVAE
from torch import Tensor

FINDINGS = {"noise-biased"}


class Model(PlainVAE):
    def reparameterize(self, mu: Tensor, log_var: Tensor) -> Tensor:
        return mu + torch.exp(0.5 * log_var) * torch.rand_like(mu)
