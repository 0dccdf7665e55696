"""Dropout that never stops."""

from plain_vae import PlainVAE
from torch import Tensor, nn

FINDINGS = {"noise-in-evaluation"}


class Model(PlainVAE):
    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().encode(nn.functional.dropout(x, 0.2, training=True))
