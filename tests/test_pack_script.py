"""scripts/pack.py as a user types it; what is slow to start runs in this process."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import hydra
import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.io import fits

from vae_astro.command import endings

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "pack.py"


class Done(NamedTuple):
    """What a command left."""

    stdout: str
    stderr: str


def in_a_process(folder: Path, *overrides: str, expect: int = 0) -> Done:
    """``python scripts/pack.py`` in a folder of its own."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *overrides],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return Done(done.stdout, done.stderr)


@pytest.fixture
def pack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """The same without another process."""
    spec = importlib.util.spec_from_file_location("pack_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(endings.OURS, "1")
    monkeypatch.setenv(endings.FULL, "1")

    def pack(*overrides: str, expect: int = 0) -> Done:
        with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            config = hydra.compose("pack", list(overrides))
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            endings.run(lambda: script.main.__wrapped__(config), "pack", ROOT / "conf")
        done = Done(*capsys.readouterr())
        assert left.value.code == expect, done
        return done

    return pack


def write(folder: Path, *names: str) -> None:
    rng = np.random.default_rng(0)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        fits.writeto(folder / f"{name}.fits", rng.normal(100, 5, (20, 20)).astype(np.float32))


def the_store(folder: Path) -> Path:
    (path,) = (path for path in (folder / "stores").iterdir() if path.is_dir())
    return path


def flip(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)


DATA = ("data=fits", "data.root=sky")


def test_a_store_is_packed_grown_inspected_damaged_repaired_and_cleared(tmp_path):
    write(tmp_path / "sky", *(f"n1/s{k}" for k in range(6)))
    (tmp_path / "sky" / "broken.fits").write_text("SIMPLE")
    shown = in_a_process(tmp_path, *DATA)
    store = the_store(tmp_path)
    assert shown.stdout.startswith(f"6 stamps in stores/{store.name}, 1 set aside, ")
    assert f"1 stamps set aside; reasons in stores/{store.name}/rejects.csv" in shown.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sky", "stores"]

    write(tmp_path / "sky", "n2/t1", "n2/t2")
    assert in_a_process(tmp_path, *DATA, "pack.n_processes=1").stdout.startswith("8 stamps in")

    shown = in_a_process(tmp_path, "action=inspect", f"store={store}", "catalogue=c.parquet")
    lines = {line[:30].strip(): line[30:] for line in shown.stdout.splitlines()}
    assert lines["stamps"] == "8"
    assert lines["shape"] == "1x20x20"
    assert lines["shards"] == "2"
    assert lines["rejects"].startswith("1 x ")
    assert "8 rows in c.parquet" in shown.stdout
    table = pq.read_table(tmp_path / "c.parquet")
    assert table["source"].to_pylist()[-2:] == ["n2/t1.fits", "n2/t2.fits"]

    assert "as it was written" in in_a_process(tmp_path, "action=verify").stdout
    first = sorted(store.glob("shards/*.f32"), key=lambda file: -file.stat().st_size)[0]
    flip(first)
    shown = in_a_process(tmp_path, "action=verify", expect=1)
    assert f"{store}/shards/{first.name}: CRC-32 is" in shown.stdout
    assert f"{store}: damaged" in shown.stdout

    assert in_a_process(tmp_path, "action=repair", *DATA).stdout.startswith("8 stamps in")
    in_a_process(tmp_path, "action=verify")
    assert first.exists()
    assert f"{store}: 3 files deleted" in in_a_process(tmp_path, "action=gc").stdout
    assert not first.exists()
    in_a_process(tmp_path, "action=verify")


def test_a_damaged_manifest_is_refused_by_pack_and_mended_by_repair(tmp_path, pack):
    write(tmp_path / "sky", "a", "b")
    pack(*DATA)
    manifest = the_store(tmp_path) / "manifest.json"
    flip(manifest)
    shown = pack(*DATA, expect=2).stderr
    assert shown.count("\n") == 1
    assert "scripts/pack.py action=repair" in shown
    assert "manifest.json" in pack("action=verify", expect=1).stdout
    assert pack("action=repair", *DATA).stdout.startswith("2 stamps in")
    pack("action=verify")


def test_a_repair_without_the_files_is_refused_and_changes_nothing(tmp_path, pack):
    write(tmp_path / "sky", "a", "b")
    pack(*DATA)
    flip(next(the_store(tmp_path).glob("shards/*.f32")))
    (tmp_path / "sky" / "b.fits").unlink()
    shown = pack("action=repair", *DATA, expect=2).stderr
    assert shown.startswith("error: ")
    assert "Nothing was changed" in shown
    assert "1 files, the first is b.fits" in shown
    pack("action=verify", expect=1)


def test_a_folder_of_one_finished_store_can_be_the_root(tmp_path, pack):
    write(tmp_path / "sky", "a", "b")
    pack(*DATA)
    name = the_store(tmp_path).name
    shown = pack("data=fits", f"data.root=stores/{name}").stdout
    assert shown.startswith(f"2 stamps in stores/{name}")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("action=mend",), "action must be one of pack, inspect, verify, repair, gc, got 'mend'"),
        ((), "data.root is not set"),
        (("data.root=nowhere",), "data.root=nowhere does not exist"),
        (("data.root=sky", "pack.n_processes=0"), "pack.n_processes must be at least 1, got 0"),
        (("data.root=sky", "data.size=3"), "data.size must be at least 16, got 3"),
        (("action=verify", "store=sky"), "is no stamp store and holds none"),
        (("action=inspect",), "is no stamp store and holds none"),
        (("action=gc", "store=nowhere"), "is no stamp store and holds none"),
        (("action=repair", "data.root=sky", "store=sky"), "store=sky is not what these settings"),
    ],
)
def test_a_mistake_is_told_in_one_line(tmp_path, pack, overrides, message):
    write(tmp_path / "sky", "a")
    shown = pack(*overrides, expect=2)
    assert shown.stdout == ""
    assert shown.stderr.startswith("error: ")
    assert shown.stderr.count("\n") == 1
    assert message in shown.stderr


def test_a_mistake_ends_the_process_with_status_2(tmp_path):
    shown = in_a_process(tmp_path, "action=verify", expect=2)
    assert shown == ("", "error: store=stores is no stamp store and holds none; pack one first\n")


def test_a_catalogue_of_an_unknown_kind_or_of_many_stores_is_refused(tmp_path, pack):
    write(tmp_path / "sky", "a", "b")
    pack(*DATA)
    inspect = ("action=inspect", "catalogue=c.xlsx")
    assert "must end in .parquet, .csv, .arrow" in pack(*inspect, expect=2).stderr
    nowhere = ("action=inspect", "catalogue=nowhere/c.csv")
    assert "catalogue=nowhere/c.csv cannot be written" in pack(*nowhere, expect=2).stderr
    pack(*DATA, "data.size=16")
    both = ("action=inspect", "catalogue=c.csv")
    assert "of one store: give store=FOLDER" in pack(*both, expect=2).stderr
