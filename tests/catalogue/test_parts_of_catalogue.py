"""Parts of a catalogue: what is written, in which order, and what is left when it fails."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from vae_astro.catalogue import IDENTITY, LATENT, PROVENANCE, schema_of, spool
from vae_astro.catalogue.parts import Part
from vae_astro.catalogue.spool import part_path
from vae_astro.errors import InputError

Z = 3
SCHEMA = schema_of((*IDENTITY, *LATENT), Z, {"checkpoint": "runs/a", "data": {"root": "é"}})


def identity(rows: np.ndarray) -> pa.Table:
    """Names made of the row alone."""
    names = [f"s{row}" for row in rows]
    label = [None if row % 2 else "star" for row in rows]
    return pa.table({"id": names, "object_id": names, "source": names, "label": label,
                     "ra": rows / 10, "dec": np.full(len(rows), np.nan)})  # fmt: skip


def batch(first: int, last: int) -> dict[str, Tensor]:
    """What ``predict_step`` returns, made of the row alone."""
    index = torch.arange(first, last)
    mean = index[:, None] + torch.arange(Z) / 10
    return {"index": index, "latent_mean": mean, "latent_std": mean + 1, "kl_nats": mean.sum(1)}


NewPart = Callable[..., Part]


@pytest.fixture
def new_part(tmp_path: Path) -> Iterator[NewPart]:
    made = []

    def new_part(rank: int = 0) -> Part:
        made.append(Part(part_path(tmp_path / "a.parquet", rank), SCHEMA, identity))
        return made[-1]

    yield new_part
    for part in made:
        part.discard()


def test_rows_come_back_with_names_units_and_provenance(new_part: NewPart) -> None:
    part = new_part()
    for first in range(0, 10, 4):
        part.add(batch(first, min(first + 4, 10)))
    part.finish()
    part.close()
    table = pq.read_table(part.path)
    assert table["index"].to_pylist() == list(range(10))
    assert table["id"].to_pylist() == [f"s{k}" for k in range(10)]
    assert table["label"].to_pylist() == ["star", None] * 5
    assert table["ra"].to_pylist() == pytest.approx(np.arange(10) / 10)
    assert table["latent_mean"].type == pa.list_(pa.float32(), Z)
    assert table["latent_mean"][7].as_py() == pytest.approx([7, 7.1, 7.2])
    assert table["latent_std"][7].as_py() == pytest.approx([8, 8.1, 8.2])
    assert table["kl_nats"][1].as_py() == pytest.approx(3.3)
    assert table.schema.field("ra").metadata[b"unit"] == b"deg"
    assert all(field.metadata[b"description"] for field in table.schema)
    assert json.loads(table.schema.metadata[PROVENANCE])["data"] == {"root": "é"}


def test_row_groups_are_bounded(new_part: NewPart, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "MOST_ROWS_IN_GROUP", 8)
    part = new_part()
    for first in range(0, 60, 4):
        part.add(batch(first, first + 4))
    part.finish()
    part.close()
    groups = pq.ParquetFile(part.path).metadata
    sizes = [groups.row_group(k).num_rows for k in range(groups.num_row_groups)]
    assert sum(sizes) == part.n_rows == 60
    assert max(sizes) == 8


def test_long_codes_have_smaller_row_groups(tmp_path: Path) -> None:
    schema = schema_of((*IDENTITY, *LATENT), 4096, {})
    part = Part(tmp_path / "b.parquet", schema, identity)
    assert part._group_rows * 4096 * 8 <= spool.ROW_GROUP_BYTES
    part.discard()


@pytest.mark.parametrize(("first", "last"), [(3, 6), (0, 2)], ids=["repeated", "out of order"])
def test_rows_that_repeat_or_go_back_are_never_written(
    new_part: NewPart, first: int, last: int
) -> None:
    part = new_part()
    part.add(batch(0, 4))
    part.add(batch(first, last))
    with pytest.raises(RuntimeError, match="repeat or are out of order"):
        part.finish()


def test_parts_are_joined_in_their_order(new_part: NewPart) -> None:
    parts = [new_part(rank) for rank in range(3)]
    for rank, part in enumerate(parts):
        part.add(batch(10 * rank, 10 * rank + 7))
        part.finish()
    for part in parts[1:]:
        part.close()
        parts[0].append(part.path)
    parts[0].close()
    index = [10 * rank + k for rank in range(3) for k in range(7)]
    assert pq.read_table(parts[0].path)["index"].to_pylist() == index
    assert parts[0].n_rows == 21


def test_a_part_that_overlaps_or_is_missing_is_refused(new_part: NewPart, tmp_path: Path) -> None:
    whole, other = new_part(0), new_part(1)
    whole.add(batch(0, 7))
    whole.finish()
    other.add(batch(6, 9))
    other.finish()
    other.close()
    with pytest.raises(RuntimeError, match="repeat"):
        whole.append(other.path)
    with pytest.raises(InputError, match=r"part-2\.parquet"):
        whole.append(part_path(tmp_path / "a.parquet", 2))
    other.path.write_bytes(b"PAR1 is how it begins")
    with pytest.raises(InputError, match=r"part-1\.parquet"):
        whole.append(other.path)


@pytest.fixture
def little_space() -> Iterator[None]:
    """Files cannot grow beyond 40 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("n_rows", [4000, 20_000], ids=["in the last row group", "before"])
@pytest.mark.usefixtures("little_space")
def test_a_full_disk_is_one_clear_error_and_leaves_nothing(
    n_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "MOST_ROWS_IN_GROUP", 5000)

    def write() -> None:
        part = Part(tmp_path / "a.parquet", SCHEMA, identity)
        try:
            for first in range(0, n_rows, 200):
                part.add(batch(first, first + 200))
            part.finish()
            part.close()
        finally:
            part.discard()

    with pytest.raises(InputError, match=r"cannot write .*File too large.*out="):
        write()
    assert list(tmp_path.iterdir()) == []


def test_two_commands_do_not_write_one_file(new_part: NewPart) -> None:
    first = new_part()
    with pytest.raises(InputError, match="another command is writing"):
        new_part()
    first.discard()
    new_part()


def test_what_a_killed_command_left_is_replaced(new_part: NewPart, tmp_path: Path) -> None:
    part_path(tmp_path / "a.parquet", 0).write_bytes(b"half a row group" * 1000)
    part = new_part()
    part.add(batch(0, 4))
    part.finish()
    part.close()
    assert len(pq.read_table(part.path)) == 4
