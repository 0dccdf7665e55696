"""The store holds what the reader gave, is built once, and is there whole or not at all."""

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from astropy.io import fits as pyfits

from vae_astro.data import store as store_module
from vae_astro.data.sources.fits import FitsReader
from vae_astro.data.normalize import Normalizer, measure_sky
from vae_astro.data.stamp import Reject, Stamp, fit_to_size
from vae_astro.data.store import FORMAT_VERSION, StampStore, open_or_pack
from vae_astro.errors import InputError

SIZE = 16
NAMES = ["a1", "a2", "b1", "b2", "b3"]
FILL = np.finfo(np.float32).min


@dataclass(frozen=True)
class ArrayReader:
    """One stamp (C, H, W) of each ``.npy`` file; a file named ``bad*`` becomes a reject.

    Only ``setting`` is part of the repr and so of the store's key.
    """

    setting: str = ""
    names: tuple[str, ...] | None = field(default=None, repr=False)
    trace: Path | None = field(default=None, repr=False)
    seconds_per_file: float = field(default=0.0, repr=False)
    breaks_at: str = field(default="", repr=False)

    @property
    def band_names(self) -> tuple[str, ...] | None:
        return self.names

    def find(self, root: Path) -> list[Path]:
        return sorted(root.glob("*.npy"))

    def read(self, path: Path, root: Path) -> Iterator[Stamp | Reject]:
        if self.trace:
            with self.trace.open("a") as file:
                file.write(f"{path.name}\n")
        time.sleep(self.seconds_per_file)
        if path.stem == self.breaks_at:
            raise RuntimeError("the reader broke")
        if path.stem.startswith("bad"):
            yield Reject(path.name, "not an array", f"{path.name}: begins with 'x'")
            return
        yield Stamp(
            np.load(path),
            id=path.stem,
            object_id=path.stem[:1],
            source=path.name,
            ra=float(len(path.stem)),
            seeing=2.5 if path.stem == "a2" else float("nan"),
            label="é" if path.stem.startswith("a") else "",
        )


def write_stamps(root: Path, *names: str, shape: tuple[int, ...] = (1, SIZE, SIZE)) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name in names:
        seed = int.from_bytes(name.encode(), "big") % 2**32
        pixels = np.random.default_rng(seed).normal(100, 5, shape).astype(np.float32)
        np.save(root / f"{name}.npy", pixels)
    return root


@pytest.fixture
def root(tmp_path):
    return write_stamps(tmp_path / "sky", *NAMES)


@pytest.fixture
def pack(root, tmp_path):
    """Open or pack the stamps below ``root``."""

    def pack(reader: Any = None, **settings: Any) -> StampStore:
        reader = ArrayReader() if reader is None else reader
        return open_or_pack(root, reader, tmp_path / "stores", progress=False, **settings)

    return pack


