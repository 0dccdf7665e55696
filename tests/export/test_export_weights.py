"""Safetensors and JSON: the same bits back for every model, and a clear word for what is not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from exported_models import MODELS, NORMALIZE, PRIORS, raw_stamps, tiny_vae

from vae_astro.errors import InputError
from vae_astro.export import load_safetensors, save_safetensors

CASES = [
    *((model, prior, "asinh") for model in MODELS for prior in PRIORS
      if not (model == "minimum_rate" and prior != "standard")),
    *(("linear", "standard", normalize) for normalize in NORMALIZE if normalize != "asinh"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "prior", "normalize"), CASES)
def test_latents_and_prior_are_the_same_bits_after_safetensors(
    tmp_path: Path, model: str, prior: str, normalize: str
) -> None:
    vae = tiny_vae(model, prior, normalize)
    save_safetensors(vae, tmp_path)
    loaded = load_safetensors(tmp_path)
    stamps = raw_stamps()
    np.testing.assert_array_equal(loaded.embed(stamps), vae.embed(stamps))
    np.testing.assert_array_equal(loaded.reconstruct(stamps[:3]), vae.reconstruct(stamps[:3]))
    np.testing.assert_array_equal(loaded.sample(5, seed=1), vae.sample(5, seed=1))
    z = torch.from_numpy(vae.embed(stamps[:3]))
    with torch.no_grad():
        assert torch.equal(loaded.prior.log_density(z), vae.prior.log_density(z))
    assert not loaded.training
    assert loaded.is_prepared
    assert loaded.band_names == ["g", "r"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_safetensors(tiny_vae(), tmp_path)
    return tmp_path


def edit(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_config_says_what_a_reader_without_the_package_needs(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["stamp_shape"] == [2, 20, 20]
    assert config["latent_dim"] == 4
    assert config["normalize"] == {
        "stretch": "asinh",
        "softening": 3.0,
        "gain": None,
        "saturation": None,
    }
    assert set(config["versions"]) == {"vae_astro", "torch"}


def test_damaged_weights_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors is not what config\.json"):
        load_safetensors(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"library": "transformers"}, "not of a model that vae_astro exported"),
        ({"format": 99}, "export format 99; this version"),
        ({"hyper_parameters": None}, "no usable hyper_parameters"),
        ({"hyper_parameters": {"stamp_shape": [2, 20, 20], "hidden": 1}}, "does not make a model"),
        ({"hyper_parameters": {"stamp_shape": [2, 20, 20]}}, "does not make a model"),
        (
            {"hyper_parameters": {"stamp_shape": [2, 20, 20], "model": {"name": "os.system"}}},
            r"choose one of conv",
        ),
        ({"sha256": None}, "is not what"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    folder: Path, changes: dict[str, object], said: str
) -> None:
    edit(folder, **changes)
    with pytest.raises(InputError, match=said):
        load_safetensors(folder)


def test_a_folder_that_lacks_a_file_is_refused_by_the_name_of_it(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors cannot be read"):
        load_safetensors(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json is not JSON"):
        load_safetensors(folder)
    with pytest.raises(InputError, match=r"nowhere.config\.json cannot be read"):
        load_safetensors(folder / "nowhere")
