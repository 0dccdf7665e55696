"""scripts/benchmark_likelihood.py and benchmark_outliers.py: they run as they are typed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def benchmark(folder: Path, name: str, *overrides: str, expect: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / f"benchmark_{name}.py"), *overrides],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.real_data
def test_a_short_form_of_every_likelihood_row_comes_out(tmp_path, real_data):
    benchmark(tmp_path, "likelihood", "size=small", f"real_data={real_data}", "out=o.json")
    rows = json.loads((tmp_path / "o.json").read_text())["rows"]
    assert [row["base"] for row in rows] == [-89.8, -86.76, -84.78]
    # a few thousand digits: far from what is published, and far above unlearned (-543)
    assert all(-300 < row["value"] < row["base"] for row in rows)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [(["real_data=null"], "real_data is not set"), (["real_data=.", "size=big"], "size")],
)
def test_a_mistake_ends_in_one_line(tmp_path, overrides, message):
    assert message in benchmark(tmp_path, "likelihood", *overrides, expect=2)


def test_outliers_need_a_model_to_judge_them(tmp_path):
    assert "checkpoint is not set" in benchmark(tmp_path, "outliers", "checkpoint=null", expect=2)
