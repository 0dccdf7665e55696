"""What the tests of the data share: all stamps that a reader finds below a root."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from vae_astro.data.sources.reader import StampReader
from vae_astro.data.sources.root import open_root
from vae_astro.data.stamp import Reject, Stamp, StampBlock

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
