"""Reading a checkpoint: the one call of ``torch.load``, and the checks that follow it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint

from vae_astro.checkpoint_file.formats import migrated
from vae_astro.checkpoint_file.other_files import what_else
from vae_astro.errors import InputError, first_of

__all__ = ["load_checkpoint"]

EXPECTED = "give a run folder or a .ckpt file of one"
NEEDED: dict[str, type] = {"state_dict": dict, "hyper_parameters": dict}
OF_A_RUN: dict[str, type] = {"global_step": int, "epoch": int, "callbacks": dict}
"""What is there too, unless only the model was kept, as `vae_astro.export` does."""


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this project onto the CPU, in the newest format.

    Code that it may hold is never run: it is unpickled with ``weights_only=True``, from a zip
    archive of torch alone. What comes out is checked: weights are tensors, settings are plain
    Python, and no text of theirs asks the configuration for something to be filled in.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    dict
        As Lightning saved it: ``state_dict``, ``hyper_parameters``, ``vae_astro`` and what a
        trainer needs to go on.

    Raises
    ------
    InputError
        If it cannot be read, is not one of ours, or is of a format this version does not know.
    """
    path = Path(path)
    checkpoint = _unpickled(path)
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("vae_astro"), dict):
        raise InputError(
            f"{path} is not a checkpoint of vae_astro but {_of_others(checkpoint)}; {EXPECTED}"
        )
    try:
        checkpoint = migrated(checkpoint, path)
        _check(checkpoint, path)
    except (TypeError, AttributeError, LookupError) as error:
        raise _incomplete(path, "what its format promises is not there") from error
    except RecursionError as error:
        raise _incomplete(path, "its settings lie within one another without end") from error
    return checkpoint


def _unpickled(path: Path) -> Any:
    try:
        other = what_else(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read as a checkpoint: {error.strerror}") from error
    if other is not None:
        raise InputError(f"{path} cannot be read as a checkpoint, it is {other}; {EXPECTED}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, for whoever wrote the file
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged pickles raise whatever their wrong bytes come to
        objects = _objects_in(path)
        if objects:
            raise InputError(
                f"{path} cannot be read as a checkpoint: it holds objects that are made by running "
                f"code ({objects}), and was not opened; a checkpoint of vae_astro holds numbers, "
                f"text and tensors only; {EXPECTED}"
            ) from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{path} cannot be read as a checkpoint, it is damaged or something else ({reason}); "
            f"{EXPECTED}"
        ) from error


def _objects_in(path: Path) -> str:
    """Names of classes and functions that a pickle asks for and must not have; nothing is run."""
    try:
        names = sorted(get_unsafe_globals_in_checkpoint(path))
    except Exception:  # as above
        return ""
    return first_of(names, 3)


def _of_others(found: object) -> str:
    """What was saved by another project, in a few words."""
    if not isinstance(found, Mapping):
        return f"a saved {type(found).__name__}"
    if "pytorch-lightning_version" in found:
        keys = ", ".join(map(str, list(found.get("hyper_parameters") or ())[:3]))
        return f"one of another Lightning module (its settings: {keys or 'none'})"
    if "model_state_dict" in found:
        return "weights of pythae or another project (model_state_dict)"
    if found and all(isinstance(value, torch.Tensor) for value in found.values()):
        return f"bare weights ({len(found)} tensors, the first {next(iter(found))})"
    keys = ", ".join(map(str, list(found)[:3]))
    return f"something else (its keys: {keys or 'none'})"


def _check(checkpoint: dict[str, Any], path: Path) -> None:
    for key, kind in NEEDED.items():
        if not isinstance(checkpoint.get(key), kind):
            raise _incomplete(path, f"{key} is missing")
    for key, kind in OF_A_RUN.items():
        if not isinstance(checkpoint.get(key, kind()), kind):
            raise _incomplete(path, f"{key} is a {type(checkpoint[key]).__name__}")
    for name, value in checkpoint["state_dict"].items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise _incomplete(path, f"state_dict[{name!r}] is no tensor")
        if value.layout != torch.strided or value.is_meta or value.is_complex():
            raise _incomplete(path, f"state_dict[{name!r}] has no real numbers, one for each place")
    ours = checkpoint["vae_astro"]
    steps = ours.get("total_steps")
    if isinstance(steps, bool) or not isinstance(steps, int) or not isinstance(ours["state"], dict):
        raise _incomplete(path, "vae_astro.total_steps is missing")
    settings = ours.setdefault("settings", None)
    if settings is not None and not isinstance(settings, dict):
        raise _incomplete(path, "vae_astro.settings is no mapping")
    _check_plain(checkpoint["hyper_parameters"], "hyper_parameters", path)
    _check_plain(settings, "vae_astro.settings", path)


def _check_plain(value: object, where: str, path: Path) -> None:
    """Raise `InputError` unless ``value`` is plain Python that says all by itself."""
    if isinstance(value, dict):
        for key, part in value.items():
            if not isinstance(key, str):
                raise _incomplete(path, f"{where} has the key {key!r}, which is no text")
            _check_plain(part, f"{where}.{key}", path)
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            _check_plain(part, f"{where}[{number}]", path)
    elif isinstance(value, str):
        # a resumed run would have it filled in: ${oc.env:SECRET} is what this computer knows
        if "${" in value:
            raise InputError(
                f"{path}: {where} is {value!r}, which asks for something to be filled in; a "
                "checkpoint of vae_astro has its settings in full, so this one was changed"
            )
    elif value is not None and type(value) not in (bool, int, float):
        raise _incomplete(path, f"{where} is a {type(value).__name__}, not plain Python")


def _incomplete(path: Path, why: str) -> InputError:
    return InputError(f"{path} is no whole checkpoint of vae_astro: {why}; {EXPECTED}")
