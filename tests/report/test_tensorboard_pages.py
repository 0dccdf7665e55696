"""TensorBoard opened in a browser: the pages that show a run."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from logged_run import log_run, moving_stamps

pytestmark = pytest.mark.slow
sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
SECONDS = 90


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of TensorBoard over two runs."""
    folder = tmp_path_factory.mktemp("board")
    datamodule = moving_stamps(folder)
    for name in ("first", "second"):
        log_run(folder / "runs" / name, datamodule)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder / "runs"),
               "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(f"{address}/data/plugin/projector/runs", b"second")
        yield address
    finally:
        server.terminate()
        server.wait(30)


def wait_for(url: str, content: bytes) -> None:
    """Until the server is up and has read the runs."""
    for _ in range(SECONDS * 2):
        try:
            if content in urllib.request.urlopen(url, timeout=10).read():
                return
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.5)
    raise TimeoutError(url)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.parametrize(
    ("tab", "seen"),
    [
        ("scalars", ["schedule", "final"]),
        ("custom_scalars", ["1 objective", "ELBO at beta = 1, validation [nats per stamp]"]),
        ("hparams", ["model.latent_dim", "ELBO [nats]", "active units", "first", "partial"]),
        ("images", ["spectrum", "reconstructions", "traversals", "prior_samples"]),
        ("text", ["Partial collapse: 2 of 3."]),
        ("projector", ["Points: 29", "Dimension: 3"]),
    ],
)
def test_a_page_shows_the_run(address: str, browser: Any, tab: str, seen: list[str]) -> None:
    page = browser.new_page(viewport={"width": 1800, "height": 1100})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    refused: list[str] = []
    page.on("response", lambda answer: refused.append(answer.url) if answer.status > 399 else None)
    page.goto(f"{address}/#{tab}")
    shown = page
    if tab == "projector":  # a frame within the plugin's frame
        shown = page.frame_locator("iframe").frame_locator("iframe")
    for text in seen:
        found = shown.get_by_text(text, exact=False).first
        found.wait_for(state="visible", timeout=SECONDS * 1000)
    if tab == "images":
        picture = page.locator("img[src*=individualImage]").first
        picture.wait_for(state="visible", timeout=SECONDS * 1000)
        assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 300
    page.close()
    assert (errors, refused) == ([], [])
