"""``scripts/download.py`` as a user types it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from web_server import Answer, WebServer, serve

from vae_astro.stopping import SIGNALS

SCRIPT = Path(__file__).parents[1] / "scripts" / "download.py"
STAMPS = bytes(range(256)) * 4000


def command(*overrides: str) -> list[str]:
    return [sys.executable, str(SCRIPT), *overrides]


def run(folder: Path, *overrides: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(*overrides), cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WebServer]:
    """A server with ``/a.fits``, and a list of it in ``urls.txt``."""
    with serve() as server:
        server.files["/a.fits"] = STAMPS
        (tmp_path / "urls.txt").write_text(f"{server.address}/a.fits\n")
        yield server


def test_a_list_is_downloaded_once_and_nothing_else_is_written(
    server: WebServer, tmp_path: Path
) -> None:
    shown = run(tmp_path, "urls=urls.txt", "out=sky", "pause_s=0").stdout
    assert "1 of 1 files downloaded to sky, 0 there already, 0 failed" in shown
    assert (tmp_path / "sky" / "a.fits").read_bytes() == STAMPS
    shown = run(tmp_path, "urls=urls.txt", "out=sky").stdout
    assert "0 of 1 files downloaded to sky, 1 there already, 0 failed" in shown
    assert len(server.requests) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sky", "urls.txt"]


def test_what_fails_is_listed_and_the_exit_status_is_1(server: WebServer, tmp_path: Path) -> None:
    overrides = ("nights=[20240101,20240102]", f"archive={server.address}", "out=sky")
    done = run(tmp_path, *overrides, "pause_s=0", "n_attempts=1", expect=1)
    for night in (20240101, 20240102):
        address = f"{server.address}/ztf_public_{night}.tar.gz"
        assert f"failed: {address}: HTTP 404" in done.stderr
    assert "0 of 2 files downloaded to sky, 0 there already, 2 failed" in done.stdout


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_an_interruption_is_gone_on_with(
    number: signal.Signals, server: WebServer, tmp_path: Path
) -> None:
    server.answers["/a.fits"] = [Answer(stall_after=300_000)]
    running = subprocess.Popen(
        command("urls=urls.txt", "out=sky"), cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    part, end = tmp_path / "sky" / "a.fits.part", time.monotonic() + 40
    while not (part.exists() and part.stat().st_size == 300_000) and time.monotonic() < end:
        time.sleep(0.05)
    running.send_signal(number)
    _, shown = running.communicate(timeout=20)
    assert running.returncode == 128 + number
    assert "stopped; run the same command again" in shown
    assert "Traceback" not in shown
    assert part.stat().st_size == 300_000
    run(tmp_path, "urls=urls.txt", "out=sky")
    assert server.asked("GET", "/a.fits")[1]["Range"] == "bytes=300000-"
    assert (tmp_path / "sky" / "a.fits").read_bytes() == STAMPS


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("out=sky",), "give nights=20240101-20240107 or urls=FILE.txt"),
        (("urls=urls.txt",), "out must be text"),
        (("urls=urls.txt", "out=sky", "n_attempts=0"), "n_attempts must be at least 1"),
        (("urls=nowhere.txt", "out=sky"), "urls=nowhere.txt cannot be read"),
        (("nights=20240230", "out=sky"), "nights must be dates"),
        (("urls=urls.txt", "out=sky", "unpack=1"), "unpack must be true or false"),
    ],
)
def test_a_mistake_is_one_line(
    server: WebServer, tmp_path: Path, overrides: tuple[str, ...], message: str
) -> None:
    shown = run(tmp_path, *overrides, expect=2).stderr
    told = [line for line in shown.splitlines() if line.startswith("error:")]
    assert len(told) == 1
    assert message in told[0]
    assert "Traceback" not in shown
    assert server.requests == []
