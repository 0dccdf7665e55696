"""What has to be packed: sources as they are listed now against the lots that a store has."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from vae_astro.data.sources.reader import Source
from vae_astro.data.store.layout import Lot, RunningDigest, lot_of

__all__ = ["gone_names", "plan_lots", "source_key"]

SMALLEST_LOT = 1 << 24
LARGEST_LOT = 1 << 28
LOTS_AT_LEAST = 16
"""Lots that a large set of sources is shared out into at least: enough for several processes."""
SMALLEST_SOURCE = 1 << 10
"""Bytes that every source counts for at least, so that none is free: 2^18 of them make a lot."""

SourceKey = tuple[tuple[str, ...], tuple[int, int] | None]


def plan_lots(
    listed: Sequence[Source], packed: Iterable[Lot], again: Collection[str] = ()
) -> list[Lot]:
    """The lots of a store that holds what is listed, those that are packed already included.

    A lot whose sources are all as they were is kept. Of one that lost a source or saw it change,
    the others are packed again in its place. What is new comes last: adding a night leaves the
    rows before it where they are. A function of its arguments alone, so that a packer that goes on
    after another finds the lots of the other.

    Parameters
    ----------
    listed : sequence of Source
        What the reader finds now.
    packed : iterable of Lot
        What the store has, in order. One without sources has lost its record; it is known again by
        its digest, where what is left over makes it up.
    again : collection of str
        Names of lots to pack again even if their sources are as they were.
    """
    packed = list(packed)
    if not packed:
        return [lot_of(group) for group in _grouped(listed, _lot_bytes(listed))]
    now = {source_key(source): source for source in listed}
    lots: list[Lot] = []
    for lot in packed:
        still = tuple(now.pop(key) for key in map(source_key, lot.sources) if key in now)
        if still == lot.sources:
            lots.append(lot)
        else:
            lots += map(lot_of, _grouped(still, LARGEST_LOT))
    found, new = _recognise(list(now.values()), {lot.digest for lot in lots if not lot.sources})
    planned: list[Lot] = []
    for lot in lots:
        known = Lot(lot.name, lot.sources or found.get(lot.digest, ()))
        if known.sources:
            planned.append(known.packed_again() if lot.name in again else known)
    return planned + [lot_of(group) for group in _grouped(new, _lot_bytes(new))]


def gone_names(listed: Iterable[Source], packed: Iterable[Lot]) -> set[str]:
    """Names of the packed sources that are not listed any more."""
    names = {source.name for lot in packed for source in lot.sources}
    return names.difference(source.name for source in listed) if names else names


def source_key(source: Source) -> SourceKey:
    """What a source is called, whatever its version."""
    return tuple([file.name for file in source.files]), source.part


def _recognise(
    sources: list[Source], digests: set[str]
) -> tuple[dict[str, tuple[Source, ...]], list[Source]]:
    """Runs of the sources, from the first on, that have one of the digests; and the rest."""
    found: dict[str, tuple[Source, ...]] = {}
    begin, running = 0, RunningDigest()
    for end, source in enumerate(sources if digests else (), start=1):
        running.add([source])
        if running.text in digests:
            found[running.text] = tuple(sources[begin:end])
            begin, running = end, RunningDigest()
    return found, sources[begin:]


def _lot_bytes(sources: Sequence[Source]) -> int:
    """Most bytes of a new lot: a sixteenth of all that is new, within 16 and 256 MiB."""
    share = sum(source.n_bytes for source in sources) // LOTS_AT_LEAST
    return min(LARGEST_LOT, max(SMALLEST_LOT, share))


def _grouped(sources: Iterable[Source], lot_bytes: int) -> Iterator[list[Source]]:
    group: list[Source] = []
    n_bytes = 0
    for source in sources:
        counted = max(source.n_bytes, SMALLEST_SOURCE)
        if group and n_bytes + counted > lot_bytes:
            yield group
            group, n_bytes = [], 0
        group.append(source)
        n_bytes += counted
    if group:
        yield group
