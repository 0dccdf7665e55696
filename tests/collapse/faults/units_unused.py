"""The decoder looks at half of the code."""

import torch
from plain_vae import PlainVAE
from torch import Tensor

FINDINGS = {"units-without-gradient"}


class Model(PlainVAE):
    def decode(self, z: Tensor) -> Tensor:
        used = torch.cat([z[:, :4], torch.zeros_like(z[:, 4:])], dim=1)
        return super().decode(used)
