"""Listening in on a module: every call of a submodule or of encode and decode, and changing it."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["METHODS", "Call", "Record", "intercepted", "reseed", "survey"]

METHODS = ("encode", "decode")
"""Methods that are listened to like submodules."""


class Call(NamedTuple):
    """The how many-th call of a submodule, or of a method (written ``decode()``), in one pass."""

    key: str
    nth: int


Before = Callable[[Call, Tensor], Tensor | None]
"""Sees the first tensor that a call is given; what it returns takes that tensor's place."""
After = Callable[[Call, Any], Any]
"""Sees what a call returns; what it returns, if not None, takes its place."""


@dataclass
class Record:
    """What was seen of one call.

    Attributes
    ----------
    call : Call
    module : Module or None
        What was called; None for a method.
    given : Tensor
        Its first tensor.
    output : any
        What it returned.
    """

    call: Call
    module: nn.Module | None
    given: Tensor
    output: Any = None

    @property
    def is_layer(self) -> bool:
        """Whether it is a module without submodules."""
        return self.module is not None and not any(self.module.children())


@contextlib.contextmanager
def intercepted(
    module: nn.Module, before: Before, after: After, keys: Collection[str] | None = None
) -> Iterator[None]:
    """Listen to the calls of ``keys`` (None: all) while the context lasts."""
    counts: Counter[str] = Counter()
    under_way: list[Call] = []

    def enter(key: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = Call(key, counts[key])
        counts[key] += 1
        under_way.append(call)
        found = _first_tensor(args, kwargs)
        if found is None:
            return args, kwargs
        place, tensor = found
        changed = before(call, tensor)
        if changed is None:
            return args, kwargs
        if isinstance(place, int):
            return (*args[:place], changed, *args[place + 1 :]), kwargs
        return args, {**kwargs, place: changed}

    def leave(output: Any) -> Any:
        changed = after(under_way.pop(), output)
        return output if changed is None else changed

    with contextlib.ExitStack() as stack:
        for key, each in module.named_modules():
            if key and (keys is None or key in keys):
                _listen_to_module(stack, key, each, enter, leave)
        for name in METHODS:
            own = callable(getattr(type(module), name, None)) or name in module.__dict__
            if own and (keys is None or f"{name}()" in keys):
                _listen_to_method(stack, module, name, enter, leave)
        yield


def reseed(seed: int) -> None:
    """Set the generators that a model may draw from.

    As ``torch.manual_seed``, which on a machine without CUDA keeps a trace of every call.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def survey(module: nn.Module, run: Callable[[], Any]) -> list[Record]:
    """Records of every call that ``run`` leads to, in the order in which they begin."""
    modules = dict(module.named_modules())
    records: dict[Call, Record] = {}

    def before(call: Call, tensor: Tensor) -> None:
        records[call] = Record(call, modules.get(call.key), tensor)

    def after(call: Call, output: Any) -> None:
        if call in records:
            records[call].output = output

    with intercepted(module, before, after):
        run()
    return list(records.values())


def _listen_to_module(
    stack: contextlib.ExitStack, key: str, module: nn.Module, enter: Any, leave: Any
) -> None:
    handles = (
        module.register_forward_pre_hook(
            lambda _, args, kwargs: enter(key, args, kwargs), with_kwargs=True
        ),
        module.register_forward_hook(lambda _, args, output: leave(output)),
    )
    for handle in handles:
        stack.callback(handle.remove)


def _listen_to_method(
    stack: contextlib.ExitStack, module: nn.Module, name: str, enter: Any, leave: Any
) -> None:
    method = getattr(module, name)
    shadowed = module.__dict__.get(name)

    def listened(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = enter(f"{name}()", args, kwargs)
        return leave(method(*args, **kwargs))

    def restore() -> None:
        if shadowed is None:
            del module.__dict__[name]
        else:
            module.__dict__[name] = shadowed

    module.__dict__[name] = listened  # found before the method of the class
    stack.callback(restore)


def _first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int | str, Tensor] | None:
    places: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    for place, each in places:
        if isinstance(each, Tensor):
            return place, each
    return None
