"""Whether a store is still as it was written, and what a repair has to pack again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vae_astro.data.sources.reader import Source
from vae_astro.data.store.layout import (
    MANIFEST,
    REJECTS,
    SHARDS,
    Form,
    Lot,
    Manifest,
    Shard,
    ShardRecord,
)
from vae_astro.data.store.plan import SourceKey, source_key
from vae_astro.data.store.rejects import read_rejects, table_of
from vae_astro.data.store.shard import finished_shards
from vae_astro.data.store.whole_file import file_checksum
from vae_astro.errors import InputError

__all__ = ["Damage", "find_damage", "packed_lot", "shards_by_lot", "verify"]

PASSING = ("changed", "vanished", "input/output error")
"""Reasons of rejects that another try may not find."""


@dataclass(frozen=True)
class Damage:
    """A file of a store that is not as it was written.

    Attributes
    ----------
    file : str
        Relative to the store.
    problem : str
        What is wrong with it.
    lot : str
        Name of the lot that has to be packed again; empty where none has to.
    """

    file: str
    problem: str
    lot: str


def verify(store: Path) -> Iterator[Damage]:
    """Every file of a store whose bytes are not those that were written."""
    try:
        manifest = Manifest.read(store)
    except InputError as error:
        yield Damage(MANIFEST, str(error), "")
        return
    records_are_good = True
    for shard in manifest.shards:
        try:
            record = ShardRecord.read(store, shard)
        except InputError as error:
            records_are_good = False
            yield Damage(f"{SHARDS}/{shard.name}.json", str(error), shard.lot)
            continue
        for suffix, expected in record.checksums.items():
            name = f"{SHARDS}/{shard.name}{suffix}"
            problem = _problem(store / name, expected)
            if problem is not None:
                yield Damage(name, problem, shard.lot)
    if records_are_good:
        written = table_of(read_rejects(store, manifest.shards))
        try:
            found = (store / REJECTS).read_bytes()
        except OSError:
            found = b""
        if found != written:
            yield Damage(REJECTS, "is not the table of what was set aside", "")


def find_damage(store: Path) -> tuple[Manifest | None, dict[str, bool]]:
    """What a repair has to pack again.

    Returns
    -------
    manifest : Manifest or None
        Of the store, made anew if it is damaged or lost; None where no shard is whole.
    damaged : dict of str to bool
        Lots by their name: True where they are not as they were written, False where a file of
        theirs had vanished or changed while it was read and may be there now.
    """
    try:
        manifest = Manifest.read(store)
    except InputError:
        return _manifest_of_shards(store), {}
    damaged = {each.lot: True for each in verify(store) if each.lot}
    for shard in manifest.shards:
        if shard.lot not in damaged and shard.n_rejected:
            rejects = read_rejects(store, [shard])
            if any(each.reason in PASSING for each in rejects):
                damaged[shard.lot] = False
    return manifest, damaged


def shards_by_lot(manifest: Manifest) -> dict[str, list[Shard]]:
    """The shards of each lot, in the order of the rows."""
    shards_of: dict[str, list[Shard]] = {}
    for shard in manifest.shards:
        shards_of.setdefault(shard.lot, []).append(shard)
    return shards_of


def packed_lot(store: Path, shards: list[Shard]) -> Lot:
    """The lot of some shards; without its sources where their record is damaged."""
    try:
        return Lot(shards[0].lot, ShardRecord.read(store, shards[0]).lot_sources())
    except InputError:
        return Lot(shards[0].lot, ())


def _manifest_of_shards(store: Path) -> Manifest | None:
    """A manifest of all lots that are whole, in the order of their sources.

    Of lots that hold the same sources the latest counts: the others are of earlier states.
    """
    records = sorted(
        (store / SHARDS).glob("*-0000.json"), key=lambda file: file.stat().st_mtime_ns, reverse=True
    )
    taken: set[SourceKey] = set()
    lots: list[tuple[Lot, list[Shard]]] = []
    form: Form | None = None
    for file in records:
        found = finished_shards(store / SHARDS, file.stem.rpartition("-")[0])
        if found is None or found[1] != (form or found[1]):
            continue
        shards, form = found
        lot = packed_lot(store, shards)
        keys = {source_key(source) for source in lot.sources}
        if taken.isdisjoint(keys):
            taken |= keys
            lots.append((lot, shards))
    if form is None:
        return None
    lots.sort(key=lambda entry: _place(entry[0].sources[0]))
    shards = [shard for _, each in lots for shard in each]
    return Manifest(packed_from={}, sources_digest="", form=form, shards=tuple(shards))


def _place(source: Source) -> tuple[tuple[str, ...], tuple[int, int]]:
    names, part = source_key(source)
    return names, part or (0, 0)


def _problem(file: Path, expected: int) -> str | None:
    try:
        found = file_checksum(file)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if found != expected:
        return f"CRC-32 is {found:08x}, it was written with {expected:08x}"
    return None
