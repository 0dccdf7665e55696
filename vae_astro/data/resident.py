"""Stamps that stay on the device: batches are gathered, normalised and turned there.

The raw planes of a store are copied once, as they are on disk. What crosses from the host after
that are row numbers and poses. `Normalizer` and `apply_symmetry` say what a batch is, so that it is
that of `StampDataset` up to rounding.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from vae_astro.data.augment import N_SYMMETRIES, apply_symmetry
from vae_astro.data.batches import Batch, Draw, StampDataset, StampLoader
from vae_astro.data.normalize import Normalizer, Sky
from vae_astro.data.store.store import StampStore
from vae_astro.errors import InputError

__all__ = [
    "ResidentLoader",
    "ResidentStamps",
    "bytes_needed",
    "check_resident",
    "fits_on_device",
    "free_bytes",
    "stays_on_device",
]

SHARE = 0.6
"""Of the free memory that stamps may take: weights, activations and others have to live too."""
CHUNK_BYTES = 2**26
"""Copied at a time, through two such buffers."""
DRAWS_AT_ONCE = 64
"""Batches whose rows and poses cross together."""

log = logging.getLogger(__name__)


def check_resident(setting: object) -> bool | str:
    """``data.resident`` if it is true, false or ``auto``, else an `InputError`."""
    if not (isinstance(setting, bool) or setting == "auto"):
        raise InputError(f"data.resident must be auto, true or false, got {setting!r}")
    return setting


def bytes_needed(store: StampStore) -> int:
    """Memory of all stamps of ``store`` on a device: planes, sky level, sky noise and unit."""
    return store.n_bytes + 3 * 4 * store.stamp_shape[0] * len(store)


def free_bytes(device: torch.device) -> int:
    """Memory of ``device`` that nobody has taken."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + unused)
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf(pages)


def fits_on_device(store: StampStore, device: torch.device) -> bool:
    """Whether the stamps of ``store`` fit into `SHARE` of the free memory of ``device``."""
    return bytes_needed(store) <= SHARE * free_bytes(device)


def stays_on_device(setting: bool | str, store: StampStore, device: torch.device) -> bool:
    """Whether training keeps the stamps on ``device``, as ``data.resident`` asks.

    Raises
    ------
    InputError
        They are asked for and do not fit.
    """
    if setting == "auto":
        return device.type == "cuda" and fits_on_device(store, device)
    if setting and not fits_on_device(store, device):
        needed, free = bytes_needed(store) / 2**30, free_bytes(device) / 2**30
        raise InputError(
            f"data.resident=true: {len(store)} stamps need {needed:.3g} GiB on {device}, where "
            f"{free:.3g} GiB are free and {SHARE:.0%} of that may be taken; set data.resident=auto "
            "or data.stored_as=float16"
        )
    return bool(setting)


