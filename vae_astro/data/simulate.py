"""A folder of labelled FITS stamps, drawn from the simulated sky of `vae_astro.data.sky_model`."""

from __future__ import annotations

import csv
import functools
import json
import math
import multiprocessing
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path

import numpy as np
from astropy.io import fits

from vae_astro.data import simulated
from vae_astro.data.sky_model import (
    CLASSES,
    GAIN_E_PER_ADU,
    PIXEL_SCALE_ARCSEC,
    READ_NOISE_E,
    SATURATION_ADU,
    TRUTH_COLUMNS,
    SimulatedStamp,
    draw_stamp,
)
from vae_astro.data.sources.fits.standard import BLOCK_BYTES
from vae_astro.errors import InputError
from vae_astro.progress import progress_of
from vae_astro.settings import check_int
from vae_astro.stopping import leave_to_parent, servants

__all__ = [
    "CLASSES",
    "GAIN_E_PER_ADU",
    "SATURATION_ADU",
    "SimulatedStamp",
    "draw_stamp",
    "fits_bytes",
    "simulate",
]

_CATALOGUE = "catalogue.csv"
_COLUMNS = ("file", "id", "label", "ra", "dec", *TRUTH_COLUMNS)
_STAMPS_PER_FOLDER = 1000
_STAMPS_PER_CHUNK = 100

_Row = tuple[str | float, ...]


def simulate(
    root: Path,
    *,
    n_stamps: int,
    seed: int = 0,
    size: int = 63,
    n_processes: int | None = None,
    progress: bool = True,
) -> Path:
    """Draw labelled stamps and write each as a FITS file, or reuse a folder that has them.

    The folder holds ``00/sim0-00000000.fits`` and so on, a thousand to a subfolder;
    ``catalogue.csv`` with file, id, label, position and truth of each stamp (see
    `SimulatedStamp`); and ``simulation.json`` with the settings and the number of stamps in each
    class. It appears whole or not at all: it is built beside ``root`` and renamed at the end.

    Parameters
    ----------
    root : Path
        Folder to write; new, empty, or that of an earlier simulation with the same settings.
    n_stamps : int
        Number of stamps, 1 or more.
    seed : int
        Seed of the random numbers, 0 or more.
    size : int
        Height and width in pixels, 16 or more.
    n_processes : int, optional
        Processes to draw with; as many as the machine lets us use by default. The files do not
        depend on it. Worker processes import the main module anew, so a script that calls this
        with more than one needs ``if __name__ == "__main__":``.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    Path
        ``root``.

    Raises
    ------
    InputError
        If an argument is out of range, ``root`` holds anything else, or cannot be written.
    """
    if n_processes is not None:
        check_int("n_processes", n_processes, minimum=1)
    settings = simulated.settings_of(n_stamps, seed, size)
    try:
        if simulated.is_finished(root, settings):
            return root
        with _partial_folder(root) as partial:
            rows = _write_stamps(partial, settings, n_processes or _usable_cores(), progress)
            _write_catalogue(partial / _CATALOGUE, rows)
            counts = Counter(row[_COLUMNS.index("label")] for row in rows)
            summary = settings | {"class_counts": {label: counts[label] for label in CLASSES}}
            (partial / simulated.SUMMARY).write_text(json.dumps(summary, indent=2) + "\n")
            try:
                partial.rename(root.resolve())
            except OSError:
                # Another process may have finished the same simulation first; theirs is as good.
                if not simulated.is_finished(root, settings):
                    raise
    except OSError as error:
        raise InputError(
            f"data.root: cannot write simulated stamps to {root}: {error.strerror or error}; "
            "set data.root to a folder that can be written and has enough space"
        ) from error
    return root


def fits_bytes(stamp: SimulatedStamp) -> bytes:
    """The FITS file of a stamp: one primary image of 32-bit floats in ADU.

    astropy writes each header card, but the file is put together here: the cards that all stamps
    share are written once, and `astropy.io.fits.PrimaryHDU.writeto` takes three times as long.

    Parameters
    ----------
    stamp : SimulatedStamp

    Returns
    -------
    bytes
        A whole number of FITS blocks.
    """
    cards = [
        ("OBJECT", stamp.id, "name of the object"),
        ("OBJID", stamp.id, "name of the object"),
        ("CLASS", stamp.label, "true class"),
        ("CRVAL1", stamp.ra, "[deg] right ascension of the centre"),
        ("CRVAL2", stamp.dec, "[deg] declination of the centre"),
    ]
    for key, column, comment in (
        ("SKYLEVEL", "sky_level_adu", "[adu] sky per pixel, contained in the pixels"),
        ("SKYNOISE", "sky_noise_adu", "[adu] standard deviation of a pixel of bare sky"),
        ("SEEING", "seeing_arcsec", "[arcsec] full width at half maximum"),
        ("SNR", "snr", "matched-filter signal-to-noise of the object"),
    ):
        if not math.isnan(stamp.truth[column]):  # a FITS header cannot hold NaN
            cards.append((key, round(stamp.truth[column], 6), comment))
    own_cards = fits.Header(cards).tostring(padding=False)  # with END
    header = (_shared_cards(stamp.pixels.shape[0]) + own_cards).encode("ascii")
    data = stamp.pixels.astype(">f4").tobytes()
    return _padded(header, b" ") + _padded(data, b"\0")


