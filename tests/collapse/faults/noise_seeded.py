"""A seed inside the model: the same noise at every step."""

import torch
from plain_vae import PlainVAE
from torch import Tensor

FINDINGS = {"noise-frozen"}


class Model(PlainVAE):
    def reparameterize(self, mu: Tensor, log_var: Tensor) -> Tensor:
        torch.manual_seed(0)
        return super().reparameterize(mu, log_var)
