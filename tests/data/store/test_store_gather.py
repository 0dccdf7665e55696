"""Rows of many shards: gathered in any order, pointed at, read ahead."""

from __future__ import annotations

import ctypes
import os
import pickle

import numpy as np
import pytest
from array_reader import SIZE, ArrayReader, draw, write_stamps

from vae_astro.data.store import shard as shard_module
from vae_astro.data.store import store as store_module
from vae_astro.data.store.pack import open_or_pack
from vae_astro.data.store.store import StampStore

NAMES = [f"{letter}{k}" for letter in "abc" for k in range(9)]
STAMP_BYTES = 2 * SIZE**2 * 4


@pytest.fixture
def store(tmp_path, monkeypatch) -> StampStore:
    """27 stamps of two bands in shards of four and less; lots end at 12, 24 and 27."""
    from vae_astro.data.store import plan

    monkeypatch.setattr(plan, "SMALLEST_LOT", 12 * 2200)
    monkeypatch.setattr(shard_module, "SHARD_BYTES", 4 * STAMP_BYTES + 100)
    root = write_stamps(tmp_path / "sky", *NAMES, shape=(2, SIZE, SIZE))
    return open_or_pack(root, ArrayReader(), tmp_path / "stores", progress=False)


@pytest.fixture
def expected() -> np.ndarray:
    return np.stack([draw(name, (2, SIZE, SIZE)) for name in NAMES])


def test_no_shard_is_larger_than_it_may_be_and_all_stamps_are_in_one(store):
    assert [shard.n_stamps for shard in store.manifest.shards] == [4, 4, 4, 4, 4, 4, 3]
    for file in store.path.glob("shards/*.f32"):
        assert file.stat().st_size <= 4 * STAMP_BYTES
    np.testing.assert_array_equal(store.first_rows, [0, 4, 8, 12, 16, 20, 24, 27])
    assert store.catalogue["id"].to_pylist() == NAMES


@pytest.mark.parametrize(
    "rows",
    [
        np.arange(27),
        np.arange(27)[::-1],
        np.random.default_rng(0).permutation(27),
        np.array([5, 5, 26, 0, 5]),
        np.array([17, 18]),
        np.array([], np.int64),
    ],
    ids=["in order", "backwards", "shuffled", "repeated", "one shard", "none"],
)
def test_gathered_rows_are_the_pixels_in_the_order_asked_for(store, expected, rows):
    np.testing.assert_array_equal(store.gather(rows), expected[rows])


@pytest.mark.parametrize("shape", [(2, 1, SIZE, SIZE), (3, SIZE, SIZE)])
def test_memory_of_another_shape_is_refused_before_anything_is_written(store, shape):
    with pytest.raises(ValueError, match="out must be a contiguous array of float32"):
        store.gather(np.arange(3), out=np.zeros(shape, np.float32))


def test_a_shard_that_is_deleted_while_it_is_mapped_is_read_all_the_same(store, expected):
    for file in (store.path / "shards").glob("*.f32"):
        file.unlink()
    store.will_need(0, len(store))
    np.testing.assert_array_equal(store.gather(np.arange(len(store))), expected)


@pytest.mark.parametrize("row", [-1, 27, 2**40])
def test_a_row_that_is_not_in_the_store_is_an_error(store, row):
    with pytest.raises(IndexError, match="of a store of 27"):
        store.gather(np.array([3, row]))


def test_addresses_point_at_the_pixels(store, expected):
    rows = np.random.default_rng(1).permutation(27)
    for row, address in zip(rows.tolist(), store.addresses(rows).tolist(), strict=True):
        raw = ctypes.string_at(address, STAMP_BYTES)
        np.testing.assert_array_equal(np.frombuffer(raw, np.float32), expected[row].ravel())


def test_pixels_of_an_open_store_cannot_be_changed(store):
    assert not any(shard.flags.writeable for shard in store._maps)


