"""What a process would do at its first stamp and then never again; importing this does it.

The server that packing processes are forked from imports it while the command itself starts.
"""

import astropy.wcs.utils  # noqa: F401
import numpy as np

import vae_astro.data.sources.registry
import vae_astro.data.store.shard  # noqa: F401
from vae_astro.data.sky import good_pixels, measure_sky

_empty = np.zeros((1, 1, 16, 16), dtype=np.float32)
measure_sky(_empty, good_pixels(_empty))
