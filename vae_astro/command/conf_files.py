"""The files of ``conf/`` as a person reads them: choices, keys, and the comment beside each key."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml

__all__ = ["ConfFiles", "Key"]

HIDDEN = {"hydra", "stamps"}
"""Folders that hold parts of choices, or Hydra's own."""
KEY_LINE = re.compile(r"^(?P<indent> *)(?P<key>[A-Za-z_]\w*):(?P<value>[^#]*)(#\s*(?P<note>.*))?$")


@dataclass(frozen=True)
class Key:
    """A setting as its file has it.

    Attributes
    ----------
    name : str
        With dots.
    value : str
        As it is written; empty above a mapping or a list.
    note : str
        The comment beside it.
    """

    name: str
    value: str
    note: str


@dataclass(frozen=True)
class ConfFiles:
    """A folder of configuration.

    Parameters
    ----------
    folder : Path
        ``conf``.
    """

    folder: Path

    @cached_property
    def groups(self) -> dict[str, list[str]]:
        """Choices of every group that a user picks from, both sorted."""
        return {
            folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
            for folder in sorted(self.folder.iterdir())
            if folder.is_dir() and folder.name not in HIDDEN
        }

    def about(self, group: str, choice: str) -> str:
        """The sentences above the first key of a choice, without its commands."""
        lines = []
        for line in self._text(group, choice).splitlines():
            if line.startswith(("# @package", "# python ")):
                continue
            if not line.startswith("# "):
                break
            lines.append(line[2:])
        return " ".join(lines)

    def keys(self, group: str | None, choice: str) -> list[Key]:
        """Every key of a file and of the files that it begins with.

        Parameters
        ----------
        group : str or None
            Folder of the file; None for one in ``conf/`` itself.
        choice : str
            Name of the file, without its ending.
        """
        text = self._text(group, choice)
        own = _keys_in(text)
        found: dict[str, Key] = {}
        for part in _begins_with(text):
            inside = part.removeprefix("/").split("@")[0]
            folder, _, name = inside.rpartition("/")
            if name and (self.folder / (folder or group or "") / f"{name}.yaml").exists():
                found |= {key.name: key for key in self.keys(folder or group, name)}
        return [*({key.name: key for key in own} | _without(found, own)).values()]

    def chosen(self, config_name: str) -> dict[str, str]:
        """Group to choice where nothing is typed, of a file in ``conf/``."""
        content = yaml.safe_load(self._text(None, config_name)) or {}
        chosen: dict[str, str] = {}
        for entry in content.get("defaults", []):
            if isinstance(entry, str) and entry != "_self_":
                chosen |= self.chosen(entry)
            elif isinstance(entry, dict):
                for group, choice in entry.items():
                    if group in self.groups and isinstance(choice, str):
                        chosen[group] = choice
        return chosen

    def _text(self, group: str | None, choice: str) -> str:
        return (self.folder / (group or "") / f"{choice}.yaml").read_text("utf-8")


def _keys_in(text: str) -> list[Key]:
    """Keys of a file in its order, without its ``defaults`` and what is Hydra's."""
    keys: list[Key] = []
    above: list[tuple[int, str]] = []
    for line in text.splitlines():
        match = KEY_LINE.match(line)
        if match is None:
            continue
        indent = len(match["indent"])
        while above and above[-1][0] >= indent:
            above.pop()
        above.append((indent, match["key"]))
        name = ".".join(part for _, part in above)
        if above[0][1] not in ("defaults", "hydra"):
            keys.append(Key(name, match["value"].strip(), (match["note"] or "").strip()))
    parents = {key.name.rpartition(".")[0] for key in keys}
    return [key for key in keys if key.name not in parents or key.value]


def _begins_with(text: str) -> list[str]:
    """Files that the defaults of a file name."""
    defaults = (yaml.safe_load(text) or {}).get("defaults", [])
    parts: list[str] = []
    for entry in defaults:
        if isinstance(entry, str):
            parts.append(entry)
        else:
            parts += [f"{group}/{choice}" for group, choice in entry.items() if "@_here_" in group]
    return [
        part.replace("@_here_/", "/") if "@_here_/" in part else part
        for part in parts
        if part != "_self_"
    ]


def _without(found: dict[str, Key], own: list[Key]) -> dict[str, Key]:
    names = {key.name for key in own}
    return {name: key for name, key in found.items() if name not in names}
