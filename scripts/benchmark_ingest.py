"""How fast stamps are read, packed and streamed, each beside what others use.

python scripts/benchmark_ingest.py real_data=FOLDER [docs=PAGE.md] [out=FILE.json] [size=small]

A row is a rate over another rate, both measured in turns in the same run, all files in the page
cache. "To the store" means everything: listing, reading, mask, sky statistics, catalogue row,
checksum, pixels on disk (fsync included) and the start of other processes; the yardsticks only hand
over pixels and header, in one process, and write nothing.
"""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import numpy as np
from benchmarks.stamps import SIDE, stamp_bytes
from benchmarks.table import Row, ratio_row, table, write_json, write_section
from benchmarks.turns import interleave, rate
from omegaconf import DictConfig

from vae_astro.command import endings
from vae_astro.command.help import register_help

CONF = Path(__file__).parents[1] / "conf"
register_help(CONF)

MOSAIC_SIDE = 4096
BATCH = 256


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    n_files: int
    n_yardstick: int
    n_hdus: int
    n_rounds: int


SCALES = {"full": Scale(20_000, 2_000, 1_000, 5), "small": Scale(1_000, 200, 100, 2)}


Work = Callable[[], int]
"""Does something and returns how many stamps it did it to."""
Goals = tuple[float, float]
"""Base and hard."""


def compare(name: str, ours: Work, theirs: Work, goals: Goals, against: str, n_rounds: int) -> Row:
    """Our rate over theirs, in turns."""
    found = interleave({"ours": partial(rate, ours), "theirs": partial(rate, theirs)}, n_rounds)
    return ratio_row(name, found["ours"], found["theirs"], goals, against)


# -- what is read ----------------------------------------------------------------------------------


