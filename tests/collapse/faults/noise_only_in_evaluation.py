"""Training and evaluation the wrong way round."""

from plain_vae import PlainVAE
from torch import Tensor

FINDINGS = {"noise-missing"}


class Model(PlainVAE):
    def reparameterize(self, mu: Tensor, log_var: Tensor) -> Tensor:
        return mu if self.training else super().reparameterize(mu, log_var)
