"""The readers by the name that ``data.format`` gives them."""

from __future__ import annotations

from collections.abc import Callable

from vae_astro.data.sources.alert_table import AlertTableReader
from vae_astro.data.sources.alerts import AlertReader
from vae_astro.data.sources.arrays import ArrayReader
from vae_astro.data.sources.bands import BandReader
from vae_astro.data.sources.fits import FitsReader
from vae_astro.data.sources.mosaics import MosaicReader
from vae_astro.data.sources.reader import StampReader
from vae_astro.data.sources.rubin import RubinReader

__all__ = ["READERS"]

READERS: dict[str, Callable[..., StampReader]] = {
    "fits": FitsReader,
    "bands": BandReader,
    "alerts": AlertReader,
    "alert_table": AlertTableReader,
    "rubin": RubinReader,
    "mosaics": MosaicReader,
    "arrays": ArrayReader,
}
