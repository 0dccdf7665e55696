"""Stamps that the benchmarks read and train on."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from vae_astro.data.store.store import StampStore

__all__ = [
    "SIDE",
    "export_batches",
    "open_store",
    "repeated_store",
    "stamp_bytes",
    "write_array",
    "write_folder",
]

SIDE = 63
"""Height and width of a survey's stamp, in pixels."""


def header_of(k: int, extension: bool = False) -> bytes:
    """The 36 cards of a survey's stamp: those of its pixels, its WCS, and what it is called."""
    from astropy.io import fits

    header = fits.Header()
    header["XTENSION" if extension else "SIMPLE"] = "IMAGE" if extension else True
    header.update({"BITPIX": -32, "NAXIS": 2, "NAXIS1": SIDE, "NAXIS2": SIDE})
    if extension:
        header.update({"PCOUNT": 0, "GCOUNT": 1})
    rng = np.random.default_rng(k)
    header.update({"OBJID": f"OBJ{k:07d}", "CLASS": ("star", "galaxy")[k % 2], "FILTER": "r"})
    header.update({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CUNIT1": "deg", "CUNIT2": "deg"})
    header.update({"CRVAL1": rng.uniform(0, 360), "CRVAL2": rng.uniform(-60, 60)})
    header.update({"CRPIX1": 32.0, "CRPIX2": 32.0, "CDELT1": -2.8e-4, "CDELT2": 2.8e-4})
    header.update({"SEEING": (rng.uniform(1, 3), "[pixel]"), "EXPTIME": 30.0, "GAIN": 6.2})
    header.update({"DATE-OBS": "2024-01-01T00:00:00", "MJD-OBS": 60310.0 + k, "AIRMASS": 1.2})
    header.update({f"NOTE{n}": "what surveys write" for n in range(11)})
    header["COMMENT"] = "a stamp for timing"
    return header.tostring().encode()


def stamp_bytes(k: int, extension: bool = False) -> bytes:
    """A stamp as a FITS file or as an extension: noise, sky and a source, big-endian float32."""
    rng = np.random.default_rng(k)
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE // 2
    light = rng.uniform(50, 5000) * np.exp(-(x**2 + y**2) / rng.uniform(4, 20))
    pixels = (light + 120 + rng.normal(0, 6, light.shape)).astype(">f4").tobytes()
    return header_of(k, extension) + pixels + bytes(-len(pixels) % 2880)


def write_folder(folder: Path, n_stamps: int) -> None:
    """A folder of FITS files of one stamp each."""
    folder.mkdir(parents=True)
    for k in range(n_stamps):
        (folder / f"{k:06d}.fits").write_bytes(stamp_bytes(k))


def write_array(path: Path, n_stamps: int, n_bands: int, size: int) -> None:
    """A file of stamps, (N, C, H, W) float32: a source in noise, drawn 4096 at a time."""
    shape = (n_stamps, n_bands, size, size)
    stamps = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    shape_of_source = np.exp(-(x**2 + y**2) / (size / 8) ** 2).astype(np.float32)
    rng = np.random.default_rng(0)
    for first in range(0, n_stamps, 4096):
        some = stamps[first : first + 4096]
        flux = rng.uniform(5, 100, (len(some), n_bands, 1, 1)).astype(np.float32)
        some[:] = flux * shape_of_source + rng.standard_normal(some.shape, np.float32)
    stamps.flush()


def open_store(settings: dict[str, Any]) -> Any:
    """The data of these settings, drawn and packed where that is not done yet."""
    from vae_astro.data.datamodule import StampDataModule

    datamodule = StampDataModule(**settings["data"], seed=settings["seed"], progress=False)
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


def export_batches(settings: dict[str, Any], path: Path) -> None:
    """The training stamps of these settings as others take them: normalised, with their mask."""
    datamodule = open_store(settings)
    batches = list(datamodule.in_order(datamodule.train_rows))
    image, mask = (np.concatenate([batch[key] for batch in batches]) for key in ("image", "mask"))
    np.savez(path, image=image, mask=mask)


def repeated_store(store: StampStore, path: Path, n_stamps: int) -> None:
    """A store of as many stamps or more, which lists the shards of another again and again."""
    shutil.copytree(store.path, path, copy_function=_link)
    n_times = -(-n_stamps // len(store))
    replace(store.manifest, shards=store.manifest.shards * n_times).write(path)


def _link(source: str, target: str) -> None:
    """Shards never change; a manifest does."""
    Path(target).hardlink_to(source)
