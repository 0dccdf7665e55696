"""A model as safetensors and JSON: nothing in it can run, and it loads to the same bits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import vae_astro
from vae_astro.errors import InputError
from vae_astro.vae import VAE

__all__ = ["CONFIG", "WEIGHTS", "config_of", "load_safetensors", "save_safetensors", "write_config"]

CONFIG, WEIGHTS = "config.json", "model.safetensors"
"""Names that model hubs know."""
EXPORT_FORMAT = 1


def config_of(vae: VAE) -> dict[str, Any]:
    """What ``config.json`` holds but for the digest of the weights: plain JSON values."""
    return {
        "library": "vae_astro",
        "format": EXPORT_FORMAT,
        "hyper_parameters": _plain(dict(vae.hparams)),
        "stamp_shape": list(vae.stamp_shape),
        "band_names": vae.band_names,
        "latent_dim": vae.latent_dim,
        "normalize": _plain(vars(vae.normalizer)),
        "versions": {"vae_astro": vae_astro.__version__, "torch": torch.__version__},
    }


def save_safetensors(vae: VAE, folder: Path) -> None:
    """Write ``model.safetensors`` and ``config.json`` into ``folder``, which exists.

    Raises
    ------
    InputError
        If safetensors is not installed.
    """
    save = _safetensors().save
    # clones: the format has no way to say that two names are one tensor
    tensors = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in vae.state_dict().items()
    }
    content = save(tensors, metadata={"format": "pt", "library": "vae_astro"})
    (folder / WEIGHTS).write_bytes(content)
    write_config(vae, folder, sha256=hashlib.sha256(content).hexdigest())


def write_config(vae: VAE, folder: Path, sha256: str | None = None) -> None:
    """Write ``config.json`` into ``folder``; ``sha256`` is the digest of the weights beside it."""
    config = {**config_of(vae), "sha256": sha256}
    (folder / CONFIG).write_text(json.dumps(config, indent=2, allow_nan=False) + "\n", "utf-8")


def load_safetensors(folder: str | Path) -> VAE:
    """The model of a folder that `save_safetensors` or ``scripts/export.py`` wrote.

    Nothing in the folder is run: the settings are JSON, looked up by name among the parts of this
    package, and the weights are safetensors. Other files in it are not opened.

    Parameters
    ----------
    folder : str or Path
        With ``config.json`` and ``model.safetensors``.

    Returns
    -------
    VAE
        On the CPU, in evaluation mode; its codes are those of the model that was exported, bit for
        bit, on the same device.

    Raises
    ------
    InputError
        A file is missing, damaged, of something else or of a format this version does not know, or
        settings and weights do not belong together.
    """
    folder = Path(folder).expanduser()
    config = _read_config(folder / CONFIG)
    path = folder / WEIGHTS
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror or error}); give a folder that "
            "scripts/export.py wrote with formats=[safetensors]"
        ) from error
    if hashlib.sha256(content).hexdigest() != config.get("sha256"):
        raise InputError(
            f"{path} is not what {CONFIG} beside it was written with: it is damaged, or the two "
            "are of different exports; export or download the folder again"
        )
    try:
        weights = _safetensors().load(content)
    except Exception as error:  # of the library's own class, which is not in its documentation
        raise InputError(f"{path} cannot be read as safetensors ({error})") from error
    try:
        vae = VAE(**config["hyper_parameters"])
        vae.load_state_dict(weights)
    except (TypeError, ValueError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        version = config["versions"].get("vae_astro")
        raise InputError(
            f"{folder / CONFIG} (vae_astro {version}) does not make a model of this version "
            f"({vae_astro.__version__}) that the weights fit: {reason}"
        ) from error
    return vae.eval()


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror or error}); give a folder that "
            "scripts/export.py wrote with formats=[safetensors]"
        ) from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); export the model again") from error
    if not isinstance(config, dict) or config.get("library") != "vae_astro":
        raise InputError(f"{path} is not of a model that vae_astro exported")
    if config.get("format") != EXPORT_FORMAT:
        raise InputError(
            f"{path} has export format {config.get('format')!r}; this version "
            f"({vae_astro.__version__}) reads format {EXPORT_FORMAT}: use the version that wrote "
            "it, or export the checkpoint again"
        )
    for key in ("hyper_parameters", "versions"):
        if not isinstance(config.get(key), dict):
            raise InputError(f"{path} has no usable {key}; export the model again")
    return config


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise InputError(
            "safetensors is not installed; it comes with the extra export: "
            "pip install 'vae-astro[export]'"
        ) from error
    return safetensors.torch


def _plain(value: Any) -> Any:
    """Mappings and sequences as JSON has them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value
