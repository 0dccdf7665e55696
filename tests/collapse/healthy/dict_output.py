"""Outputs by name, convolutions with batch norm, leaky ReLU; the loss takes the output whole."""

from plain_vae import SIZE
from torch import Tensor, nn

LATENT_DIM = 10


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 4, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.LeakyReLU(0.2),
            nn.Conv2d(16, 32, 4, stride=2, padding=1),
            nn.BatchNorm2d(32),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(32 * (SIZE // 4) ** 2, 2 * LATENT_DIM),
        )
        self.decoder = nn.Sequential(
            nn.Linear(LATENT_DIM, 32 * (SIZE // 4) ** 2),
            nn.Unflatten(1, (32, SIZE // 4, SIZE // 4)),
            nn.LeakyReLU(0.2),
            nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.LeakyReLU(0.2),
            nn.ConvTranspose2d(16, 1, 4, stride=2, padding=1),
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        mu, logvar = self.encoder(x).chunk(2, dim=1)
        z = mu + (0.5 * logvar).exp() * mu.new_empty(mu.shape).normal_()
        return {"x_hat": self.decoder(z), "z": z, "mu": mu, "logvar": logvar}

    def loss_function(self, output: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        mu, logvar = output["mu"], output["logvar"]
        error = (output["x_hat"] - x).square().flatten(1).sum(1)
        kl = 0.5 * (mu.square() + logvar.exp() - logvar - 1).sum(1)
        return {"loss": (error + kl).mean(), "error": error.mean(), "kl": kl.mean()}
