"""The stamps are multiplied away."""

from plain_vae import PlainVAE
from torch import Tensor

FINDINGS = {"encoder-ignores-input"}


class Model(PlainVAE):
    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, log_var = super().encode(0 * x)
        return mu + self.fc_mu.bias, log_var
