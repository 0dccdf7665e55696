"""Whole batches from a store: which stamps and in which pose, then gather and normalise.

The random part, `EpochSampler`, is a pure function of (seed, epoch); the rest has no randomness.
So the n-th batch of an epoch is the same whoever asks and whenever, and a run can go on anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vae_astro.data.augment import N_SYMMETRIES
from vae_astro.data.batch_memory import batch_tensors
from vae_astro.data.gather import STRETCHES, KernelSettings, addresses_of, normalize_rows
from vae_astro.data.normalize import NOISE_FLOOR, Normalizer
from vae_astro.data.shuffle import (
    BLOCK_ROWS,
    WINDOW_BLOCKS,
    BlockOrder,
    ReadAhead,
    n_rows_per_rank,
)
from vae_astro.data.store.store import StampStore
from vae_astro.errors import InputError
from vae_astro.settings import check_choice

__all__ = [
    "Batch",
    "Draw",
    "EpochSampler",
    "InOrder",
    "StampDataset",
    "StampLoader",
    "share_of_batch",
]

Batch = dict[str, Tensor]
"""``image``, ``mask``, ``noise`` (B, C, H, W) and ``index`` (B,): see `StampDataset`."""


class Draw(NamedTuple):
    """One batch to gather: rows of the store, and a symmetry of the square for each."""

    rows: np.ndarray
    symmetries: np.ndarray | None


class StampDataset(Dataset[Batch]):
    """Batches of normalised stamps, asked for as a whole.

    Parameters
    ----------
    store : StampStore
        Where the pixels are.
    normalizer : Normalizer
        How they are normalised.
    """

    def __init__(self, store: StampStore, normalizer: Normalizer) -> None:
        self.store = store
        self.normalizer = normalizer
        self.settings = _kernel_settings(normalizer, store.stamp_shape[0])

    def __getitem__(self, draw: Draw) -> Batch:
        """Gather one batch.

        Returns
        -------
        dict
            ``image`` (B, C, H, W) float32, normalised, 0 where masked; ``mask`` (B, C, H, W) bool,
            True where good; ``noise`` (B, C, H, W) float32, standard deviation in the units of
            ``image``; ``index`` (B,) int64, row of the catalogue.
        """
        store, rows = self.store, draw.rows
        addresses = store.addresses(rows)
        planes = None
        if addresses is None:  # stored in fewer bits
            planes = store.gather(rows)
            addresses = addresses_of(planes)
        image, mask, noise = batch_tensors((len(rows), *store.stamp_shape))
        normalize_rows(
            addresses,
            self.settings,
            store.sky_level[rows],
            store.sky_noise[rows],
            image.numpy(),
            mask.numpy(),
            noise.numpy(),
            symmetries=draw.symmetries,
            with_noise=store.has_noise,
            n_threads=torch.get_num_threads(),
        )
        del planes  # until now the addresses were those of its memory
        return {"image": image, "mask": mask, "noise": noise, "index": torch.from_numpy(rows)}


def _kernel_settings(normalizer: Normalizer, n_bands: int) -> KernelSettings:
    def per_band(key: str) -> np.ndarray:
        values = [np.inf] * n_bands
        if getattr(normalizer, key) is not None:
            values = normalizer.per_band(key, n_bands)
        return np.array(values, dtype=np.float32)

    return KernelSettings(
        stretch=STRETCHES.index(normalizer.stretch),
        softening=np.float32(normalizer.softening),
        noise_floor=np.float32(NOISE_FLOOR),
        gain=per_band("gain"),
        saturation=per_band("saturation"),
    )


def share_of_batch(batch_size: int, n_ranks: int) -> int:
    """Stamps that each of ``n_ranks`` processes has of a batch.

    Raises
    ------
    InputError
        If they cannot have equal parts.
    """
    if batch_size % n_ranks:
        nearest = max(n_ranks, round(batch_size / n_ranks) * n_ranks)
        raise InputError(
            f"a batch of {batch_size} stamps cannot be shared equally by {n_ranks} processes; set "
            f"data.batch_size={nearest}, or other trainer.devices"
        )
    return batch_size // n_ranks


class EpochSampler(Sampler[Draw]):
    """Shuffled batches of one epoch, a pure function of (seed, epoch).

    A batch is shared by the ranks, which have equal parts of it. With ``full`` it holds the same
    rows in the same poses however many share it, each having those of one contiguous part; with
    ``block`` each rank has blocks of its own, and what makes a batch changes with their number.

    Parameters
    ----------
    rows : ndarray, shape (N,), int64
        Rows of the store to draw from.
    batch_size : int
        Stamps in a batch, over all ranks; as many as there are, where there are fewer. The last,
        smaller batch is dropped.
    seed : int
        Of the order and of the symmetries.
    augment : bool
        Draw one of the eight symmetries for each stamp.
    rank, n_ranks : int
        This process among those that share each batch.
    shuffle : {"full", "block"}
        Mix all rows, or read blocks of them and mix those; see `BlockOrder`.
    block_rows, window_blocks : int
        Rows in a block, and blocks that are mixed together.
    will_need : callable, optional
        Told the first and last row (exclusive) of blocks that come next: `StampStore.will_need`.

    Attributes
    ----------
    batch_size : int
        Stamps in a batch, over all ranks.
    share : int
        Stamps of it that this rank draws.

    Raises
    ------
    InputError
        Fewer rows than ranks, or a batch that does not divide by their number.
    """

    def __init__(
        self,
        rows: np.ndarray,
        batch_size: int,
        seed: int,
        *,
        augment: bool = False,
        rank: int = 0,
        n_ranks: int = 1,
        shuffle: str = "full",
        block_rows: int = BLOCK_ROWS,
        window_blocks: int = WINDOW_BLOCKS,
        will_need: Callable[[int, int], None] | None = None,
    ) -> None:
        self.rows = rows
        self.shuffle = check_choice("data.shuffle", shuffle, ("full", "block"))
        if len(rows) < n_ranks:
            raise InputError(f"{len(rows)} training stamps cannot be shared by {n_ranks} processes")
        self.share = min(share_of_batch(batch_size, n_ranks), len(rows) // n_ranks)
        self.n_batches = len(rows) // (self.share * n_ranks)
        if shuffle == "block":
            n_per_rank = n_rows_per_rank(len(rows), n_ranks, block_rows)
            self.share = min(self.share, n_per_rank)
            self.n_batches = n_per_rank // self.share
        self.block_rows = block_rows
        self.window_blocks = window_blocks
        self.will_need = will_need
        self.batch_size = self.share * n_ranks
        self.seed = seed
        self.augment = augment
        self.rank = rank
        self.n_ranks = n_ranks
        self.epoch = self.first_epoch = self.first_batch = 0

    def __len__(self) -> int:
        return self.n_batches

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self.epoch = epoch

    def resume_at(self, epoch: int, n_batches_done: int) -> None:
        """Go on in ``epoch`` after ``n_batches_done`` of its batches; whole epochs follow."""
        self.epoch = self.first_epoch = epoch
        self.first_batch = n_batches_done

    def __iter__(self) -> Iterator[Draw]:
        first = self.first_batch if self.epoch == self.first_epoch else 0
        if first >= len(self):
            return iter(())
        return self._fully_mixed(first) if self.shuffle == "full" else self._block_by_block(first)

    def _fully_mixed(self, first: int) -> Iterator[Draw]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(self.rows)
        symmetries = rng.integers(N_SYMMETRIES, size=len(order)) if self.augment else None
        for k in range(first, len(self)):
            start = k * self.batch_size + self.rank * self.share
            mine = slice(start, start + self.share)
            yield Draw(order[mine], None if symmetries is None else symmetries[mine])

    def _block_by_block(self, first: int) -> Iterator[Draw]:
        order = BlockOrder(
            len(self.rows),
            self.seed,
            self.epoch,
            rank=self.rank,
            n_ranks=self.n_ranks,
            block_rows=self.block_rows,
            window_blocks=self.window_blocks,
        )
        window, place = order.find(first * self.share)
        ahead = ReadAhead(order, self.rows, self.will_need or (lambda first, last: None), window)
        positions = poses = np.empty(0, dtype=np.int64)  # drawn, but not in a batch yet
        for _ in range(first, len(self)):
            while len(positions) < self.share:
                ahead.begin(window)
                mixed, rng = order.window(window)
                turns = rng.integers(N_SYMMETRIES, size=len(mixed))
                positions = np.concatenate([positions, mixed[place:]])
                poses = np.concatenate([poses, turns[place:]])
                window, place = window + 1, 0
            batch, positions = np.split(positions, [self.share])
            pose, poses = np.split(poses, [self.share])
            ahead.advance(1 - len(positions) / len(mixed))
            yield Draw(self.rows[batch], pose if self.augment else None)


class InOrder(Sampler[Draw]):
    """All rows once, in order, unaugmented.

    Every rank has as many batches as the others, or they would wait for each other for ever: where
    one has a row more, it is in its last batch.

    Parameters
    ----------
    rows : ndarray, shape (N,), int64
        Rows of the store.
    batch_size : int
        Stamps in a batch of one rank.
    rank, n_ranks : int
        This process takes the ``rank``-th of ``n_ranks`` stretches, so that it reads a store in
        sequence and the results of all, one rank after the other, are in order again.
    """

    def __init__(self, rows: np.ndarray, batch_size: int, rank: int = 0, n_ranks: int = 1) -> None:
        self.rows = rows[rank * len(rows) // n_ranks : (rank + 1) * len(rows) // n_ranks]
        self.batch_size = batch_size
        n_of_all = max(len(rows) // n_ranks, min(len(self.rows), 1))
        self.n_batches = -(-n_of_all // batch_size)

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[Draw]:
        for k in range(len(self)):
            after = None if k == len(self) - 1 else (k + 1) * self.batch_size
            yield Draw(self.rows[k * self.batch_size : after], None)


class StampLoader(DataLoader[Batch]):
    """A DataLoader that hands each `Draw` of its sampler to the dataset as a whole batch.

    Parameters
    ----------
    dataset : StampDataset
        What gathers.
    sampler : EpochSampler or InOrder
        What draws.
    n_workers : int
        Processes that gather ahead; 0 gathers in the training process.
    """

    def __init__(self, dataset: StampDataset, sampler: Sampler[Draw], n_workers: int = 0) -> None:
        super().__init__(
            dataset,
            sampler=sampler,
            batch_size=None,
            num_workers=n_workers,
            # its own generator: starting workers must not move the random state of the training
            generator=torch.Generator().manual_seed(0),
            pin_memory=torch.cuda.is_available(),
        )

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must agree on; the position itself follows from the trainer's."""
        sampler = self.sampler
        if not isinstance(sampler, EpochSampler):
            return {}
        state: dict[str, Any] = {
            "n_stamps": len(sampler.rows),
            "batch_size": sampler.batch_size,
            "seed": sampler.seed,
            "n_batches": len(sampler),
            "n_ranks": sampler.n_ranks,
            "shuffle": sampler.shuffle,
        }
        if sampler.shuffle == "block":
            state |= {"block_rows": sampler.block_rows, "window_blocks": sampler.window_blocks}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Refuse to go on in the middle of an epoch that would hold other batches.

        The number of ranks may change where it changes no batch, and between epochs.

        Raises
        ------
        InputError
            If the stamps, the batch size, the seed or the way of shuffling have changed.
        """
        now = self.state_dict()
        if state:  # written before there were others
            state = {"shuffle": "full", **state}
        free = self._free_to_change()
        changed = {
            key: (was, now.get(key))
            for key, was in state.items()
            if now.get(key) != was and key not in free
        }
        if changed:
            listed = ", ".join(f"{key} was {was}, is {is_}" for key, (was, is_) in changed.items())
            raise InputError(
                f"cannot resume in the middle of an epoch: {listed}; use the same data, "
                "data.batch_size, data.shuffle and seed (with data.shuffle=block the same "
                "trainer.devices too), or start from the weights with init_from="
            )

    def _free_to_change(self) -> tuple[str, ...]:
        sampler = self.sampler
        if not isinstance(sampler, EpochSampler):
            return ()
        if sampler.shuffle == "full":
            return ("n_ranks",)
        return () if sampler.first_batch else ("n_ranks", "n_batches")
