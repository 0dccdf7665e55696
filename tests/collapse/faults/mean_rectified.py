"""A ReLU on the means: half of the code space is never used."""

from plain_vae import PlainVAE
from torch import Tensor

FINDINGS = {"mean-range"}


class Model(PlainVAE):
    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, log_var = super().encode(x)
        return mu.relu(), log_var
