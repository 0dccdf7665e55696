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
OF_CHOICES = "GROUP=CHOICE --help lists the keys of a choice, "
WIDTH = 100
COLUMN = 30
"""Where comments begin."""


def register_help(conf: Path) -> None:
    """Make what the templates in ``conf/hydra/help`` ask for known to the configuration.

    ``${help_choices:CONFIG,OVERRIDES}`` are its groups, and the keys of the choices that were
    typed; ``${help_script:CONFIG,OVERRIDES}`` all that a script has to say of itself.
    """
    files = ConfFiles(conf)

    def choices(config_name: str, overrides: Sequence[str]) -> list[str]:
        parts = [override.lstrip("+").partition("=") for override in overrides]
        typed = {
            group: choice for group, _, choice in parts if choice in files.groups.get(group, ())
        }
        listed = choices_in_words(files, config_name)
        keys = [keys_in_words(files, group, choice) for group, choice in typed.items()]
        return [listed and f"{HEADING}\n{listed}", *keys]

    def script(config_name: str, overrides: Sequence[str]) -> str:
        listed = choices(config_name, overrides)
        more = OF_CHOICES if listed[0] else ""
        return _page(
            (sys.modules["__main__"].__doc__ or "").strip(),
            f"Its keys:\n{keys_in_words(files, None, config_name)}",
            *listed,
            f"More: {more}--cfg job prints every value, --hydra-help the flags of Hydra.",
        )

    resolvers: dict[str, Callable[..., str]] = {
        "help_choices": lambda *told: _page(*choices(*told)),
        "help_script": script,
    }
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)


def _page(*parts: str) -> str:
    """Those that say something, a blank line between; Hydra fills in templates by ``$``."""
    return "\n\n".join(part.rstrip() for part in parts if part).replace("$", "$$")


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
