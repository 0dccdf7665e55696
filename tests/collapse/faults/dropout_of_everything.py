"""All features are dropped in training, and only there."""

from plain_vae import PlainVAE
from torch import Tensor, nn

FINDINGS = {"encoder-ignores-input"}


class Model(PlainVAE):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(1.0)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().encode(self.dropout(x))
