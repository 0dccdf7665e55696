"""From a checkpoint to stamps that its model imagines: what ``scripts/sample.py`` calls."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

import vae_astro
from vae_astro.catalogue import free_path
from vae_astro.checkpoint import find_checkpoint
from vae_astro.command.files import whole
from vae_astro.data.datamodule import LARGEST_SEED
from vae_astro.errors import InputError
from vae_astro.report.figures import stamp_sheet
from vae_astro.settings import check_int
from vae_astro.vae import VAE

__all__ = ["MOST_DRAWN", "sample"]

SUFFIXES = (".fits", ".npy", ".png")
MOST_DRAWN = 1024
"""Pictures on one sheet."""
PICTURES_IN_ROW = 8


def sample(settings: Mapping[str, Any]) -> str:
    """Draw stamps from the prior of a checkpoint into a file.

    Parameters
    ----------
    settings : mapping
        The keys of ``conf/sample.yaml``, as plain Python.

    Returns
    -------
    str
        What was done, for a person.

    Raises
    ------
    InputError
        A mistake in the settings or the checkpoint; a file that is there or cannot be written.
    """
    out = free_path(settings["out"], settings["overwrite"], SUFFIXES)
    n = check_int("n", settings["n"], minimum=1)
    seed = check_int("seed", settings["seed"], minimum=0, maximum=LARGEST_SEED)
    if settings["checkpoint"] is None:
        raise InputError("checkpoint is not set; give a run folder or a file: checkpoint=runs/NAME")
    path = find_checkpoint("checkpoint", settings["checkpoint"])
    vae = VAE.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    if out.suffix == ".png" and n * vae.stamp_shape[0] > MOST_DRAWN:
        raise InputError(
            f"n={n} stamps of {vae.stamp_shape[0]} bands do not fit on one picture, of at most "
            f"{MOST_DRAWN}; draw fewer, or give out=FILE.fits"
        )
    drawn = vae.sample(n, seed)
    try:
        with whole(out) as partial:
            _write(drawn, partial, vae, path, seed)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}") from error
    size = "x".join(map(str, drawn.shape[1:]))
    return f"{n} stamps of {size} (bands, rows, columns) drawn from the prior\nwritten: {out}"


def _write(drawn: np.ndarray, out: Path, vae: VAE, checkpoint: Path, seed: int) -> None:
    if out.suffix == ".npy":
        np.save(out, drawn)
    elif out.suffix == ".png":
        n_bands = drawn.shape[1]
        sheet = stamp_sheet(
            drawn.reshape(-1, *drawn.shape[2:]),
            "drawn from the prior" + (f", {n_bands} bands side by side" if n_bands > 1 else ""),
            n_columns=n_bands * max(1, PICTURES_IN_ROW // n_bands),
        )
        sheet.savefig(out, dpi=150)
    else:
        header = fits.Header()
        header["STRETCH"] = (vae.normalizer.stretch, "pixels are normalised by this")
        header["SEED"] = seed
        header["VERSION"] = (vae_astro.__version__, "of vae_astro")
        header["BANDS"] = ",".join(vae.band_names)
        header.add_history(f"drawn from the prior of {checkpoint.name}")
        fits.PrimaryHDU(drawn, header).writeto(out, overwrite=True)
