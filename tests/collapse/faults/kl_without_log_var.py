"""The KL without the logarithm of the variance."""

from plain_vae import PlainVAE
from torch import Tensor

FINDINGS = {"kl-missing-term"}


class Model(PlainVAE):
    def kl(self, mu: Tensor, log_var: Tensor) -> Tensor:
        return 0.5 * (mu.square() + log_var.exp() - 1).sum() / len(mu)
