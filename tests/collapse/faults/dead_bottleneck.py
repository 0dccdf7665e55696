"""All rectifiers before the code are off for every stamp."""

from plain_vae import PlainVAE
from torch import nn

FINDINGS = {"dead-bottleneck"}


class Model(PlainVAE):
    def __init__(self) -> None:
        super().__init__()
        nn.init.constant_(self.hidden[1].bias, -1e4)
