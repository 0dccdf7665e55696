"""A run folder read back: its curves, settings and final figures."""

from __future__ import annotations

import json
import re
import struct
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
from yaml import YAMLError

from vae_astro.command.typed import key_of, take_over
from vae_astro.errors import InputError
from vae_astro.folders import run_folder_of

__all__ = ["SCHEDULE", "Curve", "Run", "is_run_folder", "read_history", "read_run"]

SCHEDULE = "schedule/"
"""Group in TensorBoard of the scalars that the model logs without one: beta, capacity, epoch."""

EVENTS = "events.out.tfevents.*"
LONGEST_SCALARS = 4096
"""Bytes of a record that may hold scalars; a picture is longer, and is stepped over unread."""
RESCUE = re.compile(r"rescue_(\d+)")


@dataclass(frozen=True)
class Curve:
    """One scalar over a run.

    Attributes
    ----------
    steps : ndarray of int64, shape (T,)
        Optimiser steps, ascending, each once.
    values : ndarray of float64, shape (T,)
        As logged: a value that was not finite stays so.
    wall_times : ndarray of float64, shape (T,)
        When each was logged, in seconds since 1970.
    """

    steps: np.ndarray
    values: np.ndarray
    wall_times: np.ndarray


@dataclass(frozen=True)
class Run:
    """What a run folder says of itself.

    Attributes
    ----------
    dir : Path
        The run folder.
    name : str
        Of the folder; that of a run in a sweep begins with the name of the sweep.
    metrics : dict or None
        ``metrics.json``; None where the run did not come to its end, or the file cannot be read.
    config : dict
        What the run was composed of, in plain Python; empty where that is not known.
    overrides : list of str
        What was typed.
    history : dict of str to Curve
        By name.
    damaged : tuple of str
        What is there but cannot be read, a clause for each.
    """

    dir: Path
    name: str
    metrics: dict[str, Any] | None
    config: dict[str, Any]
    overrides: list[str]
    history: dict[str, Curve]
    damaged: tuple[str, ...] = ()


def is_run_folder(folder: Path) -> bool:
    """Whether a run was started in ``folder``."""
    marks = ("metrics.json", ".hydra/config.yaml", "checkpoints")
    return any((folder / mark).exists() for mark in marks) or any(folder.glob(EVENTS))


def read_run(run_dir: Path) -> Run:
    """Everything a run folder says without its checkpoints being opened.

    Parameters
    ----------
    run_dir : Path
        Run folder, or a checkpoint in it. It may be of a run that is still going on, or was
        stopped: what is not there yet is left out.

    Raises
    ------
    InputError
        There is no run in ``run_dir``.
    """
    folder = run_folder_of(run_dir) or Path(run_dir)
    if not folder.is_dir():
        raise InputError(f"{run_dir} is no folder; give the folder of a run, such as runs/NAME")
    if not is_run_folder(folder):
        raise InputError(
            f"{run_dir} holds no run: neither metrics.json, .hydra, checkpoints nor curves; give "
            "the folder of a run, such as runs/NAME"
        )
    damaged: list[str] = []
    metrics = _metrics(folder, damaged)
    config, overrides = _settings(folder, damaged)
    return Run(
        dir=folder,
        name=_name(folder),
        metrics=metrics,
        config=config,
        overrides=overrides,
        history=read_history(folder),
        damaged=tuple(damaged),
    )


def _name(folder: Path) -> str:
    folder = folder.resolve()
    in_sweep = (folder.parent / "multirun.yaml").is_file()
    return f"{folder.parent.name}/{folder.name}" if in_sweep else folder.name


def _metrics(folder: Path, damaged: list[str]) -> dict[str, Any] | None:
    path = folder / "metrics.json"
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        damaged.append(f"metrics.json cannot be read: {error}")
        return None
    if not isinstance(found, dict):
        damaged.append(f"metrics.json holds a {type(found).__name__}, not an object")
        return None
    return found


