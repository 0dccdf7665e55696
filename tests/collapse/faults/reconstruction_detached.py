"""The error is computed without a graph."""

from plain_vae import PlainVAE
from torch import Tensor

FINDINGS = {"reconstruction-missing"}


class Model(PlainVAE):
    def reconstruction(self, recon: Tensor, x: Tensor) -> Tensor:
        return super().reconstruction(recon.detach(), x)
