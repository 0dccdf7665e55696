"""Looking after stores: where they are, what one holds, and clearing what nothing refers to."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vae_astro.data.store.layout import MANIFEST, SHARDS, Manifest
from vae_astro.data.store.rejects import read_rejects
from vae_astro.data.store.store import StampStore
from vae_astro.data.store.whole_file import locked, partial_files
from vae_astro.errors import InputError

__all__ = ["describe_store", "find_stores", "remove_unused"]

OURS = re.compile(r"([0-9a-f]+r*-\d{4})\.(f32|f16|arrow|json)")
"""Files of shards; what else lies there is not ours to delete."""


def find_stores(folder: Path) -> list[Path]:
    """The store at a folder, or all stores in it.

    Raises
    ------
    InputError
        If there is none.
    """
    given, folder = folder, folder.resolve()  # a lock lies beside the store, however it is spelled
    if (folder / MANIFEST).exists() or (folder / SHARDS).is_dir():
        return [folder]
    found = sorted(path.parent for path in folder.glob(f"*/{SHARDS}"))
    if not found:
        raise InputError(f"store={given} is no stamp store and holds none; pack one first")
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
        "objects": len(np.unique(store.object_hashes)),
        "labels": ", ".join(f"{name} {n}" for name, n in labels.most_common()) or "none",
        "unlabelled": unlabelled,
        "sky level, median by band": _medians(store.sky_level),
        "sky noise, median by band": _medians(store.sky_noise),
        "good pixels, mean by band": _words(store.good_fraction.mean(axis=0)),
        "rejects": ", ".join(f"{n} x {reason}" for reason, n in reasons.most_common()) or "none",
        "files that nothing refers to": len(list(_unused(path, store.manifest))),
    }


def remove_unused(path: Path) -> tuple[int, int]:
    """Delete what nothing refers to: shards of an earlier state, files of a killed packer.

    A run that opened the store before it changed keeps what it has mapped.

    Returns
    -------
    n_files, n_bytes : int
        What was deleted.
    """
    with locked(path):
        unused = list(_unused(path, Manifest.read(path)))
        n_bytes = sum(file.stat().st_size for file in unused)
        for file in unused:
            file.unlink()
    return len(unused), n_bytes


def _unused(path: Path, manifest: Manifest) -> Iterator[Path]:
    known = {shard.name for shard in manifest.shards}
    yield from partial_files(path)
    yield from partial_files(path / SHARDS)
    for file in (path / SHARDS).iterdir():
        match = OURS.fullmatch(file.name)
        if match is not None and match[1] not in known:
            yield file


def _medians(values: np.ndarray) -> str:
    return _words(np.median(values, axis=0))


def _words(values: np.ndarray) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
