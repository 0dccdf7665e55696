"""Does it do what it is for? Minutes, not seconds: ``pytest -m slow``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def metrics_of(tmp_path: Path, *overrides: str) -> dict:
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        "run_dir=run",
        "callbacks.progress=false",
        "callbacks.page=false",
    ]
    subprocess.run([*command, *overrides], cwd=tmp_path, check=True, timeout=1500)
    return json.loads((tmp_path / "run" / "metrics.json").read_text())


def test_the_default_run_does_not_collapse_and_explains_its_stamps(tmp_path: Path) -> None:
    metrics = metrics_of(tmp_path)
    assert metrics["collapse"]["verdict"] == "none"
    assert metrics["collapse"]["active_units"] >= 8
    assert 0.8 < metrics["val"]["chi2_per_pixel"] < 1.3
    assert metrics["classes"]["nmi"] > metrics["classes"]["nmi_pca"]


def test_the_question_collapses_as_asked(tmp_path: Path) -> None:
    metrics = metrics_of(tmp_path, "experiment=question")
    assert metrics["collapse"]["verdict"] == "full"
    assert metrics["val"]["kl_nats"] < 0.01
    assert metrics["timing"]["seconds_total"] < 120


def test_the_question_repaired_does_not_collapse(tmp_path: Path) -> None:
    metrics = metrics_of(tmp_path, "experiment=question_repaired")
    assert metrics["collapse"]["verdict"] != "full"
    assert metrics["val"]["kl_nats"] > 1


@pytest.mark.real_data
def test_real_alerts_do_not_collapse(tmp_path: Path, real_data: Path) -> None:
    metrics = metrics_of(
        tmp_path,
        "data=alerts",
        f"data.root={real_data / 'ztf_alerts'}",
        f"data.labels={real_data / 'ztf_alerts_labels.csv'}",
        "data.classes=[asteroid,star,bogus]",
    )
    assert metrics["data"]["n_rejected"] == 0
    assert sum(metrics["data"][f"n_{part}"] for part in ("train", "val", "test")) == 498
    assert metrics["collapse"]["verdict"] == "none"
    assert metrics["collapse"]["active_units"] >= 8
    assert metrics["timing"]["seconds_total"] < 600
