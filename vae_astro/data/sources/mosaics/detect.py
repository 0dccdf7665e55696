"""Sources found in a mosaic that comes without a catalogue, by photutils."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np

from vae_astro.data.sky import good_pixels
from vae_astro.data.sources.fits.headers import quiet_astropy
from vae_astro.data.sources.mosaics.field import Field
from vae_astro.errors import InputError

__all__ = ["find_sources", "require_photutils"]

TILE = 2048
"""Rows and columns that are searched at a time, so that memory does not grow with the mosaic."""
MARGIN = 128
"""Pixels around a tile that are searched with it: a source at its border is seen whole."""
SKY_BOX = 64
"""Side of the boxes that the sky is measured in, in pixels."""
KERNEL_FWHM = 3.0
"""Width of the Gaussian that smooths before the search, in pixels."""
LEAST_GOOD = 0.1
"""Share of good pixels below which a tile is not searched: its sky is unknown."""


def require_photutils(deblend: bool = False) -> None:
    """Make sure that photutils is there, and what it needs to deblend.

    Raises
    ------
    InputError
        If it is not; the message says how to install it.
    """
    try:
        import photutils.segmentation  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"data.catalogue=detect needs photutils, which cannot be imported ({error}): "
            "pip install 'vae-astro[photutils]', or give a catalogue: data.catalogue=FILE"
        ) from error
    if deblend and find_spec("skimage") is None:
        raise InputError("data.deblend=true needs scikit-image: pip install scikit-image")


def find_sources(
    field: Field, *, sigma: float, min_pixels: int, deblend: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Centroids of all sources in the first band of a field, always in the same order.

    Background and its noise are measured in boxes of 64 pixels, the image is smoothed by a
    Gaussian of 3 pixels FWHM, and every group of touching pixels above the threshold is a source.

    Parameters
    ----------
    field : Field
        Its pixels; what its planes call bad does not count.
    sigma : float
        Threshold above the background, in units of its noise.
    min_pixels : int
        Pixels of the smallest source.
    deblend : bool
        Take sources apart that touch; many times slower.

    Returns
    -------
    x, y : ndarray, shape (N,), float64
        (0, 0) is the centre of the first pixel.
    """
    found = [np.empty((0, 2))]
    for rows, columns in _tiles(*field.bands[0].shape):
        top, left = max(0, rows.start - MARGIN), max(0, columns.start - MARGIN)
        pixels = field.region(slice(top, rows.stop + MARGIN), slice(left, columns.stop + MARGIN))
        with quiet_astropy():
            centres = _search(pixels, sigma, min_pixels, deblend) + np.array([left, top])
        # each source belongs to the tile that holds its centre
        x, y = centres.T
        own = (y >= rows.start - 0.5) & (y < rows.stop - 0.5)
        own &= (x >= columns.start - 0.5) & (x < columns.stop - 0.5)
        found.append(centres[own])
    x, y = np.concatenate(found).T
    return x, y


def _tiles(height: int, width: int) -> Iterator[tuple[slice, slice]]:
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            yield slice(top, min(top + TILE, height)), slice(left, min(left + TILE, width))


def _search(pixels: np.ndarray, sigma: float, min_pixels: int, deblend: bool) -> np.ndarray:
    """Centroids in an image, shape (N, 2), x before y."""
    from astropy.convolution import Gaussian2DKernel, convolve
    from astropy.stats import gaussian_fwhm_to_sigma
    from photutils.background import Background2D
    from photutils.segmentation import SourceCatalog, deblend_sources, detect_sources

    bad = ~good_pixels(pixels[None, None])[0, 0]
    if bad.mean() > 1 - LEAST_GOOD:
        return np.empty((0, 2))
    pixels = np.where(bad, np.float32(0), pixels)
    box = tuple(min(SKY_BOX, side) for side in pixels.shape)
    sky = Background2D(pixels, box, mask=bad, exclude_percentile=100 * (1 - LEAST_GOOD))
    light = pixels - sky.background
    light[bad] = 0
    kernel = Gaussian2DKernel(KERNEL_FWHM * gaussian_fwhm_to_sigma, x_size=5, y_size=5)
    smooth = convolve(light, kernel, normalize_kernel=True)
    # by position: the names of these arguments differ among the versions of photutils
    segments = detect_sources(smooth, sigma * sky.background_rms, min_pixels, mask=bad)
    if segments is None:
        return np.empty((0, 2))
    if deblend:
        segments = deblend_sources(smooth, segments, min_pixels, progress_bar=False)
    centres = np.asarray(SourceCatalog(light, segments, mask=bad).centroid).reshape(-1, 2)
    # the centroid of light that is negative in places may lie anywhere
    return centres[np.isfinite(centres).all(axis=1)]
