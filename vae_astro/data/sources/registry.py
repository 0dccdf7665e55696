"""The readers by the name that ``data.format`` gives them."""

from __future__ import annotations

from collections.abc import Callable

from vae_astro.data.sources.alerts.rubin import RubinReader
from vae_astro.data.sources.alerts.table import AlertTableReader
from vae_astro.data.sources.alerts.ztf import AlertReader
from vae_astro.data.sources.arrays.reader import ArrayReader
from vae_astro.data.sources.fits.bands import BandReader
from vae_astro.data.sources.fits.reader import FitsReader
from vae_astro.data.sources.mosaics.reader import MosaicReader
from vae_astro.data.sources.reader import StampReader

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
