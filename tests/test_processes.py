"""Processes that train together, as users start them, stop them and lose them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from vae_astro import processes
from vae_astro.data.simulate import simulate
from vae_astro.errors import InputError
from vae_astro.folders import is_first_process, overrides_of_other_processes

ROOT = Path(__file__).parents[1]
SMALL = (
    "data=fits", "data.batch_size=16", "model.width=8", "model.latent_dim=4", "log_every_n_steps=1",
    "trainer=cpu", "trainer.check_val_every_n_epoch=1", "trainer.max_epochs=3",
    "callbacks.progress=false", "callbacks.page=false", "callbacks.save_every_n_steps=1",
    "collapse.forecast_stamps=0",
)  # fmt: skip
TWO = ("trainer.strategy=ddp", "trainer.devices=2")
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2")


def test_ddp_waits_as_long_as_it_is_told_and_other_names_are_left_alone() -> None:
    assert processes.strategy_of("auto", 5) == "auto"
    strategy = processes.strategy_of("ddp", 5)
    assert isinstance(strategy, DDPStrategy)
    assert strategy._timeout == timedelta(seconds=5)
    with pytest.raises(InputError, match=r"trainer\.process_timeout_s must be greater than 0"):
        processes.strategy_of("ddp", 0)


@pytest.mark.parametrize(
    "environment",
    [{"RANK": "1", "LOCAL_RANK": "0"}, {"SLURM_PROCID": "3"}, {"LOCAL_RANK": "1"}],
)
def test_other_processes_than_the_first_write_no_folder(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert is_first_process()
    assert overrides_of_other_processes() == []
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert not is_first_process()
    assert "hydra.output_subdir=null" in overrides_of_other_processes()


def test_a_lost_process_ends_in_one_line_and_other_errors_stay(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    reset = "[/src/gloo/pair.cc:545] Read error [::1]:9: Connection reset by peer. This is typical."
    with pytest.raises(RuntimeError, match="reset"), processes.losses_told(tmp_path):
        raise RuntimeError(reset)  # of a process that is alone
    monkeypatch.setattr(processes, "n_ranks", lambda: 2)
    with pytest.raises(SystemExit) as left, processes.losses_told(tmp_path):
        raise RuntimeError(reset)
    assert left.value.code == 1
    assert "gone or silent (Read error [::1]:9: Connection reset by peer)" in caplog.text
    assert f"resume={tmp_path}" in caplog.text
    with pytest.raises(RuntimeError, match="shapes"), processes.losses_told(tmp_path):
        raise RuntimeError("shapes do not fit")


# The rest takes a minute or more: runs of two processes


@pytest.fixture(scope="module")
def stamps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sky") / "stamps"
    return simulate(root, n_stamps=120, seed=3, size=24, n_processes=1, progress=False)


def start(folder: Path, *command: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **env},
    )


def finish(*running: subprocess.Popen[str], expect: int = 0) -> str:
    said = "".join(process.communicate(timeout=280)[0] for process in running)
    assert [process.returncode for process in running] == [expect] * len(running), said
    return said


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def alone(stamps: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """What one process comes to."""
    folder = tmp_path_factory.mktemp("alone")
    finish(start(folder, str(ROOT / "train.py"), *SMALL, f"data.root={stamps}", "run_dir=run"))
    return weights(folder / "run")


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    for key, value in one.items():
        torch.testing.assert_close(value, other[key], atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_torchrun_has_one_folder_and_the_weights_of_one_process(
    alone: dict[str, torch.Tensor], stamps: Path, tmp_path: Path
) -> None:
    train = str(ROOT / "train.py")
    said = finish(start(tmp_path, *TORCHRUN, train, *SMALL, *TWO, f"data.root={stamps}"))
    assert said.count("verdict") == 1
    (run,) = (tmp_path / "runs").iterdir()
    assert_close(alone, weights(run))


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(TWO, 1), ((), 2)])
def test_another_number_of_processes_goes_on_in_the_middle_of_an_epoch(
    alone: dict[str, torch.Tensor], stamps: Path, tmp_path: Path, before: tuple, after: int
) -> None:
    stopped = str(ROOT / "tests" / "stopped_train.py")
    arguments = (*SMALL, *before, f"data.root={stamps}", "run_dir=run")
    finish(start(tmp_path, stopped, "8", "SIGTERM", *arguments), expect=128 + signal.SIGTERM)
    done = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    n_steps = done["global_step"]
    assert n_steps % 6, "within an epoch of six steps"
    again = ("resume=run", f"trainer.devices={after}", "trainer.strategy=ddp")
    finish(start(tmp_path, str(ROOT / "train.py"), *again))
    assert_close(alone, weights(tmp_path / "run"))


@pytest.mark.slow
def test_slurm_starts_the_processes_and_its_signal_ends_in_a_checkpoint(
    stamps: Path, tmp_path: Path
) -> None:
    slurm = {
        "SLURM_JOB_ID": "4711",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": "127.0.0.1",
        "SLURM_JOB_NAME": "vae",
    }
    arguments = (*SMALL, *TWO, f"data.root={stamps}", "run_dir=run", "trainer.max_epochs=5000")
    both = [
        start(tmp_path, str(ROOT / "train.py"), *arguments,
              **slurm, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank))
        for rank in range(2)
    ]  # fmt: skip
    wait_for(tmp_path / "run" / "checkpoints" / "last.ckpt", both[0])
    both[1].send_signal(signal.SIGUSR1)  # it is enough to tell one
    said = finish(*both, expect=128 + signal.SIGUSR1)
    assert "resume=" in said
    finish(start(tmp_path, str(ROOT / "train.py"), "resume=run", "trainer=cpu",
                 "trainer.max_epochs=1"))  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["first", "other"])
def test_where_a_process_is_killed_the_other_ends_and_its_checkpoint_can_be_gone_on_with(
    stamps: Path, tmp_path: Path, victim: str
) -> None:
    arguments = (*SMALL, *TWO, f"data.root={stamps}", "run_dir=run", "trainer.max_epochs=5000")
    env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    both = [
        start(tmp_path, str(ROOT / "train.py"), *arguments, **env, LOCAL_RANK=str(rank))
        for rank in range(2)
    ]
    wait_for(tmp_path / "run" / "checkpoints" / "last.ckpt", both[0])
    dies, stays = both if victim == "first" else both[::-1]
    dies.kill()
    began = time.monotonic()
    said = finish(stays, expect=1)
    assert time.monotonic() - began < 60
    dies.communicate()
    assert "another process of this run is gone or silent" in said
    assert "Traceback" not in said
    finish(start(tmp_path, str(ROOT / "train.py"), "resume=run", "trainer=cpu",
                 "trainer.max_epochs=1"))  # fmt: skip


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_for(file: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while not file.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    assert file.exists(), process.communicate()[0] if process.poll() is not None else "no file"
