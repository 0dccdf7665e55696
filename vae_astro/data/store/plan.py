"""What has to be packed: sources as they are listed now against the lots that a store has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from vae_astro.data.sources.reader import Source
from vae_astro.data.store.layout import Lot, lot_of

__all__ = ["LARGEST_SHARD", "plan_lots", "shard_bytes_for"]

SMALLEST_SHARD = 1 << 24
LARGEST_SHARD = 1 << 28
LOTS_AT_LEAST = 16
"""Lots that a large set of sources is shared out into at least: enough for several processes."""


def shard_bytes_for(sources: Iterable[Source]) -> int:
    """Most bytes of a shard: a sixteenth of all sources, within 16 and 256 MiB.

    A function of the sources alone, so that the same stamps make the same shards on any machine.
    """
    share = sum(source.n_bytes for source in sources) // LOTS_AT_LEAST
    return min(LARGEST_SHARD, max(SMALLEST_SHARD, share))


def plan_lots(listed: Sequence[Source], packed: Iterable[Lot], lot_bytes: int) -> list[Lot]:
    """The lots of a store that holds what is listed, those that are packed already included.

    A lot whose sources are all as they were is kept. Of one that lost a source or saw it change,
    the others are packed again in its place. What is new comes last: adding a night leaves the
    rows before it where they are.

    Parameters
    ----------
    listed : sequence of Source
        What the reader finds now.
    packed : iterable of Lot
        What the store has, in order.
    lot_bytes : int
        Most bytes of a new lot, by `Source.n_bytes`.
    """
    now = {_identity(source): source for source in listed}
    lots: list[Lot] = []
    for lot in packed:
        still = [now.pop(key) for key in map(_identity, lot.sources) if key in now]
        if tuple(still) == lot.sources:
            lots.append(lot)
        else:
            lots += map(lot_of, _grouped(still, lot_bytes))
    return lots + [lot_of(group) for group in _grouped(now.values(), lot_bytes)]


def _identity(source: Source) -> tuple[tuple[str, ...], tuple[int, int] | None]:
    """What a source is called, whatever its version."""
    return tuple(file.name for file in source.files), source.part


def _grouped(sources: Iterable[Source], lot_bytes: int) -> Iterator[list[Source]]:
    group: list[Source] = []
    n_bytes = 0
    for source in sources:
        if group and n_bytes + source.n_bytes > lot_bytes:
            yield group
            group, n_bytes = [], 0
        group.append(source)
        n_bytes += source.n_bytes
    if group:
        yield group
