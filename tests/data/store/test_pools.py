"""Lots packed by other processes, here and on a Dask cluster: the same bytes, none left behind."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from array_reader import SIZE, ArrayReader, contents, write_bad, write_stamps

from vae_astro.data.store import pack as pack_module
from vae_astro.data.store import plan, pools
from vae_astro.data.store.pack import open_or_pack
from vae_astro.errors import InputError

N_LOTS = 12


@pytest.fixture
def many(tmp_path, monkeypatch) -> Path:
    """24 stamps and a bad one, in lots of two; a pool is worth it from the second lot on."""
    monkeypatch.setattr(plan, "SMALLEST_LOT", 2400)
    monkeypatch.setattr(pools, "WORTH_A_PROCESS", -1.0)
    root = write_stamps(tmp_path / "sky", *(f"a{k:02}" for k in range(24)))
    write_bad(root, "bad")
    return root


def pack(root: Path, reader: ArrayReader | None = None, **settings):
    """A store in a folder of its own."""
    folder = root.parent / f"stores{len(list(root.parent.glob('stores*')))}"
    reader = reader or ArrayReader(names=("r",))
    return open_or_pack(root, reader, folder, size=SIZE, progress=False, **settings)


def test_processes_write_the_bytes_that_one_writes(many, tmp_path):
    trace = tmp_path / "trace"
    alone = pack(many, n_processes=1)
    # slow enough that the others are ready before all is done
    reader = ArrayReader(names=("r",), trace=trace, seconds_per_file=0.1)
    together = pack(many, reader, n_processes=3)
    assert contents(together.path) == contents(alone.path)
    assert len(trace.read_text().splitlines()) == 25
    assert multiprocessing.active_children() == []


def test_lots_are_handed_out_in_time_and_each_comes_back_once(many):
    """Whatever is done first: a worker that is quick, or this process."""
    seen = []
    lots = list(enumerate(plan.plan_lots(ArrayReader().find(pack_module.open_root(str(many))), [])))

    def lot_by(job, lot):
        time.sleep(job)
        return [lot]

    for here, there in ((0.0, 0.003), (0.003, 0.0), (0.0, 0.0)):
        with ThreadPoolExecutor(2) as others, pytest.MonkeyPatch.context() as patch:
            patch.setattr(pools, "pack_lot", lambda job, lot, pause=here: lot_by(pause, lot))

            def submit(function, job, lot, pause=there, others=others):
                return others.submit(lot_by, pause, lot)

            for helps in (True, False):
                done = list(pools._shared_out(submit, 2, None, lots, helps=helps))
                assert sorted(k for k, _ in done) == list(range(len(lots)))
                assert all(shards == [lots[k][1]] for k, shards in done)
                seen.append(len(done))
    assert seen == [len(lots)] * 6


def test_a_bad_stamp_in_another_process_ends_all_of_them(many):
    (many / "bad.npy").unlink()
    (many / "a03.npy").write_bytes(b"x" * 1152)  # the others begin at the front
    reader = ArrayReader(names=("r",), seconds_per_file=0.1)
    with pytest.raises(InputError, match=r"unreadable: a03\.npy"):
        pack(many, reader, n_processes=2, on_bad="raise")
    assert multiprocessing.active_children() == []


def test_a_killed_process_is_named_and_what_is_packed_stays(many, tmp_path):
    reader = ArrayReader(names=("r",), seconds_per_file=0.1, kills_itself_at="a04")
    stores = tmp_path / "stores"
    with pytest.raises(InputError, match=r"was killed.*pack\.n_processes"):
        open_or_pack(many, reader, stores, size=SIZE, progress=False, n_processes=2)
    assert multiprocessing.active_children() == []
    assert len(list(stores.rglob("*.json"))) >= 2
    trace = tmp_path / "trace"
    reader = ArrayReader(names=("r",), trace=trace)
    store = open_or_pack(many, reader, stores, size=SIZE, progress=False, n_processes=1)
    assert len(store) == 24
    assert len(trace.read_text().splitlines()) < 23
    assert not list(store.path.glob("shards/.*"))


def test_few_stamps_start_no_process(many, monkeypatch):
    def start(*_):
        raise AssertionError("a process was started")

    monkeypatch.setattr(pools, "WORTH_A_PROCESS", 3.0)
    monkeypatch.setattr(pools, "_processes", start)
    assert len(pack(many, n_processes=8)) == 24


def test_packing_and_reading_need_no_torch():
    command = (
        "import pkgutil, importlib, sys\n"
        "import vae_astro.data.sources, vae_astro.data.store\n"
        "for package in (vae_astro.data.sources, vae_astro.data.store):\n"
        "    for module in pkgutil.iter_modules(package.__path__):\n"
        "        importlib.import_module(f'{package.__name__}.{module.name}')\n"
        "print(sorted(name for name in sys.modules if name in ('torch', 'lightning')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", command],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{Path(__file__).parents[3]}"},
    )
    assert done.stdout.strip() == "[]", done.stderr


# Dask


def test_a_local_cluster_writes_the_bytes_that_one_process_writes(many):
    pytest.importorskip("distributed")
    alone = pack(many, n_processes=1)
    clustered = pack(many, n_processes=2, cluster="local")
    assert contents(clustered.path) == contents(alone.path)


@pytest.mark.slow
def test_a_cluster_at_an_address_survives_the_death_of_a_worker(many):
    distributed = pytest.importorskip("distributed")
    alone = pack(many, n_processes=1)
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as two,
        distributed.Client(two) as client,
    ):
        address = two.scheduler_address
        assert contents(pack(many, cluster=address).path) == contents(alone.path)
        victim = next(iter(client.run(os.getpid).values()))
        reader = ArrayReader(names=("r",), seconds_per_file=0.3)
        threading.Timer(1.0, os.kill, (victim, 9)).start()
        store = pack(many, reader, cluster=address)
        assert contents(store.path) == contents(alone.path)


def test_a_cluster_that_is_not_there_is_named(many, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr(pools, "PATIENCE", "1s")
    with pytest.raises(InputError, match=r"pack\.cluster=tcp://127\.0\.0\.1:9 cannot be reached"):
        pack(many, cluster="tcp://127.0.0.1:9")


def test_without_dask_the_extra_is_named(many, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match=r"pip install 'vae-astro\[dask\]'"):
        pack(many, cluster="local")


def test_a_script_without_its_guard_is_told_so_and_does_not_wait_for_itself(tmp_path):
    write_stamps(tmp_path / "sky", *(f"a{k}" for k in range(6)))
    script = tmp_path / "unguarded.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from array_reader import ArrayReader\n"
        "from vae_astro.data.store import plan, pools\n"
        "from vae_astro.data.store.pack import open_or_pack\n"
        "plan.SMALLEST_LOT = pools.WORTH_A_PROCESS = 0\n"
        f"open_or_pack({str(tmp_path / 'sky')!r}, ArrayReader(), {str(tmp_path / 'stores')!r},"
        " n_processes=2, progress=False)\n"
    )
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "if __name__ == '__main__'" in done.stderr.splitlines()[-1]


LOSING = """
import os, signal
from multiprocessing import forkserver, resource_tracker
from vae_astro.data.store import pools

def told(number):
    os.kill(os.getpid(), number)
    return os.getpid()

if __name__ == "__main__":
    with pools._processes(1) as submit:
        submit(int).result()
        os.kill(forkserver._forkserver._forkserver_pid, signal.SIGUSR1)
        os.kill(resource_tracker._resource_tracker._pid, signal.SIGUSR1)
        workers = {submit(told, number).result() for number in (signal.SIGINT, signal.SIGUSR1)}
        print(len(workers), submit(os.getpid).result() in workers)
"""


def test_what_is_sent_to_every_process_is_answered_by_the_parent_alone(tmp_path):
    """A scheduler's SIGUSR1 and Ctrl-C on a terminal; the parent then ends them."""
    (tmp_path / "a.py").write_text(LOSING)
    done = subprocess.run(
        [sys.executable, "a.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 True\n", "")
