"""A layer in a plain list: no optimiser sees it."""

from plain_vae import LATENT_DIM, PlainVAE
from torch import Tensor, nn

FINDINGS = {"weights-outside-parameters"}


class Model(PlainVAE):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(LATENT_DIM, LATENT_DIM)]

    def decode(self, z: Tensor) -> Tensor:
        return super().decode(self.layers[0](z))
