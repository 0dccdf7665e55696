"""One Avro record: the fields that are wanted, and nothing built of the others.

An alert carries some 1500 numbers of history beside the ten that a stamp needs, and fastavro takes
about as long to step over them as it takes to unpack the pixels. But without long texts the
encoding of a record is a regular language: runs of unwanted fields are stepped over by one regular
expression each, ten times faster, and fastavro decodes the rest. Where an expression does not fit,
fastavro decodes the whole record and has the last word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from io import BytesIO
from itertools import groupby
from typing import Any, NamedTuple

from fastavro import parse_schema, schemaless_reader

from vae_astro.data.sources.files import RefusedError

__all__ = ["RecordDecoder", "read_long"]

MAX_SCHEMA_DEPTH = 60
MAX_SCHEMA_TYPES = 30_000  # in a record, names spelled out
LONGEST_SKIPPED_TEXT = 127  # bytes; longer ones are left to fastavro
_LEAST_BYTES = {"null": 0, "float": 4, "double": 8} | dict.fromkeys(
    ("boolean", "int", "long", "string", "bytes"), 1
)

Schema = Any  # a type as fastavro has parsed it: a name, a list of choices or a dict
Names = dict[str, Schema]


class RecordDecoder:
    """Reads the records of one schema.

    Parameters
    ----------
    schema : bytes
        The schema that they were written by, JSON.
    wanted : tuple of str
        Fields to read, with a point those of a record inside: ``candidate.ra``.

    Raises
    ------
    RefusedError
        If the schema is none of a record, or one that fastavro could not be trusted with: deep, or
        of a type that contains itself, or with arrays of items that take no space.
    ValueError
        If it is no schema.
    """

    def __init__(self, schema: bytes, wanted: tuple[str, ...]) -> None:
        tree = json.loads(schema)
        _check_depth(tree)
        names: Names = {}
        parsed: Any = parse_schema(tree, names)
        kind = _kind(parsed)
        if kind != "record":
            raise RefusedError("unreadable", f"the Avro item is a {kind}, expected a record")
        _Weight(names).least_bytes(parsed)
        self._schema: dict[str, Any] = parsed
        self._wanted = tuple((path, *path.rpartition(".")[::2]) for path in wanted)
        self._steps: list[Any] = []
        parts = _parts(self._schema, "", frozenset(wanted), names)
        for part_type, group in groupby(parts, type):
            run: list[Any] = list(group)
            if part_type is bytes:
                self._steps.append(re.compile(b"".join(run), re.DOTALL))
            elif part_type is dict:
                # The copy keeps fastavro's mark that the schema is parsed.
                self._steps.append({**self._schema, "fields": run})
            else:
                self._steps.extend(run)

    def read(self, data: bytes, start: int) -> tuple[dict[str, Any], int]:
        """The record that begins at byte ``start``.

        Returns
        -------
        record : dict
            The wanted fields that it has, by the names they were asked for with.
        end : int
            Where the next record begins.

        Raises
        ------
        EOFError
            If the data breaks off.
        Exception
            Whatever else fastavro makes of damaged data.
        """
        place = start
        record: Any = {}
        stream = BytesIO(data)
        for step in self._steps:
            if isinstance(step, dict):
                stream.seek(place)
                fields: Any = schemaless_reader(stream, step, None)
                record.update(fields)
                place = stream.tell()
                continue
            match = step.match(data, place)
            if match is None:
                stream.seek(start)
                record = schemaless_reader(stream, self._schema, None)
                return self._pick(record), stream.tell()
            place = match.end()
        return self._pick(record), place

    def _pick(self, record: dict[str, Any]) -> dict[str, Any]:
        """The wanted fields, also out of records inside."""
        found = {}
        for path, outer, name in self._wanted:
            if path in record:
                found[path] = record[path]
            elif isinstance(inside := record.get(outer), dict) and name in inside:
                found[path] = inside[name]
        return found


def read_long(data: bytes, place: int) -> tuple[int, int]:
    """The Avro integer at a byte of ``data``, zigzag in groups of 7 bits, and where it ends.

    Raises
    ------
    EOFError, ValueError
        If the data breaks off, or the integer is longer than 64 bits.
    """
    value = shift = 0
    while shift < 70:
        if place >= len(data):
            raise EOFError("the data ends within an integer")
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), place
    raise ValueError("an integer of more than 64 bits")


class _End(NamedTuple):
    """Stands for the match of a pattern."""

    place: int

    def end(self) -> int:
        return self.place


class _ArrayPattern(NamedTuple):
    """Matches an array as a regular expression does that could count."""

    lead: bytes  # the choice that stands for the array, where others are possible
    others: re.Pattern[bytes] | None
    item: re.Pattern[bytes]

    def match(self, data: bytes, place: int) -> re.Match[bytes] | _End | None:
        if self.others and (match := self.others.match(data, place)):
            return match
        if not data.startswith(self.lead, place):
            return None
        place += len(self.lead)
        try:
            while True:
                n_items, place = read_long(data, place)
                if n_items == 0:
                    return _End(place)
                if n_items < 0:  # a size follows, but no one writes that
                    return None
                for _ in range(n_items):
                    match = self.item.match(data, place)
                    if match is None:
                        return None
                    place = match.end()
        except (EOFError, ValueError):
            return None


def _parts(
    record: Schema, prefix: str, wanted: frozenset[str], names: Names
) -> Iterator[bytes | _ArrayPattern | dict[str, Any]]:
    """How to step over each field of a record or, where it is wanted or irregular, the field.

    A record of which some fields are wanted is taken apart, or is wanted where it may be null.
    """
    for field in record["fields"]:
        path, kind = prefix + field["name"], _resolve(field["type"], names)
        partly = any(other.startswith(f"{path}.") for other in wanted)
        if partly and _kind(kind) == "record":
            yield from _parts(kind, f"{path}.", wanted, names)
            continue
        skip = None if partly or path in wanted else _skip(kind, names)
        yield {"name": path, "type": field["type"]} if skip is None else skip


def _skip(kind: Schema, names: Names) -> bytes | _ArrayPattern | None:
    """What matches a value of this type, None if nothing does."""
    choices = kind if isinstance(kind, list) else [kind]
    arrays = [k for k, choice in enumerate(choices) if _kind(choice) == "array"]
    if len(arrays) != 1:
        return _pattern(kind, names)
    item = _pattern(_resolve(choices[arrays[0]], names)["items"], names)
    others = [_choice(k, choice, names) for k, choice in enumerate(choices) if k not in arrays]
    if item is None or None in others:
        return None
    return _ArrayPattern(
        lead=bytes([2 * arrays[0]]) if len(choices) > 1 else b"",
        others=re.compile(b"|".join(filter(None, others)), re.DOTALL) if others else None,
        item=re.compile(item, re.DOTALL),
    )


def _pattern(kind: Schema, names: Names) -> bytes | None:
    """Regular expression of the encoding of a type, None if it has none.

    Nothing in it is tried twice: every choice is final, as it is for a decoder.
    """
    kind = _resolve(kind, names)
    if isinstance(kind, list):
        branches = [_choice(k, choice, names) for k, choice in enumerate(kind)]
        return None if None in branches else b"(?>" + b"|".join(filter(None, branches)) + b")"
    name = _kind(kind)
    if name == "record":
        fields = [_pattern(field["type"], names) for field in kind["fields"]]
        return None if None in fields else b"".join(filter(None, fields))
    if name == "fixed":
        return b".{%d}" % kind["size"]
    return _PATTERNS.get(name)


def _choice(number: int, kind: Schema, names: Names) -> bytes | None:
    """Pattern of one choice of a union, with the number that stands before it."""
    pattern = _pattern(kind, names)
    return None if pattern is None or number >= 64 else re.escape(bytes([2 * number])) + pattern


def _text_pattern() -> bytes:
    """Regular expression of a text: each length is a choice of its own."""
    lengths = range(LONGEST_SKIPPED_TEXT + 1)
    heads = [bytes([2 * n]) if n < 64 else bytes([2 * n % 128 + 128, n // 64]) for n in lengths]
    choices = [re.escape(head) + b".{%d}" % n for n, head in zip(lengths, heads, strict=True)]
    return b"(?>" + b"|".join(choices) + b")"


_INTEGER = rb"[\x80-\xff]{0,9}+[\x00-\x7f]"
_PATTERNS = {
    "null": b"",
    "boolean": rb"[\x00\x01]",
    "int": _INTEGER,
    "long": _INTEGER,
    "enum": _INTEGER,
    "float": b"." * 4,
    "double": b"." * 8,
    "string": _text_pattern(),
}


def _resolve(kind: Schema, names: Names) -> Schema:
    """The type that a name stands for."""
    return names.get(kind, kind) if isinstance(kind, str) else kind


def _kind(kind: Schema) -> str:
    """What a type is: ``record``, ``array``, ``union``, ``long`` ..."""
    if isinstance(kind, list):
        return "union"
    return str(kind["type"]) if isinstance(kind, dict) else kind


class _Weight:
    """Measures types, and refuses those that fastavro would decode without end or crash on."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._open: list[str] = []
        self._n_types = 0

    def least_bytes(self, kind: Schema) -> int:
        """Least number of bytes that a value takes.

        Raises
        ------
        RefusedError
            If the type contains itself, is very large or holds an array of items without size.
        """
        self._n_types += 1
        if self._n_types > MAX_SCHEMA_TYPES:
            raise _refused(f"a record of more than {MAX_SCHEMA_TYPES} types")
        if isinstance(kind, str) and kind in self._names:
            if kind in self._open:
                raise _refused(f"{kind} contains itself")
            self._open.append(kind)
            n_bytes = self.least_bytes(self._names[kind])
            self._open.pop()
            return n_bytes
        if isinstance(kind, list):
            return 1 + min(map(self.least_bytes, kind), default=0)
        name = _kind(kind)
        if name in ("record", "error"):
            return sum(self.least_bytes(field["type"]) for field in kind["fields"])
        if name == "fixed":
            if not isinstance(kind["size"], int) or kind["size"] < 0:
                raise _refused(f"a field of {kind['size']!r} bytes")
            return kind["size"]
        if name == "array" and self.least_bytes(kind["items"]) == 0:
            raise _refused("an array of items that take no space")
        if name == "map":
            self.least_bytes(kind["values"])
        return _LEAST_BYTES.get(name, 1)


def _check_depth(tree: Any) -> None:
    """Refuse JSON that is nested deeper than any schema."""
    level = [tree]
    for _ in range(MAX_SCHEMA_DEPTH):
        level = [
            value
            for node in level
            for value in (node.values() if isinstance(node, dict) else node)
            if isinstance(value, dict | list)
        ]
        if not level:
            return
    raise _refused(f"nested more than {MAX_SCHEMA_DEPTH} deep")


def _refused(detail: str) -> RefusedError:
    return RefusedError("unsupported schema", detail)
