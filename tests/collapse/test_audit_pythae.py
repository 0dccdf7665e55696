"""A VAE of pythae, and what stands in for it where it is not installed."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from plain_vae import LATENT_DIM, SIZE, sky_stamps, unit_stamps
from torch import Tensor, nn

from vae_astro.collapse.audit import audit


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


class ModelOutput(OrderedDict[str, Any]):
    """By key and by attribute, as pythae returns things."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        object.__setattr__(self, key, value)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(SIZE**2, 64), nn.ReLU())
        self.embedding = nn.Linear(64, LATENT_DIM)
        self.log_var = nn.Linear(64, LATENT_DIM)

    def forward(self, x: Tensor) -> ModelOutput:
        h = self.layers(x.reshape(-1, SIZE**2))
        return ModelOutput(embedding=self.embedding(h), log_covariance=self.log_var(h))


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(LATENT_DIM, 64), nn.ReLU(), nn.Linear(64, SIZE**2))

    def forward(self, z: Tensor) -> ModelOutput:
        pixels = self.layers(z).sigmoid()
        return ModelOutput(reconstruction=pixels.reshape(-1, 1, SIZE, SIZE))


class LikePythae(nn.Module):
    """Takes ``inputs["data"]``, returns recon_x, z and losses, and no posterior."""

    def __init__(self, eps_std: float = 1.0, beta: float = 1.0) -> None:
        super().__init__()
        self.model_config = {"reconstruction_loss": "mse"}
        self.encoder, self.decoder = Encoder(), Decoder()
        self.eps_std, self.beta = eps_std, beta

    def forward(self, inputs: Any) -> ModelOutput:
        x = inputs["data"]
        encoded = self.encoder(x)
        mu, log_var = encoded.embedding, encoded.log_covariance
        z = mu + self.eps_std * torch.exp(0.5 * log_var) * torch.randn_like(mu)
        recon_x = self.decoder(z)["reconstruction"]
        loss, recon_loss, kld = self.loss_function(recon_x, x, mu, log_var, z)
        return ModelOutput(recon_loss=recon_loss, reg_loss=kld, loss=loss, recon_x=recon_x, z=z)

    def loss_function(
        self, recon_x: Tensor, x: Tensor, mu: Tensor, log_var: Tensor, z: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        error = 0.5 * (recon_x - x).square().flatten(1).sum(1)
        kld = -0.5 * torch.sum(1 + log_var - mu.pow(2) - log_var.exp(), dim=-1)
        return (error + self.beta * kld).mean(), error.mean(), kld.mean()


def test_model_in_the_manner_of_pythae_is_read_whole_and_healthy():
    report = audit(LikePythae(), unit_stamps())
    assert report.names == ()
    assert report.latent_dim == LATENT_DIM
    assert report.untested == ()
    assert report.facts["beta_s2"] == pytest.approx(1, rel=1e-3)


def test_faults_of_a_model_in_the_manner_of_pythae_are_found():
    report = audit(LikePythae(eps_std=0.1, beta=50), unit_stamps())
    assert set(report.names) == {"noise-scale", "kl-weight-collapses"}
    assert audit(LikePythae(), sky_stamps()).names == ("output-range",)


def test_vae_of_pythae_itself_is_healthy_and_its_faults_are_found():
    models = pytest.importorskip("pythae.models")

    def make(**settings: Any) -> nn.Module:
        config = models.BetaVAEConfig(input_dim=(1, SIZE, SIZE), latent_dim=LATENT_DIM, **settings)
        model: nn.Module = models.BetaVAE(config)
        return model

    report = audit(make(beta=1.0), unit_stamps())
    assert report.names == ()
    assert report.untested == ()
    assert report.facts["beta_s2"] == pytest.approx(1, rel=1e-3)
    assert audit(make(beta=100.0), unit_stamps()).names == ("kl-weight-collapses",)
    assert audit(make(beta=1.0), sky_stamps()).names == ("output-range",)
