"""Packed data is unpacked within limits, and a refusal says what was found."""

import bz2
import gzip
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