def kept(folder: Path) -> set[str]:
    """What stands in a folder of stores, but for the files that packers lock."""
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_same_pixels(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal bit for bit, so that -0 is not 0; any NaN is like any other."""
    assert found.dtype == expected.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    good = ~np.isnan(expected)
    np.testing.assert_array_equal(
        np.asarray(found)[good].view(np.uint32), expected[good].view(np.uint32)
    )


# What is stored


def test_pixels_are_those_of_the_reader_bit_for_bit(root, pack):
    odd = np.load(root / "b1.npy")
    odd[0, 0, :8] = [np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-42, FILL, 3e38]
    np.save(root / "b1.npy", odd)
    store = pack()
    assert len(store) == 5
    assert store.stamp_shape == (1, SIZE, SIZE)
    for row, name in enumerate(NAMES):
        assert_same_pixels(store.pixels[row], np.load(root / f"{name}.npy"))


def test_the_catalogue_has_one_row_a_stamp_in_the_order_of_the_pixels(root, pack):
    store = pack(ArrayReader(names=("g",)))
    assert store.catalogue.column_names == [
        "id",
        "object_id",
        "source",
        "label",
        "ra",
        "dec",
        "seeing",
        "sky_level_g",
        "sky_noise_g",
        "good_fraction_g",
    ]
    assert store.catalogue["id"].to_pylist() == NAMES
    assert store.catalogue["object_id"].to_pylist() == ["a", "a", "b", "b", "b"]
    assert store.catalogue["source"].to_pylist() == [f"{name}.npy" for name in NAMES]
    assert store.catalogue["label"].to_pylist() == ["é", "é", "", "", ""]
    assert store.catalogue["ra"].to_pylist() == [2.0] * 5
    assert np.isnan(store.catalogue["dec"].to_numpy()).all()
    np.testing.assert_array_equal(store.catalogue["seeing"], [np.nan, 2.5, np.nan, np.nan, np.nan])
    assert store.band_names == ("g",)


def test_sky_and_good_fraction_are_those_of_the_good_pixels_of_each_band(root, pack):
    write_stamps(root, *NAMES, shape=(2, SIZE, SIZE))
    stamp = np.load(root / "a2.npy")
    stamp[0, :4] = np.nan
    stamp[1, 0, 0] = FILL
    stamp[1, 1] = 5e4
    np.save(root / "a2.npy", stamp)
    store = pack(normalizer=Normalizer(saturation=5e4))
    np.testing.assert_array_equal(store.good_fraction[1], np.float32([192 / 256, 239 / 256]))
    np.testing.assert_array_equal(store.good_fraction[[0, 2, 3, 4]], 1)
    raw = torch.from_numpy(np.array(store.pixels))
    level, noise = measure_sky(raw, raw.isfinite() & (raw.abs() < 5e4))
    np.testing.assert_array_equal(store.sky_level, level)
    np.testing.assert_array_equal(store.sky_noise, noise)
    assert np.abs(store.sky_level - 100).max() < 3  # 5 / sqrt(192) is the error of a mean


def test_bands_without_names_are_numbered(root, pack):
    write_stamps(root, *NAMES, shape=(2, SIZE, SIZE))
    store = pack()
    assert store.band_names == ("band0", "band1")
    assert store.catalogue.column_names[-6:] == [
        f"{name}_band{k}" for name in ("sky_level", "sky_noise", "good_fraction") for k in (0, 1)
    ]


def test_stamps_written_in_many_chunks_keep_their_rows(root, pack, monkeypatch):
    names = [f"{letter}{k}" for letter in "abc" for k in range(4)]
    write_stamps(root, *names)
    (root / "b1x.npy").write_bytes(b"")
    np.save(root / "b1x.npy", np.full((1, SIZE, SIZE), np.nan, np.float32))
    monkeypatch.setattr(store_module, "CHUNK", 5)
    store = pack()
    assert store.catalogue["id"].to_pylist() == names
    for row, name in enumerate(names):
        assert_same_pixels(store.pixels[row], np.load(root / f"{name}.npy"))
    np.testing.assert_allclose(store.sky_level[:, 0], np.median(store.pixels, (1, 2, 3)), atol=1)
    assert store.verify()


def test_a_larger_stamp_is_cropped_and_a_smaller_one_padded_but_none_is_stretched(root, pack):
    write_stamps(root, "b1", shape=(1, 24, 21))
    write_stamps(root, "b2", shape=(1, 9, 40))
    store = pack(size=18)
    assert store.stamp_shape == (1, 18, 18)
    for row, name in enumerate(NAMES):
        assert_same_pixels(store.pixels[row], fit_to_size(np.load(root / f"{name}.npy"), 18))


def test_without_a_size_the_most_common_longer_side_is_taken(root, pack):
    write_stamps(root, "a1", shape=(1, 30, 30))
    write_stamps(root, "a2", "b1", shape=(1, 20, 17))
    write_stamps(root, "b2", "b3", shape=(1, 16, 20))
    assert pack().stamp_shape == (1, 20, 20)


def test_stamps_too_small_to_train_on_are_padded_to_the_smallest_size(root, pack):
    write_stamps(root, *NAMES, shape=(1, 5, 5))
    assert pack().stamp_shape == (1, 16, 16)


def test_rejects_are_counted_and_listed_and_the_rest_is_stored(root, pack, caplog):
    for name in ("bad1", "bad2"):
        (root / f"{name}.npy").write_text("x")
    write_stamps(root, "b2", shape=(3, SIZE, SIZE))
    np.save(root / "b3.npy", np.full((1, SIZE, SIZE), FILL, np.float32))
    store = pack()
    assert store.catalogue["id"].to_pylist() == ["a1", "a2", "b1"]
    assert store.n_rejected == 4
    with (store.path / "rejects.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["source"]: row for row in csv.DictReader(file)}
    assert {source: row["reason"] for source, row in rows.items()} == {
        "bad1.npy": "not an array",
        "bad2.npy": "not an array",
        "b2.npy": "other number of bands",
        "b3.npy": "all pixels bad",
    }
    assert rows["bad1.npy"]["detail"] == "bad1.npy: begins with 'x'"
    assert "b2.npy has 3 bands, the first stamp had 1" in rows["b2.npy"]["detail"]
    assert f"4 stamps set aside; reasons in {store.path / 'rejects.csv'}" in caplog.text


def test_the_bands_of_the_reader_count_and_not_those_of_the_first_stamp(root, pack):
    write_stamps(root, "a1", shape=(2, SIZE, SIZE))
    store = pack(ArrayReader(names=("science",)))
    assert store.catalogue["id"].to_pylist() == ["a2", "b1", "b2", "b3"]


def test_without_a_usable_stamp_the_reasons_are_counted_and_nothing_is_left_behind(root, tmp_path):
    shutil.rmtree(root)
    root.mkdir()
    for name in ("bad1", "bad2"):
        (root / f"{name}.npy").write_text("x")
    np.save(root / "c.npy", np.full((1, SIZE, SIZE), np.nan, np.float32))
    with pytest.raises(InputError) as error:
        open_or_pack(root, ArrayReader(), tmp_path / "stores", progress=False)
    assert f"data.root={root}" in str(error.value)
    assert "2 x not an array, 1 x all pixels bad" in str(error.value)
    assert "begins with 'x'" in str(error.value)
    assert kept(tmp_path / "stores") == set()


def test_a_size_below_the_smallest_is_refused_by_name(pack, tmp_path):
    with pytest.raises(InputError, match=r"data\.size must be at least 16, got 8"):
        pack(size=8)
    assert not (tmp_path / "stores").exists()


def test_a_file_name_that_is_not_unicode_costs_nothing_but_its_spelling(tmp_path):
    sky = tmp_path / "sky"
    sky.mkdir()
    for name in (b"b.fits", b"caf\xe9.fits"):  # Latin-1, from an old disk
        try:
            with open(os.path.join(os.fsencode(sky), name), "wb") as file:
                pyfits.PrimaryHDU(np.eye(SIZE, dtype=np.float32)).writeto(file)
        except OSError:
            pytest.skip("this file system takes only Unicode names")
    store = open_or_pack(sky, FitsReader(), tmp_path / "stores", progress=False)
    assert len(store) == 2


# Packed once


@pytest.fixture
def trace(tmp_path):
    return tmp_path / "trace"


def n_read(trace: Path) -> int:
    """How many files the readers have read since the last call."""
    n = len(trace.read_text().splitlines()) if trace.exists() else 0
    trace.unlink(missing_ok=True)
    return n


def test_a_second_opening_reads_no_stamp(pack, trace):
    first = pack(ArrayReader(trace=trace), size=SIZE)
    assert n_read(trace) == 5
    second = pack(ArrayReader(trace=trace), size=SIZE)
    assert n_read(trace) == 0
    assert second.path == first.path
    # these two hold NaN here, which no comparison takes for equal
    first_table, second_table = (
        store.catalogue.drop_columns(["dec", "seeing"]) for store in (first, second)
    )
    assert second_table.equals(first_table)
    assert_same_pixels(second.pixels, np.array(first.pixels))
    np.testing.assert_array_equal(second.sky_noise, first.sky_noise)


def touch(root: Path) -> None:
    os.utime(root / "a1.npy", ns=(0, 1))


def grow(root: Path) -> None:
    status = (root / "a1.npy").stat()
    write_stamps(root, "a1", shape=(1, SIZE, SIZE + 1))
    os.utime(root / "a1.npy", ns=(status.st_atime_ns, status.st_mtime_ns))


CHANGES = {
    "the time of a file": touch,
    "the content of a file": grow,
    "a file more": lambda root: write_stamps(root, "c1"),
    "a file less": lambda root: (root / "a1.npy").unlink(),
    "the name of a file": lambda root: (root / "a1.npy").rename(root / "a3.npy"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_of_the_files_makes_a_new_store(root, pack, change):
    before = pack(size=SIZE)
    change(root)
    after = pack(size=SIZE)
    assert after.path != before.path
    assert StampStore.open(before.path).verify()  # what was there is still there


@pytest.mark.parametrize(
    ("reader", "settings"),
    [
        (ArrayReader("other"), {}),
        (ArrayReader(), {"size": 17}),
        (ArrayReader(), {"size": None}),
        (ArrayReader(), {"normalizer": Normalizer(saturation=5e4)}),
    ],
    ids=["reader", "size", "no size", "saturation"],
)
def test_a_change_of_what_decides_the_content_makes_a_new_store(pack, reader, settings):
    assert pack(reader, **{"size": SIZE} | settings).path != pack(size=SIZE).path


def test_settings_that_leave_the_raw_pixels_alone_share_a_store(pack):
    plain = pack(size=SIZE)
    stretched = Normalizer("log", softening=1.0, gain=2.0)
    assert pack(size=SIZE, normalizer=stretched).path == plain.path


def test_the_same_folder_is_the_same_store_however_it_is_spelled(root, tmp_path, monkeypatch):
    stores = tmp_path / "stores"
    absolute = open_or_pack(root, ArrayReader(), stores, progress=False)
    monkeypatch.chdir(tmp_path)
    relative = open_or_pack(Path(root.name), ArrayReader(), stores, progress=False)
    assert relative.path == absolute.path


def test_a_finished_store_opens_where_nothing_can_be_written(pack, monkeypatch):
    path = pack().path

    def read_only(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(store_module, "FileLock", read_only)
    assert pack().path == path


# Packers that fail


def pack_in_another_process(command: str, *arguments: object) -> subprocess.Popen:
    """Run ``command``, which knows everything in this file and its arguments as ``argv``."""
    here = Path(__file__)
    lines = ["from test_store import *", "argv = sys.argv[1:]", command]
    return subprocess.Popen(
        [sys.executable, "-c", "\n".join(lines), *map(str, arguments)],
        cwd=here.parent,
        env={**os.environ, "PYTHONPATH": str(here.parents[2])},
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    """Until it holds; the process must still be running then."""
    for _ in range(2400):
        if condition():
            break
        assert process.poll() is None
        time.sleep(0.025)
    assert condition()


def test_a_reader_that_breaks_leaves_nothing_and_the_next_run_succeeds(pack, tmp_path):
    with pytest.raises(RuntimeError, match="the reader broke"):
        pack(ArrayReader(breaks_at="b2"), size=SIZE)
    assert kept(tmp_path / "stores") == set()
    assert pack(size=SIZE).verify()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="a POSIX signal")
def test_a_packer_that_is_killed_leaves_nothing_that_a_later_run_trusts(tmp_path, trace):
    names = [f"a{k:02}" for k in range(40)]
    root = write_stamps(tmp_path / "sky", *names, shape=(1, 64, 64))
    stores = tmp_path / "stores"
    command = (
        "store_module.CHUNK = 2\n"
        "reader = ArrayReader(trace=Path(argv[2]), seconds_per_file=0.5)\n"
        "open_or_pack(Path(argv[0]), reader, Path(argv[1]), size=64, progress=False)"
    )
    process = pack_in_another_process(command, root, stores, trace)
    with process:
        wait_for(lambda: trace.exists() and len(trace.read_text().splitlines()) > 4, process)
        process.kill()
    (partial,) = kept(stores)
    assert partial.startswith(".")
    assert (stores / partial / "pixels.f32").stat().st_size > 0  # it was killed while writing
    with pytest.raises(InputError, match="not a complete stamp store"):
        StampStore.open(stores / partial)
    store = open_or_pack(root, ArrayReader(), stores, size=64, progress=False)
    assert store.catalogue["id"].to_pylist() == names
    assert store.verify()
    assert kept(stores) == {store.path.name}


def test_two_packers_at_once_make_one_good_store_and_read_the_stamps_once(tmp_path, trace):
    names = [f"a{k:02}" for k in range(8)]
    root = write_stamps(tmp_path / "sky", *names)
    stores, ready, go = tmp_path / "stores", tmp_path / "ready", tmp_path / "go"
    command = (
        "Path(argv[3]).touch()\n"
        "while not Path(argv[4]).exists(): time.sleep(0.01)\n"
        "reader = ArrayReader(trace=Path(argv[2]), seconds_per_file=0.1)\n"
        f"store = open_or_pack(Path(argv[0]), reader, Path(argv[1]), size={SIZE}, progress=False)\n"
        "print(store.path.name, len(store), store.verify())"
    )
    other = pack_in_another_process(command, root, stores, trace, ready, go)
    wait_for(ready.exists, other)
    go.touch()
    reader = ArrayReader(trace=trace, seconds_per_file=0.1)
    store = open_or_pack(root, reader, stores, size=SIZE, progress=False)
    output, _ = other.communicate(timeout=60)
    assert output == f"{store.path.name} 8 True\n"
    assert store.verify()
    assert kept(stores) == {store.path.name}
    assert sorted(trace.read_text().splitlines()) == [f"{name}.npy" for name in names]


def refuse(code: int, only: str = "") -> Callable[..., Any]:
    """Make of a function one that fails for every path that ends in ``only``."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        def failing(*args: Any, **kwargs: Any) -> Any:
            if str(args[0] if args else "").endswith(only):
                raise OSError(code, os.strerror(code))
            return function(*args, **kwargs)

        return failing

    return decorate


FAILURES = {
    "making the folder of stores": (Path, "mkdir", errno.EROFS, "stores"),
    "locking": (store_module, "FileLock", errno.EROFS, ".lock"),
    "making the folder": (Path, "mkdir", errno.EACCES, ".partial"),
    "opening the pixels": (Path, "open", errno.EROFS, "pixels.f32"),
    "syncing the pixels": (os, "fsync", errno.ENOSPC, ""),
    "writing the catalogue": (store_module.pq, "write_table", errno.ENOSPC, ""),
    "opening the list of rejects": (Path, "open", errno.ENOSPC, "rejects.csv"),
    "writing the manifest": (Path, "write_text", errno.ENOSPC, "manifest.json"),
    "renaming": (os, "replace", errno.EROFS, ".partial"),
}


@pytest.mark.parametrize(("owner", "name", "code", "only"), FAILURES.values(), ids=FAILURES)
def test_a_disk_that_fails_is_named_and_nothing_is_half_written_or_lost(
    owner, name, code, only, root, pack, tmp_path, monkeypatch
):
    stores = tmp_path / "stores"
    before = None
    if only != "stores":
        other = pack(ArrayReader("other"))
        before = contents(other.path)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, refuse(code, only)(getattr(owner, name)))
        with pytest.raises(InputError) as error:
            pack()
    assert "data.store_dir" in str(error.value)
    assert os.strerror(code) in str(error.value)
    assert str(stores) in str(error.value)
    if before is not None:
        assert kept(stores) == {other.path.name}
        assert contents(other.path) == before
    assert pack().verify()


