"""From the sky to the pixels of a mosaic and back, many positions at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from vae_astro.data.sources.fits.headers import keyword_text, quiet_astropy

__all__ = ["SkyGrid", "sky_grid"]

BORDER_POINTS = 33  # along each side of a mosaic; between them a border bends little
CAP_MARGIN = 1.02  # by which the circle around a mosaic is widened for what they miss


@dataclass(frozen=True, eq=False)
class SkyGrid:
    """The celestial WCS of a mosaic.

    Attributes
    ----------
    shape : tuple of int
        Rows and columns of the mosaic.
    """

    shape: tuple[int, int]
    _wcs: Any = field(repr=False)
    _frame: Any = field(repr=False)
    """The frame of the mosaic, None where it is ICRS."""

    def to_pixels(self, ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where positions lie, (0, 0) the centre of the first pixel.

        Parameters
        ----------
        ra, dec : ndarray, shape (N,)
            ICRS, degrees.

        Returns
        -------
        x, y : ndarray, shape (N,), float64
            NaN far away from the mosaic, and where distortions cannot be solved for.
        """
        x, y = np.full((2, len(ra)), np.nan)
        near = np.flatnonzero(self._is_near(ra, dec))
        if len(near) == 0:
            return x, y
        with quiet_astropy():
            world = self._to_own_frame(ra[near], dec[near])
            pixels = self._solve(world)
        x[near], y[near] = pixels[:, 0], pixels[:, 1]
        return x, y

    def to_sky(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """ICRS positions in degrees of pixels, (0, 0) the centre of the first; NaN off the sky."""
        with quiet_astropy():
            world = self._wcs.all_pix2world(np.stack([x, y], axis=1), 0)
            ra, dec = world[:, self._wcs.wcs.lng], world[:, self._wcs.wcs.lat]
            if self._frame is not None:
                from astropy.coordinates import SkyCoord

                off = ~(np.isfinite(ra) & (np.abs(dec) <= 90))
                own = SkyCoord(
                    np.where(off, 0, ra), np.where(off, 0, dec), unit="deg", frame=self._frame
                )
                ra = np.where(off, np.nan, own.icrs.ra.deg)
                dec = np.where(off, np.nan, own.icrs.dec.deg)
        return ra % 360.0, dec

    @cached_property
    def cap(self) -> tuple[float, float, float]:
        """Circle around the mosaic: its centre (ra, dec) and radius, in degrees."""
        height, width = self.shape
        along = np.linspace(0, 1, BORDER_POINTS)
        zero, one = np.zeros(BORDER_POINTS), np.ones(BORDER_POINTS)
        x = np.concatenate([along, along, zero, one]) * width - 0.5
        y = np.concatenate([zero, one, along, along]) * height - 0.5
        border = _directions(*self.to_sky(x, y))
        ra, dec = self.to_sky(np.array([(width - 1) / 2]), np.array([(height - 1) / 2]))
        cosines = border @ _directions(ra, dec)[0]
        if not np.isfinite(cosines).all():  # a map of the whole sky has corners that are not on it
            return float(np.nan_to_num(ra[0])), float(np.nan_to_num(dec[0])), 180.0
        radius = CAP_MARGIN * np.degrees(np.arccos(np.clip(cosines.min(), -1, 1)))
        return float(ra[0]), float(dec[0]), float(min(180.0, radius))

    def _is_near(self, ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
        """Which positions are on the sky and in the cap: elsewhere a WCS may return anything."""
        centre_ra, centre_dec, radius = self.cap
        on_sky = np.isfinite(ra) & np.isfinite(dec)
        if radius >= 180.0:
            return on_sky
        centre = _directions(np.array([centre_ra]), np.array([centre_dec]))[0]
        near: np.ndarray = _directions(ra, dec) @ centre >= np.cos(np.radians(radius))
        return near & on_sky

    def _to_own_frame(self, ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
        longitude, latitude = ra, dec
        if self._frame is not None:
            from astropy.coordinates import SkyCoord

            own = SkyCoord(ra, dec, unit="deg", frame="icrs").transform_to(self._frame)
            longitude, latitude = own.spherical.lon.deg, own.spherical.lat.deg
        world = np.empty((len(ra), 2))
        world[:, self._wcs.wcs.lng], world[:, self._wcs.wcs.lat] = longitude, latitude
        return world

    def _solve(self, world: np.ndarray) -> np.ndarray:
        """Pixels of positions, distortions included; NaN where the search does not converge."""
        from astropy.wcs import NoConvergence

        try:
            return self._wcs.all_world2pix(world, 0)
        except NoConvergence as failure:
            pixels = failure.best_solution
            for lost in (failure.divergent, failure.slow_conv):
                if lost is not None:
                    pixels[lost] = np.nan
            return pixels


def sky_grid(header: Any, shape: tuple[int, int], hdus: list[Any]) -> SkyGrid | None:
    """The celestial WCS that a header describes, None where it describes none.

    Parameters
    ----------
    header : astropy Header
        Of the image.
    shape : tuple of int
        Its rows and columns.
    hdus : list
        All HDUs of its file: distortions may be tables in some of them.
    """
    # wcslib allocates a matrix of WCSAXES squared before it looks at anything else
    if keyword_text(header, "WCSAXES") not in ("", "2", "3", "4"):
        return None
    if not keyword_text(header, "CTYPE1") and not keyword_text(header, "AMDX1"):
        return None
    # slow to import, and mosaics with pixel positions do not need them
    from astropy.coordinates import ICRS
    from astropy.io import fits
    from astropy.wcs import WCS
    from astropy.wcs.utils import wcs_to_celestial_frame

    with quiet_astropy():
        try:
            wcs = WCS(header, fobj=fits.HDUList(hdus), naxis=2)
            if not wcs.has_celestial:
                return None
            frame = wcs_to_celestial_frame(wcs)
        except MemoryError:
            raise
        except Exception:  # wcslib has dozens of ways to refuse, and all mean that there is none
            return None
    return SkyGrid(shape, wcs, None if isinstance(frame, ICRS) else frame)


def _directions(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """Unit vectors, shape (N, 3)."""
    ra, dec = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)
