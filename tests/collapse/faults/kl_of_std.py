"""The KL takes log_var for a standard deviation."""

from plain_vae import PlainVAE
from torch import Tensor

FINDINGS = {"kl-log-var-taken-for-std"}


class Model(PlainVAE):
    def kl(self, mu: Tensor, log_var: Tensor) -> Tensor:
        var = log_var.square()
        return 0.5 * (mu.square() + var - var.log() - 1).sum() / len(mu)
