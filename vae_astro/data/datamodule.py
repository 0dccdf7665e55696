"""Folders of stamps to training, validation and test batches."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule

from vae_astro.data.ahead import AheadLoader
from vae_astro.data.augment import N_SYMMETRIES
from vae_astro.data.batches import (
    Batch,
    Draw,
    EpochSampler,
    InOrder,
    StampDataset,
    StampLoader,
    share_of_batch,
)
from vae_astro.data.labels import read_labels
from vae_astro.data.normalize import Normalizer
from vae_astro.data.one_pass import SPLITS, OnePass, Pass
from vae_astro.data.resident import (
    ResidentLoader,
    ResidentStamps,
    check_resident,
    stays_on_device,
)
from vae_astro.data.simulated import is_finished, settings_of
from vae_astro.data.store.layout import is_store
from vae_astro.data.store.settings import packer_from
from vae_astro.data.store.store import StampStore
from vae_astro.errors import InputError
from vae_astro.hardware import CPU_BATCH
from vae_astro.settings import (
    check_bool,
    check_choice,
    check_int,
    check_number,
    check_text,
    construct,
)

__all__ = ["StampDataModule", "split_rows"]

DEFAULT_SIZE = 63
"""Height and width of simulated stamps where none is asked for: ZTF's, in pixels."""

SAMPLE_CHUNK = 256

LARGEST_SEED = 2**32 - 1
"""What the generators of all libraries take."""


