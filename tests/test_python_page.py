"""The examples of docs/python.md, run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.io import fits
from lightning import Trainer

from vae_astro import VAE

PAGE = (Path(__file__).parents[1] / "docs" / "python.md").read_text("utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the placeholders stand for: FOLDER, and runs/NAME."""
    workplace = tmp_path_factory.mktemp("workplace")
    rng = np.random.default_rng(0)
    stamps = rng.normal(100, 5, size=(24, 63, 63)).astype(np.float32)
    stamps[:, 28:35, 28:35] += rng.uniform(50, 300, size=(24, 1, 1))
    (workplace / "FOLDER").mkdir()
    for k, stamp in enumerate(stamps):
        fits.writeto(workplace / "FOLDER" / f"{k}.fits", stamp)
    torch.manual_seed(0)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(VAE((1, 63, 63), model={"name": "linear", "latent_dim": 4}))
    trainer.save_checkpoint(workplace / "runs" / "NAME" / "checkpoints" / "best.ckpt")
    return workplace


def test_the_page_has_its_examples_and_they_are_short() -> None:
    assert len(EXAMPLES) == 4
    assert max(len(example.splitlines()) for example in EXAMPLES) <= 10


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")
@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example_runs_as_it_stands(
    number: int, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(workplace)
    found: dict = {"__name__": "example"}
    exec(compile(EXAMPLES[number], f"example {number} of docs/python.md", "exec"), found)
    if number == 0:
        assert found["codes"].shape == (24, 4)
        assert found["made"].shape == (24, 1, 63, 63)
        assert found["likely"].shape == (24,)
        assert found["imagined"].shape == (16, 1, 63, 63)
        assert found["one"].shape == (1, 4)
    elif number == 1:
        assert "forecast: " in capsys.readouterr().out
        assert found["seen"].verdict in ("none", "partial")
    elif number == 2:
        assert found["report"].names == ()
    else:
        assert (workplace / "mine.ckpt").is_file()