def _padded(block: bytes, fill: bytes) -> bytes:
    return block + fill * (-len(block) % BLOCK_BYTES)


@functools.cache
def _shared_cards(size: int) -> str:
    """The header cards that are the same in all stamps, without END."""
    header = fits.PrimaryHDU(np.zeros((size, size), dtype=np.float32)).header
    centre = 0.5 * (size + 1)  # FITS counts pixels from 1
    step = PIXEL_SCALE_ARCSEC / 3600.0
    for key, value, comment in (
        ("ORIGIN", "vae_astro", "who made this file"),
        ("TELESCOP", "simulated", "no telescope was involved"),
        ("BUNIT", "adu", "unit of the pixels"),
        ("GAIN", GAIN_E_PER_ADU, "[electron/adu] gain"),
        ("RDNOISE", READ_NOISE_E, "[electron] read noise"),
        ("SATURATE", SATURATION_ADU, "[adu] full well, where pixels are clipped"),
        ("PIXSCALE", PIXEL_SCALE_ARCSEC, "[arcsec] pixel scale"),
        ("RADESYS", "ICRS", "reference frame"),
        ("CTYPE1", "RA---TAN", "gnomonic projection"),
        ("CTYPE2", "DEC--TAN", "gnomonic projection"),
        ("CUNIT1", "deg", "unit of CRVAL1"),
        ("CUNIT2", "deg", "unit of CRVAL2"),
        ("CRPIX1", centre, "[pixel] centre of the stamp"),
        ("CRPIX2", centre, "[pixel] centre of the stamp"),
        ("CD1_1", -step, "[deg] east is left"),
        ("CD1_2", 0.0, "[deg]"),
        ("CD2_1", 0.0, "[deg]"),
        ("CD2_2", step, "[deg] north is up"),
    ):
        header[key] = (value, comment)
    return header.tostring(endcard=False, padding=False)


def _write_stamps(
    folder: Path, settings: dict[str, int], n_processes: int, progress: bool
) -> list[_Row]:
    """Write all stamps below ``folder``; returns their catalogue rows in the order of index."""
    n_stamps = settings["n_stamps"]
    for first in range(0, n_stamps, _STAMPS_PER_FOLDER):
        (folder / _subfolder(first)).mkdir()
    starts = range(0, n_stamps, _STAMPS_PER_CHUNK)
    chunks = [range(first, min(first + _STAMPS_PER_CHUNK, n_stamps)) for first in starts]
    write = functools.partial(_write_chunk, folder, settings["seed"], settings["size"])
    rows: list[_Row] = []
    with (
        _mapping(min(n_processes, len(chunks) // 2)) as mapping,
        progress_of(n_stamps, "drawing stamps", "stamp", show=progress) as bar,
    ):
        for chunk_rows in mapping(write, chunks):
            rows.extend(chunk_rows)
            bar.update(len(chunk_rows))
    return rows


@contextmanager
def _mapping(n_processes: int) -> Iterator[Callable[..., Iterable[list[_Row]]]]:
    """A ``map`` over worker processes, or the ordinary one for fewer than two."""
    if n_processes < 2:
        yield map
        return
    # Not fork: the caller may have loaded libraries whose threads do not survive it.
    context = multiprocessing.get_context("spawn")
    with servants():
        resource_tracker.ensure_running()
    pool = ProcessPoolExecutor(n_processes, mp_context=context, initializer=leave_to_parent)
    try:
        yield pool.map
    finally:
        # On an error nothing may be written any more once the folder is being removed.
        pool.shutdown(wait=True, cancel_futures=True)


def _write_chunk(folder: Path, seed: int, size: int, indices: Iterable[int]) -> list[_Row]:
    rows: list[_Row] = []
    for index in indices:
        stamp = draw_stamp(index, seed=seed, size=size)
        file = f"{_subfolder(index)}/{stamp.id}.fits"
        (folder / file).write_bytes(fits_bytes(stamp))
        truth = (stamp.truth[column] for column in TRUTH_COLUMNS)
        rows.append((file, stamp.id, stamp.label, stamp.ra, stamp.dec, *truth))
    return rows


def _subfolder(index: int) -> str:
    return f"{index // _STAMPS_PER_FOLDER:02d}"


def _write_catalogue(path: Path, rows: list[_Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS)
        writer.writerows(rows)


@contextmanager
def _partial_folder(root: Path) -> Iterator[Path]:
    """A folder beside ``root`` to build in; gone afterwards, unless renamed."""
    root = root.resolve()
    root.parent.mkdir(parents=True, exist_ok=True)
    # Process numbers repeat among machines that share a disk, hence the random part.
    partial = root.parent / f".{root.name}.partial-{os.getpid()}-{secrets.token_hex(4)}"
    partial.mkdir()
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _usable_cores() -> int:
    """Cores this process may run on, which a batch system may have limited."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
