"""The gradient of a root at zero is infinite, though the root is not."""

from plain_vae import PlainVAE
from torch import Tensor

FINDINGS = {"not-finite"}


class Model(PlainVAE):
    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, log_var = super().encode(x)
        return mu, log_var - (x - x).square().sum().sqrt()

    def decode(self, z: Tensor) -> Tensor:
        return super().decode(z) + (z - z).square().sum().sqrt()
