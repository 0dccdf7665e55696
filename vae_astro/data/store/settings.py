"""Settings of the data group to a root and its packer, without what training needs besides.

`scripts/pack.py` starts in a tenth of the time and stays small in memory: torch is not imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vae_astro.data.sources.registry import READERS
from vae_astro.data.sources.root import Root, open_root
from vae_astro.data.store.pack import Packer
from vae_astro.errors import InputError
from vae_astro.settings import build, check_bool, check_choice, check_number, check_text, construct

__all__ = ["FOR_TRAINING", "packer_from"]

FOR_TRAINING = (
    "labels",
    "label_column",
    "classes",
    "batch_size",
    "val_fraction",
    "test_fraction",
    "augment",
    "shuffle",
    "n_workers",
    "resident",
    "seed",
    "n_stamps",
    "simulation_seed",
)
"""Keys of the data group that do not decide what is packed."""
FOR_PACKING = ("size", "stored_as", "on_bad", "max_bad_fraction", "progress")
"""Keys that `Packer` has as well."""


def packer_from(data: Mapping[str, Any], pack: Mapping[str, Any]) -> tuple[Root, Packer]:
    """The root of the stamps and what packs them.

    Parameters
    ----------
    data : mapping
        The data group; what only training needs is left alone.
    pack : mapping
        Settings of `Packer` that say who does the work: ``n_processes`` and ``cluster``.

    Raises
    ------
    InputError
        A setting that is unknown or out of range; the message names its key.
    """
    settings = {key: value for key, value in data.items() if key not in FOR_TRAINING}
    if not settings.get("root"):
        raise InputError("data.root is not set; give the folder of your stamps: data.root=FOLDER")
    if isinstance(settings["root"], int):
        number = settings["root"]
        raise InputError(f"data.root={number} is read as a number; write data.root=./{number}")
    allow_outside = check_bool("data.allow_outside", settings.pop("allow_outside", False))
    root = open_root(check_text("data.root", settings.pop("root")), allow_outside)
    store_dir = Path(check_text("data.store_dir", settings.pop("store_dir", "stores")))
    normalize = settings.pop("normalize", None) or {}
    if not isinstance(normalize, Mapping):
        raise InputError(f"data.normalize must be a mapping of its settings, got {normalize!r}")
    saturation = normalize.get("saturation")
    shape = check_choice("data.format", settings.pop("format", "fits"), tuple(READERS))
    packing = {key: settings.pop(key) for key in FOR_PACKING if key in settings}
    size = packing.get("size")
    given = {} if size is None else {"size": size}
    reader = build("data", READERS, {"name": shape, **settings}, **given)
    packer = construct(
        "pack",
        Packer,
        pack,
        reader=reader,
        store_dir=store_dir.expanduser(),
        saturation=None if saturation is None else _numbers(saturation),
        **packing,
    )
    return root, packer


def _numbers(saturation: float | Sequence[float]) -> tuple[float, ...]:
    values: list[float] = np.atleast_1d(saturation).tolist()
    for value in values:
        check_number("data.normalize.saturation", value, above=0)
    return tuple(values)
