"""The reader of these tests, in a module of its own: other processes import it by name."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np

from vae_astro.data.sources.files import RefusedError, as_reject
from vae_astro.data.sources.reader import Source
from vae_astro.data.sources.root import Root
from vae_astro.data.stamp import Reject, Stamp, StampBlock

NAMES = ["a1", "a2", "b1", "b2", "b3"]
SIZE = 16
FILL = np.finfo(np.float32).min


@dataclass(frozen=True)
class ArrayReader:
    """One stamp (C, H, W) of each ``.npy`` file, or (2C, H, W) with its noise.

    A file named ``bad*`` becomes a reject. Only what is in the repr is part of the store's key.
    """

    setting: str = ""
    has_noise: bool = False
    names: tuple[str, ...] | None = field(default=None, repr=False)
    block: int = field(default=0, repr=False)
    trace: Path | None = field(default=None, repr=False)
    seconds_per_file: float = field(default=0.0, repr=False)
    breaks_at: str = field(default="", repr=False)
    kills_itself_at: str = field(default="", repr=False)

    @property
    def band_names(self) -> tuple[str, ...] | None:
        return self.names

    def find(self, root: Root) -> list[Source]:
        return [Source((file,), None, file.n_bytes) for file in root.find((".npy",), (), "")]

    def read(self, sources: Sequence[Source], root: Root) -> Iterator[Stamp | StampBlock | Reject]:
        stamps: list[Stamp] = []
        for source in sources:
            item = self._read_one(source, root)
            if self.block and isinstance(item, Stamp):
                stamps.append(item)
                if len(stamps) == self.block:
                    yield as_block(stamps)
                    stamps = []
            else:
                yield item
        if stamps:
            yield as_block(stamps)

    def _read_one(self, source: Source, root: Root) -> Stamp | Reject:
        name = source.name
        stem = name.rpartition("/")[2].removesuffix(".npy")
        if self.trace:
            with self.trace.open("a") as file:
                file.write(f"{name}\n")
        time.sleep(self.seconds_per_file)
        if stem == self.breaks_at:
            raise RuntimeError("the reader broke")
        if stem == self.kills_itself_at:
            os.kill(os.getpid(), 9)
        if stem.startswith("bad"):
            return Reject(name, "not an array", f"{name}: begins with 'x'")
        try:
            planes = np.load(BytesIO(root.read(source.files[0], 1 << 26)))
        except (OSError, ValueError, RefusedError) as error:
            return as_reject(name, error)
        pixels, noise = np.split(planes, 2) if self.has_noise else (planes, None)
        return Stamp(
            pixels,
            id=stem,
            object_id=stem[:1],
            source=name,
            ra=float(len(stem)),
            seeing=2.5 if stem == "a2" else float("nan"),
            label="é" if stem.startswith("a") else "",
            noise=noise,
        )


def as_block(stamps: list[Stamp]) -> StampBlock:
    return StampBlock(
        np.stack([stamp.pixels for stamp in stamps]),
        [stamp.id for stamp in stamps],
        [stamp.object_id for stamp in stamps],
        [stamp.source for stamp in stamps],
        [stamp.label for stamp in stamps],
        np.array([stamp.ra for stamp in stamps]),
        np.array([stamp.dec for stamp in stamps]),
        np.array([stamp.seeing for stamp in stamps]),
        np.stack([s.noise for s in stamps if s.noise is not None])
        if stamps[0].noise is not None
        else None,
    )


def draw(name: str, shape: tuple[int, ...] = (1, SIZE, SIZE)) -> np.ndarray:
    """Pixels that depend on the name alone."""
    seed = int.from_bytes(name.encode(), "big") % 2**32
    return np.random.default_rng(seed).normal(100, 5, shape).astype(np.float32)


def write_stamps(root: Path, *names: str, shape: tuple[int, ...] = (1, SIZE, SIZE)) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(root / f"{name}.npy", draw(name, shape))
    return root


def write_bad(root: Path, *names: str) -> None:
    for name in names:
        (root / f"{name}.npy").write_text("x")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, but for the lock of a store."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


def assert_same_pixels(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal bit for bit, so that -0 is not 0; any NaN is like any other."""
    assert found.dtype == expected.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    good = ~np.isnan(expected)
    np.testing.assert_array_equal(
        np.asarray(found)[good].view(np.uint32), expected[good].view(np.uint32)
    )
