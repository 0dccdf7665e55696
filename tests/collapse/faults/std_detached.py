"""No gradient through the noise."""

from plain_vae import PlainVAE
from torch import Tensor

FINDINGS = {"log-var-without-gradient"}


class Model(PlainVAE):
    def reparameterize(self, mu: Tensor, log_var: Tensor) -> Tensor:
        return super().reparameterize(mu, log_var.detach())
