"""Block by block every row comes at most once, ranks share fairly, and batches are well mixed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_astro.data.shuffle import (
    BLOCK_ROWS,
    WINDOW_BLOCKS,
    BlockOrder,
    Mixing,
    ReadAhead,
    measure_mixing,
    n_rows_per_rank,
)

relaxed = settings(deadline=None, max_examples=60)

orders = {
    "n_rows": st.integers(5, 400),
    "n_ranks": st.integers(1, 5),
    "block_rows": st.integers(1, 50),
    "window_blocks": st.integers(1, 9),
    "seed": st.integers(0, 2**32 - 1),
    "epoch": st.integers(0, 1000),
}


def drawn(order: BlockOrder) -> np.ndarray:
    return np.concatenate([order.window(k).positions for k in range(order.n_windows)])


@given(**orders)
@relaxed
def test_no_row_comes_twice_and_every_rank_has_as_many(
    n_rows, n_ranks, block_rows, window_blocks, seed, epoch
):
    sizes = {"block_rows": block_rows, "window_blocks": window_blocks}
    each = [
        drawn(BlockOrder(n_rows, seed, epoch, rank=rank, n_ranks=n_ranks, **sizes))
        for rank in range(n_ranks)
    ]
    assert {len(rows) for rows in each} == {n_rows_per_rank(n_rows, n_ranks, block_rows)}
    rows = np.concatenate(each)
    assert len(np.unique(rows)) == len(rows)
    assert rows.min() >= 0
    assert rows.max() < n_rows
    n_blocks = n_ranks * -(-n_rows // (block_rows * n_ranks))
    assert n_rows - len(rows) < n_blocks  # less than one row a block is left out


@given(**orders, share=st.floats(0, 1, exclude_max=True))
@relaxed
def test_a_row_is_found_where_it_is_drawn(
    n_rows, n_ranks, block_rows, window_blocks, seed, epoch, share
):
    sizes = {"block_rows": block_rows, "window_blocks": window_blocks}
    order = BlockOrder(n_rows, seed, epoch, rank=n_ranks - 1, n_ranks=n_ranks, **sizes)
    wanted = int(share * len(order))
    window, place = order.find(wanted)
    assert order.window(window).positions[place] == drawn(order)[wanted]


def test_a_window_holds_whole_blocks_of_neighbours_that_come_mixed():
    order = BlockOrder(1000, 1, 2, block_rows=10, window_blocks=5)
    for k in range(order.n_windows):
        positions = order.window(k).positions
        assert len(positions) == 50
        assert sum(last - first for first, last in order.runs(k)) == 50
        # a run of neighbours ends where a block ends; two blocks may touch
        gaps = np.count_nonzero(np.diff(np.sort(positions)) > 1)
        assert gaps <= 5
        assert np.count_nonzero(np.abs(np.diff(positions)) == 1) < 15
    assert drawn(order).tolist() != drawn(BlockOrder(1000, 1, 3, block_rows=10)).tolist()


def test_the_order_is_a_function_of_seed_and_epoch():
    same = [drawn(BlockOrder(500, 7, 3, block_rows=20)) for _ in range(2)]
    np.testing.assert_array_equal(*same)
    others = [drawn(BlockOrder(500, *key, block_rows=20)) for key in ((7, 4), (8, 3))]
    assert not any(np.array_equal(same[0], other) for other in others)


def test_what_is_left_out_of_one_epoch_comes_in_others():
    missed = [set(range(109)) - set(drawn(BlockOrder(109, 0, k, block_rows=10))) for k in range(40)]
    assert all(0 < len(rows) < 11 for rows in missed)
    assert not set.intersection(*missed)
    assert len(set.union(*missed)) > 80


def test_no_more_than_a_window_is_held_of_a_hundred_million_rows():
    order = BlockOrder(100_000_000, 0, 0, rank=3, n_ranks=8)
    window, place = order.find(len(order) - 1)
    positions = order.window(window).positions
    assert place == len(positions) - 1
    assert len(positions) <= BLOCK_ROWS * WINDOW_BLOCKS
    assert order.blocks.nbytes < 1 << 20


def test_a_million_rows_are_mixed_as_the_documentation_says():
    epochs = [measure_mixing(drawn(BlockOrder(1_000_000, 63, k)), 256) for k in range(3)]
    found = {name: np.mean([getattr(mixing, name) for mixing in epochs]) for name in Mixing._fields}
    # a block mostly lies across two of the stretches that are counted
    assert found["blocks_per_batch"] == pytest.approx(90, abs=8)
    assert found["blocks_per_batch_full"] == pytest.approx(225, abs=1)
    assert found["neighbours"] / found["neighbours_full"] == pytest.approx(16, rel=0.05)
    assert found["neighbours"] == pytest.approx(1 / 240, rel=0.05)
    assert found["scatter"] == pytest.approx(2.1, rel=0.1)


def test_a_full_shuffle_measures_as_one_and_no_shuffle_as_none():
    rng = np.random.default_rng(63)
    full = measure_mixing(rng.permutation(200_000), 200, block_rows=1000)
    assert full.blocks_per_batch == pytest.approx(full.blocks_per_batch_full, rel=0.01)
    assert full.neighbours == pytest.approx(full.neighbours_full, rel=0.3)
    assert full.scatter == pytest.approx(1, rel=0.1)
    none = measure_mixing(np.arange(200_000), 200, block_rows=1000)
    assert none.blocks_per_batch == 1
    assert none.neighbours > 0.99
    assert none.scatter > 10


def test_what_comes_next_is_asked_for_a_window_ahead_and_bit_by_bit():
    rows = np.arange(400) * 3 + 7
    order = BlockOrder(400, 5, 0, block_rows=10, window_blocks=8)
    asked: list[tuple[int, int]] = []
    ahead = ReadAhead(order, rows, lambda first, last: asked.append((first, last)), 0)

    def runs(window: int) -> list[tuple[int, int]]:
        return sorted((rows[first], rows[last - 1] + 1) for first, last in order.runs(window))

    ahead.begin(0)
    assert sorted(asked) == runs(0)
    ahead.advance(0.5)
    so_far = len(asked) - len(runs(0))
    assert so_far == pytest.approx(len(runs(1)) / 2, abs=1)
    for window in range(1, order.n_windows):
        ahead.begin(window)
        ahead.advance(1.0)
    everything = [run for window in range(order.n_windows) for run in runs(window)]
    assert sorted(asked) == sorted(everything)
