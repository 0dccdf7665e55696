"""Galleries of classes as files: the stamps are read again, few at a time, and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vae_astro.command.files import whole
from vae_astro.data.datamodule import StampDataModule
from vae_astro.report.gallery import (
    KINDS,
    Stretch,
    choose_rows,
    class_figure,
    overview_figure,
)

__all__ = ["Shown", "write_galleries"]

STAMPS_OF_STRETCH = 400
"""Stamps that the common stretch is taken from, drawn at random."""
IN_OVERVIEW = 6
PIXELS_PER_INCH = 110


@dataclass(frozen=True)
class Shown:
    """What galleries are chosen from.

    Attributes
    ----------
    index : ndarray, shape (N,), int64
        Rows of the store.
    shares : ndarray, shape (N, K)
        Class probabilities.
    codes : ndarray, shape (N, D)
        Codes in which typical stamps are those in the middle.
    titles : sequence of str, length K
    n : int
        Stamps in a row.
    seed : int
    """

    index: np.ndarray
    shares: np.ndarray
    codes: np.ndarray
    titles: Sequence[str]
    n: int
    seed: int


def write_galleries(folder: Path, shown: Shown, datamodule: StampDataModule) -> None:
    """Write ``class_K.png`` for every class and ``overview.png``.

    Parameters
    ----------
    folder : Path
        Made where it is not there.
    shown : Shown
    datamodule : StampDataModule
        Of the stamps, packed.
    """
    datamodule.use(datamodule.open(), "predict")
    bands = datamodule.store.band_names
    rng = np.random.default_rng(shown.seed)
    few = rng.choice(len(shown.index), min(STAMPS_OF_STRETCH, len(shown.index)), replace=False)
    stretch = Stretch.of(_stamps(datamodule, shown.index[few]), bands)
    folder.mkdir(exist_ok=True)
    n_columns = min(IN_OVERVIEW if len(bands) > 1 else 2 * IN_OVERVIEW, shown.n)
    typical = []
    chosen = choose_rows(shown.shares, shown.codes, shown.n, shown.seed)
    for k, rows in enumerate(chosen):
        images = {kind: _stamps(datamodule, shown.index[rows[kind]]) for kind in KINDS}
        figure = class_figure(images, stretch, shown.titles[k], shown.n)
        with whole(folder / f"class_{k}.png") as partial:
            figure.savefig(partial, dpi=PIXELS_PER_INCH)
        typical.append(images["typical"][:n_columns])
    short = [title.replace(": ", "\n", 1).partition(",")[0] for title in shown.titles]
    with whole(folder / "overview.png") as partial:
        overview_figure(typical, stretch, short, n_columns).savefig(partial, dpi=PIXELS_PER_INCH)


def _stamps(datamodule: StampDataModule, rows: np.ndarray) -> np.ndarray:
    """Normalised stamps (N, C, H, W) of rows of the store in their order, bad pixels NaN."""
    if not len(rows):
        return np.empty((0, *datamodule.store.stamp_shape))
    ascending, back = np.unique(rows, return_inverse=True)
    images = [
        np.where(batch["mask"].numpy(), batch["image"].numpy(), np.nan)
        for batch in datamodule.in_order(ascending)
    ]
    return np.concatenate(images)[back]
