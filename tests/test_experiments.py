"""Every file of conf/experiment/ does what its first lines promise, on few stamps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from vae_astro.data.simulate import simulate

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SMALL = ("trainer=cpu", "callbacks.progress=false", "data.batch_size=16")
SIMULATED = ("data.n_stamps=400", "data.size=32")


def train(folder: Path, *overrides: str) -> dict[str, dict[str, Any]]:
    """``metrics.json`` of every run that ``python train.py`` makes in a folder, by run folder."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *overrides, *SMALL],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=1500,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    runs = sorted(folder.glob("runs/**/metrics.json"))
    return {str(file.parent.relative_to(folder)): json.loads(file.read_text()) for file in runs}


def classify(folder: Path, *overrides: str) -> dict[str, Any]:
    """``classes.json`` of ``python scripts/classify.py``."""
    subprocess.run(
        [sys.executable, str(ROOT / "scripts/classify.py"), "out=classes", *overrides],
        cwd=folder,
        check=True,
        capture_output=True,
        timeout=900,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    return json.loads((folder / "classes" / "classes.json").read_text())


def only(runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    (metrics,) = runs.values()
    return metrics


def test_every_experiment_has_a_test() -> None:
    here = Path(__file__).read_text() + (ROOT / "tests" / "test_science.py").read_text()
    for file in (ROOT / "conf" / "experiment").glob("*.yaml"):
        assert f"experiment={file.stem}" in here, f"no test runs {file.name}"


def test_a_quick_look_takes_at_most_300_steps_and_finds_a_living_code(tmp_path: Path) -> None:
    metrics = only(train(tmp_path, "experiment=quick", *SIMULATED))
    assert metrics["collapse"]["verdict"] != "full"


def test_wide_stamps_train_in_small_batches(tmp_path: Path) -> None:
    metrics = only(
        train(tmp_path, "experiment=wide", "data.n_stamps=120", "trainer.max_epochs=4",
              "model.width=8")
    )  # fmt: skip
    assert metrics["collapse"]["latent_dim"] == 32
    assert np.isfinite(metrics["val"]["elbo_nats"])


def test_faint_sources_are_explained_down_to_the_noise_they_came_with(tmp_path: Path) -> None:
    sky = simulate(tmp_path / "all", n_stamps=3000, size=32, n_processes=1, progress=False)
    faint = tmp_path / "faint"
    faint.mkdir()
    for file in sorted(sky.glob("*/*.fits")):
        pixels, header = fits.getdata(file, header=True)
        if not 0 < header.get("SNR", 0) < 50 or not np.isfinite(pixels).all():
            continue
        border = np.concatenate([pixels[:4].ravel(), pixels[-4:].ravel()])
        level = np.median(border)
        sky_std = 1.4826 * np.median(np.abs(border - level))
        noise = np.sqrt(sky_std**2 + np.clip(pixels - level, 0, None) / 6.2)
        hdus = [fits.PrimaryHDU(), fits.ImageHDU(pixels.astype("f4"), name="SCI")]
        hdus += [fits.ImageHDU(noise.astype("f4"), name="ERR")]
        too_bright = (pixels - level > 50 * sky_std).astype(np.uint8)
        hdus += [fits.ImageHDU(too_bright, name="DQ")]
        fits.HDUList(hdus).writeto(faint / file.name)
    assert len(list(faint.iterdir())) > 60
    metrics = only(
        train(tmp_path, "experiment=faint", f"data.root={faint}", "trainer.max_epochs=60")
    )
    assert metrics["val"]["chi2_per_pixel"] == pytest.approx(1, abs=0.25)


def test_kl_falls_along_the_beta_sweep(tmp_path: Path) -> None:
    runs = train(
        tmp_path, "-m", "experiment=beta_sweep", *SIMULATED, "trainer.max_epochs=8",
        "hydra.sweeper.params={beta.end: '0.3,10,100000'}",
    )  # fmt: skip
    kl = [metrics["val"]["kl_nats"] for metrics in runs.values()]
    assert [Path(run).name for run in runs] == ["0_beta_0.3", "1_beta_10", "2_beta_100000"]
    assert kl[0] > kl[1] > kl[2]
    assert list(runs.values())[2]["collapse"]["verdict"] == "full"


def test_latent_sweep_has_a_run_for_each_number_of_units(tmp_path: Path) -> None:
    runs = train(
        tmp_path, "-m", "experiment=latent_sweep", *SIMULATED, "trainer.max_epochs=8",
        "hydra.sweeper.params={model.latent_dim: '1,8'}",
    )  # fmt: skip
    assert [Path(run).name for run in runs] == ["0_units_1", "1_units_8"]
    assert [metrics["collapse"]["latent_dim"] for metrics in runs.values()] == [1, 8]
    one, eight = (metrics["val"]["elbo_nats"] for metrics in runs.values())
    assert eight > one


def test_classes_of_one_network(tmp_path: Path) -> None:
    train(tmp_path, "experiment=classes", *SIMULATED, "trainer.max_epochs=5", "run_dir=runs/one")
    found = classify(tmp_path, "checkpoint=runs/one", "n_classes=4")
    assert 1 <= found["found"]["n_classes"] <= 4


def test_classes_of_three_networks_are_compared_between_them(tmp_path: Path) -> None:
    runs = train(
        tmp_path, "-m", "experiment=classes_consensus", "hydra.sweep.dir=runs/consensus",
        *SIMULATED, "trainer.max_epochs=5",
    )  # fmt: skip
    assert sorted(runs) == [f"runs/consensus/{k}" for k in range(3)]
    checkpoints = ",".join(sorted(runs))
    found = classify(tmp_path, f"checkpoint=[{checkpoints}]", "n_classes=4", "n_seeds=2")
    assert -1 <= found["found"]["ari_between_networks"] <= 1


def test_ztf_alerts_train_in_three_bands(tmp_path: Path, real_data: Path) -> None:
    metrics = only(
        train(tmp_path, "experiment=ztf", f"data.root={real_data / 'ztf_alerts'}",
              "trainer.max_epochs=3", f"data.store_dir={tmp_path}")
    )  # fmt: skip
    assert metrics["data"]["n_rejected"] == 0
    assert metrics["collapse"]["verdict"] != "full"


@pytest.mark.parametrize(
    ("experiment", "verdicts"), [("question", {"full"}), ("question_repaired", {"none", "partial"})]
)
@pytest.mark.parametrize("reader", ["fits", "alerts"])
def test_the_question_is_asked_of_stamps_of_ones_own(
    tmp_path: Path, request: pytest.FixtureRequest, reader: str, experiment: str, verdicts: set[str]
) -> None:
    if reader == "fits":
        root = simulate(tmp_path / "own", n_stamps=400, size=32, n_processes=1, progress=False)
        (root / "simulation.json").unlink()  # stamps like any others
    else:
        root = request.getfixturevalue("real_data") / "ztf_alerts"
    metrics = only(
        train(tmp_path, f"experiment={experiment}", f"data={reader}", f"data.root={root}",
              f"data.store_dir={tmp_path}", "trainer.max_epochs=12")
    )  # fmt: skip
    assert metrics["data"]["n_rejected"] == 0
    assert metrics["collapse"]["verdict"] in verdicts