class ResidentStamps:
    """All stamps of a store on a device.

    Every process that trains has all of them: the order of an epoch mixes all rows.

    Parameters
    ----------
    store : StampStore
        Where they come from.
    normalizer : Normalizer
        How they are normalised.
    device : torch.device
        Where they stay.
    compiled : bool
        Whether to compile what makes a training batch, so that its pixels are read once.
    """

    def __init__(
        self,
        store: StampStore,
        normalizer: Normalizer,
        device: torch.device,
        compiled: bool = False,
    ) -> None:
        self.normalizer = normalizer
        self.device = device
        self.shape = store.stamp_shape
        self.has_noise = store.has_noise
        log.info("%.3g GiB of stamps are put on %s", bytes_needed(store) / 2**30, device)
        self.planes = _planes_on(store, device).flatten(2)
        self.level, self.sky_noise = (
            torch.from_numpy(value).to(device) for value in (store.sky_level, store.sky_noise)
        )
        self.unit = None
        if self.planes.dtype == torch.float16:
            self.unit = torch.from_numpy(store.unit).to(device)
        self.turns = _turns(self.shape[-1]).to(device)
        self._plane_numbers = torch.arange(self.planes.shape[1], device=device)[:, None]
        self._finish_compiled = torch.compile(self._finish, dynamic=False) if compiled else None
        self._compiled_size: int | None = None

    def batch(self, rows: Tensor, poses: Tensor | None) -> Batch:
        """One batch, as `StampDataset` has it; nothing is read back from the device.

        Parameters
        ----------
        rows : Tensor of int64, shape (B,)
            Rows of the store, on the device.
        poses : Tensor of int64, shape (B,), optional
            Symmetry of each, on the device.
        """
        finish = self._finish
        if self._finish_compiled is not None and poses is not None:
            self._compiled_size = self._compiled_size or len(rows)
            if len(rows) == self._compiled_size:
                finish = self._finish_compiled
        image, mask, noise = finish(rows, poses)
        return {"image": image, "mask": mask, "noise": noise, "index": rows}

    def _finish(self, rows: Tensor, poses: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        level, sky_noise = self.level[rows], self.sky_noise[rows]
        if poses is None:
            planes = self.planes[rows]
        else:  # gathered in their pose: a pixel is read once
            planes = self.planes[
                rows[:, None, None], self._plane_numbers, self.turns[poses][:, None]
            ]
        n_bands, height, width = self.shape
        planes = planes.unflatten(2, (height, width))
        raw, noise = planes[:, :n_bands], planes[:, n_bands:] if self.has_noise else None
        if self.unit is not None:  # see decode_float16
            unit = self.unit[rows][:, :, None, None]
            raw = raw.float() * unit + level[:, :, None, None]
            noise = None if noise is None else noise.float() * unit
        stamps = self.normalizer(raw, Sky(level, sky_noise), noise)
        return stamps.image, stamps.mask, stamps.noise

    def batches(self, draws: Iterable[Draw]) -> Iterator[Batch]:
        """The batches of ``draws``, one after the other."""
        draws = iter(draws)
        while several := list(islice(draws, DRAWS_AT_ONCE)):
            rows = self._sent([draw.rows for draw in several])
            turned = [draw.symmetries for draw in several if draw.symmetries is not None]
            if turned:
                poses = self._sent(turned)
                yield from (self.batch(*both) for both in zip(rows, poses, strict=True))
            else:
                yield from (self.batch(each, None) for each in rows)

    def _sent(self, arrays: list[np.ndarray]) -> tuple[Tensor, ...]:
        """Whole numbers on the device, which is not waited for."""
        lengths = [len(array) for array in arrays]
        host = torch.from_numpy(np.concatenate(arrays))
        if self.device.type == "cuda":
            host = host.pin_memory()
        return host.to(self.device, non_blocking=True).split(lengths)


class ResidentLoader(StampLoader):
    """A `StampLoader` whose batches are made on the device.

    Parameters
    ----------
    stamps : ResidentStamps
        What they are made of.
    dataset : StampDataset
        The same stamps on the host.
    sampler : EpochSampler or InOrder
        What draws.
    """

    def __init__(
        self, stamps: ResidentStamps, dataset: StampDataset, sampler: Sampler[Draw]
    ) -> None:
        super().__init__(dataset, sampler)
        self.stamps = stamps

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        return self.stamps.batches(self.sampler)


def _turns(size: int) -> Tensor:
    """Where the pixels of each pose come from, (8, H * W) int64."""
    numbers = torch.arange(size * size).reshape(size, size)
    poses = [apply_symmetry(numbers, symmetry) for symmetry in range(N_SYMMETRIES)]
    return torch.stack(poses).flatten(1)


def _planes_on(store: StampStore, device: torch.device) -> Tensor:
    """Planes of all stamps (N, P, H, W) as they are stored."""
    form, n_stamps = store.manifest.form, len(store)
    kind = torch.float16 if form.dtype == np.float16 else torch.float32
    try:
        planes = torch.empty((n_stamps, *form.planes), dtype=kind, device=device)
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        raise InputError(
            f"{bytes_needed(store) / 2**30:.3g} GiB of stamps do not fit on {device}; set "
            "data.resident=false"
        ) from error
    per_chunk = max(1, min(n_stamps, CHUNK_BYTES // form.stamp_bytes))
    on_cuda = device.type == "cuda"
    shape = (per_chunk, *form.planes)
    buffers = [torch.empty(shape, dtype=kind, pin_memory=on_cuda) for _ in range(2)]
    copied: list[torch.cuda.Event | None] = [None, None]
    for k, first in enumerate(range(0, n_stamps, per_chunk)):
        rows = np.arange(first, min(first + per_chunk, n_stamps))
        store.will_need(first + per_chunk, first + 2 * per_chunk)
        event = copied[k % 2]
        if event is not None:
            event.synchronize()
        part = buffers[k % 2][: len(rows)]
        store.stored(rows, part.numpy())
        planes[first : first + len(rows)].copy_(part, non_blocking=on_cuda)
        if on_cuda:
            event = copied[k % 2] = torch.cuda.Event()
            event.record(torch.cuda.current_stream(device))
    return planes
