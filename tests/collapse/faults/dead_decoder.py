"""All rectifiers of the decoder are off for every code."""

from plain_vae import PlainVAE
from torch import nn

FINDINGS = {"decoder-ignores-code"}


class Model(PlainVAE):
    def __init__(self) -> None:
        super().__init__()
        nn.init.constant_(self.decoder[0].bias, -1e3)
