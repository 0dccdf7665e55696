"""How long a catalogue of a million rows takes to write, and the memory that takes.

python scripts/benchmark_catalogue.py [out=FILE.json] [size=small]

Every column of `vae_astro.catalogue` is written, in a process of its own for each format. The
numbers are random, which compression has least use for; making them counts.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from omegaconf import DictConfig

from vae_astro.command import endings
from vae_astro.command.help import register_help

if TYPE_CHECKING:
    import pyarrow as pa

CONF = Path(__file__).parents[1] / "conf"
register_help(CONF)

N_ROWS = {"full": 1_000_000, "small": 20_000}
BLOCK = 10_000
"""Rows that are made at a time."""
SECONDS, MEMORY_MB = 60, 512
"""What a million rows may take at most."""


def blocks(schema: pa.Schema, n_rows: int) -> Iterator[pa.Table]:
    """Rows of a catalogue of these columns."""
    import numpy as np
    import pyarrow as pa

    rng = np.random.default_rng(0)
    for first in range(0, n_rows, BLOCK):
        index = np.arange(first, first + BLOCK)
        columns = []
        for field in schema:
            kind = field.type
            if pa.types.is_fixed_size_list(kind):
                flat = pa.array(rng.random(BLOCK * kind.list_size, np.float32))
                columns.append(pa.FixedSizeListArray.from_arrays(flat, type=kind))
            elif pa.types.is_string(kind):
                n_texts = 8 if field.name in ("label", "class") else n_rows
                texts = [f"{field.name}-{k % n_texts:07d}" for k in index]
                columns.append(pa.array(texts))
            elif pa.types.is_boolean(kind):
                columns.append(pa.array(index % 9 == 0))
            elif pa.types.is_integer(kind):
                columns.append(pa.array(index))
            else:
                columns.append(pa.array(rng.random(BLOCK)).cast(kind))
        yield pa.Table.from_arrays(columns, schema=schema)


def peak_mb() -> float:
    """Most memory that this process has had in RAM."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def measure(out: str, n_rows: int, latent_dim: int, n_classes: int) -> tuple[float, float, float]:
    """Seconds, MB of memory beyond that of the imports, and MB of the file of one catalogue."""
    from vae_astro.catalogue import (
        CLASSES,
        IDENTITY,
        LATENT,
        OUTLIERS,
        QUALITY,
        SCORES,
        schema_of,
        write_catalogue,
    )

    columns = (*IDENTITY, *LATENT, *SCORES, *CLASSES, *OUTLIERS, *QUALITY)
    schema = schema_of(columns, latent_dim, {}, n_classes)
    before, began = peak_mb(), time.perf_counter()
    write_catalogue(Path(out), schema, blocks(schema, n_rows))
    seconds = time.perf_counter() - began
    return seconds, peak_mb() - before, Path(out).stat().st_size / 1e6


@hydra.main(config_path="../conf", config_name="benchmark_catalogue", version_base="1.3")
@endings.past_hydra
def main(cfg: DictConfig) -> None:
    """Measure both formats, print the table, write it."""
    from benchmarks.table import Row, table, write_json

    from vae_astro.settings import check_choice

    n_rows = N_ROWS[check_choice("size", cfg.size, tuple(N_ROWS))]
    rows = []
    with tempfile.TemporaryDirectory(dir=cfg.scratch) as folder:
        for name, suffix in (("Parquet", "parquet"), ("FITS", "fits")):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                job = (f"{folder}/a.{suffix}", n_rows, cfg.latent_dim, cfg.n_classes)
                seconds, memory, size = pool.apply(measure, job)
            note = f"{cfg.latent_dim} units, {cfg.n_classes} classes; a file of {size:.0f} MB"
            work = f"catalogue of {n_rows:,} rows, {name}"
            rows.append(Row(work, seconds, 0.0, "s", SECONDS, None, "", note))
            rows.append(Row(f"{work}: memory", memory, 0.0, "MB", MEMORY_MB, None, "", note))
    print(table(rows, "figure"))
    if cfg.out:
        write_json(Path(cfg.out), rows)


if __name__ == "__main__":
    endings.run(main, "benchmark_catalogue", CONF)
