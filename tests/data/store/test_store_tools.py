"""Mending, clearing and describing stores."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from array_reader import NAMES, SIZE, ArrayReader, contents, draw, write_bad, write_stamps

from vae_astro.data.sources.root import open_root
from vae_astro.data.store.check import verify
from vae_astro.data.store.layout import Manifest
from vae_astro.data.store.pack import Packer
from vae_astro.data.store.tools import describe_store, find_stores, remove_unused
from vae_astro.errors import InputError


@pytest.fixture
def packer(tmp_path, trace, lots_of_two):
    reader = ArrayReader(names=("r",), trace=trace)
    return Packer(reader, tmp_path / "stores", size=SIZE, progress=False)


@pytest.fixture
def place(root):
    return open_root(str(root))


def flip(file):
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)


def expect(store, names):
    assert store.catalogue["id"].to_pylist() == names
    np.testing.assert_array_equal(
        store.gather(np.arange(len(store))), np.stack([draw(name) for name in names])
    )
    assert list(verify(store.path)) == []


def shard_file(store, k, suffix):
    return store.path / "shards" / f"{store.manifest.shards[k].name}{suffix}"


@pytest.mark.parametrize("suffix", [".f32", ".arrow", ".json"])
@pytest.mark.parametrize("k", [0, 1, 2])
@pytest.mark.parametrize("how", [flip, os.remove], ids=["flipped", "lost"])
def test_a_repair_packs_the_damaged_lot_again_and_keeps_the_rows(
    packer, place, n_read, suffix, k, how
):
    store = packer.open(place)
    n_read()
    how(shard_file(store, k, suffix))
    repaired = packer.repair(place)
    expect(repaired, NAMES)
    assert n_read() == store.manifest.shards[k].n_stamps
    assert repaired.manifest.shards[k].name == store.manifest.shards[k].lot + "r-0000"
    assert remove_unused(store.path)[0] == (2 if how is os.remove else 3)
    expect(packer.open(place), NAMES)
    assert n_read() == 0


def test_a_repair_of_a_repair_works_as_well(packer, place):
    for _ in range(3):
        flip(shard_file(packer.open(place), 1, ".f32"))
        expect(packer.repair(place), NAMES)


def test_a_repair_of_what_is_whole_reads_nothing(packer, place, n_read):
    before = contents(packer.open(place).path)
    n_read()
    assert contents(packer.repair(place).path) == before
    assert n_read() == 0


@pytest.mark.parametrize("how", [flip, os.remove], ids=["flipped", "lost"])
def test_a_manifest_is_made_anew_from_the_shards(packer, place, root, n_read, how):
    packer.open(place)
    write_stamps(root, "a1x", "c1")  # a second night, which sorts between the others
    store = packer.open(place)
    before = contents(store.path)
    n_read()
    how(store.path / "manifest.json")
    repaired = packer.repair(place)
    assert n_read() == 0
    assert sorted(repaired.catalogue["id"].to_pylist()) == sorted([*NAMES, "a1x", "c1"])
    assert list(verify(repaired.path)) == []
    after = contents(store.path)
    assert {name for name in after if after[name] != before[name]} <= {"manifest.json"}


def test_a_manifest_is_made_anew_without_the_lots_of_earlier_states(packer, place, root, n_read):
    packer.open(place)
    np.save(root / "b1.npy", draw("b1 again"))
    store = packer.open(place)
    n_read()
    (store.path / "manifest.json").unlink()
    repaired = packer.repair(place)
    assert n_read() == 0
    assert repaired.catalogue["id"].to_pylist() == NAMES
    np.testing.assert_array_equal(repaired.gather(np.array([2])), draw("b1 again")[None])


def test_damaged_shards_and_a_lost_manifest_are_mended_together(packer, place, n_read):
    store = packer.open(place)
    n_read()
    flip(shard_file(store, 1, ".f32"))
    flip(store.path / "manifest.json")
    repaired = packer.repair(place)
    assert sorted(repaired.catalogue["id"].to_pylist()) == NAMES
    assert list(verify(repaired.path)) == []
    assert n_read() == 2


def test_a_store_that_lost_its_manifest_and_its_form_is_packed_anew(packer, place, n_read):
    store = packer.open(place)
    for file in store.path.rglob("*.json"):
        file.unlink()
    n_read()
    expect(packer.repair(place), NAMES)
    assert n_read() == 5


@pytest.mark.parametrize("suffix", [".f32", ".json"])
def test_what_cannot_be_read_again_is_not_forgotten(packer, place, root, suffix):
    store = packer.open(place)
    flip(shard_file(store, 1, suffix))
    before = contents(store.path)
    (root / "b1.npy").rename(root / "b1.away")
    with pytest.raises(InputError) as error:
        packer.repair(place)
    assert f"{store.path} is damaged and cannot be repaired" in str(error.value)
    assert f"data.root={root}" in str(error.value)
    assert "Nothing was changed" in str(error.value)
    assert contents(store.path) == before
    (root / "b1.away").rename(root / "b1.npy")
    expect(packer.repair(place), NAMES)


def test_a_repair_without_any_file_changes_nothing(packer, place, root):
    store = packer.open(place)
    flip(shard_file(store, 1, ".f32"))
    before = contents(store.path)
    shutil.rmtree(root)
    with pytest.raises(InputError, match="does not exist"):
        packer.repair(place)
    assert contents(store.path) == before


def test_a_file_that_changed_while_it_was_read_is_tried_again(packer, place, root, n_read):
    listed = packer.reader.find(place)
    np.save(root / "b2.npy", draw("b2 now"))  # after the listing
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ArrayReader, "find", lambda self, root: listed)
        store = packer.open(place)
        assert store.catalogue["id"].to_pylist() == ["a1", "a2", "b1", "b3"]
        assert ",changed," in store.rejects.read_text()
    # a listing that agrees with what was tried would not look again; a repair does
    os.replace(root / "b2.npy", root / "b2.away")
    np.save(root / "b2.npy", draw("b2"))
    version = int(listed[3].files[0].version)
    os.utime(root / "b2.npy", ns=(version, version))
    n_read()
    assert len(packer.open(place)) == 4
    assert n_read() == 0
    expect(packer.repair(place), NAMES)
    assert n_read() == 2
    assert packer.open(place).n_rejected == 0


def test_a_damaged_table_of_rejects_is_written_again(packer, place, root):
    write_bad(root, "bad")
    store = packer.open(place)
    before = store.rejects.read_bytes()
    store.rejects.write_text("")
    assert [each.file for each in verify(store.path)] == ["rejects.csv"]
    packer.repair(place)
    assert store.rejects.read_bytes() == before


def test_clearing_deletes_what_nothing_refers_to_and_only_that(packer, place, root):
    store = packer.open(place)
    kept = contents(store.path)
    shards = store.path / "shards"
    name = store.manifest.shards[0].name
    (shards / f".{name}.f32.0123456789ab").write_bytes(b"part")
    (store.path / ".manifest.json.0123456789ab").write_bytes(b"part")
    (shards / ("0" * 20 + "-0000.f32")).write_bytes(b"of an earlier state")
    (store.path / "catalogue.parquet").write_bytes(b"mine")
    (shards / "notes.txt").write_bytes(b"mine")
    assert remove_unused(store.path) == (3, 4 + 4 + len("of an earlier state"))
    mine = {"catalogue.parquet": b"mine", "shards/notes.txt": b"mine"}
    assert contents(store.path) == kept | mine
    assert remove_unused(store.path) == (0, 0)


def test_the_next_packer_sweeps_the_parts_that_a_killed_one_left(packer, place, root):
    store = packer.open(place)
    part = store.path / "shards" / ".x-0000.f32.0123456789ab"
    part.write_bytes(b"part")
    write_stamps(root, "c1")
    packer.open(place)
    assert not part.exists()


def test_a_store_is_described_in_plain_words(packer, place, root):
    write_bad(root, "bad")
    found = describe_store(packer.open(place).path)
    assert found["stamps"] == 5
    assert found["shape"] == "1x16x16"
    assert found["bands"] == "r"
    assert found["stored as"] == "float32"
    assert found["objects"] == 2
    assert found["labels"] == "é 2"
    assert found["unlabelled"] == 3
    assert found["rejects"] == "1 x not an array"
    assert found["root"] == str(root)
    assert 98 < float(found["sky level, median by band"]) < 102
    assert found["files that nothing refers to"] == 0


def test_a_damaged_store_is_refused_in_words(packer, place, root):
    write_bad(root, "bad")
    store = packer.open(place)
    flip(shard_file(store, 2, ".json"))
    with pytest.raises(InputError, match=r"damaged stamp store.*\.json.*action=repair"):
        describe_store(store.path)


def test_stores_are_found_by_themselves_and_in_their_folder(packer, place, tmp_path, monkeypatch):
    path = packer.open(place).path
    assert find_stores(path) == find_stores(tmp_path / "stores") == [path]
    monkeypatch.chdir(path)
    assert find_stores(path.__class__(".")) == [path]
    with pytest.raises(InputError, match="is no stamp store and holds none"):
        find_stores(tmp_path)


def test_a_store_without_a_manifest_is_found_and_called_damaged(packer, place, tmp_path):
    path = packer.open(place).path
    (path / "manifest.json").unlink()
    assert find_stores(tmp_path / "stores") == [path]
    assert [each.file for each in verify(path)] == ["manifest.json"]
    with pytest.raises(InputError):
        Manifest.read(path)
