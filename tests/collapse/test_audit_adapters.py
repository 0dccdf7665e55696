"""Models of many kinds are read by experiment: where the posterior is, where the code goes in."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from plain_vae import LATENT_DIM, SIZE, PlainVAE, sky_stamps
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from vae_astro.collapse.audit import audit
from vae_astro.collapse.audit.adapters import adapt
from vae_astro.collapse.audit.losses import total
from vae_astro.collapse.audit.outputs import read_output, substitute
from vae_astro.model.posterior import DiagonalGaussian


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


B = 5
STAMPS = torch.randn(B, 1, 4, 4)
RECON, MEAN, LOG_VAR, CODE = torch.randn(B, 1, 4, 4), *torch.randn(3, B, 3)


class Named(NamedTuple):
    recon: Tensor
    mu: Tensor
    logvar: Tensor


# Outputs


@pytest.mark.parametrize(
    "output",
    [
        (RECON, MEAN, LOG_VAR),
        [RECON, STAMPS, MEAN, LOG_VAR],
        (RECON, STAMPS, (MEAN, LOG_VAR)),
        (MEAN, LOG_VAR, RECON),
        (RECON.flatten(1), MEAN, LOG_VAR),
        {"x_hat": RECON, "mu": MEAN, "logvar": LOG_VAR, "kl": torch.tensor(1.0)},
        {"reconstruction": RECON, "q": DiagonalGaussian(MEAN, LOG_VAR)},
        {"input": STAMPS, "output": RECON, "z_mean": MEAN, "z_log_var": LOG_VAR},
        Named(RECON, MEAN, LOG_VAR),
        (RECON, MEAN, LOG_VAR, CODE),
    ],
)
def test_reconstruction_mean_and_log_variance_are_found_in_any_output(output):
    reading = read_output(output, STAMPS)
    assert torch.equal(reading.recon.flatten(), RECON.flatten())
    assert reading.mean is MEAN
    assert reading.spread is LOG_VAR


@pytest.mark.parametrize(
    ("name", "claim"),
    [("logvar", "log_var"), ("log_sigma", "log_std"), ("sigma", "std"), ("variance", "var")],
)
def test_name_says_what_the_spread_is(name, claim):
    assert read_output({"recon": RECON, "mu": MEAN, name: LOG_VAR}, STAMPS).claim == claim


def test_distribution_is_read_as_mean_and_standard_deviation():
    posterior = Independent(Normal(MEAN, LOG_VAR.exp()), 1)
    reading = read_output((posterior, RECON), STAMPS)
    assert reading.claim == "std"
    assert torch.equal(reading.spread, LOG_VAR.exp())


def test_posterior_is_told_from_the_prior_beside_it():
    prior = Normal(torch.zeros_like(MEAN), torch.ones_like(MEAN))
    reading = read_output((CODE, RECON, prior, Normal(MEAN, LOG_VAR.exp())), STAMPS)
    assert torch.equal(reading.mean, MEAN)


def test_model_that_returns_the_stamps_themselves_has_them_for_its_output():
    assert read_output((STAMPS, MEAN, LOG_VAR), STAMPS).recon is STAMPS


def test_output_of_another_shape_than_the_stamps_is_still_the_first():
    wrong = torch.randn(B, 1, 3, 3)
    reading = read_output((wrong, MEAN, LOG_VAR), STAMPS)
    assert reading.recon is wrong
    assert reading.mean is MEAN


@pytest.mark.parametrize(
    "output", [(RECON, MEAN), {"a": [RECON, MEAN]}, Named(RECON, MEAN, LOG_VAR)]
)
def test_substitute_changes_a_copy(output):
    new = torch.zeros_like(MEAN)
    changed = substitute(output, [MEAN], [new])
    assert type(changed) is type(output)
    assert read_output(changed, STAMPS).mean is new
    assert read_output(output, STAMPS).mean is MEAN


# Models


class CodeInTheMiddle(PlainVAE):
    """Returns the draw between mean and log-variance."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        mu, log_var = self.encode(x)
        z = self.reparameterize(mu, log_var)
        return self.decode(z), mu, z, log_var


