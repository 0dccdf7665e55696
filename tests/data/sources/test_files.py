"""Packed data is unpacked within limits, and a refusal says what was found."""

import bz2
import gzip
import tracemalloc
import zlib

import pytest

from vae_astro.data.sources.files import (
    RefusedError,
    as_reject,
    unpack,
)


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


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
def test_members_that_follow_each_other_are_one_file(pack):
    data = bytes(range(256)) * 20
    assert unpack(pack(data) + pack(b"") + pack(data[:7])) == data + data[:7]
    with pytest.raises(RefusedError, match="too large"):
        unpack(pack(data) + pack(data), max_bytes=2 * len(data) - 1)


def test_zeros_after_gzip_data_are_padding_and_anything_else_is_refused():
    data = bytes(range(256)) * 20
    assert unpack(gzip.compress(data) + bytes(512)) == data
    with pytest.raises(RefusedError):
        unpack(gzip.compress(data) + b"junk")


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
def test_damaged_data_is_refused_and_never_taken_for_whole(pack):
    data = bytes(range(256)) * 20
    packed = pack(data)
    n_refused = 0
    for at in range(10, len(packed)):
        damaged = bytearray(packed)
        damaged[at] ^= 0x5A
        try:
            assert unpack(bytes(damaged)) == data  # a byte that means nothing
        except RefusedError:
            n_refused += 1
    assert n_refused > 0.9 * len(packed[10:])


def test_a_bomb_is_refused_before_it_takes_memory():
    bomb = gzip.compress(bytes(2**26))
    bombs = bomb + bomb
    tracemalloc.start()
    try:
        with pytest.raises(RefusedError, match="too large"):
            unpack(bombs, max_bytes=2**20)
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


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
