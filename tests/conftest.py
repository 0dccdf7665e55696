"""What all tests share: where the real data lies, and all stamps that a reader finds."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from vae_astro.data.sources.reader import StampReader
from vae_astro.data.sources.root import open_root
from vae_astro.data.stamp import Reject, Stamp, StampBlock

REAL_DATA = Path(
    os.environ.get("VAE_ASTRO_REAL_DATA", Path(__file__).parents[2] / "shared" / "data")
)

# a shell that starts the tests in the background has them ignore Ctrl-C, and all that they start
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real alerts and images, or a skip that says what is missing."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"no real data at {REAL_DATA}; set VAE_ASTRO_REAL_DATA to its folder")
    return REAL_DATA


ReadAll = Callable[..., list[Stamp | Reject]]


def singly(items: Iterator[Stamp | StampBlock | Reject]) -> Iterator[Stamp | Reject]:
    """Blocks taken apart, so that a test need not know whether a reader made them."""
    for item in items:
        if not isinstance(item, StampBlock):
            yield item
            continue
        for k in range(len(item)):
            yield Stamp(
                pixels=np.array(item.pixels[k]),
                id=item.id[k],
                object_id=item.object_id[k],
                source=item.source[k],
                ra=float(item.ra[k]),
                dec=float(item.dec[k]),
                label=item.label[k],
                seeing=float(item.seeing[k]),
                noise=None if item.noise is None else np.array(item.noise[k]),
            )


@pytest.fixture(scope="session")
def read_all() -> ReadAll:
    """``read_all(reader, root)``: everything the reader makes of what it finds below a root."""

    def read_all(
        reader: StampReader, root: Path | str, allow_outside: bool = False
    ) -> list[Stamp | Reject]:
        place = open_root(str(root), allow_outside)
        return list(singly(reader.read(reader.find(place), place)))

    return read_all
