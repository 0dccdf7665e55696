"""scripts/benchmark_catalogue.py runs as it is typed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_small_size_writes_both_formats(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "benchmark_catalogue.py")]
    done = subprocess.run(
        [*command, "size=small", "out=o.json"],
        cwd=tmp_path, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "o.json").read_text())["rows"]
    assert [row["unit"] for row in rows] == ["s", "MB", "s", "MB"]
    assert all(0 < row["value"] < row["base"] for row in rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.json"]
