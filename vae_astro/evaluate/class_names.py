"""Names of classes: a YAML file that a person edits, beside what was found of each."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import yaml

from vae_astro.command.files import write_whole
from vae_astro.errors import InputError
from vae_astro.evaluate.agreement import Agreement
from vae_astro.evaluate.consensus import ClassFound

__all__ = ["default_name", "read_names", "write_names"]

LONGEST_NAME = 80
ABOUT = ("name", "occupancy", "stability", "verdict", "most_frequent_label", "purity")
"""Keys of a class in the file."""


class _AsWritten(yaml.SafeLoader):
    """YAML whose plain words stay what a person wrote: ``012``, ``no``, ``2026-01-01`` are text."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, form) for tag, form in resolvers if tag == "tag:yaml.org,2002:null"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As YAML has it, where a key stands once."""
        written = [key.value for key, _ in node.value]
        twice = next((key for key in written if written.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"{twice!r} stands there twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def default_name(k: int) -> str:
    """What class ``k`` is called until a person says it."""
    return f"class_{k}"


def write_names(
    path: Path, digest: str, classes: Sequence[ClassFound], labels: Agreement | None
) -> None:
    """Write a file of classes without names.

    Parameters
    ----------
    path : Path
    digest : str
        Of the clustering that the numbers belong to.
    classes : sequence of ClassFound
    labels : Agreement, optional
        Adds the label that most stamps of a class have, as a hint.
    """
    lines = [
        "# Name the classes: look at gallery/, write each name after `name:`, in quotes where it",
        "# has odd characters. Two classes with one name become one. Then put them into the",
        "# catalogue:",
        f"#   python scripts/classify.py names={path}",
        f"clustering: {json.dumps(digest)} # which one the numbers belong to: leave it",
        "classes:",
    ]
    for k, found in enumerate(classes):
        lines += [f"  {k}:", "    name: null", f"    occupancy: {found.occupancy:.4f}"]
        if found.stability is not None:
            lines.append(f"    stability: {found.stability:.3f}")
        lines.append(f"    verdict: {json.dumps(found.verdict)}")
        if labels is not None and labels.mapping[k] is not None:
            lines.append(f"    most_frequent_label: {json.dumps(labels.mapping[k])}")
            lines.append(f"    purity: {labels.purity[k]:.3f}")
    write_whole(path, "\n".join(lines) + "\n")


def read_names(path: Path, digest: str, n_classes: int) -> list[str]:
    """Names of all classes, those of a file where it has them.

    Parameters
    ----------
    path : Path
        As `write_names` made it and a person edited it.
    digest : str
        Of the clustering that is to be named.
    n_classes : int
        Its classes.

    Returns
    -------
    list of str, length K

    Raises
    ------
    InputError
        The file cannot be read, belongs to another clustering, names a class that there is not, or
        has a name that is no line of text, a key twice or one that is unknown.
    """
    try:
        held = yaml.load(path.read_text("utf-8"), _AsWritten)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"names={path} cannot be read as YAML: {reason}") from error
    classes = held.get("classes") if isinstance(held, dict) else None
    if not isinstance(classes, dict):
        raise InputError(f"names={path} has no list of classes; edit the classes.yaml of out=")
    if held.get("clustering") != digest:
        raise InputError(
            f"names={path} belongs to the clustering {held.get('clustering')}, the classes to name "
            f"are {digest}: its numbers mean other classes"
        )
    names = [default_name(k) for k in range(n_classes)]
    for number, about in classes.items():
        if str(number) not in map(str, range(n_classes)):
            raise InputError(f"names={path} names class {number}; there are 0 to {n_classes - 1}")
        if isinstance(about, dict) and (unknown := [key for key in about if key not in ABOUT]):
            raise InputError(
                f"names={path}: class {number} has the key {unknown[0]!r}, its keys are "
                f"{', '.join(ABOUT)}"
            )
        given = about.get("name") if isinstance(about, dict) else about
        if given is not None:
            names[int(number)] = _checked(path, int(number), given, n_classes)
    return names


def _checked(path: Path, k: int, given: object, n_classes: int) -> str:
    if not isinstance(given, str):
        raise InputError(
            f"names={path}: the name of class {k} reads as {given!r}; write it in quotes"
        )
    name = given.strip()
    if not name:
        return default_name(k)
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
        raise InputError(
            f"names={path}: the name of class {k}, {name!r}, must be one line without control "
            "characters"
        )
    if len(name) > LONGEST_NAME:
        raise InputError(
            f"names={path}: the name of class {k} has {len(name)} characters, {LONGEST_NAME} at "
            "most"
        )
    if name in {default_name(other) for other in range(n_classes)} - {default_name(k)}:
        raise InputError(
            f"names={path}: class {k} is named {name!r}, which is what another class is called"
        )
    return name
