"""Kill packers at random moments, let another one finish, compare the bytes; prints what it saw.

python kill_packers.py FOLDER KILLS SEED PROCESSES

A script of its own, so that it can fork from one thread: a new interpreter for each packer would
take longer than the packing.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from array_reader import ArrayReader, contents, write_bad, write_stamps

from vae_astro.data.store import plan, pools
from vae_astro.data.store.pack import open_or_pack

N_STAMPS = 72
SIZE = 128
"""Large enough that writing takes a good part of the time."""
PATIENCE = 20.0
"""Seconds in which the processes of a killed packer have to end."""


def start(root: Path, stores: Path, n_processes: int) -> int:
    """A packer in a process group of its own."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setpgid(0, 0)
        plan.SMALLEST_LOT = 6 * 4 * SIZE**2
        pools.WORTH_A_PROCESS = -1.0
        # slow enough, with others, that these are ready before all is done
        reader = ArrayReader(names=("r",), seconds_per_file=0.0 if n_processes == 1 else 0.02)
        open_or_pack(root, reader, stores, size=SIZE, progress=False, n_processes=n_processes)
        status = 0
    finally:
        os._exit(status)


def members(group: int) -> list[int]:
    """Processes of a group that still run."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                state, _, pgrp = (
                    Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[:3]
                )
            except OSError:
                continue
            if int(pgrp) == group and state != "Z":
                found.append(int(entry))
    return found


def finish(root: Path, stores: Path, n_processes: int) -> None:
    _, status = os.waitpid(start(root, stores, n_processes), 0)
    if status:
        sys.exit(f"an undisturbed packer ended with {status}")


def main() -> None:
    folder, n_kills, n_processes = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[4])
    rng = random.Random(int(sys.argv[3]))
    root = write_stamps(
        folder / "sky", *(f"a{k:02}" for k in range(N_STAMPS)), shape=(1, SIZE, SIZE)
    )
    write_bad(root, "bad")
    stores = folder / "stores"
    began = time.monotonic()
    finish(root, stores, n_processes)
    seconds = time.monotonic() - began
    expected = contents(stores)
    n_hit = n_resumed = n_left = n_kept = n_partial = 0
    while n_hit < n_kills:
        shutil.rmtree(stores)
        for _ in range(rng.randint(1, 3)):  # a packer may be killed while it resumes another
            pid = start(root, stores, n_processes)
            time.sleep(rng.uniform(0, seconds))
            os.kill(pid, signal.SIGKILL)
            n_hit += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
            patience = time.monotonic() + PATIENCE
            while members(pid) and time.monotonic() < patience:
                time.sleep(0.005)
            n_left += len(members(pid))
        there = contents(stores) if stores.exists() else {}
        n_kept += sum(name.endswith(".json") and "/." not in name for name in there)
        n_partial += sum("/." in name for name in there)
        finish(root, stores, n_processes)
        n_resumed += 1
        if contents(stores) != expected:
            sys.exit(f"after {n_hit} kills the bytes differ")
    print(
        f"killed {n_hit} packers of {n_processes} processes at random moments of {seconds:.2f} s, "
        f"resumed {n_resumed} times: the same {len(expected)} files, byte for byte; {n_kept} "
        f"finished records and {n_partial} parts had been left; {n_left} processes stayed behind"
    )
    sys.exit(n_left > 0)


if __name__ == "__main__":
    main()
