"""What this machine is good at, and what a run makes of it where its settings say ``auto``."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import joblib
import llvmlite.binding as llvm
import torch

from vae_astro.settings import check_bool, check_choice, check_int

__all__ = [
    "CPU_BATCH",
    "EPOCHS",
    "PRECISIONS",
    "USUAL_STEPS",
    "Machine",
    "Setup",
    "batch_size_for",
    "choose",
    "keep_freed_memory",
    "look",
    "take",
]

PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")
AUTO = "auto"

BF16_FEATURES = {"avx512bf16": "avx512_bf16", "amx-bf16": "amx_bf16"}
"""What LLVM calls the instructions of a processor that multiply bfloat16, and what Linux does."""
AMPERE = 8
"""CUDA capability from which the tensor cores multiply bfloat16."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's ``mallopt``."""
KEPT_BYTES = 2**30
"""Freed memory that is kept, and size of an array from which it gets memory of its own."""

CPU_BATCH = 64
LARGEST_BATCH = 4096
USUAL_STEPS = 1500
"""Optimiser steps of a run whose length or batch is not given, ..."""
EPOCHS = (10, 300)
"""... within these bounds of its epochs."""


@dataclass(frozen=True)
class Machine:
    """Where a run computes.

    Attributes
    ----------
    accelerator : {"cpu", "cuda", "mps"}
        Kind of device.
    name : str
        For people.
    bf16 : str or None
        What multiplies bfloat16 natively, if anything does.
    n_cores : int
        Processor cores that this process may use: physical ones, within its affinity and the limits
        of its container.
    """

    accelerator: str
    name: str
    bf16: str | None
    n_cores: int


@dataclass(frozen=True)
class Setup:
    """How a run uses its machine.

    Attributes
    ----------
    precision : str
        As Lightning has it.
    channels_last : bool
        Whether convolutions keep the channels of a pixel side by side.
    n_threads : int
        Of torch, in each process.
    reason : str
        One line for the log.
    """

    precision: str
    channels_last: bool
    n_threads: int
    reason: str


def look(accelerator: str = AUTO) -> Machine:
    """The machine, as far as ``accelerator`` (Lightning's name) lets a run use it."""
    n_cores = joblib.cpu_count(only_physical_cores=True)
    if accelerator in (AUTO, "gpu", "cuda") and torch.cuda.is_available():
        capability = torch.cuda.get_device_capability()
        bf16 = f"capability {capability[0]}.{capability[1]}" if capability[0] >= AMPERE else None
        return Machine("cuda", torch.cuda.get_device_name(), bf16, n_cores)
    if accelerator in (AUTO, "gpu", "mps") and torch.backends.mps.is_available():
        return Machine("mps", "Apple GPU", None, n_cores)
    features = llvm.get_host_cpu_features()
    bf16 = next((name for key, name in BF16_FEATURES.items() if features.get(key)), None)
    return Machine("cpu", llvm.get_host_cpu_name(), bf16, n_cores)


def choose(options: Mapping[str, Any], machine: Machine) -> Setup:
    """What the settings of a trainer come to on ``machine``.

    Parameters
    ----------
    options : mapping
        The group ``trainer``; ``precision``, ``channels_last`` and ``threads`` are values or
        ``auto``.
    machine : Machine
        From `look`.

    Raises
    ------
    InputError
        A value out of range.
    """
    precision = check_choice("trainer.precision", options["precision"], PRECISIONS)
    if precision == AUTO:
        precision = "bf16-mixed" if machine.bf16 else "32-true"
        why = machine.bf16 or "no native bfloat16"
    elif precision == "16-mixed" and machine.accelerator == "cpu":
        precision, why = "bf16-mixed", "16-mixed is for GPUs"
    else:
        why = "as set"
    channels_last = _or_auto("channels_last", options, machine.accelerator != "mps")
    n_threads = _threads(options, machine)
    memory = "channels last" if channels_last else "channels first"
    reason = (
        f"{machine.accelerator} ({machine.name}): precision {precision} ({why}), {memory}, "
        f"{n_threads} {'thread' if n_threads == 1 else 'threads'}"
    )
    return Setup(precision, channels_last, n_threads, reason)


def batch_size_for(machine: Machine, n_stamps: int, n_ranks: int = 1) -> int:
    """Stamps in a batch where none is asked for.

    On a processor 64: it computes no faster with more. A GPU would wait for work with so few: it
    gets the largest power of two that leaves `USUAL_STEPS` optimiser steps in the fewest `EPOCHS`
    of ``n_stamps``, from 64 to `LARGEST_BATCH`. Rounded up to equal parts for ``n_ranks``
    processes.
    """
    size = CPU_BATCH
    if machine.accelerator != "cpu":
        most = max(EPOCHS[0] * n_stamps // USUAL_STEPS, 1)
        size = min(max(2 ** (most.bit_length() - 1), CPU_BATCH), LARGEST_BATCH)
    return -(-size // n_ranks) * n_ranks


def take(options: Mapping[str, Any]) -> tuple[Machine, Setup]:
    """Look at the machine, choose, and set this process up as chosen; see `choose`."""
    machine = look(options["accelerator"])
    setup = choose(options, machine)
    torch.set_num_threads(setup.n_threads)
    keep_freed_memory()
    return machine, setup


def keep_freed_memory() -> None:
    """Let the C library keep what tensors free, for the next step to use again.

    By default it gives larger blocks back to the system, which clears every page before it hands
    them out anew. Other C libraries than glibc are left as they are.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        if library.mallopt(M_MMAP_THRESHOLD, KEPT_BYTES):  # 0 where it takes no number so large
            library.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def _or_auto(key: str, options: Mapping[str, Any], best: bool) -> bool:
    value = options[key]
    return best if value == AUTO else check_bool(f"trainer.{key}", value)


def _threads(options: Mapping[str, Any], machine: Machine) -> int:
    if options["threads"] != AUTO:
        return check_int("trainer.threads", options["threads"], minimum=1)
    if "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads()
    # the processes of one machine share its cores
    n_processes = options["devices"] if isinstance(options["devices"], int) else 1
    return max(1, machine.n_cores // max(n_processes, 1))
