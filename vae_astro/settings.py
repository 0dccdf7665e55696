"""Plain settings to objects: look the name up, check the keys, check the values.

Settings stay plain Python (no class paths), so a checkpoint can carry them and a checkpoint from a
stranger can build nothing but what is registered here.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from vae_astro.errors import InputError

__all__ = [
    "build",
    "check_bool",
    "check_choice",
    "check_int",
    "check_number",
    "check_text",
    "construct",
    "nearest",
    "plain",
]

T = TypeVar("T")


def build(
    group: str, registry: Mapping[str, Callable[..., T]], settings: Mapping[str, Any], **given: Any
) -> T:
    """Call the registered factory that ``settings["name"]`` names with the other settings.

    Parameters
    ----------
    group : str
        Config group, for messages: ``"likelihood"``.
    registry : mapping of str to callable
        What can be chosen.
    settings : mapping
        ``name`` and the factory's own keys.
    **given
        Arguments that come from the data and not from the user, passed where the factory takes
        them.

    Raises
    ------
    InputError
        Unknown name, or as `construct`.
    """
    options = dict(settings)
    name = options.pop("name", None)
    if not isinstance(name, str) or name not in registry:
        raise InputError(f"{group}.name is {name!r}; choose one of {', '.join(registry)}")
    return construct(group, registry[name], options, choice=name, **given)


def construct(
    group: str,
    factory: Callable[..., T],
    settings: Mapping[str, Any],
    choice: str | None = None,
    **given: Any,
) -> T:
    """Call ``factory`` with settings whose keys it has; see `build`.

    Raises
    ------
    InputError
        A key that it does not have, or one that it needs and does not get.
    """
    settings = plain(settings)
    shown = group if choice is None else f"{group}={choice}"
    parameters = inspect.signature(factory).parameters
    allowed = [key for key in parameters if key not in given]
    unknown = [key for key in settings if key not in allowed]
    if unknown:
        meant = nearest(unknown[0], allowed)
        guess = f"did you mean {group}.{meant}? " if meant else ""
        has = ", ".join(allowed) or "none"
        raise InputError(f"{shown} has no setting {group}.{unknown[0]}; {guess}it has {has}")
    required = [key for key in allowed if parameters[key].default is inspect.Parameter.empty]
    missing = [f"{group}.{key}" for key in required if key not in settings]
    if missing:
        raise InputError(f"{shown} needs {', '.join(missing)}")
    return factory(**settings, **{key: value for key, value in given.items() if key in parameters})


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The one of ``words`` that ``word`` was probably meant to be; None if it is like none.

    Of names with dots the last part counts too: ``latent_dim`` for ``model.latent_dim``.
    """
    known = list(words)
    group, _, end = word.rpartition(".")
    beside = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == group}
    anywhere = {name.rpartition(".")[2]: name for name in known}
    for names, cutoff in ((beside, 0.6), (anywhere, 0.75)):
        if like := difflib.get_close_matches(end, names, n=1, cutoff=cutoff):
            return names[like[0]]
    return None


def plain(value: Any) -> Any:
    """``value`` with numbers and arrays of numpy as Python's own, also within mappings and lists.

    Who calls from Python has such numbers at hand; a checkpoint holds plain Python alone.
    """
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [plain(part) for part in value]
    if isinstance(value, tuple):
        return tuple(plain(part) for part in value)
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return value.tolist()
    return value


def check_int(key: str, value: object, *, minimum: int, maximum: int | None = None) -> int:
    """``value`` if it is a whole number in range, else an `InputError` that names ``key``."""
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{key} must be a whole number, got {value!r}")
    if value < minimum:
        raise InputError(f"{key} must be at least {minimum}, got {value}")
    if maximum is not None and value > maximum:
        raise InputError(f"{key} must be at most {maximum}, got {value}")
    return value


def check_number(
    key: str,
    value: object,
    *,
    above: float | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
) -> float:
    """``value`` as a float if it is finite and in range, else an `InputError` that names ``key``.

    ``above`` excludes its bound, ``minimum`` and ``maximum`` include theirs.
    """
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{key} must be a finite number, got {value!r}")
    if above is not None and value <= above:
        raise InputError(f"{key} must be greater than {above:g}, got {value:g}")
    if minimum is not None and value < minimum:
        raise InputError(f"{key} must be at least {minimum:g}, got {value:g}")
    if maximum is not None and value > maximum:
        raise InputError(f"{key} must be at most {maximum:g}, got {value:g}")
    return float(value)


def check_choice(key: str, value: object, choices: tuple[str, ...]) -> str:
    """``value`` if it is one of ``choices``, else an `InputError` that names ``key``."""
    if value not in choices:
        raise InputError(f"{key} must be one of {', '.join(choices)}, got {value!r}")
    return str(value)


def check_bool(key: str, value: object) -> bool:
    """``value`` if it is true or false, else an `InputError` that names ``key``."""
    value = plain(value)
    if not isinstance(value, bool):
        raise InputError(f"{key} must be true or false, got {value!r}")
    return value


def check_text(key: str, value: object) -> str:
    """``value`` if it is text that is not blank, else an `InputError` that names ``key``."""
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{key} must be text, got {value!r}")
    return value
