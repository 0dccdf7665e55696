"""exp(log_var), the variance, where the standard deviation is meant."""

import torch
from plain_vae import PlainVAE
from torch import Tensor

FINDINGS = {"noise-exp-log-var"}


class Model(PlainVAE):
    def reparameterize(self, mu: Tensor, log_var: Tensor) -> Tensor:
        return mu + torch.exp(log_var) * torch.randn_like(mu)
