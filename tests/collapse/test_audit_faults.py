"""Planted faults are found under their names and nothing beside them; healthy models pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from plain_vae import SIZE, sky_stamps, unit_stamps
from planted import FAULTS, HEALTHY, load, raised, stamps_of
from torch import Tensor

from vae_astro.collapse.audit import audit
from vae_astro.collapse.audit.faults import CATALOGUE
from vae_astro.data.normalize import Normalizer
from vae_astro.data.sources.alerts.ztf import AlertReader
from vae_astro.data.stamp import Stamp
from vae_astro.vae import VAE


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def question(size: int = SIZE, **changes: Any) -> VAE:
    """The network and the loss of the question."""
    asked = {
        "latent_dim": 2,
        "bottleneck_units": 4,
        "dying_bottleneck": True,
        "softmax_output": True,
        "eps_std": 0.1,
        "exp_full_log_var": True,
    }
    return VAE(
        (1, size, size),
        model={"name": "question", **asked, **changes},
        likelihood={"name": "pixel_mean_mse", "kl_weight": 1000.0},
    )


# Faults


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_is_found_and_nothing_else(name):
    module = load("faults", name)
    report = audit(module.Model(), stamps_of(module))
    assert set(report.names) == module.FINDINGS
    assert raised(report) == []


def test_there_are_faults_enough_and_most_findings_have_one():
    planted = set().union(*(load("faults", name).FINDINGS for name in FAULTS))
    assert len(FAULTS) >= 20
    assert planted == set(CATALOGUE)


def test_all_six_faults_of_the_question_are_found_together():
    report = audit(question(), unit_stamps())
    assert set(report.names) == {
        "softmax-output",
        "kl-weight-collapses",
        "noise-scale",
        "noise-exp-log-var",
        "bottleneck-can-die",
        "code-too-narrow",
    }


@pytest.mark.parametrize(
    ("switch", "gone"),
    [
        ({"softmax_output": False}, "softmax-output"),
        ({"eps_std": 1.0}, "noise-scale"),
        ({"exp_full_log_var": False}, "noise-exp-log-var"),
        ({"dying_bottleneck": False}, "bottleneck-can-die"),
        ({"bottleneck_units": 128}, "bottleneck-can-die"),
        ({"latent_dim": 16, "bottleneck_units": 128}, "code-too-narrow"),
    ],
)
def test_fault_of_the_question_that_is_mended_is_no_longer_found(switch, gone):
    names = audit(question(**switch), unit_stamps()).names
    assert gone not in names
    assert "kl-weight-collapses" in names


def test_dead_bottleneck_of_the_question_is_found_beside_its_other_faults():
    vae = question()
    with torch.no_grad():
        vae.network.encoder.trunk[5].bias.fill_(-1e3)
    names = audit(vae, unit_stamps()).names
    assert {"dead-bottleneck", "bottleneck-can-die", "noise-scale", "code-too-narrow"} < set(names)


# Health


def own(name: str, **settings: Any) -> VAE:
    return VAE((1, SIZE, SIZE), model={"name": name, **settings})


OWN = [own("conv", width=8), own("linear"), own("question")]


def trained(model: VAE, stamps: Tensor, n_steps: int = 30) -> VAE:
    """A few steps of the ELBO, without a trainer."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    mask, noise = torch.ones_like(stamps, dtype=torch.bool), torch.ones_like(stamps)
    for _ in range(n_steps):
        posterior = model.network.encode(stamps)
        output = model.network.decode(posterior.sample(torch.randn_like(posterior.mean)))
        model.likelihood.observe(stamps, output.detach(), mask, noise)
        density = model.likelihood.training_term(stamps, output, mask, noise)
        loss = (model.prior.kl_per_unit(posterior).sum(1) - density).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_model_has_no_finding(name):
    module = load("healthy", name)
    report = audit(module.Model(), stamps_of(module))
    assert report.names == ()
    assert raised(report) == []


@pytest.mark.parametrize("model", OWN, ids=["conv", "linear", "question"])
def test_own_model_has_no_finding_at_its_start_nor_after_some_training(model):
    stamps = sky_stamps()
    assert audit(model, stamps).names == ()
    report = audit(trained(model, stamps), stamps)
    assert report.names == ()
    assert raised(report) == []
    assert report.facts["learned_scale"] is True


def test_there_are_ten_healthy_models():
    assert len(HEALTHY) + len(OWN) >= 10


def test_healthy_list_of_outputs_is_converted_to_the_same_loss_as_half_the_summed_square():
    report = audit(load("healthy", "list_output").Model(), sky_stamps())
    assert report.facts["beta_s2"] == pytest.approx(1.0, rel=1e-3)
    assert report.facts["reduction"] == {"pixels": "averaged", "units": "summed"}


# Real cutouts


@pytest.fixture
def science_cutouts(real_data, read_all) -> Callable[[str], Tensor]:
    """``science_cutouts(stretch)``: normalised cutouts of the first alerts, (64, 1, 63, 63)."""
    found = read_all(AlertReader(cutouts=("science",)), real_data / "ztf_alerts")
    raw = np.stack([each.pixels for each in found if isinstance(each, Stamp)][:64])

    def science_cutouts(stretch: str) -> Tensor:
        return Normalizer(stretch=stretch)(torch.from_numpy(raw)).image

    return science_cutouts


@pytest.mark.real_data
def test_default_network_has_no_finding_on_real_cutouts(science_cutouts):
    report = audit(VAE((1, 63, 63)), science_cutouts("asinh"))
    assert report.names == ()
    assert raised(report) == []


@pytest.mark.real_data
def test_all_six_faults_of_the_question_are_found_on_real_cutouts(science_cutouts):
    report = audit(question(size=63), science_cutouts("minmax"))
    assert len(report.names) == 6
