"""The error is maximised."""

from plain_vae import PlainVAE
from torch import Tensor

FINDINGS = {"reconstruction-wrong-sign"}


class Model(PlainVAE):
    def reconstruction(self, recon: Tensor, x: Tensor) -> Tensor:
        return -super().reconstruction(recon, x)
