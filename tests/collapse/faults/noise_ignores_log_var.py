"""Noise of 1 whatever the log-variance."""

import torch
from plain_vae import PlainVAE
from torch import Tensor

FINDINGS = {"noise-formula"}


class Model(PlainVAE):
    def reparameterize(self, mu: Tensor, log_var: Tensor) -> Tensor:
        return mu + torch.randn_like(mu) + 0 * log_var
