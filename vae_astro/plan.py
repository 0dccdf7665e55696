"""What a run would read, build and train, how long that takes and how big it gets; nothing is kept.

Stamps are not packed and none are drawn: where their number is not known it is extrapolated from
the first ones, and the time of a step is taken on noise of their shape.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vae_astro import length
from vae_astro.checked import Checked
from vae_astro.collapse.forecast import forecast_run
from vae_astro.data.batches import Batch, EpochSampler
from vae_astro.data.datamodule import DEFAULT_SIZE, StampDataModule
from vae_astro.data.simulated import is_finished, settings_of
from vae_astro.data.sources.fits.standard import BLOCK_BYTES, in_whole_blocks
from vae_astro.data.sources.reader import Source
from vae_astro.data.stamp import Stamp, StampBlock
from vae_astro.data.store.layout import Form
from vae_astro.data.store.store import StampStore
from vae_astro.data.threads import n_cores
from vae_astro.errors import InputError
from vae_astro.hardware import batch_size_for
from vae_astro.objective.beta import SCHEDULES
from vae_astro.parts import weights_at
from vae_astro.progress import duration
from vae_astro.settings import build
from vae_astro.training import Attempt, new_vae
from vae_astro.vae import VAE

__all__ = ["plan"]

LOOKED_AT = 64
"""Sources that are read to learn how many stamps they hold and how fast they are read."""
STEPS_S, FEWEST_STEPS, MOST_STEPS = 3.0, 3, 20
"""How long steps are timed [s], and how many at least and at most; the first does not count."""
FORECAST_STAMPS = 1024
DRAWN_PER_S = 435
"""Simulated stamps drawn and written by one core in a second: docs/benchmarks.md."""
AROUND = 2.5
"""Starts of the command that a run takes besides reading and training: its own start, the forecast,
the verdict and the page. A start is timed, so this knows the machine: docs/command-line.md."""
PICTURES_BYTES = 10 * 2**20
"""Figures, TensorBoard events and log of a run: docs/command-line.md."""
ADAM_COPIES = 3
"""Of every parameter in a checkpoint: itself and two moments."""
MIB = 2**20


@dataclass(frozen=True)
class Stamps:
    """What a run would read.

    Attributes
    ----------
    lines : list of str
        For people.
    form : Form
        Of the store.
    n : int
        Stamps, as far as that is known.
    seconds : float
        Until they are packed.
    store : StampStore or None
        If they are packed already.
    """

    lines: list[str]
    form: Form
    n: int
    seconds: float
    store: StampStore | None


def plan(settings: dict[str, Any], checked: Checked, run_dir: Path, start_s: float) -> str:
    """Say what a run of these settings would come to.

    Parameters
    ----------
    settings : dict
        The groups and keys of ``conf/config.yaml``, as plain Python.
    checked : Checked
        What `check` made of them.
    run_dir : Path
        Where the run would go.
    start_s : float
        Seconds that the command took until here.

    Raises
    ------
    InputError
        No stamps, or stamps that cannot be read.
    """
    attempt, datamodule = checked.attempt, checked.datamodule
    stamps = look_at_stamps(datamodule)
    n_train, n_val = _split(stamps, datamodule)
    n_ranks = attempt.trainer.world_size
    if settings["data"]["batch_size"] is None:
        datamodule.batch_size = batch_size_for(attempt.machine, n_train, n_ranks)
    batch_size = min(datamodule.batch_size, max(n_train, 1))
    trainer = attempt.trainer
    n_batches = _n_batches(datamodule, stamps.store, n_train, n_ranks)
    length.set_length(trainer, settings["trainer"], n_batches)
    n_epochs = int(trainer.fit_loop.max_epochs or 1)
    per_epoch = length.steps_per_epoch(trainer, n_batches)
    total_steps = length.total_steps(trainer, n_batches)
    bands = stamps.form.band_names
    vae = new_vae(settings, (len(bands), stamps.form.size, stamps.form.size), bands)
    step_s, look_s = time_steps(vae, attempt, max(1, batch_size // n_ranks))
    n_looks = n_epochs // max(1, int(trainer.check_val_every_n_epoch or 1))
    n_val_batches = length.batches_taken(
        "trainer.limit_val_batches", trainer.limit_val_batches, -(-n_val // batch_size)
    )
    train_s = total_steps * step_s + n_looks * look_s * n_val_batches
    # the verdict sees every stamp once more
    rest_s = AROUND * start_s + look_s * stamps.n / batch_size
    n_parameters = sum(parameter.numel() for parameter in vae.parameters())
    checkpoint = ADAM_COPIES * 4 * n_parameters
    n_kept = 3 if settings["collapse"]["action"] == "rescue" else 2
    run_bytes = n_kept * checkpoint + PICTURES_BYTES
    where = f"{attempt.machine.accelerator} ({attempt.machine.name}), {attempt.setup.precision}"
    processes = f", {n_ranks} processes" if n_ranks > 1 else ""
    parts = {
        "read": stamps.lines,
        "train on": [f"{n_train} stamps, {n_val} for validation, {stamps.n - n_train - n_val} for "
                     "test"],
        "build": [
            f"{_named(settings, 'model')}, {vae.latent_dim} latent units, {n_parameters:,} "
            "parameters",
            ", ".join(_named(settings, part) for part in ("prior", "likelihood", "beta", "optim")),
        ],
        "train": [
            f"{n_epochs} epochs of {per_epoch} steps: {total_steps} steps of {batch_size} stamps",
            f"{where}{processes}",
        ],
        "time": [
            f"about {duration(stamps.seconds + train_s + rest_s)}, an estimate: reading "
            f"{duration(stamps.seconds)}, training {duration(train_s)} ({1000 * step_s:.0f} ms a "
            f"step, timed on noise), start and verdict {duration(rest_s)}",
        ],
        "disk": [
            f"store {_bytes(stamps.n * stamps.form.stamp_bytes)} in "
            f"{stamps.store.path if stamps.store else datamodule.packer.store_dir}"
            f"{' (there already)' if stamps.store else ''}",
            f"run folder about {_bytes(run_bytes)} in {run_dir}: {n_kept} checkpoints of "
            f"{_bytes(checkpoint)}, pictures and curves",
        ],
        "memory": [f"about {_bytes(_most_memory())} for each process, as in these steps; the store "
                   "is mapped, not loaded"],
        "forecast": _forecast(settings, vae, stamps.store, datamodule, total_steps),
    }  # fmt: skip
    if not (n_train and n_val):
        parts["train on"].append("too few: give more stamps or change data.val_fraction")
    if checked.resume is not None:
        parts["resume"] = [f"from {checked.resume}; the steps that are done are not done again"]
    lines = [f"{name if k == 0 else '':10}{line}" for name, said in parts.items()
             for k, line in enumerate(said)]  # fmt: skip
    return "\n".join([*lines, "nothing was written; leave debug=plan away to do it"])


def look_at_stamps(datamodule: StampDataModule) -> Stamps:
    """Find the stamps, and read the first of them if they are not packed yet.

    Raises
    ------
    InputError
        There are none, or none of the first can be read.
    """
    root, packer = datamodule.root, datamodule.packer
    if datamodule.n_stamps is not None:
        size = datamodule.size or DEFAULT_SIZE
        told = settings_of(datamodule.n_stamps, datamodule.simulation_seed, size)
        if not is_finished(Path(root.address), told):
            return _to_be_drawn(datamodule.n_stamps, size, datamodule)
    if datamodule.has_store:
        store = datamodule.open()
        return Stamps(_packed(store), store.manifest.form, len(store), 0.0, store)
    listed = packer.reader.find(root)
    files = {file.name: file.n_bytes for source in listed for file in source.files}
    n_files = "1 file" if len(files) == 1 else f"{len(files)} files"
    lines = [f"{root.address}: {n_files}, {_bytes(sum(files.values()))}"]
    finished = packer.finished(root, listed)
    if finished is not None:
        lines += _packed(finished)
        return Stamps(lines, finished.manifest.form, len(finished), 0.0, finished)
    form = packer.form_of(root, listed)
    few = listed[:: max(1, len(listed) // LOOKED_AT)][:LOOKED_AT]
    began = time.perf_counter()
    n_good, n_bad = _counted(datamodule, few)
    seconds = time.perf_counter() - began
    if not n_good:
        raise InputError(f"none of the first {n_bad} stamps below data.root={root.address} can be "
                         "read; scripts/pack.py says why")  # fmt: skip
    share = _weight(few) / _weight(listed)
    n = round(n_good / share) if share < 1 else n_good
    about = "about " if share < 1 else ""
    shape = f"{form.size}x{form.size}, {len(form.band_names)} band" + "s" * (
        len(form.band_names) > 1
    )
    lines.append(
        f"{about}{n} stamps of {shape}, to be packed"
        + (f" (from {len(few)} of them; {n_bad} cannot be read)" if n_bad else "")
    )
    return Stamps(lines, form, n, seconds / share / n_cores(), None)


def _to_be_drawn(n: int, size: int, datamodule: StampDataModule) -> Stamps:
    n_processes = n_cores()
    file = 2 * BLOCK_BYTES + in_whole_blocks(4 * size * size)  # headers and pixels
    form = Form(size, ("band0",), False, datamodule.packer.stored_as)
    line = (
        f"{n} stamps of {size}x{size}, to be drawn with {n_processes} processes into "
        f"{datamodule.root.address} ({_bytes(n * file)} of FITS), then packed"
    )
    return Stamps([line], form, n, n / (DRAWN_PER_S * n_processes), None)


def _packed(store: StampStore) -> list[str]:
    bands = ", ".join(store.band_names)
    size = store.manifest.form.size
    return [f"{len(store)} stamps of {size}x{size} ({bands}), packed already in {store.path}, "
            f"{store.n_rejected} set aside"]  # fmt: skip


def _counted(datamodule: StampDataModule, sources: Sequence[Source]) -> tuple[int, int]:
    """Stamps in some sources, and what cannot be read."""
    n_good = n_bad = 0
    for item in datamodule.packer.reader.read(sources, datamodule.root):
        if isinstance(item, StampBlock):
            n_good += len(item)
        elif isinstance(item, Stamp):
            n_good += 1
        else:
            n_bad += 1
    return n_good, n_bad


def _weight(sources: Sequence[Source]) -> float:
    """What sources hold, to compare them by: bytes, or their number where these are not known."""
    return sum(source.n_bytes for source in sources) or len(sources)


def _split(stamps: Stamps, datamodule: StampDataModule) -> tuple[int, int]:
    """Stamps to train on and to validate; by the objects where the store says them."""
    if stamps.store is not None:
        datamodule.use(stamps.store)
        return len(datamodule.train_rows), len(datamodule.val_rows)
    n_val = round(stamps.n * datamodule.val_fraction)
    return stamps.n - n_val - round(stamps.n * datamodule.test_fraction), n_val


def _n_batches(
    datamodule: StampDataModule, store: StampStore | None, n_train: int, n_ranks: int
) -> int:
    """Batches of an epoch; of as many stamps as are expected where they are not packed."""
    if store is not None and n_train >= n_ranks:
        return datamodule.batches_per_epoch(n_ranks)
    rows = np.arange(max(n_train, n_ranks))
    return len(EpochSampler(rows, datamodule.batch_size, datamodule.seed, n_ranks=n_ranks))


def time_steps(vae: VAE, attempt: Attempt, n_stamps: int) -> tuple[float, float]:
    """Seconds of a training step and of a validation step on ``n_stamps`` of noise."""
    cuda = attempt.machine.accelerator == "cuda"
    device = torch.device("cuda" if cuda else "cpu")
    batch = _noise(vae, n_stamps)
    vae.prepare([batch])
    vae.to(device)
    if attempt.setup.channels_last:
        vae.to(memory_format=torch.channels_last)
    batch = {name: value.to(device) for name, value in batch.items()}
    optimizer = torch.optim.Adam(vae.parameters(), lr=0.0)
    bf16 = attempt.setup.precision == "bf16-mixed"
    eps = torch.randn(n_stamps, vae.latent_dim, device=device)
    weights = weights_at(0, vae.schedule, vae.likelihood.kl_weight, device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext():
            trained = vae.parts.train(
                batch["image"], batch["mask"], batch["noise"], eps, weights,
                vae.schedule.free_bits_nats, vae.schedule.controller, True,
            )  # fmt: skip
        optimizer.zero_grad()
        trained.loss.backward()
        optimizer.step()

    def look() -> None:
        with (
            torch.no_grad(),
            torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext(),
        ):
            vae.parts.evaluate(batch["image"], batch["mask"], batch["noise"], eps)

    def seconds_of(action: Any) -> float:
        began = time.perf_counter()
        action()
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    seconds_of(step)
    steps: list[float] = []
    while len(steps) < FEWEST_STEPS or (sum(steps) < STEPS_S and len(steps) < MOST_STEPS):
        steps.append(seconds_of(step))
    return statistics.median(steps), seconds_of(look)


def _noise(vae: VAE, n_stamps: int) -> Batch:
    """Noise between 0 and 1, which every likelihood takes."""
    shape = (n_stamps, *vae.stamp_shape)
    return {
        "image": torch.rand(shape),
        "mask": torch.ones(shape, dtype=torch.bool),
        "noise": torch.ones(shape),
        "index": torch.arange(n_stamps),
    }


def _forecast(
    settings: dict[str, Any],
    vae: VAE,
    store: StampStore | None,
    datamodule: StampDataModule,
    total_steps: int,
) -> list[str]:
    n_stamps = min(settings["collapse"]["forecast_stamps"], FORECAST_STAMPS)
    if store is None or not n_stamps:
        return ["when the stamps are packed: scripts/pack.py, then this again"]
    schedule = build("beta", SCHEDULES, vae.beta_settings, total_steps=total_steps)
    likelihood = vae.to("cpu").likelihood
    try:
        sample = list(datamodule.training_sample(n_stamps))
        likelihood.prepare(sample)
        foreseen = forecast_run(sample, likelihood, vae.latent_dim, schedule, total_steps)
    except InputError as error:
        return [f"none: {error}"]
    said = [line.removeprefix("forecast: ") for line in foreseen.lines]
    return [*said, f"(from {n_stamps} stamps at most; the run takes more)"]


def _named(settings: dict[str, Any], group: str) -> str:
    return f"{group}={settings[group]['name']}"


def _bytes(n: float) -> str:
    mib = max(n / MIB, 0.1)
    return (
        f"{n / 2**30:.1f} GiB" if mib >= 1023.5 else f"{mib:{'.0f' if mib >= 100 else '.3g'}} MiB"
    )


def _most_memory() -> int:
    """Most that this process has held so far [byte]."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
