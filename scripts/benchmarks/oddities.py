"""Odd things planted on stamps: what a search for outliers is to find.

None of them is a class of the simulated sky. Light falls on what was recorded before, with Poisson
noise of its own: the sum of two Poisson counts is the Poisson count of the sum, so that the stamp
is what the detector would have read, but for the noise of full wells. Lengths are pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from vae_astro.data.profiles import PIXEL_SCALE_ARCSEC, log_uniform
from vae_astro.data.sky_model import (
    GAIN_E_PER_ADU,
    READ_NOISE_E,
    SATURATION_ADU,
    SimulatedStamp,
    draw_stamp,
)
from vae_astro.errors import InputError
from vae_astro.settings import check_choice

__all__ = ["ODDITIES", "odd_light", "plant", "plant_on"]

SIGNAL_TO_NOISE = (20.0, 200.0)
"""Matched-filter signal-to-noise of what is planted: log-uniform."""


def plant_on(
    index: int, kind: str, *, seed: int, size: int = 63, snr: float | None = None
) -> SimulatedStamp:
    """Stamp ``index`` of a simulation with something odd on it: a pure function of its arguments.

    Parameters
    ----------
    index, seed, size
        As `draw_stamp` has them.
    kind : str
        A key of `ODDITIES`.
    snr : float, optional
        Signal-to-noise of what is planted; drawn from `SIGNAL_TO_NOISE` if absent.

    Returns
    -------
    SimulatedStamp
        Labelled with ``kind``; the truth is that of the stamp below.

    Raises
    ------
    InputError
        An unknown ``kind``, or a seed or size out of range.
    """
    check_choice("kind", kind, tuple(ODDITIES))
    below = draw_stamp(index, seed=seed, size=size)
    rng = np.random.default_rng(
        np.random.SeedSequence(seed, spawn_key=(index, list(ODDITIES).index(kind), 1))
    )
    light = odd_light(kind, rng, size, below.truth["seeing_arcsec"] / PIXEL_SCALE_ARCSEC)
    pixels = plant(
        below.pixels,
        light,
        rng,
        snr=log_uniform(rng, *SIGNAL_TO_NOISE) if snr is None else snr,
        sky_level=below.truth["sky_level_adu"],
    )
    return SimulatedStamp(
        pixels, kind, f"{below.id}-{kind}", below.ra, below.dec, dict(below.truth)
    )


def odd_light(kind: str, rng: np.random.Generator, size: int, seeing: float) -> np.ndarray:
    """Light of something odd, shape (size, size), of any flux; ``seeing`` is a width in pixels."""
    axis = np.arange(size) - 0.5 * (size - 1)
    # a hair wider than a point source
    width = math.hypot(seeing / 2.355, 0.5)
    return ODDITIES[kind](rng, axis[None, :], axis[:, None], size, width)


def plant(
    pixels: np.ndarray,
    light: np.ndarray,
    rng: np.random.Generator,
    *,
    snr: float,
    sky_level: float,
) -> np.ndarray:
    r"""Add light to what was recorded, with its noise.

    Parameters
    ----------
    pixels : ndarray, shape (H, W), float32
        A stamp of the simulated sky in ADU; NaN stays NaN.
    light : ndarray, shape (H, W)
        Of any flux.
    rng : numpy.random.Generator
        For the Poisson noise.
    snr : float
        :math:`\sqrt{\sum_i s_i^2 / \sigma_i^2}` of the light against bare sky, above 0.
    sky_level : float
        ADU per pixel.

    Returns
    -------
    ndarray, shape (H, W), float32
        A new array, clipped at full well.
    """
    if not snr > 0:
        raise InputError(f"snr must be above 0, got {snr}")
    sky_noise = math.sqrt(sky_level / GAIN_E_PER_ADU + (READ_NOISE_E / GAIN_E_PER_ADU) ** 2)
    signal = light * (snr * sky_noise / np.sqrt(np.square(light).sum()))
    added = rng.poisson(signal * GAIN_E_PER_ADU) / GAIN_E_PER_ADU
    return np.minimum(pixels + added, SATURATION_ADU).astype(np.float32)


def _arcs(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, size: int, width: float
) -> np.ndarray:
    """Two images of one source behind a lens at the centre: an arc, and a counter-arc within it."""
    radius = rng.uniform(0.1, 0.22) * size
    toward = rng.uniform(0.0, 2.0 * math.pi)
    azimuth, distance = np.arctan2(y, x), np.hypot(x, y)

    def arc(radius: float, direction: float, opening: float) -> np.ndarray:
        away = np.angle(np.exp(1j * (azimuth - direction)))
        along = np.exp(-0.5 * (away / (0.5 * opening)) ** 4)
        return along * np.exp(-0.5 * ((distance - radius) / width) ** 2)

    opening = rng.uniform(0.6, 1.6)  # radians
    counter = arc(0.75 * radius, toward + math.pi, 0.6 * opening)
    return arc(radius, toward, opening) + rng.uniform(0.3, 0.8) * counter


def _ghost(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, size: int, width: float
) -> np.ndarray:
    """A bright star out of focus after two reflections: the pupil, with the shadow of a mirror."""
    radius = rng.uniform(0.12, 0.3) * size
    centre = rng.uniform(-0.3, 0.3, size=2) * size
    distance = np.hypot(x - centre[0], y - centre[1])
    hole = rng.uniform(0.3, 0.5) * radius
    return _edge(radius - distance) - _edge(hole - distance)


def _satellite(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, size: int, width: float
) -> np.ndarray:
    """A line across the stamp that passes the object by."""
    angle = rng.uniform(0.0, 2.0 * math.pi)
    offset = rng.uniform(0.08, 0.4) * size
    across = x * math.cos(angle) + y * math.sin(angle) - offset
    return np.exp(-0.5 * (across / width) ** 2)


def _ring(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, size: int, width: float
) -> np.ndarray:
    """The ring of a collision, seen at an angle, about the object at the centre."""
    radius, axis_ratio = rng.uniform(0.1, 0.25) * size, rng.uniform(0.6, 1.0)
    angle = rng.uniform(0.0, math.pi)
    along = x * math.cos(angle) + y * math.sin(angle)
    across = (y * math.cos(angle) - x * math.sin(angle)) / axis_ratio
    return np.exp(-0.5 * ((np.hypot(along, across) - radius) / (1.3 * width)) ** 2)


def _edge(inside: np.ndarray) -> np.ndarray:
    """1 within a border and 0 outside, over about two pixels."""
    return 0.5 * (1.0 + np.tanh(inside))


ODDITIES: dict[
    str, Callable[[np.random.Generator, np.ndarray, np.ndarray, int, float], np.ndarray]
] = {"arcs": _arcs, "ghost": _ghost, "satellite": _satellite, "ring": _ring}
"""What can be planted."""
