"""The KL is computed without a graph."""

from plain_vae import PlainVAE
from torch import Tensor

FINDINGS = {"kl-missing"}


class Model(PlainVAE):
    def kl(self, mu: Tensor, log_var: Tensor) -> Tensor:
        return super().kl(mu.detach(), log_var.detach())
