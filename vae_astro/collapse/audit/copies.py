"""The copy of a model that an audit works on."""

from __future__ import annotations

import copy
import types
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from vae_astro.errors import InputError

__all__ = ["copy_of"]

Memo = dict[int, Any]
"""What stands for an object in the copy, by its id, as `copy.deepcopy` has it."""

CONTAINERS = (Mapping, list, tuple, set, frozenset)


def copy_of(model: nn.Module) -> nn.Module:
    """A copy that shares nothing that training moves.

    Graphs of earlier passes are dropped, a trainer is left behind. What cannot be copied (an open
    file, a lock), alone or in containers, is shared; all around it is copied.

    Raises
    ------
    InputError
        A layer that cannot be copied.
    """
    memo: Memo = {}
    for each in model.modules():
        for name, value in vars(each).items():
            if name in ("_trainer", "_fabric"):
                memo[id(value)] = None
            elif isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    if not _copies(model, memo):
        stuck = list(_stuck(model, memo, set()))
        for each in stuck:  # the innermost ones first: what holds a file may copy once it is shared
            if all(_copies(part, memo) for part in _parts(each)):
                _set_aside(each, memo)
        for each in stuck:  # what knows the model and cannot be copied, with or without a file
            if not isinstance(each, CONTAINERS):  # else a layer in it would be shared
                _set_aside(each, memo)
    try:
        return copy.deepcopy(model, dict(memo))
    except Exception as error:  # a layer's own __deepcopy__ may raise anything
        raise InputError(_refusal(model, memo, error)) from error


def _copies(value: Any, memo: Memo) -> bool:
    try:
        copy.deepcopy(value, dict(memo))
    except Exception:
        return False
    return True


def _stuck(value: Any, memo: Memo, seen: set[int]) -> Iterator[Any]:
    """What cannot be copied in ``value``, and ``value`` itself if so, parts before wholes."""
    if id(value) in seen or _copies(value, memo):
        return
    seen.add(id(value))
    for part in _parts(value):
        yield from _stuck(part, memo, seen)
    yield value


def _parts(value: Any) -> list[Any]:
    """What a copy of ``value`` would copy too."""
    if isinstance(value, Tensor | types.ModuleType):  # a module is shared, with all that it holds
        return []
    if isinstance(value, types.MethodType):
        return [value.__self__]
    held = getattr(value, "__dict__", None)
    parts = list(held.values()) if isinstance(held, Mapping) else []
    if isinstance(value, Mapping):
        parts += [*value.keys(), *value.values()]
    elif isinstance(value, CONTAINERS):
        parts += value
    return parts


def _set_aside(value: Any, memo: Memo) -> None:
    """Share what still cannot be copied; no layer and no weight, and of a graph its values."""
    if isinstance(value, nn.Module | nn.Parameter) or _copies(value, memo):
        return
    memo[id(value)] = value.detach().clone() if isinstance(value, Tensor) else value


def _refusal(model: nn.Module, memo: Memo, error: Exception) -> str:
    """Which layer cannot be copied, the innermost one, and for which of its attributes."""
    layers = [(name, each) for name, each in model.named_modules() if not _copies(each, memo)]
    name, layer = layers[-1] if layers else ("", model)
    attributes = [key for key, value in vars(layer).items() if not _copies(value, memo)]
    of_layer = f"layer {name} ({type(layer).__name__})" if name else type(layer).__name__
    for_what = f", for its attribute {attributes[0]}" if attributes else ""
    reason = (str(error).splitlines() or [""])[0]
    return (
        f"{of_layer} cannot be copied{for_what}: {type(error).__name__}: {reason}. The audit works "
        "on a copy of the model; take away what copy.deepcopy cannot copy, or give the layer a "
        "__deepcopy__ of its own"
    )
