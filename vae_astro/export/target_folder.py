"""The folder of an export: taken only where nothing is lost, filled file by file, each whole."""

from __future__ import annotations

import json
import os
from pathlib import Path

from vae_astro.errors import InputError
from vae_astro.export.card import CAPTIONS
from vae_astro.export.weights import CONFIG
from vae_astro.settings import check_text

__all__ = ["publish", "usable_folder"]

KNOWN = (
    "README.md",
    "model.safetensors",
    "model.ckpt",
    "encoder.pt2",
    "decoder.pt2",
    "encoder.onnx",
    "decoder.onnx",
    *(f"figures/{name}" for name in CAPTIONS),
)
"""What exports write: an older one that is not written again would be of another model."""


def usable_folder(out: object, overwrite: bool) -> Path:
    """Where an export may go.

    Raises
    ------
    InputError
        ``out`` is not empty: without ``overwrite`` whatever it holds, with it where that is not an
        earlier export.
    """
    path = Path(check_text("out", out)).expanduser()
    if path.exists() and not path.is_dir():
        raise InputError(f"out={path} is a file; give a folder")
    if path.is_dir() and any(path.iterdir()):
        if not overwrite:
            raise InputError(f"out={path} is not empty; choose another folder, or overwrite=true")
        if not _is_export(path):
            raise InputError(
                f"out={path} holds something else than an export ({CONFIG} of vae_astro is not in "
                "it), and nothing there is replaced; choose another folder"
            )
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"out={path}: {parent} cannot be written to; choose another folder")
    return path


def publish(folder: Path, out: Path) -> None:
    """Move the files of ``folder`` to ``out``, and take older files of exports away there.

    Other files in ``out`` stay. ``config.json`` comes last: until then an older one beside new
    weights is noticed by its digest.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        made = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
        for name in sorted(made, key=lambda name: (name.name == CONFIG, str(name))):
            (out / name).parent.mkdir(exist_ok=True)
            os.replace(folder / name, out / name)
        for stale in KNOWN:
            if Path(stale) not in made and (out / stale).is_file():
                (out / stale).unlink()
    except OSError as error:
        raise InputError(f"cannot write to out={out}: {error.strerror or error}") from error


def _is_export(folder: Path) -> bool:
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("library") == "vae_astro"
