"""Commands as they are typed: how soon they begin, how fast they embed, and a whole job."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.peers import peers_folder
from benchmarks.rates import ENDLESS, ON_CPU, Plan, our_side
from benchmarks.stamps import open_store, write_folder
from benchmarks.table import Row, not_measured, ratio_row, value_row
from benchmarks.turns import ROOT, SideError, interleave, with_peers

__all__ = ["embedding_rows", "start_rows", "whole_job_rows"]

SECONDS = 3600
A_SECOND = re.compile(r"([\d.]+) a second")


def command(
    name: str, arguments: Sequence[str], environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``python NAME`` below the repository.

    Raises
    ------
    SideError
        It ended with an error, whose last line this is.
    """
    done = subprocess.run(
        [sys.executable, str(ROOT / name), *arguments],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={**os.environ, **(ON_CPU if environment is None else environment)},
    )
    if done.returncode:
        told = (done.stdout + done.stderr).strip().splitlines()
        raise SideError(f"{name}: {told[-1] if told else f'exit status {done.returncode}'}")
    return done


def start_rows(plan: Plan) -> Iterator[Row]:
    """``--help``, and the first training step."""
    seconds = []
    for _ in range(plan.n_rounds + 1):
        began = time.perf_counter()
        command("train.py", ["--help"])
        seconds.append(time.perf_counter() - began)
    listed = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "train.py"), "--help"],
        capture_output=True,
        text=True,
    ).stderr
    imported = {line.rpartition("|")[2].strip() for line in listed.splitlines()}
    note = "torch is imported" if "torch" in imported else "without importing torch"
    yield value_row("`python train.py --help`", seconds[1:], "s", (1.0, None), "at most", note)
    open_store(plan.settings())  # a warm store
    after = [_seconds_to_first_step(plan, plan.folder / f"first-{k}") for k in range(plan.n_rounds)]
    name = "from the command to the first training step, warm store"
    yield value_row(name, after, "s", (12.0, None), "at most", "its event in TensorBoard")


def _seconds_to_first_step(plan: Plan, run_dir: Path) -> float:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    began = time.time()
    command("train.py", [*plan.overrides, "trainer.max_epochs=1", f"run_dir={run_dir}"])
    events = EventAccumulator(str(run_dir)).Reload()
    return events.Scalars("train/loss")[0].wall_time - began


def embedding_rows(plan: Plan) -> Iterator[Row]:
    """Catalogue rows a second over training stamps a second."""
    name, against, goals = "embedding, catalogue written", "training, the same stamps", (3.0, None)
    run_dir, out = plan.folder / "to-embed", plan.folder / "embedded.parquet"
    arguments = [f"checkpoint={run_dir}", f"out={out}", "overwrite=true"]

    def embed() -> float:
        told = command("scripts/embed.py", arguments).stdout
        found = A_SECOND.search(told)
        if found is None:
            raise SideError(f"scripts/embed.py does not say how fast it was: {told.strip()}")
        return float(found[1])

    try:
        command("train.py", [*plan.overrides, "trainer.max_epochs=1", f"run_dir={run_dir}"])
        embed()
        with our_side(plan, "beside", plan.settings(*ENDLESS)) as ours:
            found = interleave({"embed": embed, "train": ours.rate}, plan.n_rounds)
        yield ratio_row(name, found["embed"], found["train"], goals, against)
    except SideError as error:
        yield not_measured(name, goals, against, str(error))


def whole_job_rows(plan: Plan, n_files: int, n_epochs: int, n_rounds: int) -> Iterator[Row]:
    """From files to a catalogue of latents; imports and packing count, on both sides."""
    name = f"whole job: {n_files:,} FITS files, {n_epochs} epochs, catalogue of latents"
    against, goals = "astropy + pythae script doing the same", (3.0, 5.0)
    files, batch = plan.folder / "files", plan.settings()["data"]["batch_size"]
    write_folder(files, n_files)
    turn = iter(range(10 * n_rounds))

    def ours() -> float:
        folder = plan.folder / f"job-{next(turn)}"
        folder.mkdir()
        run_dir = folder / "run"
        began = time.perf_counter()
        command(
            "train.py",
            ["data=fits", f"data.root={files}", f"data.store_dir={folder / 'stores'}",
             f"data.batch_size={batch}", f"trainer.max_epochs={n_epochs}", f"run_dir={run_dir}",
             "callbacks.page=false"],  # the other side draws nothing either
        )  # fmt: skip
        command("scripts/embed.py", [f"checkpoint={run_dir}", f"out={folder / 'latents.parquet'}"])
        return n_files / (time.perf_counter() - began)

    try:
        environment = ON_CPU | with_peers(peers_folder(plan.peers))
        settings = plan.write(
            "job", plan.compose(["data=fits", "data.root=x", f"data.batch_size={batch}"])
        )

        def theirs() -> float:
            folder = plan.folder / f"job-{next(turn)}"
            folder.mkdir()
            began = time.perf_counter()
            command(
                "scripts/peers/astropy_pythae_job.py",
                [str(files), settings, str(n_epochs), str(folder)],
                environment,
            )
            return n_files / (time.perf_counter() - began)

        found = interleave({"ours": ours, "theirs": theirs}, n_rounds, warm_up=False)
        yield ratio_row(name, found["ours"], found["theirs"], goals, against)
    except SideError as error:
        yield not_measured(name, goals, against, str(error))
