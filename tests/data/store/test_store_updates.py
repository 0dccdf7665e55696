"""A store follows its files: packed once, then only what has changed, while others read."""

from __future__ import annotations

import errno
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from array_reader import NAMES, SIZE, ArrayReader, contents, draw, write_bad, write_stamps

from vae_astro.data.sources.root import open_root
from vae_astro.data.store import pack as pack_module
from vae_astro.data.store import whole_file
from vae_astro.data.store.check import verify
from vae_astro.data.store.pack import Packer, open_or_pack
from vae_astro.data.store.store import StampStore
from vae_astro.data.store.tools import remove_unused
from vae_astro.data.store.whole_file import locked


@pytest.fixture
def traced(trace):
    return ArrayReader(names=("r",), trace=trace)


def ids(store):
    return store.catalogue["id"].to_pylist()


def expect(store, names):
    """The store holds these stamps in this order, and is as it was written."""
    assert ids(store) == names
    np.testing.assert_array_equal(
        store.gather(np.arange(len(store))), np.stack([draw(name) for name in names])
    )
    assert list(verify(store.path)) == []


def test_a_second_opening_reads_no_stamp_and_writes_nothing(pack, traced, n_read):
    first = pack(traced, size=SIZE)
    assert n_read() == 5
    before = contents(first.path)
    second = pack(traced, size=SIZE)
    assert n_read() == 0
    assert second.path == first.path
    assert contents(first.path) == before
    expect(second, NAMES)


def test_a_night_more_is_read_alone_and_its_rows_come_last(root, pack, traced, n_read, lots_of_two):
    first = pack(traced, size=SIZE)
    n_read()
    before = contents(first.path)
    write_stamps(root, "2024-01-02/c1", "2024-01-02/c2", "2024-01-02/c3")
    second = pack(traced, size=SIZE)
    assert n_read() == 3
    assert second.path == first.path
    names = [f"2024-01-02/c{k}" for k in (1, 2, 3)]
    assert ids(second) == [*NAMES, "c1", "c2", "c3"]
    np.testing.assert_array_equal(
        second.gather(np.arange(8)), np.stack([draw(name) for name in NAMES + names])
    )
    after = contents(second.path)
    assert {name: after[name] for name in before if name.startswith("shards")} == {
        name: before[name] for name in before if name.startswith("shards")
    }


def test_a_changed_file_takes_only_its_lot_with_it_and_stays_in_its_place(
    root, pack, traced, n_read, lots_of_two
):
    first = pack(traced, size=SIZE)  # lots: a1 a2, b1 b2, b3
    n_read()
    np.save(root / "b1.npy", draw("b1 again"))
    second = pack(traced, size=SIZE)
    assert n_read() == 2
    assert ids(second) == NAMES
    np.testing.assert_array_equal(second.gather(np.array([2])), draw("b1 again")[None])
    assert remove_unused(second.path)[0] == 3  # pixels, catalogue and record of one shard
    assert list(verify(second.path)) == []
    np.testing.assert_array_equal(first.gather(np.array([2])), draw("b1")[None])  # still mapped


CHANGES = {
    "the time of a file": (lambda root: os.utime(root / "a1.npy", ns=(0, 1)), 2),
    "a file more": (lambda root: write_stamps(root, "c1"), 1),
    "a file less": (lambda root: (root / "a1.npy").unlink(), 1),
    "the name of a file": (lambda root: (root / "a1.npy").rename(root / "a3.npy"), 2),
}


@pytest.mark.parametrize(("change", "expected"), CHANGES.values(), ids=CHANGES)
def test_a_change_of_the_files_reads_one_lot_and_keeps_the_store(
    root, pack, traced, n_read, lots_of_two, change, expected
):
    before = pack(traced, size=SIZE)
    n_read()
    change(root)
    after = pack(traced, size=SIZE)
    assert after.path == before.path
    assert n_read() == expected
    assert sorted(ids(after)) == sorted(path.stem for path in root.glob("*.npy"))


