"""What the tests of the page share."""

from __future__ import annotations

from pathlib import Path

import pytest
from page_run import page_run


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run with its page, classes and outliers; not to be changed."""
    return page_run(tmp_path_factory.mktemp("page"))
