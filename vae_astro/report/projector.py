"""Latent codes for TensorBoard's projector, each with its stamp and what is known of it.

The files lie in ``projector/`` of the run folder, named by ``projector_config.pbtxt`` beside the
curves: that is where TensorBoard looks.
"""

from __future__ import annotations

import csv
import io
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from google.protobuf import text_format  # type: ignore[import-untyped]
from matplotlib.image import imsave
from tensorboard.plugins.projector import ProjectorConfig  # type: ignore[import-untyped]

from vae_astro.command.files import whole
from vae_astro.data.datamodule import StampDataModule
from vae_astro.evaluate.properties import measure_properties
from vae_astro.report.sheet import shared_stretch, tiled
from vae_astro.vae import VAE

__all__ = ["MOST_STAMPS", "add_to_projector", "sprite_of", "write_projector"]

MOST_STAMPS = 1024
"""Validation stamps shown at most: what a browser turns smoothly, and a second's work."""
LARGEST_SPRITE = 8192
"""Pixels of TensorBoard's largest picture of all thumbnails, along a side."""
LARGEST_THUMBNAIL = 48
METADATA = "projector/metadata.tsv"
PADDING = 255
"""White: the cells of the sprite that no stamp is left for."""

log = logging.getLogger(__name__)


@torch.no_grad()
def write_projector(vae: VAE, datamodule: StampDataModule, run_dir: Path) -> bool:
    """Write codes, stamps and metadata of validation stamps.

    Shown are `MOST_STAMPS` of them at most, evenly spaced. A disk that is full costs these files,
    with one line of warning.

    Parameters
    ----------
    vae : VAE
        With the weights to show.
    datamodule : StampDataModule
        Set up.
    run_dir : Path
        Run folder.

    Returns
    -------
    bool
        Whether they are there.
    """
    rows = datamodule.val_rows
    chosen = rows[np.linspace(0, len(rows) - 1, min(len(rows), MOST_STAMPS)).astype(int)]
    vae.eval()
    codes, images, chi2 = [], [], []
    for batch in datamodule.in_order(chosen, on_device=True):
        here = {name: value.to(vae.device) for name, value in batch.items()}
        scores = vae.score(here, vae.evaluation_noise(here["index"]))
        codes.append(scores.posterior.mean.float().cpu().numpy())
        images.append(here["image"][:, 0].float().cpu())
        chi2.append(scores.chi2_per_pixel.float().cpu().numpy())
    files = {
        "projector/codes.tsv": _table_of_codes(np.concatenate(codes)),
        METADATA: _table(_metadata(datamodule, chosen, np.concatenate(chi2))),
    }
    sprite, side = sprite_of(torch.cat(images))
    png = io.BytesIO()
    quick = {"compress_level": 1}
    imsave(png, sprite, format="png", cmap="gray", vmin=0, vmax=255, pil_kwargs=quick)
    files["projector/sprite.png"] = png.getvalue()
    files["projector_config.pbtxt"] = _config(side)
    try:
        (run_dir / "projector").mkdir(exist_ok=True)
        for name, content in files.items():
            _write(run_dir / name, content)
    except OSError as error:
        log.warning("no codes for TensorBoard's projector: %s", error)
        return False
    return True


def add_to_projector(run_dir: Path, found: Mapping[str, Mapping[int, str]]) -> bool:
    """Add what was found after the run to the stamps of its projector: classes, p-values.

    Parameters
    ----------
    run_dir : Path
        Run folder.
    found : mapping of str to mapping of int to str
        Columns: their values by row of the store, empty for stamps that have none. A column of
        that name is replaced.

    Returns
    -------
    bool
        Whether they are there: not where the run has no projector, its metadata are not of a run,
        or nothing was found of these stamps.
    """
    path = run_dir / METADATA
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return False
    head, *values = [line.split("\t") for line in lines] or [[]]
    if "row" not in head or not values or {len(each) for each in values} != {len(head)}:
        return False
    columns: dict[str, Sequence[object]] = {
        name: [each[k] for each in values] for k, name in enumerate(head)
    }
    rows = [int(text) if (text := str(row)).isdecimal() else -1 for row in columns["row"]]
    new = {name: [of_row.get(row, "") for row in rows] for name, of_row in found.items()}
    new = {name: column for name, column in new.items() if any(column)}
    if not new:
        return False
    try:
        _write(path, _table({**new, **{k: v for k, v in columns.items() if k not in new}}))
    except OSError as error:
        log.warning("the projector of TensorBoard stays as it was: %s", error)
        return False
    return True