@pytest.mark.parametrize("first", [-5, 0, 3, 4, 26, 27, 40])
@pytest.mark.parametrize("length", [-1, 0, 1, 4, 5, 27, 100])
def test_reading_ahead_asks_for_the_bytes_of_the_rows(store, monkeypatch, first, length):
    asked = []
    monkeypatch.setattr(
        store_module.os,
        "posix_fadvise",
        lambda descriptor, begin, n_bytes, advice: asked.append(
            (os.readlink(f"/proc/self/fd/{descriptor}"), begin, n_bytes)
        ),
    )
    store.will_need(first, first + length)
    wanted = [row for row in range(first, first + length) if 0 <= row < 27]
    assert sum(n_bytes for _, _, n_bytes in asked) == len(wanted) * STAMP_BYTES
    for path, begin, n_bytes in asked:
        assert 0 <= begin < begin + n_bytes <= os.stat(path).st_size
    monkeypatch.undo()
    store.will_need(first, first + length)


def test_an_open_store_keeps_no_file_open(store, expected):
    before = len(os.listdir("/proc/self/fd"))
    stores = [pickle.loads(pickle.dumps(store)) for _ in range(20)]
    for each in stores:
        assert len(each.catalogue) == 27
    assert len(os.listdir("/proc/self/fd")) == before
    np.testing.assert_array_equal(stores[-1].gather(np.arange(27)), expected)


def test_a_lot_without_a_stamp_is_no_hole_in_the_rows(tmp_path, monkeypatch):
    from vae_astro.data.store import plan

    monkeypatch.setattr(plan, "SMALLEST_LOT", 2400)
    names = ["a1", "a2", "c1", "c2"]
    root = write_stamps(tmp_path / "sky", *names)
    for name in ("bad1", "bad2"):  # between them
        (root / f"{name}.npy").write_bytes(b"x" * 1152)
    store = open_or_pack(root, ArrayReader(), tmp_path / "stores", progress=False)
    assert [shard.n_stamps for shard in store.manifest.shards] == [2, 0, 2]
    assert store.catalogue["id"].to_pylist() == names
    np.testing.assert_array_equal(
        store.gather(np.array([3, 1])), np.stack([draw("c2"), draw("a2")])
    )


@pytest.mark.parametrize(("first", "last"), [(0, 27), (3, 9), (5, 5), (26, 27), (9, 13)])
def test_rows_that_were_let_go_are_there_when_asked_for(store, expected, first, last):
    rows = np.arange(27)
    store.gather(rows)
    store.let_go(first, last)
    np.testing.assert_array_equal(store.gather(rows), expected)


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="Linux shows what is mapped")
def test_rows_that_were_let_go_are_no_longer_memory_of_the_process(tmp_path):
    root = write_stamps(tmp_path / "sky", *NAMES, shape=(2, 64, 64))
    store = open_or_pack(root, ArrayReader(), tmp_path / "stores", progress=False)
    store.gather(np.arange(27))
    whole = resident_kb(store)
    assert whole >= store.n_bytes >> 10
    for first in range(0, 27, 3):  # what lies between the pages of two batches goes with the second
        store.let_go(first, first + 3)
    assert resident_kb(store) <= 4


def resident_kb(store: StampStore) -> int:
    """Memory of this process that maps the pixels of a store."""
    found, ours = 0, False
    with open("/proc/self/smaps") as file:
        for line in file:
            if "-" in line.split()[0]:
                ours = str(store.path) in line and ".f32" in line
            elif ours and line.startswith("Rss:"):
                found += int(line.split()[1])
    return found


def test_identity_is_the_catalogue_of_some_rows_over_all_shards(store):
    rows = np.array([0, 3, 4, 11, 12, 25, 26])
    table = store.identity(rows)
    assert table["id"].to_pylist() == [NAMES[row] for row in rows]
    assert table.column_names == store.catalogue.column_names
    level = store.catalogue["sky_level_band0"].to_numpy()
    np.testing.assert_array_equal(table["sky_level_band0"].to_numpy(), level[rows])
    with pytest.raises(IndexError):
        store.identity(np.array([27]))
