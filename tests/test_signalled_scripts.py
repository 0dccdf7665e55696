"""Scripts that are told to stop while their processes work: what a scheduler does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vae_astro.data.simulate import simulate

ROOT = Path(__file__).parents[1]
DRAWING = ("simulate.py", "data.n_stamps=20000", "data.root=stamps", "n_processes=2")
PACKING = ("pack.py", "data=fits", "data.root=stamps", "pack.n_processes=2")


def stopped_while(
    folder: Path, command: tuple[str, ...], under_way: str, number: signal.Signals, group: bool
) -> tuple[int, str]:
    """Status and output of a script that is told to stop when a file like ``under_way`` is there.

    With ``group`` its processes are told too, as by SLURM and by Ctrl-C on a terminal.
    """
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / command[0]), *command[1:], "progress=false"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    end = time.monotonic() + 60
    while not any(folder.glob(under_way)) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    (os.killpg if group else os.kill)(process.pid, number)
    said, _ = process.communicate(timeout=60)
    return process.returncode, said


@pytest.mark.parametrize(
    ("number", "group"),
    [
        (signal.SIGTERM, True),
        (signal.SIGUSR1, True),
        pytest.param(signal.SIGTERM, False, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, True, marks=pytest.mark.slow),
    ],
)
def test_stamps_that_were_being_drawn_are_gone(
    number: signal.Signals, group: bool, tmp_path: Path
) -> None:
    status, said = stopped_while(tmp_path, DRAWING, ".stamps.partial-*/00/*.fits", number, group)
    assert (status, said.strip()) == (128 + number, "stopped")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_folder_that_was_being_packed_is_packed_by_the_same_command(tmp_path: Path) -> None:
    simulate(tmp_path / "stamps", n_stamps=600, seed=3, size=16, n_processes=1, progress=False)
    status, said = stopped_while(tmp_path, PACKING, "stores/.*.lock", signal.SIGTERM, True)
    assert (status, said.strip()) == (128 + signal.SIGTERM, "stopped")
    again = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / PACKING[0]), *PACKING[1:], "progress=false"],
        cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert "600 stamps in" in again.stdout
