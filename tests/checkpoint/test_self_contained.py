"""The file alone, elsewhere, in another process: the same latents, bit for bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_checkpoints import MODELS, PRIORS, save, settled, tiny_vae

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
