r"""What a stamp shows, measured without any network: the sky, the source, and how it was seen.

The source is the one near the centre. Its place and shape are adaptive moments (Bernstein & Jarvis
2002): the moments under the elliptical Gaussian that matches the source itself,

.. math:: V = 2 \, \frac{\sum w s \, (r - c)(r - c)^\top}{\sum w s}, \qquad
          w = e^{-(r - c)^\top V^{-1} (r - c) / 2},

iterated until both sides agree, which neighbours and noise far out do not disturb. They are those
of the source as it was seen, seeing included. A masked pixel contributes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vae_astro.data.normalize import Normalizer, Sky
from vae_astro.data.store.store import StampStore

__all__ = ["PROPERTIES", "measure_properties", "measure_sources"]

PROPERTIES: dict[str, str] = {
    "sky_level": "raw units",
    "sky_noise": "raw units",
    "normalized_sky": "where the sky lies in the normalised stamp; moves with minmax only",
    "good_fraction": "of the pixels",
    "seeing": "full width at half maximum in pixels, from the catalogue",
    "flux": "raw units, sky subtracted, within the aperture",
    "peak": "raw units, sky subtracted, within the aperture",
    "size": "pixels; geometric mean of the two Gaussian standard deviations",
    "ellipticity": "1 - b/a",
    "orientation": "degrees of the long axis from the columns' axis to the rows', 0 to 180",
    "x_offset": "pixels right of the centre of the stamp",
    "y_offset": "pixels up from the centre of the stamp",
    "offset": "pixels from the centre of the stamp",
}
"""What is measured, and its unit."""

APERTURE = 1 / 8
"""Radius of the aperture over the side of the stamp; at least `SMALLEST_APERTURE` pixels."""
SMALLEST_APERTURE = 3.0
DETECTED = 5.0
"""Signal-to-noise from which a source has a place and a shape."""
COVERAGE = 0.9
"""Share of a source's weight that must lie on good pixels. What is left of a source that is cut in
half looks whole, but for a quarter of its weight."""
N_ITERATIONS = 16
FIRST_STD = 2.0  # pixels; that of a star, and wide enough to find one that lies off the centre
SMALLEST_VARIANCE = 0.1  # square pixels: all light in one pixel has a twelfth
BATCH = 256


def measure_properties(
    store: StampStore, rows: np.ndarray, normalizer: Normalizer | None = None
) -> dict[str, np.ndarray]:
    """Measure stamps of a store.

    Parameters
    ----------
    store : StampStore
        Where the raw pixels are.
    rows : ndarray, shape (N,), int64
        Which.
    normalizer : Normalizer, optional
        How the network sees them: its saturation masks pixels, its stretch places the sky.

    Returns
    -------
    dict of str to ndarray, shape (N,), float64
        `PROPERTIES` of the first band by these names, those of each further band by ``NAME_BAND``
        (the seeing has no band). NaN where a stamp has no such property: without a detected source
        it has no place and no shape, with a round one no orientation, with half of the aperture
        bad no flux.
    """
    normalizer = normalizer or Normalizer()
    found = list(_measured_batches(store, np.asarray(rows), normalizer))
    properties: dict[str, np.ndarray] = {}
    for k, band in enumerate(store.band_names):
        for name in PROPERTIES:
            if name == "seeing":
                if k == 0:
                    properties[name] = store.catalogue["seeing"].to_numpy()[rows]
                continue
            parts = [batch[name][:, k].double().numpy() for batch in found]
            key = name if k == 0 else f"{name}_{band}"
            properties[key] = np.concatenate(parts) if parts else np.empty(0)
    return properties


def _measured_batches(
    store: StampStore, rows: np.ndarray, normalizer: Normalizer
) -> Iterator[dict[str, Tensor]]:
    for first in range(0, len(rows), BATCH):
        chosen = rows[first : first + BATCH]
        raw = torch.from_numpy(store.gather(chosen)[:, : len(store.band_names)])
        sky = Sky(
            torch.from_numpy(store.sky_level[chosen]), torch.from_numpy(store.sky_noise[chosen])
        )
        stamps = normalizer(raw, sky)
        seen = (sky.level[:, :, None, None] - stamps.scale.zero) / stamps.scale.unit
        empty = ~stamps.mask.any(3).any(2)
        yield {
            "sky_level": _nan_where(empty, sky.level),
            "sky_noise": _nan_where(empty, sky.noise),
            "normalized_sky": _nan_where(empty, seen[:, :, 0, 0]),
            "good_fraction": torch.from_numpy(store.good_fraction[chosen]),
            **measure_sources(raw, stamps.mask, sky),
        }


def measure_sources(raw: Tensor, mask: Tensor, sky: Sky) -> dict[str, Tensor]:
    """Brightness, place and shape of the source near the centre of each stamp and band.

    Parameters
    ----------
    raw : Tensor, shape (B, C, H, W), float32
        Pixels in raw units.
    mask : Tensor, shape (B, C, H, W), bool
        True where good.
    sky : Sky
        Level and noise, each (B, C).

    Returns
    -------
    dict of str to Tensor, shape (B, C)
        ``flux`` to ``offset`` of `PROPERTIES`; NaN as in `measure_properties`.
    """
    n_stamps, n_bands, height, width = raw.shape
    good = mask.flatten(2).flatten(0, 1)
    noise = sky.noise.flatten()
    zero = raw.new_zeros(())
    light = (raw - sky.level[:, :, None, None]).flatten(2).flatten(0, 1).where(good, zero)
    x, y = _axes(height, width, raw)

    radius = max(SMALLEST_APERTURE, APERTURE * min(height, width))
    aperture = x.square() + y.square() <= radius**2
    n_good = good[:, aperture].sum(1)
    covered = 2 * n_good >= aperture.sum()
    flux = light[:, aperture].sum(1)
    peak = light[:, aperture].where(good[:, aperture], -torch.inf).amax(1)

    # in units of its brightest pixel, so that no product leaves float32
    unit = light.abs().amax(1).clamp(min=torch.finfo(raw.dtype).tiny)
    shape = _adaptive_moments(light / unit[:, None], good, x, y, min(height, width))
    # the Gaussian weight is the matched filter of the source
    snr = shape.weighted_flux * unit / (noise * (math.pi * shape.det.sqrt()).sqrt())
    detected = shape.is_usable & (snr >= DETECTED) & covered
    half, diff, twist = 0.5 * (shape.xx + shape.yy), 0.5 * (shape.xx - shape.yy), shape.xy
    spread = torch.hypot(diff, twist)
    ellipticity = 1 - ((half - spread) / (half + spread)).sqrt()
    orientation = torch.rad2deg(0.5 * torch.atan2(twist, diff)) % 180
    # an ellipticity is uncertain by about 2 / snr; three times that it has to be
    elongated = detected & (ellipticity * snr >= 6)
    sources = {
        "flux": _nan_where(~covered, flux),
        "peak": _nan_where(~covered, peak),
        "size": _nan_where(~detected, shape.det.pow(0.25)),
        "ellipticity": _nan_where(~detected, ellipticity),
        "orientation": _nan_where(~elongated, orientation),
        "x_offset": _nan_where(~detected, shape.x),
        "y_offset": _nan_where(~detected, shape.y),
        "offset": _nan_where(~detected, torch.hypot(shape.x, shape.y)),
    }
    return {name: value.view(n_stamps, n_bands) for name, value in sources.items()}


class _Moments(NamedTuple):
    """Matched Gaussian of each source, each (N,): centre, covariance in pixels, and whether any."""

    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor
    weighted_flux: Tensor
    is_usable: Tensor

    @property
    def det(self) -> Tensor:
        """Determinant of the covariance."""
        return self.xx * self.yy - self.xy.square()


def _adaptive_moments(light: Tensor, good: Tensor, x: Tensor, y: Tensor, size: int) -> _Moments:
    """Iterate the matched Gaussian of ``light`` (N, P) from the centre of the stamp.

    A source longer than the stamp is held at the stamp's length.
    """
    basis = torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y])  # (6, P)
    start = light.new_full(light.shape[:1], FIRST_STD**2)
    nothing = torch.zeros_like(start)
    found = _Moments(nothing, nothing, start, nothing, start, nothing, nothing == 0)
    for _ in range(N_ITERATIONS):
        weight = _gaussian_weight(found, basis)
        total, mx, my, mxx, mxy, myy = ((weight * light) @ basis.T).unbind(1)
        usable = found.is_usable & (total > 0)
        mx, my, mxx, mxy, myy = (
            moment / total.where(usable, 1) for moment in (mx, my, mxx, mxy, myy)
        )
        # under a matched weight both the shift and the covariance come out half as large
        x0, y0 = 2 * mx - found.x, 2 * my - found.y
        xx, xy, yy = 2 * (mxx - mx * mx), 2 * (mxy - mx * my), 2 * (myy - my * my)
        # a single pixel has no width, or by rounding less
        usable &= (xx + yy > -0.01) & (torch.hypot(x0, y0) <= size / 4)
        xx, xy, yy = _bounded(xx, xy, yy, size)
        found = found._replace(
            x=x0.where(usable, found.x),
            y=y0.where(usable, found.y),
            xx=xx.where(usable, found.xx),
            xy=xy.where(usable, found.xy),
            yy=yy.where(usable, found.yy),
            is_usable=usable,
        )
    weight = _gaussian_weight(found, basis)
    coverage = (weight * good).sum(1) / weight.sum(1)
    return found._replace(
        weighted_flux=(weight * light).sum(1),
        is_usable=found.is_usable & (coverage >= COVERAGE),
    )


def _gaussian_weight(moments: _Moments, basis: Tensor) -> Tensor:
    """``exp(-q / 2)`` of each pixel (N, P), by one product of matrices."""
    x, y, det = moments.x, moments.y, moments.det
    a, b, c = moments.yy / det, -moments.xy / det, moments.xx / det
    terms = [a * x * x + 2 * b * x * y + c * y * y, -2 * (a * x + b * y), -2 * (b * x + c * y)]
    return (torch.stack([*terms, a, 2 * b, c], dim=1) @ basis).mul_(-0.5).clamp_(-60, 0).exp_()


def _bounded(xx: Tensor, xy: Tensor, yy: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """A covariance whose axes lie between those of one pixel and of the stamp."""
    half, spread = 0.5 * (xx + yy), torch.hypot(0.5 * (xx - yy), xy)
    shrink = ((size / 3) ** 2 / (half + spread).clamp(min=SMALLEST_VARIANCE)).clamp(max=1)
    raise_ = (SMALLEST_VARIANCE - shrink * (half - spread)).clamp(min=0)
    return shrink * xx + raise_, shrink * xy, shrink * yy + raise_


def _axes(height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Column and row of every pixel from the centre of the stamp, each (H * W,)."""
    y, x = torch.meshgrid(
        torch.arange(height, dtype=like.dtype) - 0.5 * (height - 1),
        torch.arange(width, dtype=like.dtype) - 0.5 * (width - 1),
        indexing="ij",
    )
    return x.flatten(), y.flatten()


def _nan_where(bad: Tensor, value: Tensor) -> Tensor:
    return value.where(~bad, value.new_tensor(torch.nan))
