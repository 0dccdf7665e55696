"""The decoder gets noise in place of the code."""

import torch
from plain_vae import PlainVAE
from torch import Tensor

FINDINGS = {"output-ignores-input"}


class Model(PlainVAE):
    def reparameterize(self, mu: Tensor, log_var: Tensor) -> Tensor:
        return torch.randn_like(mu)