def test_a_disk_that_fills_up_is_named_and_leaves_nothing(pack, tmp_path):
    resource = pytest.importorskip("resource", reason="limits of POSIX")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file may grow beyond 3000 bytes: a real write fails, and 5 stamps are 5120.
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"data\.store_dir"):
            pack()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert kept(tmp_path / "stores") == set()
    assert pack().verify()


def test_a_store_dir_that_is_a_file_is_named_and_stays_as_it_is(root, tmp_path):
    (tmp_path / "stores").write_text("notes")
    with pytest.raises(InputError, match=r"data\.store_dir"):
        open_or_pack(root, ArrayReader(), tmp_path / "stores", progress=False)
    assert (tmp_path / "stores").read_text() == "notes"


# Damage


def truncate(path: Path) -> None:
    os.truncate(path / "pixels.f32", (path / "pixels.f32").stat().st_size - 4)


def edit_manifest(**changes: Any) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        manifest = json.loads((path / "manifest.json").read_text()) | changes
        (path / "manifest.json").write_text(
            json.dumps({key: value for key, value in manifest.items() if value is not ...})
        )

    return edit


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda path: (path / name).write_text(text) and None


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated pixels": (truncate, "damaged .* 5116 bytes of pixels, expected .* 5120"),
    "another format": (edit_manifest(format_version=99), "another version .*format 99"),
    "more stamps than the catalogue": (edit_manifest(shape=[6, 1, 16, 16]), "damaged"),
    "no pixels": (lambda path: (path / "pixels.f32").unlink(), "not a complete stamp store"),
    "no catalogue": (lambda path: (path / "catalogue.parquet").unlink(), "not a complete"),
    "broken catalogue": (write("catalogue.parquet", "PAR1"), "not a complete stamp store"),
    "broken manifest": (write("manifest.json", '{"shape": [5,'), "not a complete stamp store"),
    "empty manifest": (write("manifest.json", ""), "not a complete stamp store"),
    "manifest without a shape": (edit_manifest(shape=...), "not a complete stamp store"),
    "manifest without bands": (edit_manifest(band_names=...), "not a complete|damaged"),
    "manifest with other bands": (edit_manifest(band_names=["x"]), "not a complete|damaged"),
    "manifest without rejects": (edit_manifest(n_rejected=...), "not a complete|damaged"),
    "manifest that is a list": (write("manifest.json", "[]"), "not a complete|damaged"),
    "manifest with a shape of one": (edit_manifest(shape=5), "not a complete|damaged"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_store_is_refused_with_what_to_do(pack, damage, message):
    path = pack().path
    damage(path)
    with pytest.raises(InputError, match=message) as error:
        pack()
    assert str(path) in str(error.value)
    assert "delete it" in str(error.value)
    shutil.rmtree(path)
    assert pack().verify()


def test_a_store_that_lost_its_manifest_is_packed_anew(pack):
    path = pack().path
    (path / "manifest.json").unlink()
    truncate(path)
    assert pack().path == path
    assert pack().verify()


def test_a_store_of_an_older_format_is_left_alone_and_its_stamps_are_packed_anew(pack, monkeypatch):
    with monkeypatch.context() as older:
        older.setattr(store_module, "FORMAT_VERSION", FORMAT_VERSION - 1)
        old = pack()
    before = contents(old.path)
    new = pack()
    assert new.path != old.path
    assert "seeing" in new.catalogue.column_names
    assert contents(old.path) == before


def test_a_folder_that_is_no_store_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a complete stamp store"):
        StampStore.open(tmp_path)


@pytest.mark.parametrize("position", [0, 2561, 5119])
def test_verify_notices_one_flipped_bit(pack, position):
    store = pack()
    assert store.verify()
    raw = bytearray((store.path / "pixels.f32").read_bytes())
    raw[position] ^= 1
    (store.path / "pixels.f32").write_bytes(raw)
    assert not StampStore.open(store.path).verify()


def test_pixels_of_an_open_store_cannot_be_changed(pack):
    store = pack()
    with pytest.raises(ValueError, match="read-only"):
        store.pixels[0] = 0


def test_the_manifest_says_what_the_store_holds(root, pack):
    store = pack()
    manifest = json.loads((store.path / "manifest.json").read_text())
    assert manifest["format_version"] == FORMAT_VERSION
    assert manifest["shape"] == [5, 1, SIZE, SIZE]
    assert manifest["root"] == str(root)
    assert isinstance(store.catalogue, pa.Table)
