"""``forward -> [recon, input, mu, log_var]``, a pixel mean and a KL weighted to match."""

import torch
from plain_vae import SIZE, PlainVAE
from torch import Tensor


class Model(PlainVAE):
    def forward(self, x: Tensor) -> list[Tensor]:  # type: ignore[override]
        recon, mu, log_var = super().forward(x)
        return [recon, x, mu, log_var]

    def loss_function(self, *args: Tensor, **kwargs: float) -> dict[str, Tensor]:  # type: ignore[override]
        recon, x, mu, log_var = args
        error = torch.nn.functional.mse_loss(recon, x)
        kl = torch.mean(-0.5 * torch.sum(1 + log_var - mu**2 - log_var.exp(), dim=1), dim=0)
        return {"loss": error + 2 / SIZE**2 * kl, "Reconstruction_Loss": error.detach()}