def test_files_that_are_gone_take_their_stamps_with_them_and_it_is_said_how_many(
    root, pack, traced, n_read, lots_of_two, caplog
):
    write_bad(root, "bad")
    pack(traced, size=SIZE)
    n_read()
    for name in ("a1", "a2", "b1", "bad"):  # a whole lot and a half, and a reject
        (root / f"{name}.npy").unlink()
    store = pack(traced, size=SIZE)
    expect(store, ["b2", "b3"])
    assert n_read() <= 3
    assert store.n_rejected == 0
    assert f"3 stamps are no longer below data.root={root}" in caplog.text
    assert "scripts/pack.py action=gc" in caplog.text
    caplog.clear()
    pack(traced, size=SIZE)
    assert "no longer" not in caplog.text


def test_files_that_come_back_as_they_were_are_not_read_again(
    root, pack, traced, n_read, lots_of_two
):
    pack(traced, size=SIZE)
    for name in ("b1", "b2"):
        (root / f"{name}.npy").rename(root / f"{name}.away")
    expect(pack(traced, size=SIZE), ["a1", "a2", "b3"])
    n_read()
    for name in ("b1", "b2"):
        (root / f"{name}.away").rename(root / f"{name}.npy")
    expect(pack(traced, size=SIZE), ["a1", "a2", "b3", "b1", "b2"])
    assert n_read() == 0


@pytest.mark.parametrize(
    ("reader", "settings"),
    [
        (ArrayReader("other", names=("r",)), {}),
        (ArrayReader(names=("r",)), {"size": 17}),
        (ArrayReader(names=("r",)), {"size": None}),
        (ArrayReader(names=("r",)), {"saturation": (5e4,)}),
        (ArrayReader(names=("r",)), {"stored_as": "float16"}),
    ],
    ids=["reader", "size", "no size", "saturation", "float16"],
)
def test_a_change_of_what_decides_the_content_makes_a_new_store(pack, reader, settings):
    assert pack(reader, **{"size": SIZE} | settings).path != pack(size=SIZE).path


def test_the_same_folder_is_the_same_store_however_it_is_spelled(root, tmp_path, monkeypatch):
    stores = tmp_path / "stores"
    absolute = open_or_pack(root, ArrayReader(), stores, progress=False)
    monkeypatch.chdir(tmp_path)
    relative = open_or_pack(Path(root.name), ArrayReader(), stores, progress=False)
    assert relative.path == absolute.path


