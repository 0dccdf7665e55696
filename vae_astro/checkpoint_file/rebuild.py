"""A checkpoint and nothing else to the model it is of."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from vae_astro.checkpoint_file.door import load_checkpoint
from vae_astro.checkpoint_file.find import find_checkpoint
from vae_astro.errors import InputError

__all__ = ["different_weights", "made", "rebuilt"]


class _Model(Protocol):
    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None: ...
    def to(self, device: Any) -> Any: ...


M = TypeVar("M", bound=_Model)


def rebuilt(
    model_class: type[M], path: str | PathLike[str], device: Any = "cpu", **settings: Any
) -> M:
    """The model of a checkpoint, with its weights, made by its own settings.

    Parameters
    ----------
    model_class : type
        Called with the ``hyper_parameters``.
    path : str or path
        A checkpoint, or a run folder, of which the best is taken.
    device : str or torch.device
        Where it goes.
    **settings
        Hyper-parameters that replace those of the checkpoint.

    Raises
    ------
    InputError
        As `find_checkpoint` and `load_checkpoint`; settings or weights that this version has no
        model for; no setting of the model; a device that is none, or is not here.
    """
    if not isinstance(path, str | PathLike):
        raise InputError(
            f"a checkpoint is given by its path or run folder, not by a {type(path).__name__}"
        )
    known = list(inspect.signature(model_class).parameters)
    if unknown := [key for key in settings if key not in known]:
        raise InputError(
            f"a checkpoint cannot be loaded with {unknown[0]}=; what it was made with can be "
            f"replaced, {', '.join(known)}, and its weights are taken as they are: init_from= of "
            "train.py takes what fits of those of another model"
        )
    place = _device(device)
    found = find_checkpoint("checkpoint", fspath(path))
    checkpoint = load_checkpoint(found)
    model = made(model_class, checkpoint, found, **settings)
    _refuse_other_weights(model, checkpoint, found)
    try:
        model.load_state_dict(checkpoint["state_dict"])
        model.on_load_checkpoint(checkpoint)
    except (ValueError, TypeError, AttributeError, LookupError, RuntimeError) as error:
        raise InputError(
            f"{found}: its weights or state are damaged ({' '.join(str(error).split())}); "
            f"{_way_out(checkpoint)}"
        ) from error
    try:
        model.to(place)
    except (
        RuntimeError,
        AssertionError,
        NotImplementedError,
    ) as error:  # of torch
        raise InputError(f"map_location={place}: {' '.join(str(error).split())}") from error
    return model


def _device(given: Any) -> torch.device:
    try:
        return torch.device(given)
    except (RuntimeError, TypeError) as error:
        raise InputError(
            f"map_location must be a device, such as cpu, cuda or cuda:1, got {given!r}"
        ) from error


def made(model_class: type[M], checkpoint: dict[str, Any], path: Path, **settings: Any) -> M:
    """The model that the settings of a checkpoint make, without its weights.

    Raises
    ------
    InputError
        Settings that this version has no model for; ``path`` is named.
    """
    try:
        return model_class(**{**checkpoint["hyper_parameters"], **settings})
    # InputError is what a name or a value that is not known comes to; the others are what settings
    # of another type or size come to
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError) as e:
        raise InputError(
            f"{path}: this version makes no model of its settings ({' '.join(str(e).split())}); "
            f"{_way_out(checkpoint)}"
        ) from e


def different_weights(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]
) -> dict[str, tuple[str, str]]:
    """Weights that are not the same in name and shape: (in the checkpoint, here) by name."""

    def shape(weights: Mapping[str, Tensor], name: str) -> str:
        return str(tuple(weights[name].shape)) if name in weights else "absent"

    shapes = {name: (shape(theirs, name), shape(ours, name)) for name in {**ours, **theirs}}
    return {name: pair for name, pair in shapes.items() if pair[0] != pair[1]}


def _refuse_other_weights(model: _Model, checkpoint: dict[str, Any], path: Path) -> None:
    different = different_weights(model.state_dict(), checkpoint["state_dict"])
    if different:
        shown = "; ".join(
            f"{name}: {there} there, {here} here"
            for name, (there, here) in list(different.items())[:3]
        )
        raise InputError(
            f"{path}: its network is not the one that its settings make now, {len(different)} "
            f"weights differ ({shown}); {_way_out(checkpoint)}, or train anew from what fits: "
            f"init_from={path}"
        )


def _way_out(checkpoint: dict[str, Any]) -> str:
    version = checkpoint["vae_astro"].get("version", "unknown")
    return f"load it with the vae_astro that wrote it ({version})"
