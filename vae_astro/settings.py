"""Plain settings to objects: look the name up, check the keys, check the values.

Settings stay plain Python (no class paths), so a checkpoint can carry them and a checkpoint from a
stranger can build nothing but what is registered here.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from vae_astro.errors import InputError

__all__ = ["build", "check_choice", "check_int", "check_number"]

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
        Arguments that come from the data and not from the user, passed where the factory takes them.

    Raises
    ------
    InputError
        Unknown name or key, or a key that is missing.
    """
    options = dict(settings)
    name = options.pop("name", None)
    if name not in registry:
        raise InputError(f"{group}.name is {name!r}; choose one of {', '.join(registry)}")
    factory = registry[name]
    parameters = inspect.signature(factory).parameters
    allowed = [key for key in parameters if key not in given]
    for key in options:
        if key not in allowed:
            raise InputError(
                f"{group}={name} has no setting {group}.{key}; it has {', '.join(allowed) or 'none'}"
            )
    missing = [
        key
        for key in allowed
        if parameters[key].default is inspect.Parameter.empty and key not in options
    ]
    if missing:
        raise InputError(f"{group}={name} needs {', '.join(f'{group}.{key}' for key in missing)}")
    return factory(**options, **{key: value for key, value in given.items() if key in parameters})


def check_int(key: str, value: object, *, minimum: int, maximum: int | None = None) -> int:
    """``value`` if it is a whole number in range, else an `InputError` that names ``key``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{key} must be a whole number, got {value!r}")
    if value < minimum or (maximum is not None and value > maximum):
        bound = f"at least {minimum}" if maximum is None else f"between {minimum} and {maximum}"
        raise InputError(f"{key} must be {bound}, got {value}")
    return value


def check_number(
    key: str,
    value: object,
    *,
    above: float | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
) -> float:
    """``value`` as a float if it is a finite number in range, else an `InputError` that names ``key``.

    ``above`` excludes its bound, ``minimum`` and ``maximum`` include theirs.
    """
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
