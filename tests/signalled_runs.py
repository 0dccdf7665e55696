"""Whole commands that are told to stop at some time, and what they leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
SMALL = (
    "data=fits", "data.batch_size=16", "model=linear", "model.latent_dim=4", "trainer=cpu",
    "trainer.check_val_every_n_epoch=1", "callbacks.progress=false",
    "callbacks.page=false", "callbacks.time_share=0",
    "callbacks.save_every_n_steps=7", "collapse.forecast_stamps=100", "run_dir=run",
)  # fmt: skip


@dataclass(frozen=True)
class Ending:
    """How a command ended: its exit status, what it printed, and how long it took [s]."""

    status: int
    said: str
    seconds: float

    @property
    def last_line(self) -> str:
        return self.said.strip().splitlines()[-1]


def start(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    """``python train.py`` in a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *overrides],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        start_new_session=True,
    )


def signalled(
    folder: Path, *overrides: str, after: str = "", signals: list[tuple[float, signal.Signals]]
) -> Ending:
    """A command that gets each signal so many seconds after it printed ``after``."""
    process, said = start(folder, *overrides), ""
    assert process.stdout is not None
    while after not in said:
        line = process.stdout.readline()
        assert line, said
        said += line
    began = time.perf_counter()
    for when, number in signals:
        time.sleep(max(0.0, began + when - time.perf_counter()))
        if process.poll() is None:
            process.send_signal(number)
    rest, _ = process.communicate(timeout=120)
    return Ending(process.returncode, said + rest, time.perf_counter() - began)


def assert_left_well(folder: Path, ending: Ending, number: signal.Signals) -> None:
    """No traceback, no half file, the right exit status, and a true last line."""
    assert "Traceback" not in ending.said, ending.said
    assert "Exception ignored" not in ending.said, ending.said
    assert not [file for file in folder.rglob("*partial*") if "stores" not in file.parts]
    checkpoints = folder / "run" / "checkpoints"
    for file in checkpoints.glob("*.ckpt"):
        saved = torch.load(file, weights_only=True)
        assert all(torch.isfinite(value).all() for value in saved["state_dict"].values())
    if ending.status == 0:  # it was faster than the signal
        assert (folder / "run" / "metrics.json").exists()
        return
    assert ending.status == 128 + number, ending.said
    if ending.last_line == "stopped":  # as it started or ended
        return
    if (checkpoints / "last.ckpt").exists():
        assert ending.last_line.endswith("go on with: python train.py resume=run") or (
            ending.last_line.endswith(f"resume={folder / 'run'}")
        ), ending.said
    else:
        assert "nothing to go on from" in ending.last_line, ending.said