def _settings(folder: Path, damaged: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Settings and typed overrides, with those that the run was resumed with."""
    first = folder / ".hydra"
    if not (first / "config.yaml").is_file():
        return {}, []
    try:
        settings, overrides = _composed(first, folder)
        for record in sorted(first.glob("resumed_*")):
            if not (record / "config.yaml").is_file():
                continue
            now, typed = _composed(record, folder)
            typed = [override for override in typed if key_of(override) != "resume"]
            take_over(settings, now, typed)  # as the resumed run did
            overrides += typed
        plain = OmegaConf.to_container(settings, resolve=True)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        damaged.append(f".hydra cannot be read: {' '.join(str(error).split())}")
        return {}, []
    return plain, overrides  # type: ignore[return-value]


def _composed(record: Path, folder: Path) -> tuple[Any, list[str]]:
    config = OmegaConf.load(record / "config.yaml")
    if not OmegaConf.is_dict(config):
        raise ValueError("config.yaml holds no settings")
    config.run_dir = str(folder)  # it was asked of a resolver, which would make a new one up
    # resolvers look around on this computer, and the folder may be a stranger's
    if asked := re.search(r"\$\{[^}$]*:[^}]*\}", OmegaConf.to_yaml(config)):
        raise ValueError(f"config.yaml asks for {asked[0]} to be filled in")
    path = record / "overrides.yaml"
    typed: Any = OmegaConf.load(path) if path.is_file() else []
    return config, [str(override) for override in typed]


# -- curves --------------------------------------------------------------------------------------


def read_history(run_dir: Path) -> dict[str, Curve]:
    """All scalars that TensorBoard has of a run, from every event file.

    A resumed run has several files: of two values at one step the later counts. A run that was
    rescued goes on in ``rescue_N`` from an earlier step; what was logged from that step on by the
    fit that collapsed is left out. A file that breaks off is read as far as it goes, and pictures
    are not decoded.

    Parameters
    ----------
    run_dir : Path
        Run folder.

    Returns
    -------
    dict of str to Curve
        By the name that the model logs it under, ``beta`` for what TensorBoard shows as
        ``schedule/beta``; empty where there is none.
    """
    run_dir = Path(run_dir)
    rescues = [path for path in run_dir.glob("rescue_*") if RESCUE.fullmatch(path.name)]
    points: dict[str, np.ndarray] = {}
    for folder in [run_dir, *sorted(rescues, key=lambda path: int(path.name.split("_")[1]))]:
        for name, found in _points(folder).items():
            before = points.get(name, found[:0])
            points[name] = np.concatenate([before[before[:, 0] < found[0, 0]], found])
    return {
        name: Curve(found[:, 0].astype(np.int64), found[:, 1], found[:, 2])
        for name, found in sorted(points.items())
    }


def _points(folder: Path) -> dict[str, np.ndarray]:
    """Step, value and wall time (T, 3) of each scalar, each step once."""
    logged: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for path in folder.glob(EVENTS):
        for event in _events(path):
            for value in event.summary.value:
                if value.WhichOneof("value") == "simple_value":
                    name = value.tag.removeprefix(SCHEDULE)
                    logged[name].append((event.step, value.simple_value, event.wall_time))
    points = {}
    for name, rows in logged.items():
        table = np.array(rows, dtype=np.float64)
        table = table[np.lexsort((table[:, 2], table[:, 0]))]
        is_last = np.append(table[1:, 0] != table[:-1, 0], True)
        points[name] = table[is_last]
    return points


def _events(path: Path) -> Iterator[Event]:
    """Short events of a file, up to where it breaks off.

    A record is its length (8 bytes), a checksum of that (4), itself, and a checksum (4).
    """
    try:
        with path.open("rb") as file:
            while len(head := file.read(12)) == 12:
                (length,) = struct.unpack("<Q", head[:8])
                if length > LONGEST_SCALARS:
                    file.seek(length + 4, 1)
                    continue
                record = file.read(length)
                if len(record) < length:
                    return
                file.seek(4, 1)
                yield Event.FromString(record)
    except (OSError, OverflowError, DecodeError):
        return
