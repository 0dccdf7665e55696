"""The log-variance starts below its clamp."""

from plain_vae import PlainVAE
from torch import Tensor

FINDINGS = {"log-var-stuck"}


class Model(PlainVAE):
    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, log_var = super().encode(x)
        return mu, (log_var - 30).clamp(-6, 6)
