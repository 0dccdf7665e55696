"""The log-variance itself times the noise."""

import torch
from plain_vae import PlainVAE
from torch import Tensor

FINDINGS = {"noise-formula"}


class Model(PlainVAE):
    def reparameterize(self, mu: Tensor, log_var: Tensor) -> Tensor:
        return mu + log_var * torch.randn_like(mu)
