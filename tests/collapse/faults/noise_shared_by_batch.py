"""One draw for all stamps of a batch."""

import torch
from plain_vae import PlainVAE
from torch import Tensor

FINDINGS = {"noise-shared"}


class Model(PlainVAE):
    def reparameterize(self, mu: Tensor, log_var: Tensor) -> Tensor:
        return mu + torch.exp(0.5 * log_var) * torch.randn_like(mu[:1])
