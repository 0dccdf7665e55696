"""The KL without the square of the mean."""

from plain_vae import PlainVAE
from torch import Tensor

FINDINGS = {"kl-missing-term"}


class Model(PlainVAE):
    def kl(self, mu: Tensor, log_var: Tensor) -> Tensor:
        return super().kl(0 * mu, log_var)
