"""A KL weighted 1000."""

from plain_vae import PlainVAE
from torch import Tensor

FINDINGS = {"kl-weight-collapses"}


class Model(PlainVAE):
    def kl(self, mu: Tensor, log_var: Tensor) -> Tensor:
        return 1000 * super().kl(mu, log_var)
