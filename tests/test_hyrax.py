"""The class that hyrax loads: against hyrax itself where it is installed, else its interface."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer

import vae_astro
from vae_astro import VAE
from vae_astro.errors import InputError

SMALL = {"model": {"name": "conv", "latent_dim": 3, "width": 8}}
RAW = np.random.default_rng(0).normal(100, 5, size=(16, 24, 24)).astype(np.float32)
RAW[:, 10:14, 10:14] += np.random.default_rng(1).uniform(0, 200, size=(16, 1, 1))
BATCH = {"data": {"image": RAW}, "object_id": [str(k) for k in range(16)]}


def stand_in() -> dict[str, ModuleType]:
    """What the decorator of hyrax 0.13 does: it wraps the constructor, and saves and loads."""

    def hyrax_model(cls: Any) -> Any:
        original = cls.__init__

        def wrapped(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
            original(self, config, *args, **kwargs)
            assert hasattr(self, "optimizer")
            assert hasattr(self, "criterion")

        def save(self: Any, path: Path) -> None:
            torch.save(self.state_dict(), path)
            source = textwrap.dedent(inspect.getsource(self.prepare_inputs))
            (path.parent / "prepare_inputs.py").write_text(source)

        def load(self: Any, path: Path) -> None:
            self.load_state_dict(torch.load(path, weights_only=True))
            kept: dict[str, Any] = {}
            exec((path.parent / "prepare_inputs.py").read_text(), kept)
            self.prepare_inputs = kept["prepare_inputs"]

        cls.__init__, cls.save, cls.load = wrapped, save, load
        return cls

    names = ("hyrax", "hyrax.models", "hyrax.models.model_registry")
    modules = {name: ModuleType(name) for name in names}
    modules[names[-1]].hyrax_model = hyrax_model  # type: ignore[attr-defined]
    return modules


@pytest.fixture(scope="module")
def hyrax_vae() -> Iterator[Any]:
    """The class, as ``[model] name = "vae_astro.hyrax.HyraxVAE"`` gets it."""
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("hyrax") is None:
            for name, module in stand_in().items():
                patch.setitem(sys.modules, name, module)
        patch.delitem(sys.modules, "vae_astro.hyrax", raising=False)
        yield importlib.import_module("vae_astro.hyrax").HyraxVAE
        sys.modules.pop("vae_astro.hyrax", None)


def config(**settings: Any) -> dict[str, Any]:
    """The defaults that hyrax finds beside the package, with some settings in their place."""
    text = (Path(vae_astro.__file__).parent / "default_config.toml").read_text()
    nothing = {"name": ""}
    ours = tomllib.loads(text)["vae_astro"] | SMALL | settings
    return {"vae_astro": ours, "optimizer": nothing, "criterion": nothing, "scheduler": nothing}


def made(hyrax_vae: Any, **settings: Any) -> Any:
    torch.manual_seed(0)
    return hyrax_vae(config(**settings), data_sample=hyrax_vae.prepare_inputs(BATCH)[:1])


def checkpoint(path: Path, **parts: Any) -> VAE:
    torch.manual_seed(5)
    vae = VAE([1, 24, 24], **SMALL | parts)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(vae)
    trainer.save_checkpoint(path)
    return vae


def test_codes_are_those_of_the_vae_on_raw_stamps(hyrax_vae: Any) -> None:
    model = made(hyrax_vae)
    inputs = torch.from_numpy(hyrax_vae.prepare_inputs(BATCH))
    assert inputs.shape == (16, 1, 24, 24)
    codes = model.infer_batch(inputs)
    assert codes.shape == (16, 3)
    assert not codes.requires_grad
    np.testing.assert_allclose(codes.numpy(), model.vae.embed(RAW), atol=1e-6)


def test_training_lowers_the_loss_that_validation_sees(hyrax_vae: Any) -> None:
    model = made(hyrax_vae)
    inputs = torch.from_numpy(hyrax_vae.prepare_inputs(BATCH))
    first = model.validate_batch(inputs)
    said = [model.train_batch(inputs) for _ in range(20)]
    assert set(said[-1]) == {"loss", "reconstruction_nats", "kl_nats"}
    assert not any(value.requires_grad for value in said[-1].values())
    last = model.test_batch(inputs)
    assert last["loss"] < first["loss"] - 10
    assert model.n_steps == 20


def test_weights_and_the_place_in_the_schedule_come_back(hyrax_vae: Any, tmp_path: Path) -> None:
    model = made(hyrax_vae, beta={"name": "linear"})
    inputs = torch.from_numpy(hyrax_vae.prepare_inputs(BATCH))
    model.train_batch(inputs)
    model.save(tmp_path / "weights.pth")
    again = made(hyrax_vae, beta={"name": "linear"})
    again.load(tmp_path / "weights.pth")
    inputs = torch.from_numpy(again.prepare_inputs(BATCH))
    assert torch.equal(again.infer_batch(inputs), model.infer_batch(inputs))
    assert again.n_steps == 1
    assert again.vae.penalty(1).beta == pytest.approx(1 / 300)


def test_a_checkpoint_of_this_project_is_loaded_as_it_is(hyrax_vae: Any, tmp_path: Path) -> None:
    wide = {"name": "conv", "latent_dim": 5, "width": 8}
    vae = checkpoint(tmp_path / "best.ckpt", model=wide, normalize={"softening": 2.0})
    model = made(hyrax_vae)
    model.load(tmp_path / "best.ckpt")
    codes = model.infer_batch(torch.from_numpy(hyrax_vae.prepare_inputs(BATCH)))
    np.testing.assert_allclose(codes.numpy(), vae.embed(RAW), atol=1e-6)
    weights = {id(each) for group in model.optimizer.param_groups for each in group["params"]}
    assert weights == {id(each) for each in model.vae.parameters()}


RINGS = {"name": "rings", "latent_dim": 10, "shape_units": 3, "width": 8}


def test_what_wants_to_see_stamps_first_sees_those_of_the_first_step_alone(hyrax_vae: Any) -> None:
    model = made(hyrax_vae, model=RINGS, likelihood={"name": "sigma", "focus_radius": "auto"})
    inputs = torch.from_numpy(hyrax_vae.prepare_inputs(BATCH))
    assert not model.vae.is_prepared
    as_made = model.vae.network.encoder.rings.center.clone()
    model.train_batch(inputs)
    assert model.vae.is_prepared
    center = model.vae.network.encoder.rings.center.clone()
    window = model.vae.likelihood.weight.clone()
    assert not torch.equal(center, as_made)
    model.train_batch(inputs.flip(1) * 3)
    assert torch.equal(model.vae.network.encoder.rings.center, center)
    assert torch.equal(model.vae.likelihood.weight, window)


def test_training_from_a_checkpoint_starts_from_its_weights(hyrax_vae: Any, tmp_path: Path) -> None:
    trained = checkpoint(tmp_path / "best.ckpt", model=RINGS, optim={"lr": 1e-12})
    model = made(hyrax_vae, model=RINGS)
    model.load(tmp_path / "best.ckpt")
    assert model.vae.is_prepared
    model.train_batch(torch.from_numpy(hyrax_vae.prepare_inputs(BATCH)))
    np.testing.assert_allclose(model.vae.embed(RAW), trained.embed(RAW), atol=1e-5)


def test_weights_of_hyrax_are_not_prepared_again(hyrax_vae: Any, tmp_path: Path) -> None:
    model = made(hyrax_vae, model=RINGS, optim={"lr": 1e-12})
    inputs = torch.from_numpy(hyrax_vae.prepare_inputs(BATCH))
    model.train_batch(inputs)
    model.save(tmp_path / "weights.pth")
    again = made(hyrax_vae, model=RINGS, optim={"lr": 1e-12})
    again.load(tmp_path / "weights.pth")
    again.train_batch(inputs.flip(0) * 3)
    np.testing.assert_allclose(again.vae.embed(RAW), model.vae.embed(RAW), atol=1e-5)


def test_what_hyrax_cannot_train_is_refused_with_what_to_do(hyrax_vae: Any, tmp_path: Path) -> None:
    inputs = torch.from_numpy(hyrax_vae.prepare_inputs(BATCH))
    model = made(hyrax_vae, optim={"aggressive": True})
    with pytest.raises(InputError, match=r"need train\.py"):
        model.train_batch(inputs)
    checkpoint(tmp_path / "vamp.ckpt", prior={"name": "vamp"})
    model.load(tmp_path / "vamp.ckpt")
    assert model.infer_batch(inputs).shape == (16, 3)
    with pytest.raises(InputError, match=r"need train\.py"):
        model.train_batch(inputs)


@pytest.mark.parametrize("shape", [(1, 1, 24, 20), (24, 24), (1, 24)])
def test_stamps_of_a_shape_that_cannot_be_are_refused(
    hyrax_vae: Any, shape: tuple[int, ...]
) -> None:
    with pytest.raises(InputError, match=r"stamp of shape .*H = W.*data_set\.crop_to"):
        hyrax_vae(config(), data_sample=np.zeros(shape))


def test_settings_of_a_toml_document_make_a_checkpoint_of_plain_python(hyrax_vae: Any) -> None:
    class Text(str):
        """As tomlkit has it."""

    normalize = {"stretch": Text("linear"), "gain": [1.5]}
    model = made(hyrax_vae, normalize=normalize)
    kept = model.vae.hparams["normalize"]
    assert kept == {"stretch": "linear", "gain": [1.5]}
    assert type(kept["stretch"]) is str


def test_without_hyrax_the_import_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("vae_astro.hyrax", "hyrax.models", "hyrax.models.model_registry"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "hyrax", None)  # as if it were not there
    with pytest.raises(ImportError, match=r"pip install 'vae-astro\[hyrax\]'"):
        importlib.import_module("vae_astro.hyrax")
