"""What ``--help`` shows: the groups, and the keys of what was typed, with their comments."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from omegaconf import OmegaConf

from vae_astro.command.conf_files import ConfFiles, Key

__all__ = ["choices_in_words", "keys_in_words", "register_help"]

HEADING = "Groups and their choices ([what is taken by itself]):"
WIDTH = 100
COLUMN = 30
"""Where comments begin."""


def register_help(conf: Path) -> None:
    """Make what the templates in ``conf/hydra/help`` ask for known to the configuration.

    ``${help_choices:CONFIG}`` are its groups under a heading, ``${help_typed:CONFIG,OVERRIDES}``
    the keys of the choices that were typed, ``${help_keys:CONFIG}`` those of its own file, and
    ``${help_usage:}`` what the command says of itself.
    """
    files = ConfFiles(conf)

    def typed(config_name: str, overrides: Sequence[str]) -> str:
        parts = [override.lstrip("+").partition("=") for override in overrides]
        chosen = {
            group: choice for group, _, choice in parts if choice in files.groups.get(group, ())
        }
        return _escaped("\n".join(keys_in_words(files, *pair) for pair in chosen.items()))

    def usage() -> str:
        return _escaped((sys.modules["__main__"].__doc__ or "").strip())

    def choices(config_name: str) -> str:
        listed = choices_in_words(files, config_name)
        return _escaped(listed and f"{HEADING}\n{listed}")

    resolvers: dict[str, Callable[..., str]] = {
        "help_choices": choices,
        "help_typed": typed,
        "help_keys": lambda name: _escaped(keys_in_words(files, None, name)),
        "help_usage": usage,
    }
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)


def choices_in_words(files: ConfFiles, config_name: str) -> str:
    """Each group of a command with its choices, the one that is taken by itself marked."""
    chosen = files.chosen(config_name)
    shown = [group for group in files.groups if group in chosen]
    if config_name == "config":
        shown += [group for group in ("experiment", "debug") if group in files.groups]
    lines = []
    for group in shown:
        choices = files.groups[group]
        if len(choices) < 2 and group in chosen:
            continue  # nothing to choose; its keys are still settings
        marked = [f"[{choice}]" if choice == chosen.get(group) else choice for choice in choices]
        lines += _two_columns(f"{group}=", ", ".join(marked), column=16)
    return "\n".join(lines)


def keys_in_words(files: ConfFiles, group: str | None, choice: str) -> str:
    """Each key of a file with its value and its comment."""
    prefix = "" if group is None else f"{group}."
    lines = []
    if group is not None:
        lines = [f"{group}={choice}", *_wrapped(files.about(group, choice), "  "), ""]
    for key in files.keys(group, choice):
        if key.name not in ("name", "format"):
            lines += _two_columns(f"{prefix}{key.name}={_value(key)}", key.note, COLUMN)
    return "\n".join(lines) + "\n"


def _value(key: Key) -> str:
    """As it would be typed; what is worked out by an interpolation is not."""
    return "..." if "$" in key.value else key.value.strip("\"'")


def _two_columns(left: str, right: str, column: int) -> list[str]:
    lines = textwrap.wrap(right, WIDTH - column - 2) or [""]
    first = f"  {left:<{column}}"
    if len(left) >= column:
        return [f"  {left}".rstrip(), *(" " * (column + 2) + line for line in lines if line)]
    return [(first + lines[0]).rstrip(), *(" " * (column + 2) + line for line in lines[1:])]


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent)


def _escaped(text: str) -> str:
    """Hydra puts the template through `string.Template`."""
    return text.replace("$", "$$")
