"""Variational autoencoders for astronomical stamps that say whether they will collapse.

``VAE`` and ``StampDataModule`` are imported when first used, so that ``import vae_astro`` (and
``python train.py --help``) does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import Any

__version__ = version("vae-astro")
__all__ = ["VAE", "StampDataModule", "__version__"]

_LAZY = {"VAE": "vae_astro.vae", "StampDataModule": "vae_astro.data.datamodule"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
