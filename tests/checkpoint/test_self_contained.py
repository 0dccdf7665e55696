"""The file alone, elsewhere, in another process: the same latents, bit for bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_checkpoints import MODELS, PRIORS, save, settled, tiny_vae

from vae_astro import VAE
from vae_astro.errors import InputError
from vae_astro.model.networks import NETWORKS
from vae_astro.model.priors import PRIORS as SHIPPED

POSED = {**MODELS["conv"], "pose": "rotation_shift", "symmetry": "d4"}
KINDS = {**MODELS, "posed": POSED}
READ = """
import sys, warnings
from pathlib import Path
import numpy as np
from vae_astro import VAE
raw = np.load("raw.npy")
for path in sorted(Path().glob("*.ckpt")):
    vae = VAE.load_from_checkpoint(path)
    np.savez(path.with_suffix(".npz"), z=vae.embed(raw), x=vae.sample(2), r=vae.reconstruct(raw))
"""


def test_all_that_is_shipped_is_tried() -> None:
    assert set(MODELS) == set(NETWORKS)
    assert {prior["name"] for prior in PRIORS} == set(SHIPPED)


@pytest.fixture(scope="module")
def raw() -> np.ndarray:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:16, :16] - 7.5
    stamps = 100 + 5 * rng.normal(size=(3, 1, 16, 16)) + 80 * np.exp(-(x**2 + y**2) / 8)
    stamps[1, 0, 2:4] = np.nan
    return stamps.astype(np.float32)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory, raw: np.ndarray) -> Path:
    """A folder with a checkpoint of each kind and what another process made of it."""
    folder = tmp_path_factory.mktemp("elsewhere")
    np.save(folder / "raw.npy", raw)
    for kind, model in KINDS.items():
        for prior in PRIORS:
            vae = settled(tiny_vae(model, prior=prior))
            with torch.inference_mode():
                if prior["name"] != "standard":
                    vae.prior.started.fill_(True)
            path = save(vae, folder / f"{kind}-{prior['name']}.ckpt")
            np.savez(path.with_suffix(".here.npz"), z=vae.embed(raw), x=vae.sample(2),
                     r=vae.reconstruct(raw))  # fmt: skip
    subprocess.run([sys.executable, "-W", "ignore", "-c", READ], cwd=folder, check=True)
    return folder


@pytest.mark.parametrize("prior", PRIORS, ids=lambda prior: prior["name"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_file_alone_gives_the_same_latents(elsewhere: Path, kind: str, prior: dict) -> None:
    name = f"{kind}-{prior['name']}"
    here, there = np.load(elsewhere / f"{name}.here.npz"), np.load(elsewhere / f"{name}.npz")
    assert np.ptp(here["z"], axis=0).max() > 0
    for key in ("z", "x", "r"):
        assert np.array_equal(here[key], there[key]), key


def test_numbers_of_numpy_are_stored_as_pythons(tmp_path: Path) -> None:
    vae = tiny_vae({"name": "linear", "latent_dim": np.int64(3)}, np.array([1, 16, 16]),
                   beta={"name": "linear", "end": np.float64(2.0)})  # fmt: skip
    loaded = VAE.load_from_checkpoint(save(vae, tmp_path / "a.ckpt"))
    assert loaded.latent_dim == 3
    assert type(loaded.hparams["model"]["latent_dim"]) is int
    assert loaded.hparams["stamp_shape"] == [1, 16, 16]
    assert type(loaded.hparams["beta"]["end"]) is float


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"map_location": "bad"}, "map_location must be a device, such as cpu, .* got 'bad'"),
        ({"map_location": [1]}, "map_location must be a device"),
        ({"strict": False}, "cannot be loaded with strict=; what it was made with .* normalize"),
    ],
)
def test_options_that_there_are_not_are_named(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    path = save(tiny_vae(), tmp_path / "a.ckpt")
    with pytest.raises(InputError, match=message):
        VAE.load_from_checkpoint(path, **options)


def test_a_device_that_is_not_here_is_told_by_its_key(tmp_path: Path) -> None:
    if torch.backends.mps.is_available():
        pytest.skip("it is here")
    path = save(tiny_vae(), tmp_path / "a.ckpt")
    with pytest.raises(InputError, match="map_location=mps: "):
        VAE.load_from_checkpoint(path, "mps")


def test_a_folder_without_a_checkpoint_says_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no checkpoints/best\.ckpt and no .*last\.ckpt in it$"):
        VAE.load_from_checkpoint(tmp_path)
    save(tiny_vae(), tmp_path / "model.ckpt")
    with pytest.raises(InputError, match=r", but model\.ckpt: give the file itself"):
        VAE.load_from_checkpoint(tmp_path)
