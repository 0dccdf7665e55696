"""The code is multiplied away."""

from plain_vae import PlainVAE
from torch import Tensor

FINDINGS = {"decoder-ignores-code"}


class Model(PlainVAE):
    def decode(self, z: Tensor) -> Tensor:
        return super().decode(0 * z)
