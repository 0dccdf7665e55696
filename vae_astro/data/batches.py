"""Whole batches from a store: which stamps and in which pose, then gather and normalise.

The random part, `EpochSampler`, is a pure function of (seed, epoch); the rest has no randomness.
So the n-th batch of an epoch is the same whoever asks and whenever, and a run can go on anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vae_astro.data.augment import N_SYMMETRIES, apply_symmetries
from vae_astro.data.normalize import Normalizer, Sky
from vae_astro.data.store import StampStore
from vae_astro.errors import InputError

__all__ = ["Batch", "Draw", "EpochSampler", "InOrder", "StampDataset", "StampLoader"]

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

    def __getitem__(self, draw: Draw) -> Batch:
        """Gather one batch.

        Returns
        -------
        dict
            ``image`` (B, C, H, W) float32, normalised, 0 where masked; ``mask`` (B, C, H, W) bool,
            True where good; ``noise`` (B, C, H, W) float32, standard deviation in the units of
            ``image``; ``index`` (B,) int64, row of the catalogue.
        """
        rows = draw.rows
        raw = torch.from_numpy(self.store.pixels[rows])
        sky = Sky(
            torch.from_numpy(self.store.sky_level[rows]),
            torch.from_numpy(self.store.sky_noise[rows]),
        )
        stamps = self.normalizer(raw, sky)
        batch = {"image": stamps.image, "mask": stamps.mask, "noise": stamps.noise}
        if draw.symmetries is not None:
            symmetries = torch.from_numpy(draw.symmetries)
            batch = {name: apply_symmetries(value, symmetries) for name, value in batch.items()}
        batch["index"] = torch.from_numpy(rows)
        return batch


class EpochSampler(Sampler[Draw]):
    """Shuffled batches of one epoch, a pure function of (seed, epoch).

    Parameters
    ----------
    rows : ndarray, shape (N,), int64
        Rows of the store to draw from.
    batch_size : int
        Stamps in a batch, per rank. The last, smaller batch is dropped unless it is the only one.
    seed : int
        Of the order and of the symmetries.
    augment : bool
        Draw one of the eight symmetries for each stamp.
    rank, n_ranks : int
        This process among those that share the epoch; their batches are disjoint.
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
    ) -> None:
        self.rows = rows
        self.n_per_rank = len(rows) // n_ranks
        if self.n_per_rank == 0:
            raise InputError(f"{len(rows)} training stamps cannot be shared by {n_ranks} processes")
        self.batch_size = min(batch_size, self.n_per_rank)
        self.seed = seed
        self.augment = augment
        self.rank = rank
        self.epoch = self.first_epoch = self.first_batch = 0

    def __len__(self) -> int:
        return self.n_per_rank // self.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self.epoch = epoch

    def resume_at(self, epoch: int, n_batches_done: int) -> None:
        """Go on in ``epoch`` after ``n_batches_done`` of its batches; whole epochs follow."""
        self.epoch = self.first_epoch = epoch
        self.first_batch = n_batches_done

    def __iter__(self) -> Iterator[Draw]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(self.rows)
        symmetries = rng.integers(N_SYMMETRIES, size=len(order)) if self.augment else None
        mine = slice(self.rank * self.n_per_rank, (self.rank + 1) * self.n_per_rank)
        first = self.first_batch if self.epoch == self.first_epoch else 0
        for k in range(first, len(self)):
            batch = slice(k * self.batch_size, (k + 1) * self.batch_size)
            yield Draw(order[mine][batch], None if symmetries is None else symmetries[mine][batch])


class InOrder(Sampler[Draw]):
    """All rows once, in order, unaugmented.

    Parameters
    ----------
    rows : ndarray, shape (N,), int64
        Rows of the store.
    batch_size : int
        Stamps in a batch.
    rank, n_ranks : int
        This process takes every ``n_ranks``-th row.
    """

    def __init__(self, rows: np.ndarray, batch_size: int, rank: int = 0, n_ranks: int = 1) -> None:
        self.rows = rows[rank::n_ranks]
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[Draw]:
        for k in range(len(self)):
            yield Draw(self.rows[k * self.batch_size : (k + 1) * self.batch_size], None)


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
        return {
            "n_stamps": len(sampler.rows),
            "batch_size": sampler.batch_size,
            "seed": sampler.seed,
            "n_batches": len(sampler),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Refuse to go on in the middle of an epoch that would hold other batches.

        Raises
        ------
        InputError
            If the stamps, the batch size or the seed have changed.
        """
        now = self.state_dict()
        changed = {key: (was, now.get(key)) for key, was in state.items() if now.get(key) != was}
        if changed:
            listed = ", ".join(f"{key} was {was}, is {is_}" for key, (was, is_) in changed.items())
            raise InputError(
                f"cannot resume in the middle of an epoch: {listed}; use the same data, "
                "data.batch_size and seed, or start from the weights with init_from="
            )
