"""Commands beside train.py, as a user types them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

ROOT = Path(__file__).parents[1]


def run_script(
    name: str, folder: Path, *overrides: str, expect: int = 0
) -> subprocess.CompletedProcess[str]:
    """``python scripts/NAME`` in a folder of its own."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / name), *overrides],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def sky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cube of 60 stamps of a source that moves, and one of stamps without any difference."""
    folder = tmp_path_factory.mktemp("sky")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:20, :20] - 9.5
    moved = rng.normal(size=(2, 60, 1, 1))
    source = 60 * np.exp(-((x - moved[0]) ** 2 + (y - moved[1]) ** 2) / 6)
    fits.writeto(folder / "moving.fits", (rng.normal(size=(60, 20, 20)) + source).astype("f4"))
    fits.writeto(folder / "constant.fits", np.full((60, 20, 20), 3.0, "f4"))
    return folder


COMMON = ("data=fits", "data.cube=stamps", "model.latent_dim=4")


def test_forecast_prints_a_table_and_writes_json_and_figure(sky: Path) -> None:
    done = run_script(
        "forecast.py",
        sky,
        *COMMON,
        "data.root=moving.fits",
        "likelihood=pixel_mean_mse",
        "likelihood.kl_weight=1000",
        "out=f.json",
        "figure=f.png",
    )
    assert "full collapse" in done.stdout
    found = json.loads((sky / "f.json").read_text())
    assert found["verdict"] == "full"
    assert found["threshold"] == pytest.approx(1000 * 400 / 2)
    assert (sky / "f.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.root=constant.fits", "do not differ"),
        ("data.root=nowhere", "data.root"),
        pytest.param("model.latent_dim=0", "model.latent_dim", marks=pytest.mark.slow),
        pytest.param("beta.end=-1", "beta.end", marks=pytest.mark.slow),
        pytest.param("n_stamps=1", "n_stamps", marks=pytest.mark.slow),
    ],
)
def test_forecast_refuses_in_one_line(sky: Path, override: str, message: str) -> None:
    root = () if override.startswith("data.root") else ("data.root=moving.fits",)
    shown = run_script("forecast.py", sky, *COMMON, *root, override, expect=2).stderr
    told = [line for line in shown.splitlines() if line.startswith("error:")]
    assert len(told) == 1
    assert message in told[0]
    assert "Traceback" not in shown


def test_forecast_of_more_units_than_stamps(sky: Path) -> None:
    done = run_script("forecast.py", sky, *COMMON, "data.root=moving.fits", "model.latent_dim=200")
    assert "of 200 units" in done.stdout
