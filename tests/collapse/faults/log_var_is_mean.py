"""One layer for both: a slip of the name."""

from plain_vae import PlainVAE
from torch import Tensor

FINDINGS = {"log-var-copies-mean"}


class Model(PlainVAE):
    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.hidden(x)
        return self.fc_mu(h), self.fc_mu(h)
