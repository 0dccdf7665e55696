"""What the tests of the store share: a folder of stamps, and packing them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from array_reader import NAMES, ArrayReader, write_stamps

from vae_astro.data.store import plan
from vae_astro.data.store.pack import open_or_pack
from vae_astro.data.store.store import StampStore


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_stamps(tmp_path / "sky", *NAMES)


@pytest.fixture
def pack(root: Path, tmp_path: Path) -> Callable[..., StampStore]:
    """Open or pack the stamps below ``root``."""

    def pack(reader: Any = None, **settings: Any) -> StampStore:
        reader = ArrayReader(names=("r",)) if reader is None else reader
        return open_or_pack(root, reader, tmp_path / "stores", progress=False, **settings)

    return pack


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "trace"


@pytest.fixture
def n_read(trace: Path) -> Callable[[], int]:
    """How many files the readers have read since the last call."""

    def n_read() -> int:
        n = len(trace.read_text().splitlines()) if trace.exists() else 0
        trace.unlink(missing_ok=True)
        return n

    return n_read


@pytest.fixture
def lots_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stamps of 16 x 16 pixels are packed two by two."""
    monkeypatch.setattr(plan, "SMALLEST_LOT", 2400)
