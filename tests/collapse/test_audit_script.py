"""``scripts/audit.py`` as it is typed: a model by its name or a checkpoint, a report, one error."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from vae_astro.api import made_by
from vae_astro.data.simulate import simulate
from vae_astro.errors import InputError
from vae_astro.vae import VAE

ROOT = Path(__file__).parents[2]
USERS_MODULE = """
import torch
from torch import nn

class Mine(nn.Module):
    def __init__(self, size, latent_dim=4):
        super().__init__()
        self.encoder = nn.Linear(size**2, 2 * latent_dim)
        self.decoder = nn.Linear(latent_dim, size**2)

    def forward(self, x):
        mu, log_var = self.encoder(x.flatten(1)).chunk(2, dim=1)
        z = mu + 0.1 * torch.exp(0.5 * log_var) * torch.randn_like(mu)
        return self.decoder(z).view_as(x), mu, log_var

def heavy(recon, x, mu, log_var):
    kl = 0.5 * (mu**2 + log_var.exp() - log_var - 1).sum(1).mean()
    return (recon - x).square().mean() + 1000 * kl

ready = Mine(20)
number = 3
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a user's module, 40 stamps and a run of this project."""
    folder = tmp_path_factory.mktemp("audit")
    (folder / "mine.py").write_text(USERS_MODULE)
    (folder / "broken.py").write_text("1 / 0")
    simulate(folder / "stamps", n_stamps=40, seed=3, size=20, n_processes=1, progress=False)
    return folder


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit_script", ROOT / "scripts" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return folder


def run(folder: Path, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "audit.py"), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def test_model_and_loss_of_a_user_are_audited_on_a_users_stamps_and_written_as_json(folder):
    done = run(
        folder,
        "target=mine:Mine",
        "target_args.size=20",
        "loss=mine:heavy",
        "data=fits",
        "data.root=stamps",
        "out=report/audit.json",
    )
    report = json.loads((folder / "report" / "audit.json").read_text())
    names = {finding["name"] for finding in report["findings"]}
    assert names == {"noise-scale", "kl-weight-collapses"}
    assert report["n_stamps"] == 40
    assert report["facts"]["beta_s2"] == pytest.approx(1000 * 20**2 / 2, rel=1e-3)
    assert "FATAL   kl-weight-collapses" in done.stdout


def test_mistake_ends_in_one_line_and_status_2(folder):
    done = run(folder, "target=nope.mod:Class", expect=2)
    assert done.stdout == ""
    assert done.stderr.startswith("error: target=nope.mod:Class: cannot import nope.mod")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("target", "arguments", "message"),
    [
        ("nocolon", {}, "must look like package.module:Class, got 'nocolon'"),
        ("a:b:c", {}, "must look like"),
        (7, {}, "must look like"),
        ("broken:Mine", {}, "cannot import broken: ZeroDivisionError"),
        ("mine:Nope", {}, "mine has no Nope"),
        ("mine:number", {}, "is a int, not a class or function"),
        ("mine:Mine", {}, r"Mine\(size, latent_dim=4\): give target_args.name=value"),
        ("mine:Mine", {"sizes": 3}, "unexpected keyword argument 'sizes'"),
        ("mine:Mine", 5, "cannot be made: TypeError: .* must be a mapping"),
        ("pathlib:Path", {}, "makes a PosixPath, not a torch.nn.Module"),
    ],
)
def test_target_that_cannot_be_made_is_told_with_the_next_step(
    script, here, target, arguments, message
):
    with pytest.raises(InputError, match=message):
        script._made(target, arguments, 0)


def test_a_target_has_the_weights_of_its_seed_as_a_model_that_is_made_in_python(script, here):
    from mine import Mine

    torch.manual_seed(7)
    before = torch.get_rng_state()
    models = [
        script._made("mine:Mine", {"size": 20}, 3),
        made_by(lambda: Mine(20), 3, "Mine", "give a model"),
    ]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*(model.encoder.weight for model in models))
    other = script._made("mine:Mine", {"size": 20}, 4)
    assert not torch.equal(models[0].encoder.weight, other.encoder.weight)


def test_target_may_be_a_model_that_stands_ready(script, here):
    model = script._made("mine:ready", {}, 0)
    assert model.encoder.in_features == 400


@pytest.fixture
def checkpoint(folder: Path) -> Path:
    """As train.py leaves it, with the settings of its data."""
    path = folder / "runs" / "one" / "checkpoints" / "best.ckpt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    hyper_parameters = {
        "stamp_shape": [1, 20, 20],
        "model": {"name": "linear", "latent_dim": 4},
        "normalize": {"stretch": "linear"},
    }
    vae = VAE(**hyper_parameters)
    data = {"format": "fits", "root": "stamps", "normalize": {"stretch": "minmax"}}
    checkpoint = {"state_dict": vae.state_dict(), "hyper_parameters": hyper_parameters}
    checkpoint["pytorch-lightning_version"] = "2.6.0"
    vae.run_settings = {"data": data}
    vae.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    return path


def test_checkpoint_is_audited_on_the_stamps_of_its_run_normalised_as_it_was_trained(
    folder, checkpoint
):
    done = run(folder, "checkpoint=runs/one", "out=own.json")
    report = json.loads((folder / "own.json").read_text())
    assert report["interface"] == "vae_astro"
    assert (report["n_stamps"], report["latent_dim"]) == (40, 4)
    # in units of the sky noise: between 0 and 1 the eigenvalue could not exceed 400 / 4
    assert report["facts"]["largest_eigenvalue"] > 100
    assert "No fault found." in done.stdout
