"""The readers by the name that ``data.format`` gives them."""

from __future__ import annotations

from collections.abc import Callable

from vae_astro.data.sources.alerts import AlertReader
from vae_astro.data.sources.fits import FitsReader
from vae_astro.data.sources.reader import StampReader

__all__ = ["READERS"]

READERS: dict[str, Callable[..., StampReader]] = {"fits": FitsReader, "alerts": AlertReader}
