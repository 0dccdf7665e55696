"""A ReLU on the log-variance: no posterior is narrower than the prior."""

from plain_vae import PlainVAE
from torch import Tensor

FINDINGS = {"log-var-range"}


class Model(PlainVAE):
    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, log_var = super().encode(x)
        return mu, log_var.relu()
