"""Where packing ends with a message: bad stamps, bad settings, disks that cannot be written."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import numpy as np
import pytest
from array_reader import NAMES, SIZE, ArrayReader, contents, write_bad, write_stamps

from vae_astro.data.store import whole_file
from vae_astro.data.store.check import verify
from vae_astro.data.store.pack import open_or_pack
from vae_astro.data.store.store import StampStore
from vae_astro.errors import InputError


def test_on_bad_raise_ends_at_the_first_bad_stamp(root, pack):
    write_bad(root, "bad1", "bad2")
    with pytest.raises(InputError, match=r"not an array: bad1\.npy.*data\.on_bad=skip"):
        pack(on_bad="raise")
    assert len(pack(on_bad="skip")) == 5


def test_on_bad_raise_holds_for_a_store_that_was_packed_with_skip(root, pack):
    write_bad(root, "bad1")
    pack(on_bad="skip")
    with pytest.raises(InputError, match=r"not an array: bad1\.npy"):
        pack(on_bad="raise")


@pytest.mark.parametrize("spoil", ["all pixels bad", "other number of bands"])
def test_on_bad_raise_counts_what_the_store_itself_refuses(root, pack, spoil):
    shape = (1 if spoil == "all pixels bad" else 2, SIZE, SIZE)
    np.save(root / "b2.npy", np.full(shape, np.nan, np.float32))
    with pytest.raises(InputError, match=rf"{spoil}: b2\.npy"):
        pack(on_bad="raise")


def test_too_large_a_share_of_bad_stamps_ends_the_packing_with_the_reasons(root, pack, caplog):
    write_bad(root, *(f"bad{k}" for k in range(20)))
    with pytest.raises(InputError) as error:
        pack(max_bad_fraction=0.5)
    assert f"20 of 25 stamps below data.root={root} cannot be used" in str(error.value)
    assert "data.max_bad_fraction=0.5" in str(error.value)
    assert "20 x not an array" in str(error.value)
    assert "begins with 'x'" in str(error.value)
    assert len(pack(max_bad_fraction=0.9)) == 5


def test_a_rising_share_of_bad_stamps_ends_the_packing_before_all_is_read(
    root, pack, trace, n_read, lots_of_two
):
    for k in range(60):
        (root / f"bad{k:02}.npy").write_bytes(b"x" * 1152)
    with pytest.raises(InputError, match=r"data\.max_bad_fraction=0\.1"):
        pack(ArrayReader(names=("r",), trace=trace), size=SIZE, max_bad_fraction=0.1)
    assert n_read() < 30


def test_a_few_bad_stamps_among_few_are_no_share(root, pack):
    write_bad(root, *(f"bad{k}" for k in range(10)))
    assert len(pack(max_bad_fraction=0.0)) == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 8}, r"data\.size must be at least 16, got 8"),
        ({"stored_as": "int8"}, r"data\.stored_as must be one of float32, float16, got 'int8'"),
        ({"on_bad": "ignore"}, r"data\.on_bad must be one of skip, raise, got 'ignore'"),
        ({"max_bad_fraction": 2}, r"data\.max_bad_fraction must be at most 1, got 2"),
        ({"n_processes": 0}, r"pack\.n_processes must be at least 1, got 0"),
        ({"cluster": ""}, r"pack\.cluster must be text, got ''"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(pack, tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        pack(**settings)
    assert not (tmp_path / "stores").exists()


def test_saturation_has_one_value_or_one_for_each_band(root, pack):
    write_stamps(root, *NAMES, shape=(3, SIZE, SIZE))
    with pytest.raises(
        InputError, match=r"data\.normalize\.saturation has 2 values but the stamps have 3 bands"
    ):
        pack(ArrayReader(), saturation=(1.0, 2.0))
    assert (pack(ArrayReader(), saturation=(1e4, 0.0, 1e4)).good_fraction[:, 1] == 0).all()
    assert (pack(ArrayReader(), saturation=(1e4,)).good_fraction == 1).all()


# Disks


def refuse(function, code, only):
    """A function that fails for every path that has ``only`` in its name."""

    def failing(*args, **kwargs):
        if only in str(args[0] if args else ""):
            raise OSError(code, os.strerror(code))
        return function(*args, **kwargs)

    return failing


FAILURES = {
    "making the folder of stores": (Path, "mkdir", errno.EROFS, "stores"),
    "locking": (whole_file, "FileLock", errno.EROFS, ".lock"),
    "making the folder of shards": (Path, "mkdir", errno.EACCES, "shards"),
    "opening the pixels": (Path, "open", errno.EROFS, ".f32"),
    "opening the catalogue": (Path, "open", errno.ENOSPC, ".arrow"),
    "opening the record": (Path, "open", errno.ENOSPC, "-0000.json"),
    "syncing a file": (os, "fsync", errno.ENOSPC, ""),
    "opening the table of rejects": (Path, "open", errno.ENOSPC, "rejects.csv"),
    "opening the manifest": (Path, "open", errno.ENOSPC, ".manifest.json"),
    "renaming the pixels": (os, "replace", errno.EROFS, ".f32"),
    "renaming the manifest": (os, "replace", errno.EDQUOT, "manifest.json"),
}


@pytest.mark.parametrize(("owner", "name", "code", "only"), FAILURES.values(), ids=FAILURES)
def test_a_disk_that_fails_is_named_and_nothing_is_half_written_or_lost(
    owner, name, code, only, root, pack, tmp_path, monkeypatch
):
    stores = tmp_path / "stores"
    before = None
    if only != "stores":
        other = pack(ArrayReader("other", names=("r",)))
        before = contents(other.path)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, refuse(getattr(owner, name), code, only))
        with pytest.raises(InputError) as error:
            pack()
    assert "data.store_dir" in str(error.value)
    assert os.strerror(code) in str(error.value)
    assert str(stores) in str(error.value)
    assert not list(stores.rglob("shards/.*"))
    if before is not None:
        assert contents(other.path) == before
    store = pack()
    assert list(verify(store.path)) == []
    assert store.catalogue["id"].to_pylist() == NAMES


def test_an_update_that_fails_leaves_the_earlier_state_readable(root, pack, monkeypatch):
    path = pack(size=SIZE).path
    before = contents(path)
    write_stamps(root, "c1", "c2")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse(os.replace, errno.EDQUOT, "manifest.json"))
        with pytest.raises(InputError, match=r"data\.store_dir"):
            pack(size=SIZE)
    after = contents(path)
    assert {name: after[name] for name in before} == before
    assert len(StampStore.open(path)) == 5
    assert len(pack(size=SIZE)) == 7


def test_a_file_that_cannot_grow_is_named_and_leaves_nothing_half_written(pack, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file may grow beyond 3000 bytes: a real write fails, and 5 stamps are 5120.
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"File too large.*data\.store_dir"):
            pack()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(tmp_path / "stores") == {}
    assert list(verify(pack().path)) == []


def test_a_store_dir_that_is_a_file_is_named_and_stays_as_it_is(root, tmp_path):
    (tmp_path / "stores").write_text("notes")
    with pytest.raises(InputError, match=r"data\.store_dir"):
        open_or_pack(root, ArrayReader(), tmp_path / "stores", progress=False)
    assert (tmp_path / "stores").read_text() == "notes"


def test_a_reader_that_breaks_costs_no_finished_lot(pack, trace, n_read, lots_of_two):
    with pytest.raises(RuntimeError, match="the reader broke"):
        pack(ArrayReader(names=("r",), breaks_at="b2", trace=trace), size=SIZE)
    assert n_read() == 4
    store = pack(ArrayReader(names=("r",), trace=trace), size=SIZE)
    assert n_read() == 3  # a1 and a2 were packed
    assert list(verify(store.path)) == []


def test_finished_lots_of_another_form_are_not_taken_for_ours(root, pack, lots_of_two):
    """Stamps of 16 pixels were packed and the packer stopped; now most of the first are larger."""
    with pytest.raises(RuntimeError, match="the reader broke"):
        pack(ArrayReader(names=("r",), breaks_at="b3"))
    write_stamps(root, *(f"0{k}" for k in range(40)), shape=(1, 20, 20))
    store = pack(ArrayReader(names=("r",)))
    assert store.stamp_shape == (1, 20, 20)
    assert list(verify(store.path)) == []
    assert len(store.gather(np.arange(45))) == 45
