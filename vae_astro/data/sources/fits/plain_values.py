"""What many plain headers say of their images: name, class, position and seeing, in columns.

The same as `headers` says of a single one. Where that cannot be promised
the header is marked as odd, and its file is left to astropy.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from vae_astro.data.sources.fits.headers import (
    POSITION_KEYWORDS,
    SCALE_KEYWORDS,
    WCS_NUMBERS,
    angle_degrees,
    has_distortion,
    keyword_text,
    seeing_in_pixels,
    simple_wcs,
)
from vae_astro.data.sources.fits.templates import Columns, HeaderTemplate

__all__ = ["CentreWcs", "image_labels", "image_position", "image_seeing", "says_anything"]

# Projections that the reference point lies in the middle of, so that nothing of what wcslib keeps
# from one set of numbers to the next depends on them.
_PROJECTED = re.compile(r"(RA---|DEC--|[GE]L(ON|AT)-)(TAN|SIN|ARC|STG|ZEA)")


def says_anything(template: HeaderTemplate, texts: tuple[str, ...]) -> bool:
    """Whether a primary header says something that its extensions may inherit."""
    return template.says((*texts, *POSITION_KEYWORDS, *SCALE_KEYWORDS, *WCS_NUMBERS))


def image_labels(headers: list[Columns], keywords: tuple[str, ...]) -> list[str]:
    """As `headers.first_text` of each image: its own header's, then the primary one's."""
    labels: list[str] = []
    for header in headers:
        for keyword in keywords:
            if keyword in header.template.fields:
                texts = header.texts(keyword)
                labels = [a or b for a, b in zip(labels, texts, strict=True)] if labels else texts
    return labels or [""] * len(headers[0].odd)


def image_seeing(headers: list[Columns]) -> np.ndarray:
    """As `headers.header_seeing` of each image, shape (N,)."""
    return np.broadcast_to(seeing_in_pixels(headers), headers[0].odd.shape)


def image_position(
    headers: list[Columns], shape: tuple[int, ...], wcs: CentreWcs | None
) -> tuple[np.ndarray, np.ndarray]:
    """As `headers.header_position` of each image, two columns of shape (N,).

    Parameters
    ----------
    headers : list of Columns
        The images' own, then the primary ones where those are others.
    shape : tuple of int
        Of the image, (..., H, W).
    wcs : CentreWcs or None
        Of the images' own template; None if it cannot tell the position.
    """
    own, *primary = headers
    ra, dec = _keyword_position(own)
    unknown = np.flatnonzero(np.isnan(ra) & ~own.odd)
    if len(unknown) and wcs is not None:
        ra, dec = ra.copy(), dec.copy()
        ra[unknown], dec[unknown] = wcs.centres(own, unknown, shape)
    for header in primary:
        primary_ra, primary_dec = _keyword_position(header)
        ra, dec = np.where(np.isnan(ra), (primary_ra, primary_dec), (ra, dec))
    return ra, dec


def _keyword_position(header: Columns) -> tuple[np.ndarray, np.ndarray]:
    if not {"RA", "DEC"} <= header.template.fields.keys():
        return _on_sky(np.full(len(header.odd), math.nan), np.full(len(header.odd), math.nan))
    units = ("hourangle", "deg")
    ra, dec = (_angles(header, *pair) for pair in zip(POSITION_KEYWORDS, units, strict=True))
    return _on_sky(ra, dec)


def _angles(header: Columns, keyword: str, sexagesimal_unit: str) -> np.ndarray:
    if keyword in header.template.numeric:
        return header.numbers(keyword)
    texts = header.texts(keyword)
    return np.array([angle_degrees(text, sexagesimal_unit) for text in texts])


def _on_sky(ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `headers.sky_position`."""
    valid = (ra >= -180) & (ra <= 360) & (dec >= -90) & (dec <= 90)
    return np.where(valid, ra % 360.0, math.nan), np.where(valid, dec, math.nan)


