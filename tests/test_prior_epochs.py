"""Learned priors in training: when they start, what they find, and how a resumed run goes on."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.metrics import adjusted_rand_score
from torch.utils.data import DataLoader

from vae_astro import VAE
from vae_astro.acceleration import compile_parts
from vae_astro.checkpoint import RandomState
from vae_astro.collapse.audit import audit
from vae_astro.errors import InputError
from vae_astro.model.priors import MixturePrior, VampPrior

SIZE = 16
CLASS = np.arange(240) % 3

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:The dirpath has changed", "ignore:.*LeafSpec"
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """On shared cores, waiting for a second costs small networks more than it saves."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def three_shapes() -> list[dict[str, torch.Tensor]]:
    """Batches of three classes of stamps: a blob here, a blob there, a bar; each with noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIZE, :SIZE]
    shapes = np.stack([
        np.exp(-((x - 4) ** 2 + (y - 4) ** 2) / 6),
        np.exp(-((x - 11) ** 2 + (y - 11) ** 2) / 6),
        np.exp(-((x - 8) ** 2) / 3),
    ])  # fmt: skip
    flux = rng.uniform(2, 3, size=(len(CLASS), 1, 1))
    stamps = flux * shapes[CLASS] + 0.5 * rng.normal(size=(len(CLASS), SIZE, SIZE))
    image = torch.tensor(stamps[:, None], dtype=torch.float32)
    whole = {
        "image": image,
        "mask": torch.ones_like(image, dtype=torch.bool),
        "noise": torch.full_like(image, 0.5),
        "index": torch.arange(len(image)),
    }
    return [{name: value[k : k + 40] for name, value in whole.items()} for k in range(0, 240, 40)]


BATCHES = three_shapes()
MIXTURE = {"name": "mixture", "n_components": 3, "warmup_epochs": 2}
QUICK = {"lr": 3e-3, "warmup_steps": 0}
VAMP = {"name": "vamp", "n_pseudo_inputs": 6}


def small_vae(prior: dict[str, Any], latent_dim: int = 2, **parts: Any) -> VAE:
    torch.manual_seed(0)
    model = {"name": "mlp", "latent_dim": latent_dim, "hidden": [32]}
    parts = {"likelihood": {"name": "gaussian", "std": 0.5}, "beta": {"name": "constant"}} | parts
    return VAE([1, SIZE, SIZE], **{"model": model, "prior": prior} | parts)


def fitted(
    folder: Path,
    vae: VAE,
    n_epochs: int,
    resume: Path | None = None,
    batches: list[dict[str, torch.Tensor]] | None = None,
    **options: Any,
) -> VAE:
    loader = DataLoader(batches or BATCHES, batch_size=None, generator=torch.Generator())
    keep = ModelCheckpoint(folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    seed_everything(0, verbose=False)
    trainer = Trainer(
        max_epochs=n_epochs, accelerator="cpu", callbacks=[keep, RandomState()], logger=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, **options,
    )  # fmt: skip
    trainer.fit(vae, loader, loader, ckpt_path=resume, weights_only=True)
    return vae


def same_state(one: VAE, other: VAE) -> None:
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_three_shapes_become_three_components(tmp_path: Path) -> None:
    vae = fitted(tmp_path, small_vae({**MIXTURE, "warmup_epochs": 12}, optim=QUICK), 20)
    prior = vae.prior
    assert isinstance(prior, MixturePrior)
    image = torch.cat([batch["image"] for batch in BATCHES])
    with torch.no_grad():
        posterior = vae.network.encode(image)
        found = prior.categories(posterior).argmax(1)
        by_code = prior.responsibilities(posterior.mean).argmax(1)
        standard = small_vae({"name": "standard"}).prior.kl_per_unit(posterior).sum(1).mean()
        ours = prior.kl_per_unit(posterior).sum(1).mean()
    assert adjusted_rand_score(CLASS, found) > 0.95
    assert adjusted_rand_score(CLASS, by_code) > 0.95
    assert ours < standard, "the code is cheaper under the prior that follows it"
    told = prior.as_dict()
    assert told["started"]
    assert told["shares"] == pytest.approx([1 / 3] * 3, abs=0.05)
    assert vae.sample(5).shape == (5, 1, SIZE, SIZE)


@pytest.mark.parametrize("saved_at", [1, 2])
def test_run_goes_on_bit_for_bit_across_the_end_of_the_warm_up(
    tmp_path: Path, saved_at: int
) -> None:
    whole = fitted(tmp_path / "whole", small_vae(MIXTURE), 5)
    assert whole.prior.started
    saved = tmp_path / "whole" / f"epoch={saved_at}.ckpt"
    state = torch.load(saved, weights_only=True)["state_dict"]
    assert bool(state["prior.started"]) == (saved_at == 2)
    same_state(whole, fitted(tmp_path / "resumed", small_vae(MIXTURE), 5, saved))


def test_pseudo_inputs_start_as_training_stamps_and_go_on_bit_for_bit(tmp_path: Path) -> None:
    whole = fitted(tmp_path / "whole", small_vae(VAMP), 3)
    prior = whole.prior
    assert isinstance(prior, VampPrior)
    first = torch.load(tmp_path / "whole" / "epoch=0.ckpt", weights_only=True)["state_dict"]
    away = (first["prior.pseudo_inputs"] - BATCHES[0]["image"][:6]).abs().max()
    assert 0 < away < 0.02, "six steps of at most a thousandth"
    resumed = fitted(tmp_path / "resumed", small_vae(VAMP), 3, tmp_path / "whole" / "epoch=0.ckpt")
    same_state(whole, resumed)


@pytest.mark.parametrize("settings", [MIXTURE, VAMP])
def test_checkpoint_alone_has_the_prior_in_it(tmp_path: Path, settings: dict[str, Any]) -> None:
    vae = fitted(tmp_path, small_vae(settings), 3, precision="bf16-mixed")
    loaded = VAE.load_from_checkpoint(tmp_path / "epoch=2.ckpt", weights_only=True)
    z = torch.randn(4, 2)
    assert torch.equal(loaded.prior.log_density(z), vae.prior.log_density(z))
    assert torch.isfinite(loaded.prior.log_density(z)).all()
    assert np.array_equal(loaded.sample(3), vae.sample(3))
    same_state(vae, copy.deepcopy(vae))


def test_warm_up_leaves_the_mixture_alone_and_trains_as_the_standard_prior_does(
    tmp_path: Path,
) -> None:
    plain = fitted(tmp_path / "plain", small_vae({"name": "standard"}), 2).state_dict()
    warm = fitted(tmp_path / "warm", small_vae({**MIXTURE, "warmup_epochs": 5}), 2).state_dict()
    assert all(torch.equal(value, warm[name]) for name, value in plain.items())
    assert warm["prior.means"].abs().max() == 0
    assert not warm["prior.started"]


def test_more_pseudo_inputs_than_stamps_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"prior.n_pseudo_inputs=241, but there are 240 training"):
        fitted(tmp_path, small_vae({"name": "vamp", "n_pseudo_inputs": 241}), 1)


def test_identical_stamps_end_in_a_mixture_that_is_finite(tmp_path: Path) -> None:
    same = [
        {**batch, "image": BATCHES[0]["image"][:1].expand_as(batch["image"])} for batch in BATCHES
    ]
    vae = fitted(tmp_path, small_vae(MIXTURE), 4, batches=same)
    assert all(torch.isfinite(value.float()).all() for value in vae.state_dict().values())
    assert vae.prior.unit_std().min() > 0


@pytest.mark.parametrize("settings", [MIXTURE, VAMP])
def test_validation_is_the_bound_at_beta_one_and_every_score_agrees(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    vae = fitted(tmp_path, small_vae(settings), 3).eval()
    batch = BATCHES[0]
    eps = vae.evaluation_noise(batch["index"])
    scores = vae.score(batch, eps)
    with torch.no_grad():
        posterior = vae.network.encode(batch["image"])
        kl = vae.prior.divergence(posterior, eps)
        torch.testing.assert_close(scores.elbo.kl_per_unit, kl)
        encoder_alone = vae.predict_step(batch, 0)["kl_nats"]
        vae.predict_scores = True
        torch.testing.assert_close(encoder_alone, vae.predict_step(batch, 0)["kl_nats"])


@pytest.mark.parametrize("settings", [MIXTURE, VAMP])
@pytest.mark.parametrize("beta", [
    {"name": "constant", "free_bits_nats": 0.25},
    {"name": "capacity", "capacity_nats": 3.0, "warmup_fraction": 0.5},
])  # fmt: skip
def test_free_bits_and_capacity_train_with_it(
    tmp_path: Path, settings: dict[str, Any], beta: dict[str, Any]
) -> None:
    vae = fitted(tmp_path, small_vae(settings, beta=beta), 4)
    assert all(torch.isfinite(value.float()).all() for value in vae.state_dict().values())


@pytest.mark.parametrize("settings", [MIXTURE, VAMP])
def test_traced_step_is_the_plain_one_before_and_after_the_warm_up(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    plain = fitted(tmp_path / "plain", small_vae(settings), 3)
    traced = small_vae(settings)
    compile_parts(traced, backend="eager")
    fitted(tmp_path / "traced", traced, 3)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(value, traced.state_dict()[name], msg=name)


@pytest.mark.parametrize("settings", [{**MIXTURE, "warmup_epochs": 0}, VAMP])
def test_audit_takes_a_prior_that_moves_for_no_fault(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    vae = fitted(tmp_path, small_vae(settings), 1)
    stamps = torch.cat([batch["image"] for batch in BATCHES])
    assert "kl-formula" not in audit(vae, stamps).names
