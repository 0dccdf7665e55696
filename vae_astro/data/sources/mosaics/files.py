"""Mosaics of one patch of sky in several bands, told by the names of their files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vae_astro.data.sources.root import FileVersion
from vae_astro.errors import InputError

__all__ = ["check_bands", "group_bands"]

Bands = tuple[tuple[str, str], ...]
"""Name of each band and the part of file names that stands for it."""


def check_bands(bands: Sequence[str] | Mapping[str, str] | Bands | str | None) -> Bands:
    """``data.bands`` as pairs of a name and a part of file names; none of them for single mosaics.

    One part alone may stand without a list.

    Raises
    ------
    InputError
        If it is neither a list of parts nor a mapping of names to parts, one is blank, or one comes
        twice.
    """
    if bands is None or bands == ():
        return ()
    if isinstance(bands, str):
        bands = [bands]
    try:
        pairs = bands.items() if isinstance(bands, Mapping) else ((part, part) for part in bands)
        # a reader that was checked before has pairs
        checked: Any = tuple(p if isinstance(p, tuple) else (n, p) for n, p in pairs)
        names, parts = zip(*checked, strict=True)
    except (TypeError, ValueError):
        checked, names, parts = (), (None,), (None,)
    are_words = all(isinstance(word, str) and word.strip() for word in (*names, *parts))
    if not are_words or len(set(names)) < len(names) or len(set(parts)) < len(parts):
        raise InputError(
            "data.bands must be a list of parts of file names, such as [g,r,i], or a mapping of "
            f"bands to such parts, each once, got {bands!r}"
        )
    return tuple(checked)


def group_bands(
    mosaics: Sequence[tuple[FileVersion, ...]], bands: Bands
) -> list[tuple[FileVersion, ...]]:
    """The fields: mosaics whose names differ in nothing but the part of their band.

    No letter or digit may stand beside one of the part: ``g`` is in ``cosmos_g.fits``, not in
    ``big.fits``. A file of no band is left out; a band that is missing has its place with the name
    it should have, 0 bytes and no version.

    Parameters
    ----------
    mosaics : sequence of tuple
        The file of each mosaic, then those of its planes; all tuples have one length.
    bands : tuple of pairs
        From `check_bands`.

    Returns
    -------
    list of tuple
        The files of each field, band by band, each with those of its planes.

    Raises
    ------
    InputError
        If no file is of any band, or one could be of two.
    """
    if not bands:
        return sorted(mosaics)
    patterns = {
        name: re.compile(
            ("(?<![A-Za-z0-9])" if part[0].isalnum() else "")
            + re.escape(part)
            + ("(?![A-Za-z0-9])" if part[-1].isalnum() else "")
        )
        for name, part in bands
    }
    fields: dict[str, dict[str, tuple[FileVersion, ...]]] = {}
    for mosaic in mosaics:
        file = mosaic[0].name
        of = [name for name, pattern in patterns.items() if pattern.search(file)]
        if len(of) > 1:
            raise InputError(
                f"data.bands: {file} has the parts of {of[0]} and of {of[1]} in its name; choose "
                "longer parts, as data.bands={NAME: PART, ...}"
            )
        for name in of:
            fields.setdefault(patterns[name].sub("*", file), {})[name] = mosaic
    if not fields:
        raise InputError(
            f"data.bands: none of {len(mosaics)} mosaics has {', '.join(p for _, p in bands)} in "
            f"its name; the first is {mosaics[0][0].name if mosaics else 'none'}"
        )
    n_files = len(mosaics[0])
    return sorted(
        tuple(
            file
            for name, part in bands
            for file in field.get(name, (FileVersion(common.replace("*", part), 0, ""),) * n_files)
        )
        for common, field in fields.items()
    )
