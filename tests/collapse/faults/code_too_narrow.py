"""Two units for stamps of far more structure."""

from plain_vae import PlainVAE

FINDINGS = {"code-too-narrow"}


class Model(PlainVAE):
    def __init__(self) -> None:
        super().__init__(latent_dim=1)
