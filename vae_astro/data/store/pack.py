"""Stamps below a root to a store that mirrors them: packed once, and then what has changed."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock
from tqdm import tqdm

from vae_astro.data.sources.reader import Source, StampReader
from vae_astro.data.sources.root import Root, open_root
from vae_astro.data.stamp import LARGEST_STAMP, SMALLEST_STAMP, Reject, Stamp, StampBlock
from vae_astro.data.store.layout import (
    FORMAT_VERSION,
    MANIFEST,
    REJECTS,
    SHARDS,
    STORED_AS,
    Form,
    Lot,
    Manifest,
    Shard,
    ShardRecord,
    WholeFile,
    digest_of,
    lot_of,
)
from vae_astro.data.store.plan import plan_lots, shard_bytes_for
from vae_astro.data.store.pools import pack_lots
from vae_astro.data.store.shard import PackJob
from vae_astro.data.store.store import StampStore
from vae_astro.errors import InputError
from vae_astro.settings import check_bool, check_choice, check_int, check_number

__all__ = ["Packer", "open_or_pack", "read_rejects"]

PROBE = 32
"""Stamps looked at to find the size and the bands where they are not given."""
TOO_FEW_TO_JUDGE = 20
"""Stamps up to which no share of bad ones ends the packing."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Packer:
    """How stamps become a store.

    Parameters
    ----------
    reader : StampReader
        How they are read.
    store_dir : Path
        Folder of stores; made if missing.
    size : int, optional
        Height and width of the stored stamps, in pixels. Other shapes are centre-cropped or
        padded, never stretched. Without it: the most common longer side among the first ones.
    saturation : tuple of float, optional
        Raw value from which a pixel is bad, for all bands or for each; part of the key, because
        the sky is measured on good pixels.
    stored_as : {"float32", "float16"}
        See `vae_astro.data.store.shard`.
    on_bad : {"skip", "raise"}
        Set aside what cannot be read, or end at the first.
    max_bad_fraction : float
        Share of what cannot be read from which the packing ends.
    n_processes : int, optional
        Of this machine; one for each core without it.
    cluster : str, optional
        Address of a Dask scheduler, or ``local``: its workers pack in place of these.
    progress : bool
        Show a progress bar.

    Raises
    ------
    InputError
        If a setting is out of range; the message names its key.
    """

    reader: StampReader
    store_dir: Path
    size: int | None = None
    saturation: tuple[float, ...] | None = None
    stored_as: str = "float32"
    on_bad: str = "skip"
    max_bad_fraction: float = 0.5
    n_processes: int | None = None
    cluster: str | None = None
    progress: bool = field(default=True, compare=False)

    def __post_init__(self) -> None:
        if self.size is not None:
            check_int("data.size", self.size, minimum=SMALLEST_STAMP, maximum=LARGEST_STAMP)
        check_choice("data.stored_as", self.stored_as, tuple(STORED_AS))
        check_choice("data.on_bad", self.on_bad, ("skip", "raise"))
        check_number("data.max_bad_fraction", self.max_bad_fraction, minimum=0, maximum=1)
        if self.n_processes is not None:
            check_int("pack.n_processes", self.n_processes, minimum=1)
        check_bool("progress", self.progress)

    def path(self, root: Root) -> Path:
        """Folder of the store of a root, named by all that decides its content but the files."""
        decides = (FORMAT_VERSION, root.identity, root.allow_outside, self.reader, self.size)
        text = repr((*decides, self.saturation, self.stored_as))
        return self.store_dir / hashlib.sha256(text.encode()).hexdigest()[:16]

    def open(self, root: Root) -> StampStore:
        """The store of the stamps below ``root``, packed or brought up to date first.

        Raises
        ------
        InputError
            No stamps, none usable, too many bad ones, or a disk that is full or read-only. What
            was packed stays and is not packed again; an older state of the store stays readable.
        """
        path = self.path(root)
        listed = self.reader.find(root)
        digest = digest_of(listed)
        try:
            manifest = _current(path, digest)
            if manifest is None:  # a finished store may lie on a read-only disk
                self.store_dir.mkdir(parents=True, exist_ok=True)
                with FileLock(self.store_dir / f".{path.name}.lock"):
                    # another packer may have done it while this one waited
                    manifest = _current(path, digest) or self._pack(path, root, listed, digest)
        except OSError as error:
            raise InputError(
                f"cannot write the stamp store {path}: {error.strerror or error}; free space there "
                "or set data.store_dir to another folder, and start again: what was packed stays"
            ) from error
        self._judge(root, path, manifest.shards)
        store = StampStore.open(path)
        if store.n_rejected:
            log.warning("%d stamps set aside; reasons in %s", store.n_rejected, path / REJECTS)
        return store

    def _pack(self, path: Path, root: Root, listed: Sequence[Source], digest: str) -> Manifest:
        """Bring the store at ``path`` up to date; its folder is ours alone."""
        old = Manifest.read(path) if (path / MANIFEST).exists() else None
        shards_of = {} if old is None else _shards_by_lot(old)
        packed = (lot for name in shards_of if (lot := _read_lot(path, name)) is not None)
        form = self._probe(root, listed) if old is None else old.form
        self._check_saturation(form)
        shard_bytes = shard_bytes_for(listed)
        lots = plan_lots(listed, packed, shard_bytes)
        todo = [lot for lot in lots if lot.name not in shards_of]
        job = PackJob(
            root=root,
            reader=self.reader,
            shards=path / SHARDS,
            form=form,
            saturation=self.saturation,
            raise_on_bad=self.on_bad == "raise",
            shard_bytes=shard_bytes,
        )
        job.shards.mkdir(parents=True, exist_ok=True)
        self._pack_lots(job, todo, shards_of)
        manifest = Manifest(
            packed_from={
                "root": root.identity,
                "reader": repr(self.reader),
                "size": str(self.size),
                "saturation": str(self.saturation),
            },
            sources_digest=digest,
            form=form,
            shards=tuple(shard for lot in lots for shard in shards_of[lot.name]),
        )
        rejects = read_rejects(path, manifest.shards)
        if not manifest.n_stamps:
            if old is None:
                shutil.rmtree(path)
            reasons = _in_words(rejects)
            raise InputError(f"no usable stamp below data.root={root.address} ({reasons}")
        _write_rejects(path, rejects)
        manifest.write(path)
        return manifest

    def _pack_lots(self, job: PackJob, lots: list[Lot], shards_of: dict[str, list[Shard]]) -> None:
        """Pack what has to be packed and enter its shards by lot."""
        n_files = sum(len(lot.sources) for lot in lots)
        n_processes = self.n_processes or len(os.sched_getaffinity(0))
        with tqdm(
            total=n_files,
            desc="packing stamps",
            unit="file",
            disable=not self.progress,
            leave=False,
        ) as bar:
            for k, shards in pack_lots(job, lots, n_processes, self.cluster):
                shards_of[lots[k].name] = shards
                bar.update(len(lots[k].sources))
                done = [shard for each in shards_of.values() for shard in each]
                self._judge(job.root, job.shards.parent, done)

    def _judge(self, root: Root, path: Path, shards: Sequence[Shard]) -> None:
        """End where too large a share is bad."""
        n_bad = sum(shard.n_rejected for shard in shards)
        n_seen = n_bad + sum(shard.n_stamps for shard in shards)
        if n_seen > TOO_FEW_TO_JUDGE and n_bad > self.max_bad_fraction * n_seen:
            raise InputError(
                f"{n_bad} of {n_seen} stamps below data.root={root.address} cannot be used, more "
                f"than data.max_bad_fraction={self.max_bad_fraction:g} of them "
                f"({_in_words(read_rejects(path, shards))}"
            )

    def _probe(self, root: Root, listed: Sequence[Source]) -> Form:
        """Size and bands of the first readable stamps: the most common longer side."""
        sides: Counter[int] = Counter()
        n_bands = 0
        for shape in islice(self._shapes(root, listed), PROBE):
            sides[max(shape[-2:])] += 1
            n_bands = n_bands or shape[0]
        size = self.size
        if size is None:
            common = sides.most_common(1)[0][0] if sides else SMALLEST_STAMP
            size = max(SMALLEST_STAMP, common)
        names = self.reader.band_names or tuple(f"band{band}" for band in range(n_bands or 1))
        return Form(size, names, self.reader.has_noise, self.stored_as)

    def _check_saturation(self, form: Form) -> None:
        n_values, n_bands = len(self.saturation or (0,)), len(form.band_names)
        if n_values not in (1, n_bands):
            raise InputError(
                f"data.normalize.saturation has {n_values} values but the stamps have {n_bands} "
                "bands; give one value, or one for each band"
            )

    def _shapes(self, root: Root, listed: Sequence[Source]) -> Iterator[tuple[int, ...]]:
        for first in range(0, len(listed), PROBE):
            for item in self.reader.read(listed[first : first + PROBE], root):
                if isinstance(item, StampBlock):
                    yield from [item.pixels.shape[1:]] * len(item)
                elif isinstance(item, Stamp):
                    yield item.pixels.shape


