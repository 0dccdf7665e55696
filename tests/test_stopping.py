"""Signals, at any time."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from signalled_runs import SMALL, assert_left_well, signalled

from vae_astro import stopping
from vae_astro.data.simulate import simulate
from vae_astro.stopping import SIGNALS, Stopped, exit_status, heeded, last_words, raise_if_told

N_TRIALS = 12
LONGEST_S = 6.0


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_raises_and_gives_the_exit_status(number: signal.Signals, tmp_path: Path) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Stopped), heeded(str):
        signal.raise_signal(number)
    assert exit_status() == 128 + number
    assert signal.getsignal(number) is before
    with heeded(str):
        raise_if_told()  # forgotten


def test_a_signal_that_was_only_noted_is_acted_on_later(tmp_path: Path) -> None:
    with heeded(str):
        stopping.note(signal.SIGTERM)
        with pytest.raises(Stopped):
            raise_if_told()


def test_what_a_destructor_swallows_is_raised_again(tmp_path: Path) -> None:
    class Interrupted:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    with heeded(str):
        made = [Interrupted()]
        with pytest.raises(Stopped):  # noqa: PT012  # it comes a moment later
            made.clear()
            time.sleep(20)
    assert exit_status() == 128 + signal.SIGTERM


def test_last_words_say_how_to_go_on_where_that_is_possible(tmp_path: Path) -> None:
    assert "nothing to go on from" in last_words(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    assert last_words(tmp_path).endswith(f"python train.py resume={tmp_path}")


SECOND = """
import os, signal, sys
from pathlib import Path
from vae_astro.stopping import heeded, last_words
with heeded(lambda: last_words(Path("run"))):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except KeyboardInterrupt:
        os.kill(os.getpid(), signal.SIGINT)
        print("too late")
"""
FORKED = """
import os, signal, sys, time
from pathlib import Path
from vae_astro.stopping import heeded, last_words
with heeded(lambda: last_words(Path("run"))):
    is_ready, ready = os.pipe()
    child = os.fork()
    if not child:
        os.write(ready, b"!")
        time.sleep(30)
        os._exit(0)
    os.read(is_ready, 1)
    os.kill(child, signal.SIGTERM)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
LEAVING = """
import os, signal
from vae_astro.stopping import leave
signal.signal(signal.SIGINT, leave)
os.kill(os.getpid(), signal.SIGINT)
print("too late")
"""


@pytest.mark.parametrize(
    ("script", "status", "words"),
    [(SECOND, 143, "nothing to go on from"), (FORKED, 0, "143"), (LEAVING, 130, "stopped")],
    ids=["second", "forked", "leaving"],
)
def test_a_process_that_has_nothing_to_tidy_up_ends_at_once(
    script: str, status: int, words: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert done.returncode == status, done.stderr
    assert words in done.stdout + done.stderr
    assert "too late" not in done.stdout
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def stamps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sky")
    simulate(root / "stamps", n_stamps=200, seed=3, size=16, n_processes=1, progress=False)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(N_TRIALS))
def test_a_run_can_be_stopped_at_any_time(trial: int, stamps: Path, tmp_path: Path) -> None:
    draw = random.Random(trial)
    number, when = draw.choice(SIGNALS), draw.uniform(0, LONGEST_S)
    twice = [(when + draw.choice((0.02, 0.3)), number)] if trial % 3 == 2 else []
    ending = signalled(
        tmp_path,
        *SMALL,
        "trainer.max_epochs=25",
        f"data.root={stamps / 'stamps'}",
        f"data.store_dir={stamps / 'stores'}",
        after="" if trial == 0 else "INFO stamps:",
        signals=[(when, number), *twice],
    )
    assert_left_well(tmp_path, ending, number)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    if ending.status and last.exists():
        resumed = signalled(tmp_path, "resume=run", signals=[])
        assert resumed.status == 0, resumed.said
        assert torch.load(last, weights_only=True)["global_step"] == 250