class StampDataModule(LightningDataModule):
    """Streams normalised stamps; packs them into a store the first time.

    Parameters
    ----------
    root : str
        Folder (or file) of stamps, an address that fsspec understands, or a finished store.
    format : str
        The shape stamps come in: a key of `READERS`.
    normalize : mapping, optional
        Settings of `Normalizer`.
    size : int, optional
        Height and width in pixels; the stamps' own if absent.
    pack : mapping, optional
        Settings of `Packer` that say who does the work: ``n_processes`` and ``cluster``.
    labels : str, optional
        CSV with a column ``file`` or ``id`` and one of labels; used only to score, never to train.
    label_column : str, optional
        Its column of labels; ``label`` or the only one whose name begins so.
    classes : sequence of str, optional
        Labels that count; stamps with another count as unlabelled.
    batch_size : int, optional
        Stamps in a batch, over all processes; `CPU_BATCH` if absent.
    val_fraction, test_fraction : float
        Shares of the objects that are held out. All stamps of one object stay together.
    augment : bool
        Train on random flips and quarter-turns.
    shuffle : {"auto", "full", "block"}
        How the order of an epoch is drawn; see `EpochSampler`. ``auto`` is ``block`` for a store
        larger than half of the memory.
    n_workers : int
        Processes that gather batches ahead; 0 is the fastest on few cores.
    resident : bool or "auto"
        Keep all stamps on the device that trains and make the batches there; ``auto`` does so on
        CUDA where they fit. See `ResidentStamps`.
    seed : int
        Of the order and the augmentation.
    n_stamps : int, optional
        Draw this many simulated stamps first, into ``root``.
    simulation_seed : int
        Of those.
    progress : bool
        Show progress bars.
    **sources
        ``allow_outside`` of the root; ``store_dir``, ``stored_as``, ``on_bad`` and
        ``max_bad_fraction`` of `Packer`; the fields of the reader's class.

    Raises
    ------
    InputError
        A setting out of range, here; unusable stamps or labels, in `prepare_data` and `setup`.
    """

    store: StampStore
    normalizer: Normalizer

    def __init__(
        self,
        root: str,
        format: str = "fits",
        *,
        normalize: Mapping[str, Any] | None = None,
        size: int | None = None,
        pack: Mapping[str, Any] | None = None,
        labels: str | None = None,
        label_column: str | None = None,
        classes: Sequence[str] | None = None,
        batch_size: int | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        augment: bool = True,
        shuffle: str = "auto",
        n_workers: int = 0,
        resident: bool | str = "auto",
        seed: int = 0,
        n_stamps: int | None = None,
        simulation_seed: int = 0,
        progress: bool = True,
        **sources: Any,
    ) -> None:
        super().__init__()
        self.size = size
        given = {"root": root, "format": format, "normalize": normalize, "size": size}
        self.root, self.packer = packer_from({**given, "progress": progress, **sources}, pack or {})
        self.normalizer = construct("data.normalize", Normalizer, normalize or {})
        self.labels_file = None
        if labels is not None:
            self.labels_file = Path(check_text("data.labels", labels)).expanduser()
        if label_column is not None:
            check_text("data.label_column", label_column)
        self.label_column = label_column
        if isinstance(classes, str):
            classes = [classes]
        if classes is not None and not isinstance(classes, Sequence):
            raise InputError(f"data.classes must be a list of labels or null, got {classes!r}")
        self.classes = [str(label) for label in classes] if classes else None
        self.batch_size = CPU_BATCH
        if batch_size is not None:
            self.batch_size = check_int("data.batch_size", batch_size, minimum=1)
        self.val_fraction = check_number("data.val_fraction", val_fraction, above=0, maximum=0.9)
        self.test_fraction = check_number(
            "data.test_fraction", test_fraction, minimum=0, maximum=0.9
        )
        if self.val_fraction + self.test_fraction >= 1:
            raise InputError("data.val_fraction and data.test_fraction leave nothing to train on")
        self.augment = check_bool("data.augment", augment)
        self.shuffle = check_choice("data.shuffle", shuffle, ("auto", "full", "block"))
        self.n_workers = check_int("data.n_workers", n_workers, minimum=0)
        self.resident = check_resident(resident)
        self.compile_batches = False
        """Whether what makes batches on the device is compiled; set before training."""
        self._stamps_on_device: ResidentStamps | None = None
        self.seed = check_int("seed", seed, minimum=0, maximum=LARGEST_SEED)
        if n_stamps is not None:
            check_int("data.n_stamps", n_stamps, minimum=1)
        self.n_stamps = n_stamps
        self.simulation_seed = check_int("data.simulation_seed", simulation_seed, minimum=0)
        self.progress = progress
        self._labels: np.ndarray | None = None
        self.predicted = Pass()
        """What `predict_dataloader` goes through."""

    def prepare_data(self) -> None:
        """Draw the simulated stamps and pack the store, where that is not done yet."""
        if hasattr(self, "store"):
            return
        if self.n_stamps is not None:
            self._simulate(self.n_stamps)
        self.open()

    def _simulate(self, n_stamps: int) -> None:
        root, size, seed = Path(self.root.address), self.size or DEFAULT_SIZE, self.simulation_seed
        if is_finished(root, settings_of(n_stamps, seed, size)):
            return
        from vae_astro.data.simulate import simulate  # GalSim takes a second to import

        simulate(root, n_stamps=n_stamps, seed=seed, size=size, progress=self.progress)

    def setup(self, stage: str | None = None) -> None:
        """Open the store and split its rows by object."""
        if not hasattr(self, "store"):
            self.use(self.open(), stage)

    def use(self, store: StampStore, stage: str | None = None) -> None:
        """Take a store that is open, and split its rows by object."""
        self.store = store
        # a few stamps are enough to embed, and of all of them no split is needed
        if stage != "predict" and not hasattr(self, "train_rows"):
            self.train_rows, self.val_rows, self.test_rows = split_rows(
                self.store.object_hashes,
                self.val_fraction,
                self.test_fraction,
            )
            if not (len(self.train_rows) and len(self.val_rows)):
                raise InputError(
                    f"{len(self.store)} stamps split into {len(self.train_rows)} for training and "
                    f"{len(self.val_rows)} for validation; both need at least one: give more "
                    "stamps or change data.val_fraction"
                )

    @property
    def has_store(self) -> bool:
        """Whether ``root`` is a store itself."""
        return is_store(Path(self.root.address))

    def open(self) -> StampStore:
        """The store of the stamps, packed first where needed; ``root`` may be a store itself."""
        if self.has_store:
            return StampStore.open(Path(self.root.address))
        return self.packer.open(self.root)

    @property
    def labels(self) -> np.ndarray:
        """Label of each row of the store, shape (N,); empty where unknown or not asked for."""
        if self._labels is None:
            catalogue = self.store.catalogue
            labels = np.array(catalogue["label"].to_pylist(), dtype=object)
            if self.labels_file is not None:
                names = [catalogue[column].to_pylist() for column in ("id", "object_id", "source")]
                labels = read_labels(self.labels_file, self.label_column, *names)
            if self.classes is not None:
                unknown = sorted(set(self.classes) - set(labels))
                if unknown:
                    raise InputError(
                        f"data.classes names {', '.join(unknown)}, but the labels are "
                        f"{', '.join(sorted(set(labels) - {''})) or 'all empty'}"
                    )
                labels[~np.isin(labels, self.classes)] = ""
            self._labels = labels
        return self._labels

    def train_dataloader(self) -> StampLoader:
        """Shuffled, augmented batches; goes on where a resumed run stopped."""
        rank, n_ranks = self._ranks()
        sampler = EpochSampler(
            self.train_rows,
            self.batch_size,
            self.seed,
            augment=self.augment,
            shuffle=self._shuffle(),
            will_need=self.store.will_need,
            rank=rank,
            n_ranks=n_ranks,
        )
        if self.trainer is not None:
            loop = self.trainer.fit_loop
            epochs: Any = loop.epoch_progress.current
            batches: Any = loop.epoch_loop.batch_progress
            # a whole epoch done means that the next one starts at its beginning
            done = 0 if batches.is_last_batch else batches.current.processed
            sampler.resume_at(epochs.processed, done)
        return self._loader(sampler)

    def val_dataloader(self) -> StampLoader:
        """Validation stamps in order, never augmented."""
        rank, n_ranks = self._ranks()
        share = share_of_batch(self.batch_size, n_ranks)
        return self._loader(InOrder(self.val_rows, share, rank, n_ranks))

    def predict_dataloader(self) -> OnePass:
        """Stamps of `predicted` in the order of the store; every process goes through a stretch."""
        sampler = InOrder(self.predicted_rows(), self.predicted.batch_size, *self._ranks())
        return OnePass(self._from_host(sampler), self.store, self.predicted.columns)

    def predicted_rows(self) -> np.ndarray:
        """Rows of the store that `predicted` names, ascending."""
        if self.predicted.split == "all":
            return np.arange(len(self.store))
        split = split_rows(self.store.object_hashes, self.val_fraction, self.test_fraction)
        return dict(zip(SPLITS[1:], split, strict=True))[self.predicted.split]

    def in_order(self, rows: np.ndarray, on_device: bool = False) -> StampLoader:
        """Chosen rows of the store in order, unaugmented, all of them on every process.

        With ``on_device`` the batches may come on the device that trains, which is faster.
        """
        sampler = InOrder(rows, self.batch_size)
        return self._loader(sampler) if on_device else self._from_host(sampler)

    def training_sample(self, n_stamps: int) -> Iterator[Batch]:
        """Training stamps in random order as training sees them, for statistics.

        Every stamp comes once, or once in each of the eight poses if they are augmented, until
        ``n_stamps`` have come. Nothing random moves.
        """
        rng = np.random.default_rng(self.seed)
        poses = rng.integers(N_SYMMETRIES, size=len(self.train_rows))
        n_rounds = N_SYMMETRIES if self.augment else 1
        dataset = StampDataset(self.store, self.normalizer)
        for turn in range(n_rounds):
            order = rng.permutation(len(self.train_rows))[:n_stamps]
            n_stamps -= len(order)
            for first in range(0, len(order), SAMPLE_CHUNK):
                chosen = order[first : first + SAMPLE_CHUNK]
                pose = (poses[chosen] + turn) % N_SYMMETRIES if self.augment else None
                yield dataset[Draw(self.train_rows[chosen], pose)]
            if not n_stamps:
                return

    def batches_per_epoch(self, n_ranks: int = 1) -> int:
        """Batches of an epoch that ``n_ranks`` processes share."""
        return len(self._first_epoch(n_ranks))

    def stamps_per_step(self, n_ranks: int = 1) -> int:
        """Stamps in a batch that ``n_ranks`` processes share; fewer stamps are one batch."""
        return self._first_epoch(n_ranks).batch_size

    def _first_epoch(self, n_ranks: int) -> EpochSampler:
        return EpochSampler(
            self.train_rows, self.batch_size, self.seed, n_ranks=n_ranks, shuffle=self._shuffle()
        )

    def _loader(self, sampler: EpochSampler | InOrder) -> StampLoader:
        dataset = StampDataset(self.store, self.normalizer)
        if self.trainer is not None:
            device = self.trainer.strategy.root_device
            if self._is_resident(device):
                assert self._stamps_on_device is not None
                return ResidentLoader(self._stamps_on_device, dataset, sampler)
            if device.type == "cuda" and not self.n_workers:
                return AheadLoader(dataset, sampler, device)
        return self._from_host(sampler)

    def _from_host(self, sampler: EpochSampler | InOrder) -> StampLoader:
        return StampLoader(StampDataset(self.store, self.normalizer), sampler, self.n_workers)

    def _is_resident(self, device: torch.device) -> bool:
        """Whether the stamps are on ``device``; the first time they are put there, if they fit."""
        on_device = self._stamps_on_device
        if on_device is not None and on_device.device == device:
            return True
        if not stays_on_device(self.resident, self.store, device):
            return False
        self._stamps_on_device = ResidentStamps(
            self.store, self.normalizer, device, self.compile_batches
        )
        return True

    def _shuffle(self) -> str:
        if self.shuffle != "auto":
            return self.shuffle
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return "block" if self.store.n_bytes > memory / 2 else "full"

    def _ranks(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size


def split_rows(
    object_hashes: np.ndarray, val_fraction: float, test_fraction: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training, validation and test rows by a hash of the object's name.

    An object stands on the same side in every run and every store, whatever stands beside it.

    Parameters
    ----------
    object_hashes : ndarray, shape (N,), uint64
        `object_hash` of each stamp.
    val_fraction, test_fraction : float
        Shares of the objects.

    Returns
    -------
    tuple of ndarray, int64
        Rows of each part, ascending.
    """
    positions = object_hashes / 2.0**64
    is_test = positions < test_fraction
    is_val = ~is_test & (positions < test_fraction + val_fraction)
    return np.flatnonzero(~is_test & ~is_val), np.flatnonzero(is_val), np.flatnonzero(is_test)
