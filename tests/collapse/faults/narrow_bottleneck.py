"""Four rectified units before the code."""

from plain_vae import PlainVAE

FINDINGS = {"bottleneck-can-die"}


class Model(PlainVAE):
    def __init__(self) -> None:
        super().__init__(latent_dim=4, hidden=4)