def open_or_pack(
    root: Path | str, reader: StampReader, store_dir: Path, **settings: Any
) -> StampStore:
    """The store of the stamps below a folder, packed now if it does not exist yet; see `Packer`."""
    return Packer(reader, Path(store_dir), **settings).open(open_root(str(root)))


def _current(path: Path, digest: str) -> Manifest | None:
    """The manifest, if the store holds exactly what is listed."""
    if not (path / MANIFEST).exists():
        return None
    manifest = Manifest.read(path)
    return manifest if manifest.sources_digest == digest else None


def _shards_by_lot(manifest: Manifest) -> dict[str, list[Shard]]:
    """The shards of each lot, in the order of the rows."""
    shards_of: dict[str, list[Shard]] = {}
    for shard in manifest.shards:
        shards_of.setdefault(shard.lot, []).append(shard)
    return shards_of


def _read_lot(path: Path, name: str) -> Lot | None:
    """A lot by its name; None where its record is damaged, and it has to be packed again."""
    try:
        lot = lot_of(ShardRecord.read(path, f"{name}-0000").lot_sources())
    except (OSError, ValueError, TypeError):
        return None
    return lot if lot.name == name else None


def read_rejects(path: Path, shards: Iterable[Shard]) -> list[Reject]:
    """What was set aside on the way to some shards of a store."""
    rejects: list[Reject] = []
    for shard in shards:
        if shard.n_rejected:
            rejects += ShardRecord.read(path, shard.name).lot_rejects()
    return rejects


def _write_rejects(path: Path, rejects: Iterable[Reject]) -> None:
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(["source", "reason", "detail"])
    writer.writerows((each.source, each.reason, each.detail) for each in rejects)
    with WholeFile(path / REJECTS) as file:
        file.write(table.getvalue().encode(errors="backslashreplace"))


def _in_words(rejects: Sequence[Reject]) -> str:
    """Reasons and the first detail, from within a bracket on."""
    reasons = Counter(reject.reason for reject in rejects)
    listed = ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
    return f"{listed}); the first: {rejects[0].detail}" if rejects else "no stamps in the files)"
