"""The order of an epoch: of all rows at once, or block by block where a store outgrows memory.

A disk hands out neighbours together, so a store that memory does not hold is read in blocks of
neighbouring rows. Blocks come in random order, and the rows of a window of blocks are mixed
completely. Both orders are pure functions of (seed, epoch).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

__all__ = [
    "BLOCK_ROWS",
    "WINDOW_BLOCKS",
    "BlockOrder",
    "Mixing",
    "ReadAhead",
    "measure_mixing",
    "n_rows_per_rank",
]

BLOCK_ROWS = 1024
"""Neighbouring rows that are read together."""
WINDOW_BLOCKS = 64
"""Blocks that are mixed together: with the next one being read, two windows lie in memory."""


class Window(NamedTuple):
    """Rows that are mixed completely.

    Attributes
    ----------
    positions : ndarray, shape (n,), int64
        Of the rows, in the order in which they are drawn.
    rng : Generator
        For whatever else is drawn at random in this window.
    """

    positions: np.ndarray
    rng: np.random.Generator


class BlockOrder:
    r"""Positions 0 to ``n_rows`` in the order of one epoch, block by block.

    The rows stand in a circle that begins somewhere else in every epoch, and are cut into blocks
    of equal size, none larger than ``block_rows``. What does not divide, less than one row a
    block, is left out; where that is changes with the epoch too. Each rank has blocks of its own,
    as many as every other. Nothing larger than a list of the blocks or one window is held.

    Parameters
    ----------
    n_rows : int
        Rows to put in order; at least one for each rank.
    seed, epoch : int
        What alone the order depends on.
    rank, n_ranks : int
        This process among those that share the epoch.
    block_rows, window_blocks : int
        Rows in a block and blocks in a window, at most.

    Notes
    -----
    How well it mixes, as `measure_mixing` has it, for a million rows in batches of 256 and the
    default blocks and windows: the rows of a batch come from some 90 different stretches of 1024
    rows (225 after a full shuffle); neighbours share a batch 16 times as often, which is still one
    pair in 240; and the mean of a quantity that grows along the store scatters 2.1 times as much
    from batch to batch. A store whose stamps were packed in random order loses nothing.
    """

    def __init__(
        self,
        n_rows: int,
        seed: int,
        epoch: int,
        *,
        rank: int = 0,
        n_ranks: int = 1,
        block_rows: int = BLOCK_ROWS,
        window_blocks: int = WINDOW_BLOCKS,
    ) -> None:
        n_blocks = n_ranks * _blocks_per_rank(n_rows, n_ranks, block_rows)
        self.n_rows = n_rows
        self.block_rows = n_rows // n_blocks
        self.key = (seed, epoch, rank)
        rng = np.random.default_rng((seed, epoch))
        self.start = int(rng.integers(n_rows))
        self.blocks = rng.permutation(n_blocks)[rank::n_ranks]
        n_windows = -(-len(self.blocks) // window_blocks)
        # windows of equal size: a last one of few blocks would mix badly
        self.borders = np.linspace(0, len(self.blocks), n_windows + 1).astype(np.int64)

    def __len__(self) -> int:
        """Rows of this rank."""
        return len(self.blocks) * self.block_rows

    @property
    def n_windows(self) -> int:
        return len(self.borders) - 1

    def runs(self, window: int) -> Iterator[tuple[int, int]]:
        """First and last position (exclusive) of each block of a window; never across the end."""
        for block in self.blocks[self.borders[window] : self.borders[window + 1]]:
            first = (self.start + int(block) * self.block_rows) % self.n_rows
            last = first + self.block_rows
            yield first, min(last, self.n_rows)
            if last > self.n_rows:
                yield 0, last - self.n_rows

    def window(self, number: int) -> Window:
        """Positions of one window, mixed."""
        rng = np.random.default_rng((*self.key, number))
        runs = [np.arange(first, last) for first, last in self.runs(number)]
        return Window(rng.permutation(np.concatenate(runs)), rng)

    def find(self, row: int) -> tuple[int, int]:
        """Window that holds the ``row``-th row of this rank, and its place there."""
        number = int(np.searchsorted(self.borders, row // self.block_rows, side="right")) - 1
        return number, row - int(self.borders[number]) * self.block_rows


def n_rows_per_rank(n_rows: int, n_ranks: int, block_rows: int = BLOCK_ROWS) -> int:
    """Rows that each rank draws in an epoch of `BlockOrder`."""
    blocks_per_rank = _blocks_per_rank(n_rows, n_ranks, block_rows)
    return blocks_per_rank * (n_rows // (blocks_per_rank * n_ranks))


def _blocks_per_rank(n_rows: int, n_ranks: int, block_rows: int) -> int:
    return min(-(-n_rows // (block_rows * n_ranks)), n_rows // n_ranks)


class Mixing(NamedTuple):
    """How an order mixes what stands together in the store, against a full shuffle of it.

    Attributes
    ----------
    blocks_per_batch, blocks_per_batch_full : float
        Mean number of different stretches of ``block_rows`` rows, counted from the first row of
        the store, from which the rows of a batch come.
    neighbours, neighbours_full : float
        Share of the pairs of neighbouring rows that come in one batch.
    scatter : float
        Standard deviation of the mean position of a batch, over that after a full shuffle. A
        quantity that grows along the store (the night, the seeing) moves a batch this much more.
    """

    blocks_per_batch: float
    blocks_per_batch_full: float
    neighbours: float
    neighbours_full: float
    scatter: float


def measure_mixing(order: np.ndarray, batch_size: int, block_rows: int = BLOCK_ROWS) -> Mixing:
    """How well ``order``, shape (n,), the positions of one epoch, mixes its batches.

    Figures of the full shuffle are expectations, not drawn. A last, smaller batch is left out.
    """
    n = len(order) // batch_size * batch_size
    batches = order[:n].reshape(-1, batch_size)
    n_rows = int(order.max()) + 1
    blocks = np.sort(batches // block_rows, axis=1)
    n_different = 1 + np.count_nonzero(np.diff(blocks, axis=1), axis=1)
    n_blocks = -(-n_rows // block_rows)
    missed = (1 - block_rows / n_rows) ** batch_size  # chance that a batch has none of a block
    batch_of = np.full(n_rows, -1, dtype=np.int64)
    batch_of[batches] = np.arange(len(batches))[:, None]
    drawn = (batch_of[1:] >= 0) & (batch_of[:-1] >= 0)
    together = (batch_of[1:] == batch_of[:-1])[drawn]
    # of n_rows evenly spread positions, drawn without putting back
    of_full = np.sqrt((n_rows**2 - 1) / 12 / batch_size * (1 - batch_size / n_rows))
    return Mixing(
        blocks_per_batch=float(n_different.mean()),
        blocks_per_batch_full=n_blocks * (1 - missed),
        neighbours=float(together.mean()),
        neighbours_full=(batch_size - 1) / (n_rows - 1),
        scatter=float(batches.mean(axis=1).std() / of_full),
    )


class ReadAhead:
    """Tells a store which rows come next, a window ahead, a little with every batch.

    Parameters
    ----------
    order : BlockOrder
        Of this epoch.
    rows : ndarray, shape (N,), int64
        Rows of the store at each position, ascending.
    will_need : callable
        Called with the first and last row (exclusive) of each block.
    first_window : int
        Where the epoch begins, or goes on.
    """

    def __init__(
        self,
        order: BlockOrder,
        rows: np.ndarray,
        will_need: Callable[[int, int], None],
        first_window: int,
    ) -> None:
        self.order = order
        self.rows = rows
        self.will_need = will_need
        self.pending = list(order.runs(first_window))
        self.n_pending = len(self.pending)

    def begin(self, window: int) -> None:
        """Ask for the rest of ``window``, and line up the blocks of the next one."""
        self.advance(1.0)
        if window + 1 < self.order.n_windows:
            self.pending = list(self.order.runs(window + 1))
            self.n_pending = len(self.pending)

    def advance(self, done: float) -> None:
        """Ask for what should be on its way when a share ``done`` of the window is drawn."""
        while len(self.pending) > (1 - done) * self.n_pending:
            first, last = self.pending.pop()
            self.will_need(int(self.rows[first]), int(self.rows[last - 1]) + 1)
