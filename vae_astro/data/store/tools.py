"""Looking after stores: what one holds, whether it is still as it was written, mending, clearing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from vae_astro.data.store.layout import (
    MANIFEST,
    REJECTS,
    SHARDS,
    Manifest,
    ShardRecord,
    file_checksum,
)
from vae_astro.data.store.pack import read_rejects
from vae_astro.data.store.store import StampStore
from vae_astro.errors import InputError

__all__ = [
    "Damage",
    "damaged_lots",
    "describe_store",
    "find_stores",
    "forget",
    "remove_unused",
    "verify",
]

PASSING = ("changed", "vanished")
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
        Name of the lot that has to be packed again.
    """

    file: str
    problem: str
    lot: str


def find_stores(folder: Path) -> list[Path]:
    """The store at a folder, or all stores in it.

    Raises
    ------
    InputError
        If there is none.
    """
    if (folder / MANIFEST).exists():
        return [folder]
    found = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
    if not found:
        raise InputError(f"store={folder} is no stamp store and holds none; pack one first")
    return found


def describe_store(path: Path) -> dict[str, Any]:
    """What a store holds, for people: plain values by their names, nothing that takes long.

    Raises
    ------
    InputError
        If it is no store or a damaged one.
    """
    store = StampStore.open(path)
    form = store.manifest.form
    reasons = Counter(each.reason for each in read_rejects(path, store.manifest.shards))
    labels = Counter(store.catalogue["label"].to_pylist())
    unlabelled = labels.pop("", 0)
    n_bytes = sum(file.stat().st_size for file in (path / SHARDS).iterdir())
    return {
        "store": str(path),
        **store.manifest.packed_from,
        "stamps": len(store),
        "shape": "x".join(map(str, store.stamp_shape)),
        "bands": ", ".join(store.band_names),
        "noise planes": "yes" if form.has_noise else "no",
        "stored as": form.stored_as,
        "shards": len(store.manifest.shards),
        "MiB": round(n_bytes / 2**20, 1),
        "objects": len(np.unique(store.catalogue["object_hash"].to_numpy())),
        "labels": ", ".join(f"{name} {n}" for name, n in labels.most_common()) or "none",
        "unlabelled": unlabelled,
        "sky level, median by band": _medians(store.sky_level),
        "sky noise, median by band": _medians(store.sky_noise),
        "good pixels, mean by band": _words(store.good_fraction.mean(axis=0)),
        "rejects": ", ".join(f"{n} x {reason}" for reason, n in reasons.most_common()) or "none",
        "files that nothing refers to": len(list(_unused(path, store.manifest))),
    }


def verify(path: Path) -> Iterator[Damage]:
    """Every file of a store whose bytes are not those that were written.

    Raises
    ------
    InputError
        If the manifest itself is damaged.
    """
    for shard in Manifest.read(path).shards:
        problem = _problem(path, f"{shard.name}.json", shard.record_checksum)
        if problem is not None:
            yield Damage(f"{SHARDS}/{shard.name}.json", problem, shard.lot)
            continue
        for suffix, expected in ShardRecord.read(path, shard.name).checksums.items():
            problem = _problem(path, f"{shard.name}{suffix}", expected)
            if problem is not None:
                yield Damage(f"{SHARDS}/{shard.name}{suffix}", problem, shard.lot)


def damaged_lots(path: Path) -> set[str]:
    """Lots of a store that should be packed again.

    They are not as they were written, or a file of theirs had vanished or changed while it was
    read and may be there now.
    """
    lots = {each.lot for each in verify(path)}
    for shard in Manifest.read(path).shards:
        if shard.lot not in lots and shard.n_rejected:
            rejects = ShardRecord.read(path, shard.name).lot_rejects()
            if any(each.reason in PASSING for each in rejects):
                lots.add(shard.lot)
    return lots


def forget(path: Path, damaged: set[str]) -> int:
    """Take lots out of a store; whoever opens it next from its root packs them again.

    Returns
    -------
    int
        Stamps that were taken out.
    """
    with FileLock(path.parent / f".{path.name}.lock"):
        manifest = Manifest.read(path)
        kept = tuple(shard for shard in manifest.shards if shard.lot not in damaged)
        replace(manifest, shards=kept, sources_digest="").write(path)
        for shard in manifest.shards:
            if shard.lot in damaged:
                for file in (path / SHARDS).glob(f"{shard.name}.*"):
                    file.unlink()
    return manifest.n_stamps - sum(shard.n_stamps for shard in kept)


def remove_unused(path: Path) -> tuple[int, int]:
    """Delete what nothing refers to: shards of an earlier state, files of a killed packer.

    A run that opened the store before it changed keeps what it has mapped.

    Returns
    -------
    n_files, n_bytes : int
        What was deleted.
    """
    with FileLock(path.parent / f".{path.name}.lock"):
        unused = list(_unused(path, Manifest.read(path)))
        n_bytes = sum(file.stat().st_size for file in unused)
        for file in unused:
            file.unlink()
    return len(unused), n_bytes


def _unused(path: Path, manifest: Manifest) -> Iterator[Path]:
    known = {shard.name for shard in manifest.shards}
    yield from (file for file in (path / SHARDS).iterdir() if file.stem not in known)
    for file in path.iterdir():
        if file.is_file() and file.name not in (MANIFEST, REJECTS):
            yield file


def _problem(path: Path, name: str, expected: int) -> str | None:
    try:
        found = file_checksum(path / SHARDS / name)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return (
        None if found == expected else f"CRC-32 is {found:08x}, it was written with {expected:08x}"
    )


def _medians(values: np.ndarray) -> str:
    return _words(np.median(values, axis=0))


def _words(values: np.ndarray) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
