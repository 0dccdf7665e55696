"""An in-place operation on the stamps."""

from plain_vae import PlainVAE
from torch import Tensor

FINDINGS = {"mutates-input"}


class Model(PlainVAE):
    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x -= x.mean(dim=(1, 2, 3), keepdim=True)
        return super().encode(x)
