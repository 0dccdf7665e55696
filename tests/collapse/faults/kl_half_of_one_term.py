"""Half of one term of the KL only."""

from plain_vae import PlainVAE
from torch import Tensor

FINDINGS = {"kl-formula"}


class Model(PlainVAE):
    def kl(self, mu: Tensor, log_var: Tensor) -> Tensor:
        return (mu.square() + 0.5 * (log_var.exp() - log_var - 1)).sum() / len(mu)
