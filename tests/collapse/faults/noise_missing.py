"""The mean is decoded, in training too."""

from plain_vae import PlainVAE
from torch import Tensor

FINDINGS = {"noise-missing"}


class Model(PlainVAE):
    def reparameterize(self, mu: Tensor, log_var: Tensor) -> Tensor:
        return mu