@dataclass(eq=False)
class CentreWcs:
    """The WCS of a template: one of wcslib's, whose numbers are set image by image.

    Attributes
    ----------
    wcs : astropy.wcs.WCS or None
        None if only `headers.header_position` can deal with it.
    frame : astropy frame or None
        What its positions are in; None if that is ICRS.
    latitude_first : bool
        Whether the first axis is the latitude.
    """

    wcs: Any
    frame: Any = None
    latitude_first: bool = False

    @classmethod
    def of(cls, template: HeaderTemplate) -> CentreWcs | None:
        """The WCS of a template; None if it has none that gives a position."""
        header = template.header
        # The texts are those of every header of the template: `WCS_KEYWORD` is fixed in it.
        n_axes = keyword_text(header, "WCSAXES")
        if not keyword_text(header, "CTYPE1") or n_axes not in ("", "2", "3", "4"):
            return None
        if not {"CRVAL1", "CRVAL2"} <= template.fields.keys():
            return None
        usable = {"CRVAL1", "CRVAL2"} <= template.numeric and not has_distortion(header)
        usable &= template.numeric >= template.fields.keys() & set(WCS_NUMBERS)
        axes = [keyword_text(header, f"CTYPE{axis}") for axis in (1, 2)]
        units = {keyword_text(header, f"CUNIT{axis}") for axis in (1, 2)}
        families = {name[:2] for name in WCS_NUMBERS if "_" in name and name in template.fields}
        if not (
            usable and all(map(_PROJECTED.fullmatch, axes)) and units <= {"", "deg"}
        ) or families == {"CD", "PC"}:
            return cls(None)
        from astropy.coordinates import ICRS  # slow to import, and not every stamp needs them
        from astropy.wcs.utils import wcs_to_celestial_frame

        try:
            wcs = simple_wcs(header)
            frame = wcs_to_celestial_frame(wcs)
            if isinstance(frame, ICRS):
                return cls(wcs, None, wcs.wcs.lng == 1)
            # Axes in another order would be swapped together with those of the pixels.
            return cls(wcs if wcs.wcs.lng == 0 else None, frame)
        except MemoryError:
            raise
        except Exception:  # a singular matrix, for one, which the next header need not have
            return cls(None)

    def centres(
        self, header: Columns, chosen: np.ndarray, shape: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        """ICRS positions of the centres of some images, degrees; odd ones are marked."""
        world = np.full((2, len(chosen)), math.nan)
        if self.wcs is None:
            header.odd[chosen] = True
            return world[0], world[1]
        parameters = self.wcs.wcs
        numbers = self._numbers(header, chosen)
        rows = np.flatnonzero(self._are_regular(numbers))
        # Most are the same in all images, and only what changes has to be set each time.
        changing = {}
        for name, column in numbers.items():
            if len(rows) and (column[rows] == column[rows[0]]).all():
                setattr(parameters, name, column[rows[0]])
            else:
                changing[name] = column
        centre = np.array([[(shape[-1] - 1) / 2, (shape[-2] - 1) / 2]])
        for k in rows.tolist():
            for name, column in changing.items():
                setattr(parameters, name, column[k])
            try:
                world[:, k] = parameters.p2s(centre, 0)["world"][0]
            except Exception:  # wcslib has dozens of ways to refuse
                continue
        header.odd[chosen[~np.isfinite(world).all(axis=0)]] = True
        longitude, latitude = world[:: -1 if self.latitude_first else 1]
        return self._icrs(longitude, latitude)

    def _are_regular(self, numbers: dict[str, np.ndarray]) -> np.ndarray:
        """Which images have numbers that need nothing but to be set."""
        # At a pole the default of LONPOLE is another.
        regular = np.abs(numbers["crval"][:, 0 if self.latitude_first else 1]) < 90
        for name, column in numbers.items():
            regular &= np.isfinite(column).reshape(len(regular), -1).all(axis=1)
            if name in ("cd", "pc"):
                area = column[:, 0, 0] * column[:, 1, 1] - column[:, 0, 1] * column[:, 1, 0]
                regular &= np.isfinite(area) & (area != 0)
        return regular

    def _numbers(self, header: Columns, chosen: np.ndarray) -> dict[str, np.ndarray]:
        """What the headers have of crval, crpix, cdelt, cd and pc; absent elements as default."""
        present = header.template.fields
        numbers = {}
        for name, default in (("crval", 0.0), ("crpix", 0.0), ("cdelt", 1.0)):
            keywords = [f"{name.upper()}{axis}" for axis in (1, 2)]
            if not present.keys().isdisjoint(keywords):
                columns = [
                    header.numbers(keyword)[chosen]
                    if keyword in present
                    else np.full(len(chosen), default)
                    for keyword in keywords
                ]
                numbers[name] = np.stack(columns, axis=1)
        for name, default_matrix in (("cd", np.zeros((2, 2))), ("pc", np.eye(2))):
            keywords = [f"{name.upper()}{i}_{j}" for i in (1, 2) for j in (1, 2)]
            if not present.keys().isdisjoint(keywords):
                matrix = np.tile(default_matrix, (len(chosen), 1, 1))
                for at, keyword in enumerate(keywords):
                    if keyword in present:
                        matrix[:, at // 2, at % 2] = header.numbers(keyword)[chosen]
                numbers[name] = matrix
        return numbers

    def _icrs(self, longitude: np.ndarray, latitude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.frame is None:
            return _on_sky(longitude % 360.0, latitude)
        from astropy.coordinates import SkyCoord

        centres = SkyCoord(longitude, latitude, unit="deg", frame=self.frame).icrs
        return _on_sky(np.asarray(centres.ra.deg), np.asarray(centres.dec.deg))
