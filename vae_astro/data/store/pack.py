"""Stamps below a root to a store that mirrors them: packed once, and then what has changed."""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from vae_astro.data.sources.reader import Source, StampReader
from vae_astro.data.sources.root import Root, open_root
from vae_astro.data.stamp import LARGEST_STAMP, SMALLEST_STAMP, Stamp, StampBlock
from vae_astro.data.store.check import find_damage, packed_lot, shards_by_lot
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
    digest_of,
)
from vae_astro.data.store.plan import gone_names, plan_lots
from vae_astro.data.store.pools import pack_lots, refuse_in_a_starting_worker
from vae_astro.data.store.rejects import in_words, read_rejects, table_of
from vae_astro.data.store.shard import PackJob, as_text
from vae_astro.data.store.store import StampStore, read_catalogue
from vae_astro.data.store.whole_file import WholeFile, locked, partial_files, sync
from vae_astro.data.threads import n_cores
from vae_astro.errors import InputError
from vae_astro.progress import progress_of
from vae_astro.settings import check_bool, check_choice, check_int, check_number, check_text

__all__ = ["Packer", "open_or_pack"]

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
        Bit for bit, or half as large: see `vae_astro.data.store.float16`.
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
        if self.cluster is not None:
            check_text("pack.cluster", self.cluster)
        check_bool("progress", self.progress)

    def path(self, root: Root) -> Path:
        """Folder of the store of a root, named by all that decides its content but the files."""
        decides = (FORMAT_VERSION, root.identity, root.allow_outside, self.reader, self.size)
        text = repr((*decides, self.saturation, self.stored_as))
        return self.store_dir / hashlib.sha256(text.encode()).hexdigest()[:16]

    def finished(self, root: Root, listed: Sequence[Source]) -> StampStore | None:
        """The store, if it holds exactly what is listed; nothing is written."""
        path = self.path(root)
        return None if _current(path, digest_of(listed)) is None else StampStore.open(path)

    def open(self, root: Root) -> StampStore:
        """The store of the stamps below ``root``, packed or brought up to date first.

        Raises
        ------
        InputError
            No stamps, none usable, too many bad ones, or a disk that is full or read-only. What
            was packed stays and is not packed again; an older state of the store stays readable.
        """
        return self._open(root, mend=False)

    def repair(self, root: Root) -> StampStore:
        """As `open`, and pack again what is damaged, or had vanished or changed while it was read.

        A manifest that is damaged or lost is made anew from the shards. What is damaged stays on
        the disk until `remove_unused`.

        Raises
        ------
        InputError
            As `open`, or if the files of what is damaged are gone: then nothing is changed.
        """
        return self._open(root, mend=True)

    def _open(self, root: Root, *, mend: bool) -> StampStore:
        refuse_in_a_starting_worker()
        path = self.path(root)
        listed = self.reader.find(root)
        digest = digest_of(listed)
        try:
            manifest = None if mend else _current(path, digest)
            if manifest is None:  # a finished store may lie on a read-only disk
                self.store_dir.mkdir(parents=True, exist_ok=True)
                with locked(path):
                    if mend:
                        old, damaged = find_damage(path)
                    else:  # another packer may have done it while this one waited
                        manifest, damaged = _current(path, digest), {}
                        old = Manifest.read(path) if (path / MANIFEST).exists() else None
                    if manifest is None:
                        manifest = self._pack(path, root, listed, digest, old, damaged)
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

    def _pack(
        self,
        path: Path,
        root: Root,
        listed: Sequence[Source],
        digest: str,
        old: Manifest | None,
        damaged: dict[str, bool],
    ) -> Manifest:
        """Bring the store at ``path`` up to date; its folder is ours alone."""
        shards_of = {} if old is None else shards_by_lot(old)
        packed = [packed_lot(path, shards) for shards in shards_of.values()]
        lots = plan_lots(listed, packed, again=damaged)
        gone = _count_gone(path, listed, packed, shards_of)
        _check_repairable(path, root, listed, packed, lots, damaged)
        job = PackJob(
            root=root,
            reader=self.reader,
            shards=path / SHARDS,
            form=self.form_of(root, listed) if old is None else old.form,
            saturation=self.saturation,
            raise_on_bad=self.on_bad == "raise",
        )
        self._check_saturation(job.form)
        job.shards.mkdir(parents=True, exist_ok=True)
        for file in partial_files(path) + partial_files(job.shards):
            file.unlink(missing_ok=True)
        self._pack_lots(job, [lot for lot in lots if lot.name not in shards_of], shards_of)
        manifest = Manifest(
            packed_from={
                "root": root.identity,
                "reader": repr(self.reader),
                "size": str(self.size),
                "saturation": str(self.saturation),
            },
            sources_digest=digest,
            form=job.form,
            shards=tuple(shard for lot in lots for shard in shards_of[lot.name]),
        )
        rejects = read_rejects(path, manifest.shards)
        if not manifest.n_stamps:
            if old is None:
                shutil.rmtree(path)
            raise InputError(
                f"no usable stamp below data.root={root.address} ({in_words(rejects)})"
            )
        with WholeFile(path / REJECTS) as table:
            table.write(table_of(rejects))
        sync(job.shards)  # the manifest must not reach the disk before what it names
        manifest.write(path)
        sync(path)
        if gone:
            log.warning(
                "%d stamps are no longer below data.root=%s and leave the store; they stay on disk "
                "until scripts/pack.py action=gc",
                gone,
                root.address,
            )
        return manifest

    def _pack_lots(
        self, job: PackJob, lots: Sequence[Lot], shards_of: dict[str, list[Shard]]
    ) -> None:
        """Pack what has to be packed and enter its shards by lot."""
        n_processes = self.n_processes or n_cores()
        done = [shard for shards in shards_of.values() for shard in shards]
        n_bad = sum(shard.n_rejected for shard in done)
        n_good = sum(shard.n_stamps for shard in done)
        n_files = sum(len(lot.sources) for lot in lots)
        bar = progress_of(n_files, "packing stamps", "file", show=self.progress, leave=False)
        with bar, ThreadPoolExecutor(1) as disk:  # writes while the next lots are read
            syncing: list[Future[None]] = []
            for k, shards in pack_lots(job, lots, n_processes, self.cluster):
                shards_of[lots[k].name] = shards
                syncing.append(disk.submit(_sync_shards, job, shards))
                bar.update(len(lots[k].sources))
                done += shards
                n_bad += sum(shard.n_rejected for shard in shards)
                n_good += sum(shard.n_stamps for shard in shards)
                if self._is_too_bad(n_bad, n_good):
                    self._judge(job.root, job.shards.parent, done)
            for each in syncing:
                each.result()

    def _is_too_bad(self, n_bad: int, n_good: int) -> bool:
        n_seen = n_bad + n_good
        return n_seen > TOO_FEW_TO_JUDGE and n_bad > self.max_bad_fraction * n_seen

    def _judge(self, root: Root, path: Path, shards: Sequence[Shard]) -> None:
        """End where too large a share is bad, or any if that is not allowed."""
        n_bad = sum(shard.n_rejected for shard in shards)
        n_good = sum(shard.n_stamps for shard in shards)
        if n_bad and self.on_bad == "raise":
            first = read_rejects(path, shards)[0]
            raise InputError(
                f"{first.reason}: {first.detail} (data.on_bad=skip sets aside {n_bad} stamps)"
            )
        if self._is_too_bad(n_bad, n_good):
            raise InputError(
                f"{n_bad} of {n_bad + n_good} stamps below data.root={root.address} cannot be "
                f"used, more than data.max_bad_fraction={self.max_bad_fraction:g} of them "
                f"({in_words(read_rejects(path, shards))})"
            )

    def form_of(self, root: Root, listed: Sequence[Source]) -> Form:
        """Size and bands of the first readable stamps: the most common longer side."""
        names, sides, n_bands = self.reader.band_names, Counter[int](), 0
        if self.size is not None and names is not None:
            return Form(self.size, names, self.reader.has_noise, self.stored_as)
        for shape in islice(self._shapes(root, listed), PROBE):
            sides[max(shape[-2:])] += 1
            n_bands = n_bands or shape[0]
        size = self.size
        if size is None:
            common = sides.most_common(1)[0][0] if sides else SMALLEST_STAMP
            size = max(SMALLEST_STAMP, common)
        names = names or tuple(f"band{band}" for band in range(n_bands or 1))
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


