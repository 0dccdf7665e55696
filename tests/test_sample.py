"""``scripts/sample.py``: stamps from the prior of a checkpoint, in a file of three kinds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from astropy.io import fits
from hydra import compose, initialize_config_dir
from lightning import Trainer
from omegaconf import OmegaConf

from vae_astro import VAE
from vae_astro.errors import InputError
from vae_astro.sample import sample

ROOT = Path(__file__).parents[1]


def composed(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return OmegaConf.to_container(compose("sample", list(overrides)))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> tuple[VAE, Path]:
    """A model of two bands, and its checkpoint."""
    torch.manual_seed(0)
    vae = VAE([2, 16, 16], model={"name": "linear", "latent_dim": 3}, band_names=["g", "r"])
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(vae)
    path = tmp_path_factory.mktemp("run") / "a.ckpt"
    trainer.save_checkpoint(path)
    return vae, path


def test_every_format_holds_what_the_model_draws(vae: tuple[VAE, Path], tmp_path: Path) -> None:
    model, path = vae
    expected = model.sample(5, seed=2)
    common = (f"checkpoint={path}", "n=5", "seed=2")
    for suffix in ("npy", "fits", "png"):
        said = sample(composed(*common, f"out={tmp_path}/s.{suffix}"))
        assert said.startswith("5 stamps of 2x16x16")
    assert np.array_equal(np.load(tmp_path / "s.npy"), expected)
    drawn, header = fits.getdata(tmp_path / "s.fits", header=True)
    assert np.array_equal(drawn, expected)
    assert (header["STRETCH"], header["SEED"], header["BANDS"]) == ("asinh", 2, "g,r")
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.fits", "s.npy", "s.png"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("n=0",), "n must be at least 1"),
        (("seed=-1",), "seed must be at least 0"),
        (("seed=4294967296",), "seed must be at most 4294967295"),
        (("n=600",), "n=600 stamps of 2 bands do not fit on one picture"),
        (("out=s.jpg",), r"ends in \.fits or \.npy or \.png"),
        (("checkpoint=null",), "checkpoint is not set"),
        (("checkpoint=nowhere",), "nowhere"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(
    vae: tuple[VAE, Path],
    overrides: tuple[str, ...],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words):
        sample(composed(f"checkpoint={vae[1]}", *overrides))
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_file_is_replaced_only_if_that_is_said(
    vae: tuple[VAE, Path], tmp_path: Path
) -> None:
    out = tmp_path / "s.npy"
    out.write_text("mine")
    with pytest.raises(InputError, match="overwrite=true"):
        sample(composed(f"checkpoint={vae[1]}", f"out={out}"))
    assert out.read_text() == "mine"
    sample(composed(f"checkpoint={vae[1]}", f"out={out}", "overwrite=true", "n=3"))
    assert np.load(out).shape == (3, 2, 16, 16)


def test_nothing_else_in_the_folder_is_touched(vae: tuple[VAE, Path], tmp_path: Path) -> None:
    beside = tmp_path / "s.part.npy"
    beside.write_text("mine")
    sample(composed(f"checkpoint={vae[1]}", f"out={tmp_path}/s.npy", "n=3"))
    assert beside.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.npy", "s.part.npy"]


def test_the_command_tells_a_mistake_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "sample.py"), "n=0"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "error: n must be at least 1, got 0\n"