class ForwardOnly(nn.Module):
    """Neither encode nor decode, no layer called encoder or decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(SIZE**2, 32)
        self.b = nn.Linear(32, 2 * LATENT_DIM)
        self.c = nn.Linear(LATENT_DIM, 32)
        self.d = nn.Linear(32, SIZE**2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, log_var = self.b(self.a(x.flatten(1)).relu()).chunk(2, dim=1)
        z = mu + torch.exp(0.5 * log_var) * torch.randn_like(mu)
        return self.d(self.c(z).relu()), mu, log_var


class ReconstructionOnly(nn.Module):
    """Says nothing of its posterior; its layers are called what they are."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(SIZE**2, 32), nn.ReLU())
        self.fc_mu = nn.Linear(32, LATENT_DIM)
        self.fc_var = nn.Linear(32, LATENT_DIM)
        self.decoder = nn.Sequential(nn.Linear(LATENT_DIM, 32), nn.ReLU(), nn.Linear(32, SIZE**2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(x)
        mu, log_var = self.fc_mu(h), self.fc_var(h)
        z = mu + torch.exp(0.5 * log_var) * torch.randn_like(mu)
        return self.decoder(z).view_as(x)


class PartsOnly(nn.Module):
    """No forward at all."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = PlainVAE()

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.parts.encode(x)

    def reparameterize(self, mu: Tensor, log_var: Tensor) -> Tensor:
        return self.parts.reparameterize(mu, log_var)

    def decode(self, z: Tensor) -> Tensor:
        return self.parts.decode(z)


class TakesFlatStamps(PlainVAE):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(SIZE**2, 32), nn.ReLU(), nn.Linear(32, 64))

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(SIZE**2, LATENT_DIM))
        self.decoder = nn.Linear(LATENT_DIM, SIZE**2)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x)).view_as(x)


MODELS = [CodeInTheMiddle, ForwardOnly, ReconstructionOnly, PartsOnly, TakesFlatStamps]


@pytest.mark.parametrize("kind", MODELS)
def test_posterior_and_entry_of_the_decoder_are_found(kind):
    stamps = sky_stamps()[:6]
    subject = adapt(kind(), stamps)
    assert subject.code_shape == (LATENT_DIM,)
    assert subject.reaches_code
    reading = subject.run(stamps)
    codes = torch.randn(6, LATENT_DIM)
    assert torch.equal(subject.run(stamps, codes).code, codes)
    assert reading.recon.numel() == stamps.numel()
    error = (reading.code - reading.mean).abs()
    assert bool((error < 8 * torch.exp(0.5 * reading.spread)).all())
    assert bool((error > 0).any())


@pytest.mark.parametrize("kind", MODELS)
def test_model_of_any_make_has_no_finding_where_there_is_none(kind):
    assert audit(kind(), sky_stamps()).names == ()


@pytest.mark.parametrize("kind", MODELS)
def test_code_given_from_outside_decides_the_output_alone(kind):
    stamps = sky_stamps()[:6]
    subject = adapt(kind(), stamps)
    codes = torch.randn(6, LATENT_DIM)
    one, other = subject.run(stamps, codes).recon, subject.run(stamps.roll(1, 0), codes).recon
    assert torch.equal(one, other)


def test_loss_in_the_middle_of_forward_is_weighed_with_its_parts_swapped():
    class Model(PlainVAE):
        def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            recon, mu, log_var = super().forward(x)
            loss = self.reconstruction(recon, x) + 7 * self.kl(mu, log_var)
            return {"recon": recon, "mu": mu, "log_var": log_var, "loss": loss}

        loss_function = None  # type: ignore[assignment]

    report = audit(Model(), sky_stamps())
    assert report.names == ()
    assert report.facts["beta_s2"] == pytest.approx(7, rel=1e-3)


def test_plain_autoencoder_is_told_what_could_not_be_tested_and_nothing_else():
    report = audit(Autoencoder(), sky_stamps())
    assert report.names == ()
    assert report.latent_dim == LATENT_DIM
    assert "noise against log-variance" in {each.experiment for each in report.untested}


def test_model_without_a_code_that_can_be_reached_has_no_false_finding():
    class Closed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(0.1 * torch.randn(SIZE**2, SIZE**2))

        def forward(self, x: Tensor) -> Tensor:
            return (x.flatten(1) @ self.weight).view_as(x)

    report = audit(Closed(), sky_stamps())
    assert report.names == ()
    reasons = {each.experiment: each.reason for each in report.untested}
    assert "cannot be reached" in reasons["code reaches output"]


def test_fault_is_found_in_a_model_that_hands_out_its_reconstruction_only():
    class Model(ReconstructionOnly):
        def forward(self, x: Tensor) -> Tensor:
            h = self.encoder(x)
            mu, log_var = self.fc_mu(h), self.fc_var(h)
            z = mu + 0.1 * torch.exp(0.5 * log_var) * torch.randn_like(mu)
            return self.decoder(z).view_as(x)

    assert audit(Model(), sky_stamps()).names == ("noise-scale",)


def test_spread_called_log_std_is_taken_for_one():
    class Model(PlainVAE):
        def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            mu, log_std = self.encode(x)
            z = mu + log_std.exp() * torch.randn_like(mu)
            return {"recon": self.decode(z), "mu": mu, "log_std": log_std}

        def kl(self, mu: Tensor, log_var: Tensor) -> Tensor:
            return super().kl(mu, 2 * log_var)

    assert audit(Model(), sky_stamps()).names == ()


def test_noise_and_kl_that_agree_are_no_fault_under_any_name():
    class Model(PlainVAE):
        def reparameterize(self, mu: Tensor, log_var: Tensor) -> Tensor:
            return mu + log_var.exp() * torch.randn_like(mu)

        def kl(self, mu: Tensor, log_var: Tensor) -> Tensor:
            return super().kl(mu, 2 * log_var)

    assert audit(Model(), sky_stamps()).names == ()


def test_kl_estimated_from_the_code_passes_for_the_closed_form():
    class Model(PlainVAE):
        def loss_function(  # type: ignore[override]
            self, recon: Tensor, x: Tensor, mu: Tensor, log_var: Tensor, z: Tensor
        ) -> Tensor:
            posterior = Normal(mu, torch.exp(0.5 * log_var)).log_prob(z).sum()
            prior = Normal(0.0, 1.0).log_prob(z).sum()
            return self.reconstruction(recon, x) + (posterior - prior) / len(x)

    report = audit(Model(), sky_stamps())
    assert report.names == ()
    assert report.facts["beta_s2"] == pytest.approx(1, rel=0.05)


def test_weights_that_cannot_be_copied_are_shared_and_graphs_dropped():
    class Model(PlainVAE):
        def __init__(self) -> None:
            super().__init__()
            self.numbers = (n for n in range(3))  # a generator has no copy

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            recon, mu, log_var = super().forward(x)
            self.last = self.kl(mu, log_var)  # part of a graph
            return recon, mu, log_var

    model = Model()
    model(sky_stamps())
    assert audit(model, sky_stamps()).names == ()


# What a loss returns


@pytest.mark.parametrize(
    "returned",
    [
        lambda r, k: r + k,
        lambda r, k: (r + k, r, k),
        lambda r, k: (r, k),
        lambda r, k: {"loss": r + k, "kl": k},
        lambda r, k: {"r": r, "k": k},
        lambda r, k: (r + k).expand(3),
    ],
)
def test_what_is_minimised_is_found_in_what_a_loss_returns(returned):
    a, b = torch.tensor(2.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    assert total(returned(a.square(), b.square()), (a, b)).item() == 13
