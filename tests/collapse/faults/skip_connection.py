"""The first hidden layer goes past the code into the output."""

from plain_vae import SIZE, PlainVAE
from torch import Tensor, nn

FINDINGS = {"decoder-sees-input"}


class Model(PlainVAE):
    def __init__(self) -> None:
        super().__init__()
        self.skip = nn.Linear(64, SIZE**2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        recon, mu, log_var = super().forward(x)
        return recon + self.skip(self.hidden(x)).view_as(recon), mu, log_var
