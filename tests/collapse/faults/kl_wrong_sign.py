"""The KL with its sign lost."""

from plain_vae import PlainVAE
from torch import Tensor

FINDINGS = {"kl-wrong-sign"}


class Model(PlainVAE):
    def kl(self, mu: Tensor, log_var: Tensor) -> Tensor:
        return -super().kl(mu, log_var)
