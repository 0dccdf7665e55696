"""What was set aside while packing: the table beside the store, and the words of a message."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from vae_astro.data.stamp import Reject
from vae_astro.data.store.layout import Shard, ShardRecord

__all__ = ["in_words", "read_rejects", "table_of"]


def read_rejects(store: Path, shards: Iterable[Shard]) -> list[Reject]:
    """What was set aside on the way to some shards of a store, in their order.

    Raises
    ------
    InputError
        If a record is damaged.
    """
    rejects: list[Reject] = []
    for shard in shards:
        if shard.n_rejected:
            rejects += ShardRecord.read(store, shard).lot_rejects()
    return rejects


def table_of(rejects: Iterable[Reject]) -> bytes:
    """The content of ``rejects.csv``."""
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(["source", "reason", "detail"])
    writer.writerows((each.source, each.reason, each.detail) for each in rejects)
    return table.getvalue().encode(errors="backslashreplace")


def in_words(rejects: Sequence[Reject]) -> str:
    """How many for which reason, and the detail of the first."""
    if not rejects:
        return "no stamps in the files"
    reasons = Counter(reject.reason for reject in rejects)
    listed = ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
    return f"{listed}; the first: {rejects[0].detail}"