def sprite_of(images: torch.Tensor) -> tuple[np.ndarray, int]:
    """All stamps as thumbnails of one picture, row by row, in greys of one stretch.

    Parameters
    ----------
    images : Tensor, shape (N, H, W)
        Normalised stamps of one band; their first row comes to lie at the bottom.

    Returns
    -------
    tuple of ndarray of uint8, shape (S, S), and int
        The square picture, its empty cells white, and the side of a thumbnail.
    """
    n_columns = math.ceil(math.sqrt(len(images)))
    side = min(images.shape[-1], LARGEST_THUMBNAIL, LARGEST_SPRITE // n_columns)
    small = torch.nn.functional.interpolate(images[:, None], size=(side, side), mode="area")[:, 0]
    low, high = shared_stretch(small.numpy())
    grey = ((small - low) / (high - low)).clamp(0, 1).mul(255).byte().numpy()
    return tiled(grey[:, ::-1], n_columns, PADDING, n_rows=n_columns), side


def _metadata(
    datamodule: StampDataModule, rows: np.ndarray, chi2_per_pixel: np.ndarray
) -> dict[str, Sequence[object]]:
    """Columns of what is known of each stamp; what is known of none is left out."""
    identity = datamodule.store.identity(rows)
    measured = measure_properties(datamodule.store, rows, datamodule.normalizer)
    columns: dict[str, Sequence[object]] = {
        "label": [str(label) or "unlabelled" for label in datamodule.labels[rows]],
        "id": identity["id"].to_pylist(),
        "row": rows.tolist(),
        "chi2_per_pixel": [f"{value:.4g}" for value in chi2_per_pixel],
    }
    for name in ("flux", "size", "ellipticity", "seeing"):
        if np.isfinite(measured[name]).any():
            columns[name] = [f"{x:.4g}" if np.isfinite(x) else "" for x in measured[name]]
    for name in ("ra", "dec"):
        values = identity[name].to_numpy()
        if np.isfinite(values).any():
            columns[name] = [f"{x:.6f}" if np.isfinite(x) else "" for x in values]
    if set(columns["label"]) == {"unlabelled"}:
        del columns["label"]
    return columns


def _table(columns: Mapping[str, Sequence[object]]) -> bytes:
    """Tab-separated, with a head; tabs and line ends within a value become blanks."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONE,
                        quotechar=None, escapechar=None)  # fmt: skip
    writer.writerow(columns)
    for values in zip(*columns.values(), strict=True):
        writer.writerow([" ".join(str(value).split()) for value in values])
    return text.getvalue().encode()


def _table_of_codes(codes: np.ndarray) -> bytes:
    text = io.StringIO()
    np.savetxt(text, codes, fmt="%.6g", delimiter="\t")
    return text.getvalue().encode()


def _config(side: int) -> bytes:
    config = ProjectorConfig()
    shown = config.embeddings.add()
    shown.tensor_name = "latent codes"
    shown.tensor_path = "projector/codes.tsv"
    shown.metadata_path = "projector/metadata.tsv"
    shown.sprite.image_path = "projector/sprite.png"
    shown.sprite.single_image_dim.extend([side, side])
    return text_format.MessageToString(config).encode()


def _write(path: Path, content: bytes) -> None:
    with whole(path) as partial:  # a browser may be reading the one before
        partial.write_bytes(content)
