"""Files are found in order, unsafe ones are refused, and a refusal says what was found."""

import bz2
import gzip
import os
import zlib

import pytest

from vae_astro.data.sources.files import (
    RefusedError,
    as_reject,
    check_file,
    find_files,
    source_name,
    unpack,
)
from vae_astro.errors import InputError


def find(root):
    return find_files(root, (".fits", ".fits.gz"), (".avro",), "use data=alerts")


def test_files_are_found_at_any_depth_in_order_and_hidden_ones_are_skipped(tmp_path):
    wanted = ["B.FITS", "a.fits", "sub/d.fits.gz", "sub/deep/c.fits"]
    for name in [*wanted, "notes.txt", ".hidden.fits", ".cache/x.fits", "sub/._e.fits"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert find(tmp_path) == sorted(tmp_path / name for name in wanted)
    assert find(tmp_path / "a.fits") == [tmp_path / "a.fits"]


def test_a_folder_behind_a_link_is_not_entered(tmp_path):
    (tmp_path / "a.fits").touch()
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert find(tmp_path) == [tmp_path / "a.fits"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], ["holds no files; expected some ending in .fits"]),
        (["notes.txt", "zoo.png"], ["holds 2 files", "none ending in .fits", "notes.txt"]),
        (["a.txt", "b.AVRO"], ["holds 2 files", "use data=alerts"]),
    ],
)
def test_a_folder_without_wanted_files_is_an_error_that_says_what_it_holds(tmp_path, names, words):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(InputError) as error:
        find(tmp_path)
    for word in [f"data.root={tmp_path}", *words]:
        assert word in str(error.value)
    assert ("data=alerts" in str(error.value)) == ("b.AVRO" in names)


def test_a_missing_root_is_an_error_that_names_it(tmp_path):
    with pytest.raises(InputError, match=r"data\.root=.*nowhere does not exist"):
        find(tmp_path / "nowhere")


def test_a_source_is_relative_to_its_root(tmp_path):
    assert source_name(tmp_path / "sub" / "a.fits", tmp_path) == "sub/a.fits"
    assert source_name(tmp_path / "a.fits", tmp_path / "a.fits") == "a.fits"


def test_only_a_regular_file_below_the_root_is_safe(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.fits").write_bytes(b"1234567")
    assert check_file(root / "a.fits", root) == 7
    (root / "b.fits").symlink_to("a.fits")
    assert check_file(root / "b.fits", root) == 7
    (tmp_path / "c.fits").write_bytes(b"1")
    (root / "c.fits").symlink_to(tmp_path / "c.fits")
    (root / "empty.fits").touch()
    os.mkfifo(root / "pipe.fits")
    for name, reason in {
        "c.fits": "outside the root",
        "empty.fits": "empty file",
        "pipe.fits": "not a regular file",
    }.items():
        with pytest.raises(RefusedError, match=reason):
            check_file(root / name, root)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress])
def test_packed_data_is_unpacked_up_to_the_limit_and_told_when_it_breaks_off(pack):
    data = bytes(range(256)) * 20
    assert unpack(pack(data)) == data
    if pack is not bytes:
        assert unpack(pack(data), max_bytes=len(data)) == data
        with pytest.raises(RefusedError, match="too large: unpacks to more than 5119 bytes"):
            unpack(pack(data), max_bytes=len(data) - 1)
        with pytest.raises(RefusedError, match="truncated file"):
            unpack(pack(data)[:-9])


@pytest.mark.parametrize(
    ("error", "reason", "detail"),
    [
        (RefusedError("empty file", "0 bytes"), "empty file", "a.fits: 0 bytes"),
        (FileNotFoundError("gone"), "vanished", "a.fits: FileNotFoundError: gone"),
        (zlib.error("bad"), "unreadable", "a.fits: error: bad"),
    ],
)
def test_an_exception_becomes_a_reject_that_names_the_source(error, reason, detail):
    reject = as_reject("a.fits", error)
    assert (reject.source, reject.reason, reject.detail) == ("a.fits", reason, detail)


def test_running_out_of_memory_is_not_the_fault_of_a_file():
    with pytest.raises(MemoryError):
        as_reject("a.fits", MemoryError())