def _check_repairable(
    path: Path,
    root: Root,
    listed: Sequence[Source],
    packed: Sequence[Lot],
    planned: Sequence[Lot],
    damaged: dict[str, bool],
) -> None:
    """Refuse to give up damaged stamps whose files are gone, where a repair is asked for."""
    unreadable = [lot for lot in packed if damaged.get(lot.name)]
    gone = sorted(gone_names(listed, unreadable))
    found = {lot.digest for lot in planned}
    n_lost = sum(not lot.sources and lot.digest not in found for lot in unreadable)
    if gone or n_lost:
        what = f"{len(gone)} files, the first is {gone[0]}" if gone else f"those of {n_lost} shards"
        raise InputError(
            f"{path} is damaged and cannot be repaired: files that it was packed from are no "
            f"longer below data.root={root.address}, or have changed ({what}). Nothing was "
            "changed; bring them back, or have action=pack make a store of what is there"
        )


def _count_gone(
    path: Path,
    listed: Sequence[Source],
    packed: Sequence[Lot],
    shards_of: dict[str, list[Shard]],
) -> int:
    """Stamps in the store whose file is not listed any more."""
    names = {as_text(name) for name in gone_names(listed, packed)}
    if not names:
        return 0
    count = 0
    for lot in packed:
        if any(as_text(source.name) in names for source in lot.sources):
            for shard in shards_of[lot.name]:
                if shard.n_stamps:
                    try:
                        sources = read_catalogue(path, shard)["source"].to_pylist()
                    except InputError:  # damaged too: it is packed again, or refused, in a moment
                        continue
                    count += sum(_INNER.sub("", source) in names for source in sources)
    return count


_INNER = re.compile(r"(\[[^][]*\])+$")
"""The place within a file at the end of a source: ``[hdu]`` or ``[hdu][plane]``."""


def _sync_shards(job: PackJob, shards: Sequence[Shard]) -> None:
    for shard in shards:
        for suffix in (".json", ".arrow", job.form.suffix) if shard.n_stamps else (".json",):
            sync(job.shards / f"{shard.name}{suffix}")
