"""Killed packers, full disks and flipped bytes. The figures are printed: see them with ``-rP``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from array_reader import SIZE, ArrayReader, contents, write_bad, write_stamps

from vae_astro.data.store import plan
from vae_astro.data.store.check import verify
from vae_astro.data.store.pack import open_or_pack
from vae_astro.data.store.store import StampStore
from vae_astro.errors import InputError

HERE = Path(__file__).parent
slow = pytest.mark.slow


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are killed and counted as on Linux")
@pytest.mark.parametrize(
    ("n_kills", "n_processes"),
    [(5, 1), (1, 2), pytest.param(140, 1, marks=slow), pytest.param(60, 2, marks=slow)],
)
def test_packers_that_are_killed_and_resumed_write_the_same_bytes(tmp_path, n_kills, n_processes):
    done = subprocess.run(
        [sys.executable, HERE / "kill_packers.py", tmp_path, str(n_kills), "0", str(n_processes)],
        env={**os.environ, "PYTHONPATH": f"{HERE.parents[2]}"},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def small_disk(tmp_path):
    """``resize(n_bytes)``: a file system of that size at ``tmp_path / "disk"``."""
    disk = tmp_path / "disk"
    disk.mkdir()

    command = ["mount", "-t", "tmpfs", "-o", "size=4096", "tmpfs", disk]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        yield lambda n_bytes: subprocess.run(
            ["mount", "-o", f"remount,size={n_bytes}", disk], check=True
        )
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.parametrize("n_points", [5, pytest.param(20, marks=slow)])
def test_a_disk_that_fills_up_keeps_what_is_complete(
    tmp_path, small_disk, monkeypatch, trace, n_read, n_points
):
    monkeypatch.setattr(plan, "SMALLEST_LOT", 24 * 1152)
    names = [f"a{k:03}" for k in range(200)]
    root = write_stamps(tmp_path / "sky", *names)
    reader = ArrayReader(names=("r",), trace=trace)

    def pack(folder: str) -> dict[str, bytes]:
        store = open_or_pack(root, reader, tmp_path / folder, size=SIZE, progress=False)
        return contents(store.path)

    expected = pack("stores")
    n_bytes = sum(4096 * -(-len(content) // 4096) for content in expected.values())
    n_kept = n_again = 0
    for size in np.linspace(8192, n_bytes - 4096, n_points).astype(int):
        small_disk(size)
        n_read()
        with pytest.raises(InputError, match=r"No space left.*data\.store_dir.*start again"):
            pack("disk/stores")
        before = contents(tmp_path / "disk")
        whole = [name for name in before if name.endswith(".json") and "shards/" in name]
        assert [before[name] for name in whole] == [
            expected[name.partition("/")[2].partition("/")[2]] for name in whole
        ]
        n_kept += len(whole)
        small_disk(4 * n_bytes)
        n_read()
        assert pack("disk/stores") == expected
        n_again += n_read()
        shutil.rmtree(tmp_path / "disk" / "stores")
    assert 0 < n_again < n_points * len(names)
    print(
        f"disk full at {n_points} points from 8 KiB to all but one page of {n_bytes} bytes: "
        f"{n_kept} complete shards stayed, {n_again} of {n_points * len(names)} files were read "
        "again, every store has the same bytes"
    )


@pytest.fixture
def packed(tmp_path, lots_of_two) -> Path:
    root = write_stamps(tmp_path / "sky", *"abcde")
    write_bad(root, "bad")
    return open_or_pack(root, ArrayReader(), tmp_path / "stores", progress=False).path


@pytest.mark.parametrize("n_flips", [200, pytest.param(3000, marks=slow)])
def test_every_changed_byte_is_noticed(packed, n_flips):
    assert list(verify(packed)) == []
    rng = np.random.default_rng(0)
    files = [path for path in sorted(packed.rglob("*")) if path.is_file()]
    assert {file.suffix for file in files} == {".f32", ".arrow", ".json", ".csv"}
    n_of: dict[str, int] = {}
    for k in range(n_flips):
        file = files[k % len(files)]  # every kind as often, the small ones too
        raw = file.read_bytes()
        position = int(rng.integers(len(raw)))
        flipped = bytearray(raw)
        flipped[position] ^= int(rng.integers(1, 256))
        file.write_bytes(flipped)
        damage = [each.file for each in verify(packed)]
        assert damage == [str(file.relative_to(packed))], (file, position)
        file.write_bytes(raw)
        kind = file.name if file.parent == packed else file.suffix
        n_of[kind] = n_of.get(kind, 0) + 1
    assert list(verify(packed)) == []
    print(f"{n_flips} changed bytes, all noticed: {n_of}")


def test_white_space_and_digits_of_a_manifest_cannot_change_unnoticed(packed):
    file = packed / "manifest.json"
    raw = file.read_bytes()
    breaks = [k for k, byte in enumerate(raw) if byte in b" \n"]
    for position in {*breaks[::5], *range(0, len(raw), 19), *range(len(raw) - 25, len(raw))}:
        for other in b" \n\r\t0":
            if raw[position] != other:
                file.write_bytes(raw[:position] + bytes([other]) + raw[position + 1 :])
                with pytest.raises(InputError, match="stamp store"):
                    StampStore.open(packed)


def test_every_truncation_is_noticed(packed):
    n = 0
    for file in sorted(path for path in packed.rglob("*") if path.is_file()):
        raw = file.read_bytes()
        for length in {0, 1, len(raw) // 2, len(raw) - 8, len(raw) - 1, len(raw) + 1}:
            file.write_bytes((raw + b"\0")[: max(0, length)])
            assert [each.file for each in verify(packed)] == [str(file.relative_to(packed))]
            if file.suffix in (".f32", ".arrow"):
                with pytest.raises(InputError, match=r"damaged stamp store.*action=repair"):
                    assert len(StampStore.open(packed).catalogue)
            file.write_bytes(raw)
            n += 1
        file.unlink()
        assert [each.file for each in verify(packed)] == [str(file.relative_to(packed))]
        file.write_bytes(raw)
    assert n > 60
    assert list(verify(packed)) == []


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"format_version": 3}', b'{"shape": [5,', b"\xff\xfe", b"null"]
)
def test_what_is_no_manifest_is_refused_with_what_to_do(packed, content):
    (packed / "manifest.json").write_bytes(content)
    with pytest.raises(InputError, match=r"not a complete stamp store.*action=repair.*delete it"):
        StampStore.open(packed)


def test_a_manifest_of_another_format_is_told_from_a_damaged_one(packed):
    (packed / "manifest.json").write_text('{"format_version": 99}')
    with pytest.raises(InputError) as error:
        StampStore.open(packed)
    assert str(error.value).startswith(f"{packed} is a stamp store of format 99")


def test_a_folder_that_is_no_store_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a complete stamp store"):
        StampStore.open(tmp_path)