def write_inputs(folder: Path, scale: Scale, real_data: str | None) -> None:
    """All files that are read."""
    from astropy.io import fits

    for name in ("plain", "packed", "extensions", "mosaic", "alerts"):
        (folder / name).mkdir(parents=True)
    for k in range(scale.n_files):
        raw = stamp_bytes(k)
        (folder / "plain" / f"{k:06d}.fits").write_bytes(raw)
        (folder / "packed" / f"{k:06d}.fits.gz").write_bytes(gzip.compress(raw, 6))
    empty = fits.PrimaryHDU().header.tostring().encode()
    for first in range(0, scale.n_files, scale.n_hdus):
        with (folder / "extensions" / f"{first:06d}.fits").open("wb") as file:
            file.write(empty)
            for k in range(first, first + scale.n_hdus):
                file.write(stamp_bytes(k, extension=True))
    rng = np.random.default_rng(0)
    mosaic = rng.normal(120, 6, (MOSAIC_SIDE, MOSAIC_SIDE)).astype(np.float32)
    fits.writeto(folder / "mosaic" / "field.fits", mosaic)
    places = rng.uniform(SIDE, MOSAIC_SIDE - SIDE, (scale.n_files, 2))
    rows = "\n".join(f"{k},{x:.3f},{y:.3f}" for k, (x, y) in enumerate(places))
    (folder / "mosaic" / "sources.csv").write_text(f"id,x,y\n{rows}\n")
    if real_data:
        packets = sorted(Path(real_data, "ztf_alerts").glob("*.avro"))
        for copy in range(max(1, scale.n_files // (5 * max(1, len(packets))))):
            for packet in packets:
                shutil.copy(packet, folder / "alerts" / f"{copy}_{packet.name}")


# -- ours -----------------------------------------------------------------------------------------


def to_store(reader: Any, root: Path) -> Work:
    """Pack all that is below a folder, anew each time."""
    from vae_astro.data.store.pack import open_or_pack

    def work() -> int:
        with tempfile.TemporaryDirectory(dir=root.parent) as stores:
            store = open_or_pack(root, reader, Path(stores), progress=False, max_bad_fraction=0.0)
            return len(store)

    return work


# -- what others use -------------------------------------------------------------------------------


def in_turn(items: list[Any], n: int, one: Callable[[Any], int]) -> Work:
    """A yardstick on n items, the next ones each time."""
    position = 0

    def work() -> int:
        nonlocal position
        chosen = [items[(position + k) % len(items)] for k in range(n)]
        position += n
        return sum(map(one, chosen))

    return work


def with_astropy(path: Path) -> int:
    """Pixels and header of every image of a file."""
    from astropy.io import fits

    n_images = 0
    with fits.open(path) as hdus:
        for hdu in hdus:
            if hdu.header["NAXIS"]:
                np.array(hdu.data, dtype=np.float32)
                n_images += 1
    return n_images


def with_fitsio(path: Path) -> int:
    """Pixels and header of the first image."""
    import fitsio

    pixels, _ = fitsio.read(str(path), header=True)
    np.array(pixels, dtype=np.float32)
    return 1


def alert_with_astropy(path: Path) -> int:
    """Three cutouts of each packet of a file."""
    from io import BytesIO

    import fastavro
    from astropy.io import fits

    n_alerts = 0
    with path.open("rb") as file:
        for packet in fastavro.reader(file):
            for name in ("Science", "Template", "Difference"):
                raw = gzip.decompress(packet[f"cutout{name}"]["stampData"])
                with fits.open(BytesIO(raw)) as hdus:
                    np.array(hdus[0].data, dtype=np.float32)
            n_alerts += 1
    return n_alerts


# -- the rows -------------------------------------------------------------------------------------


def reading_rows(folder: Path, scale: Scale) -> Iterator[Row]:
    """Files to the store."""
    from vae_astro.data.sources.alerts.ztf import AlertReader
    from vae_astro.data.sources.fits.reader import FitsReader

    plain = sorted((folder / "plain").iterdir())
    packed = sorted((folder / "packed").iterdir())
    many = sorted((folder / "extensions").iterdir())
    alerts = sorted((folder / "alerts").iterdir())
    n, fits_reader = scale.n_yardstick, FitsReader()
    to_do: list[tuple[str, Work, Work, float, float, str]] = [
        (
            f"one file a stamp, {scale.n_files} files, to the store",
            to_store(fits_reader, folder / "plain"),
            in_turn(plain, n, with_astropy),
            15,
            40,
            "astropy.io.fits, one process",
        ),
        (
            f"gzipped, one file a stamp, {scale.n_files} files, to the store",
            to_store(fits_reader, folder / "packed"),
            in_turn(packed, n, with_astropy),
            7,
            12,
            "astropy.io.fits, one process",
        ),
        (
            f"multi-extension, {scale.n_hdus} HDUs a file, to the store",
            to_store(fits_reader, folder / "extensions"),
            in_turn(many, 1, with_astropy),
            8,
            20,
            "astropy.io.fits, one process",
        ),
    ]
    try:
        import fitsio  # noqa: F401
    except ImportError:
        print("fitsio is not installed, its row is left out: pip install 'vae-astro[benchmark]'")
    else:
        ours = to_do[0][1]
        yardstick = in_turn(plain, n, with_fitsio)
        to_do.insert(1, (to_do[0][0], ours, yardstick, 1.5, 4, "fitsio, one process"))
    if alerts:
        ours, yardstick = (
            to_store(AlertReader(), folder / "alerts"),
            in_turn(alerts, n // 4, alert_with_astropy),
        )
        against = "fastavro + gzip + astropy.io.fits, one process"
        to_do.append(("ZTF Avro, three cutouts, to the store", ours, yardstick, 4, 10, against))
    else:
        print("real_data= is not given: the row of ZTF alerts is left out")
    for name, ours, yardstick, base, hard, against in to_do:
        yield compare(name, ours, yardstick, (base, hard), against, scale.n_rounds)


def mosaic_rows(folder: Path, scale: Scale) -> Iterator[Row]:
    """Cutouts of a mosaic, read alone and to the store."""
    from astropy.io import fits
    from astropy.nddata import Cutout2D

    from vae_astro.data.sources.mosaics.reader import MosaicReader
    from vae_astro.data.sources.root import open_root

    root = folder / "mosaic"
    table = np.loadtxt(root / "sources.csv", delimiter=",", skiprows=1)
    mosaic = fits.getdata(root / "field.fits").astype(np.float32)
    reader = MosaicReader(catalogue=str(root / "sources.csv"), size=SIDE)

    def one(place: Any) -> int:
        return int(np.array(Cutout2D(mosaic, place, SIDE).data).shape[0] == SIDE)

    def read() -> int:
        place = open_root(str(root))
        return sum(len(block) for block in reader.read(reader.find(place), place))

    yardstick = in_turn(list(table[:, 1:]), scale.n_yardstick, one)
    name = f"cutouts from a {MOSAIC_SIDE}x{MOSAIC_SIDE} mosaic"
    for what, ours in ((", read alone", read), (", to the store", to_store(reader, root))):
        yield compare(name + what, ours, yardstick, (4, 6), "Cutout2D without WCS", scale.n_rounds)


def streaming_rows(folder: Path, scale: Scale) -> Iterator[Row]:
    """Batches from a store in memory."""
    from vae_astro.data.batches import EpochSampler, StampDataset, StampLoader
    from vae_astro.data.normalize import Normalizer
    from vae_astro.data.sky import good_pixels, measure_sky
    from vae_astro.data.sources.fits.reader import FitsReader
    from vae_astro.data.store.pack import open_or_pack

    store = open_or_pack(folder / "plain", FitsReader(), folder / "stores", progress=False)
    everything = np.arange(len(store))
    raw = store.gather(everything)
    order = np.random.default_rng(0).permutation(everything)
    batches = [order[k : k + BATCH] for k in range(0, len(order) - BATCH + 1, BATCH)]
    target, gathered = np.empty_like(raw[:BATCH]), np.empty_like(raw[:BATCH])
    sampler = EpochSampler(everything, BATCH, seed=0, augment=True)
    loader = StampLoader(StampDataset(store, Normalizer(gain=6.2, saturation=5e4)), sampler)

    def copy() -> int:
        for k in range(len(batches)):
            np.copyto(target, raw[k * BATCH : (k + 1) * BATCH])
        return len(batches) * BATCH

    def gather() -> int:
        for rows in batches:
            store.gather(rows, out=gathered)
        return len(batches) * BATCH

    def epoch() -> int:
        return sum(len(batch["index"]) for batch in loader)

    chunk = raw[: min(len(raw), 1024)]
    good = good_pixels(chunk)

    def ours_sky() -> int:
        measure_sky(chunk, good)
        return len(chunk)

    def numpy_sky() -> int:
        for stamp in chunk:
            pixels = stamp.ravel()
            level = np.median(pixels)
            np.median(np.abs(pixels - level))
        return len(chunk)

    rows: list[tuple[str, Work, Work, float, float, str]] = [
        (
            "shuffled batches of 256 from the store",
            gather,
            copy,
            0.7,
            0.85,
            "np.copyto of the same bytes",
        ),
        (
            "one epoch through the DataLoader, normalised, masked, augmented",
            epoch,
            gather,
            0.4,
            0.7,
            "the bare gather",
        ),
        (
            "sky and noise per stamp, with three clips",
            ours_sky,
            numpy_sky,
            4,
            8,
            "per-stamp numpy median and MAD, without clips",
        ),
    ]
    for name, ours, yardstick, base, hard, against in rows:
        yield compare(name, ours, yardstick, (base, hard), against, scale.n_rounds)


@hydra.main(config_path="../conf", config_name="benchmark", version_base="1.3")
@endings.past_hydra
def main(cfg: DictConfig) -> None:
    """Measure all rows, print the table, write the figures."""
    from vae_astro.data.store.server import warm_up
    from vae_astro.settings import check_choice

    scale = SCALES[check_choice("size", cfg.size, tuple(SCALES))]
    warm_up()  # as scripts/pack.py does
    rows: list[Row] = []
    print(f"{os.cpu_count()} cores; writing the files that are read")
    with tempfile.TemporaryDirectory(dir=cfg.scratch) as folder:
        write_inputs(Path(folder), scale, cfg.real_data)
        for measure in (reading_rows, mosaic_rows, streaming_rows):
            for row in measure(Path(folder), scale):
                rows.append(row)
                print(table([row]).splitlines()[-1], flush=True)
    print(table(rows))
    if cfg.out:
        write_json(Path(cfg.out), rows)
    if cfg.docs:
        write_section(Path(cfg.docs), "ingest", table(rows))


if __name__ == "__main__":
    endings.run(main, "benchmark", CONF)