def test_a_finished_store_opens_where_nothing_can_be_written(pack, monkeypatch):
    path = pack().path

    def read_only(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(whole_file, "FileLock", read_only)
    monkeypatch.setattr(whole_file.WholeFile, "__init__", read_only)
    assert pack().path == path


def test_a_store_of_an_older_format_is_left_alone_and_its_stamps_are_packed_anew(pack, monkeypatch):
    with monkeypatch.context() as older:
        older.setattr(pack_module, "FORMAT_VERSION", 2)
        old = pack()
    before = contents(old.path)
    new = pack()
    assert new.path != old.path
    assert contents(old.path) == before


# Others at the same time


def run_here(command: str, *arguments: object) -> subprocess.Popen[str]:
    """Run ``command``, which knows the reader's module and its arguments as ``argv``."""
    here = Path(__file__)
    lines = [
        "import sys, time",
        "from pathlib import Path",
        "from array_reader import *",
        "from vae_astro.data.store.pack import open_or_pack",
        "argv = sys.argv[1:]",
        command,
    ]
    return subprocess.Popen(
        [sys.executable, "-c", "\n".join(lines), *map(str, arguments)],
        cwd=here.parent,
        env={**os.environ, "PYTHONPATH": str(here.parents[3])},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_two_packers_at_once_make_one_good_store_and_read_the_stamps_once(tmp_path, trace, caplog):
    names = [f"a{k:02}" for k in range(12)]
    root = write_stamps(tmp_path / "sky", *names)
    stores, ready, go = tmp_path / "stores", tmp_path / "ready", tmp_path / "go"
    reader = f"ArrayReader(names=('r',), trace=Path({str(trace)!r}), seconds_per_file=0.1)"
    other = run_here(
        "Path(argv[2]).touch()\n"
        "while not Path(argv[3]).exists(): time.sleep(0.01)\n"
        f"store = open_or_pack(argv[0], {reader}, Path(argv[1]), size={SIZE}, progress=False)\n"
        "print(store.path.name, len(store))",
        root,
        stores,
        ready,
        go,
    )
    while not ready.exists():
        assert other.poll() is None
        time.sleep(0.02)
    go.touch()
    mine = ArrayReader(names=("r",), trace=trace, seconds_per_file=0.1)
    store = open_or_pack(root, mine, stores, size=SIZE, progress=False)
    output, _ = other.communicate(timeout=60)
    assert output == f"{store.path.name} 12\n"
    expect(store, names)
    assert sorted(trace.read_text().splitlines()) == [f"{name}.npy" for name in names]


def rows_of(store: StampStore, connection) -> None:
    connection.send((len(store), store.gather(np.arange(len(store))), store.sky_level))


def test_an_open_store_goes_to_another_process_as_it_is_here(root, pack, lots_of_two):
    """The other process must not see the rows of a manifest that came since."""
    old = pack(size=SIZE)
    np.save(root / "a1.npy", draw("a1 again"))
    write_stamps(root, "a0")
    assert len(pack(size=SIZE)) == 6
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=rows_of, args=(old, theirs))
    process.start()
    n_rows, pixels, level = mine.recv()
    process.join()
    assert n_rows == 5
    np.testing.assert_array_equal(pixels, np.stack([draw(name) for name in NAMES]))
    np.testing.assert_array_equal(level, old.sky_level)


def test_readers_see_one_state_or_the_other_while_a_packer_adds_nights(tmp_path):
    root = write_stamps(tmp_path / "sky", *(f"n0/{k}" for k in range(20)))
    stores = tmp_path / "stores"
    reader = ArrayReader(names=("r",))
    path = open_or_pack(root, reader, stores, size=SIZE, progress=False).path
    packer = run_here(
        "root = Path(argv[0])\n"
        "for night in range(1, 13):\n"
        "    write_stamps(root, *(f'n{night}/{k}' for k in range(20)))\n"
        "    np.save(root / 'n0/3.npy', draw('n0/3'))\n"
        f"    open_or_pack(root, ArrayReader(names=('r',)), Path(argv[1]), size={SIZE}, "
        "progress=False)\n",
        root,
        stores,
    )
    seen = set()
    while packer.poll() is None:
        store = StampStore.open(path)
        rows = np.arange(len(store))
        pixels = store.gather(rows)
        assert len(store.catalogue) == len(store)
        seen.add(len(store))
        places = store.catalogue["source"].to_pylist()
        probe = np.random.default_rng(len(seen)).integers(len(store), size=5)
        for row in probe.tolist():
            np.testing.assert_array_equal(pixels[row], draw(places[row].removesuffix(".npy")))
    assert packer.wait() == 0
    packer.stdout.close()
    assert seen <= {20 * k for k in range(1, 14)}
    assert len(StampStore.open(path)) == 260
    assert len(seen) > 1


def test_a_packer_says_whom_it_waits_for(root, tmp_path, caplog):
    packer = Packer(ArrayReader(names=("r",)), tmp_path / "stores", size=SIZE, progress=False)
    path = packer.path(open_root(str(root)))
    path.parent.mkdir()
    held = threading.Event()

    def hold():
        with locked(path):
            held.set()
            time.sleep(1.3)

    other = threading.Thread(target=hold)
    other.start()
    held.wait()
    assert len(packer.open(open_root(str(root)))) == 5
    other.join()
    assert f"waiting for another process that works on {path}" in caplog.text
