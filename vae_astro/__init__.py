"""Variational autoencoders for astronomical stamps that say whether they will collapse.

The names of ``__all__`` are imported when first used, so that ``import vae_astro`` (and
``python train.py --help``) does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vae_astro.api import audit, forecast
    from vae_astro.data.datamodule import StampDataModule
    from vae_astro.vae import VAE

__version__ = version("vae-astro")
__all__ = ["VAE", "StampDataModule", "__version__", "audit", "forecast"]

_LAZY = {
    "VAE": "vae_astro.vae",
    "StampDataModule": "vae_astro.data.datamodule",
    "audit": "vae_astro.api",
    "forecast": "vae_astro.api",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
