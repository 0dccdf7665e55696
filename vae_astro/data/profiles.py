"""What lies on the sky: profiles of classes and neighbours, and the light they leave on a stamp.

Everything is drawn at random, in shape, size and angle; GalSim does the optics. Lengths on the sky
are arcsec with x to the west and y to the north, lengths on the stamp are pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import galsim
import numpy as np

__all__ = [
    "PIXEL_SCALE_ARCSEC",
    "Shape",
    "class_profile",
    "cosmic_ray",
    "expose",
    "log_uniform",
    "neighbours",
]

PIXEL_SCALE_ARCSEC = 1.0  # per pixel
SERSIC_INDICES = (1.0, 2.5, 4.0)  # few values, because GalSim pays a set-up for every new one
# Folding of 1 % instead of 0.5 % halves the largest transforms; the rest are GalSim's defaults,
# since the ringing of a looser one would show around saturated stars.
_ACCURACY = galsim.GSParams(folding_threshold=1e-2)
_PAINT_SIZE = 80  # pixels of the canvas that spiral arms and tidal tails are painted on

Shape = dict[str, float]  # what is known of one object, by the name of its column in the truth


def class_profile(
    label: str, rng: np.random.Generator, seeing: float, size: int
) -> tuple[Shape, galsim.GSObject]:
    """A random object of one class, before the seeing.

    Parameters
    ----------
    label : str
        Any class but ``cosmic_ray``, which has no profile on the sky, and ``empty``.
    rng : numpy.random.Generator
    seeing : float
        Full width at half maximum in arcsec; pairs and asteroids are kept longer than it.
    size : int
        Height and width of the stamp in pixels; the length of trails goes with it.

    Returns
    -------
    shape : dict
        Columns of the truth that have a meaning for the class; arcsec and degrees.
    profile : galsim.GSObject
        Light on the sky around (0, 0), of any flux; lengths are arcsec.
    """
    return _PROFILES[label](rng, seeing, size)


def cosmic_ray(rng: np.random.Generator, offset: np.ndarray, size: int) -> tuple[Shape, np.ndarray]:
    """Charge of one particle: a dot, a straight track or a wandering worm.

    It never passed the atmosphere or the optics, so each step falls into one pixel, unblurred.

    Parameters
    ----------
    rng : numpy.random.Generator
    offset : ndarray, shape (2,)
        x and y of the middle of the track from the centre of the stamp, pixels.
    size : int
        Height and width of the stamp in pixels.

    Returns
    -------
    shape : dict
        Its ``length_arcsec``, beyond the stamp included.
    light : ndarray, shape (size, size)
        Charge per pixel in arbitrary units.
    """
    length = log_uniform(rng, 1.0, 0.5 * size)  # pixels
    n_steps = max(2, int(10 * length))
    turn = rng.choice((0.0, 0.12))  # rms radians per tenth of a pixel: muon or scattered electron
    heading = rng.uniform(0.0, 2.0 * math.pi) + np.cumsum(rng.normal(0.0, turn, n_steps))
    x, y = np.cumsum(np.cos(heading)) / 10.0, np.cumsum(np.sin(heading)) / 10.0
    # Loss per step is skewed like a Landau distribution.
    charge = 1.0 + rng.exponential(1.0, n_steps) ** 2
    column = np.rint(x - x.mean() + offset[0] + size // 2).astype(int)
    row = np.rint(y - y.mean() + offset[1] + size // 2).astype(int)
    on_stamp = (column >= 0) & (column < size) & (row >= 0) & (row < size)
    light = np.zeros((size, size))
    np.add.at(light, (row[on_stamp], column[on_stamp]), charge[on_stamp])
    return {"length_arcsec": length * PIXEL_SCALE_ARCSEC}, light


def neighbours(rng: np.random.Generator, sky_noise: float, size: int) -> list[galsim.GSObject]:
    """Stars and small galaxies away from the centre: in two stamps of five, one to three.

    One star in twenty is bright enough to saturate.

    Parameters
    ----------
    rng : numpy.random.Generator
    sky_noise : float
        Standard deviation of a pixel of bare sky in ADU, which most fluxes are multiples of.
    size : int
        Height and width of the stamp in pixels.

    Returns
    -------
    list of galsim.GSObject
        Profiles before the seeing, in their places; fluxes are ADU, lengths arcsec.
    """
    if rng.random() > 0.4:
        return []
    found = []
    for _ in range(rng.integers(1, 4)):
        while True:
            x, y = rng.uniform(-0.5 * size, 0.5 * size, size=2) * PIXEL_SCALE_ARCSEC
            if math.hypot(x, y) > 0.3 * size * PIXEL_SCALE_ARCSEC:
                break
        flux = log_uniform(rng, 20.0, 600.0) * sky_noise
        if rng.random() < 0.4:
            _, profile = _sersic(rng, 1.0, radius=(1.0, 3.0), min_axis_ratio=0.4)
        else:
            profile = galsim.DeltaFunction(gsparams=_ACCURACY)
            if rng.random() < 0.05:
                flux = log_uniform(rng, 2e5, 2e6)
        found.append((profile * flux).shift(x, y))
    return found


def expose(profile: galsim.GSObject, seeing: float, size: int) -> np.ndarray:
    """Light per pixel of a profile blurred by the seeing and the pixels.

    Parameters
    ----------
    profile : galsim.GSObject
        Light on the sky; lengths are arcsec from the centre of the stamp.
    seeing : float
        Full width at half maximum in arcsec.
    size : int
        Height and width of the stamp in pixels.

    Returns
    -------
    ndarray, shape (size, size), float64
        In the unit of the profile's flux.
    """
    image = galsim.ImageD(size, size, scale=PIXEL_SCALE_ARCSEC)
    blurred = galsim.Convolve(profile, _seeing_profile(seeing), gsparams=_ACCURACY)
    return blurred.drawImage(image).array


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A number from ``low`` to ``high``, both above 0 and in one unit, uniform in its logarithm."""
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def _star(rng: np.random.Generator, seeing: float, size: int) -> tuple[Shape, galsim.GSObject]:
    return {}, galsim.DeltaFunction(gsparams=_ACCURACY)


def _elliptical(
    rng: np.random.Generator, seeing: float, size: int
) -> tuple[Shape, galsim.GSObject]:
    return _sersic(rng, rng.choice((2.5, 4.0)), radius=(2.0, 5.0), min_axis_ratio=0.55)


def _spiral(rng: np.random.Generator, seeing: float, size: int) -> tuple[Shape, galsim.GSObject]:
    """Bulge and inclined exponential disc, brighter along two to four logarithmic arms."""
    scale_radius = rng.uniform(4.0, 6.5)
    axis_ratio = rng.uniform(0.5, 1.0)
    beta = rng.uniform(0.0, math.pi)
    n_arms = rng.choice((2, 2, 2, 3, 4))
    handedness = rng.choice((-1.0, 1.0))
    winding = handedness / math.tan(math.radians(rng.uniform(14.0, 28.0)))  # of the pitch angle
    phase = rng.uniform(0.0, 2.0 * math.pi)

    x, y = _canvas()
    along = x * math.cos(beta) + y * math.sin(beta)
    across = (y * math.cos(beta) - x * math.sin(beta)) / axis_ratio
    radius = np.hypot(along, across) + 1e-3
    azimuth = np.arctan2(across, along)
    ridge = np.cos(n_arms * (azimuth - winding * np.log(radius / scale_radius)) + phase)
    arms = np.exp(rng.uniform(1.5, 2.5) * ridge)
    arms *= 1.0 - np.exp(-((radius / scale_radius) ** 2))  # arms begin outside the bulge
    disc = np.exp(-radius / scale_radius) * (0.25 + arms)

    # Star-forming regions along the arms, each a blob of one to two arcsec.
    n_knots = 14
    knot_radius = scale_radius * rng.uniform(0.8, 3.0, n_knots)
    knot_azimuth = (
        winding * np.log(knot_radius / scale_radius)
        + (2.0 * math.pi * rng.integers(n_arms, size=n_knots) - phase) / n_arms
    )
    u, v = knot_radius * np.cos(knot_azimuth), axis_ratio * knot_radius * np.sin(knot_azimuth)
    weight = rng.exponential(2.0, n_knots) * np.exp(-knot_radius / scale_radius)
    disc += _beads(
        u * math.cos(beta) - v * math.sin(beta),
        u * math.sin(beta) + v * math.cos(beta),
        weight,
        width=1.2,
    )

    bulge_share = rng.uniform(0.08, 0.3)
    bulge = _unit_sersic(2.5).dilate(0.3 * scale_radius)
    shape = {
        "half_light_radius_arcsec": 1.678 * scale_radius,
        "ellipticity": 1.0 - axis_ratio,
        "position_angle_deg": _position_angle(beta),
    }
    return shape, _painted(disc) * (1.0 - bulge_share) + bulge * bulge_share


def _edge_on(rng: np.random.Generator, seeing: float, size: int) -> tuple[Shape, galsim.GSObject]:
    """Disc of finite thickness seen within 8 degrees of its plane, with or without a bulge."""
    scale_radius = rng.uniform(3.0, 6.5)
    thickness = rng.uniform(0.06, 0.14)  # scale height over scale radius
    inclination = math.radians(rng.uniform(82.0, 90.0))
    beta = rng.uniform(0.0, math.pi)
    bulge_share = max(0.0, rng.uniform(-0.1, 0.25))
    disc = galsim.InclinedExponential(
        inclination * galsim.radians,
        scale_radius=scale_radius,
        scale_h_over_r=thickness,
        gsparams=_ACCURACY,
    )
    bulge = _unit_sersic(2.5).dilate(0.3 * scale_radius).shear(q=0.7, beta=0.0 * galsim.radians)
    profile = disc * (1.0 - bulge_share) + bulge * bulge_share if bulge_share else disc
    # Apparent flattening of an oblate disc (Hubble 1926).
    axis_ratio = math.hypot(math.cos(inclination), thickness * math.sin(inclination))
    shape = {
        "half_light_radius_arcsec": 1.678 * scale_radius,
        "ellipticity": 1.0 - axis_ratio,
        "position_angle_deg": _position_angle(beta),
    }
    return shape, profile.rotate(beta * galsim.radians)


def _pair(rng: np.random.Generator, seeing: float, size: int) -> tuple[Shape, galsim.GSObject]:
    """Two galaxies that the seeing just separates; half of them with a tidal bridge and tails."""
    separation = max(rng.uniform(5.0, 12.0), 2.5 * seeing)
    beta = rng.uniform(0.0, 2.0 * math.pi)
    flux_ratio = rng.uniform(0.35, 1.0)
    dx, dy = 0.5 * separation * math.cos(beta), 0.5 * separation * math.sin(beta)
    shape, brighter = _sersic(rng, rng.choice(SERSIC_INDICES), (0.8, 2.0), min_axis_ratio=0.5)
    _, fainter = _sersic(rng, rng.choice(SERSIC_INDICES), (0.8, 2.0), min_axis_ratio=0.5)
    profile = brighter.shift(dx, dy) + fainter.shift(-dx, -dy) * flux_ratio
    if rng.random() < 0.5:
        # A curve shaped like an S through both nuclei: bridge in its middle, tails at its ends.
        t = np.linspace(-1.0, 1.0, 41)
        reach = 0.5 * separation + rng.uniform(6.0, 13.0)
        u = reach * t
        v = reach * rng.choice((-1.0, 1.0)) * rng.uniform(0.4, 1.0) * t**3
        tides = _beads(
            u * math.cos(beta) - v * math.sin(beta),
            u * math.sin(beta) + v * math.cos(beta),
            1.0 - 0.6 * np.abs(t),
            width=rng.uniform(0.8, 1.3),
        )
        profile = profile + _painted(tides) * rng.uniform(0.4, 0.9)
    shape |= {"position_angle_deg": _position_angle(beta), "separation_arcsec": separation}
    return shape, profile


def _trail(rng: np.random.Generator, seeing: float, size: int) -> tuple[Shape, galsim.GSObject]:
    """Evenly bright line: a satellite across the stamp or ending in it, or a short asteroid."""
    beta = rng.uniform(0.0, 2.0 * math.pi)
    off_stamp = 0.8 * size * PIXEL_SCALE_ARCSEC  # further out than its corners
    kind = rng.random()
    if kind < 0.5:
        start, end = -off_stamp, off_stamp
    elif kind < 0.75:
        start, end = rng.uniform(-0.3, 0.0) * size * PIXEL_SCALE_ARCSEC, off_stamp
    else:
        end = max(2.0 * seeing, rng.uniform(0.08, 0.25) * size * PIXEL_SCALE_ARCSEC)
        start = -end
    length = end - start
    line = galsim.Box(length, 0.1, gsparams=_ACCURACY).shift(0.5 * (start + end), 0.0)
    shape = {"position_angle_deg": _position_angle(beta), "length_arcsec": length}
    return shape, line.rotate(beta * galsim.radians)


_PROFILES: dict[str, Callable[[np.random.Generator, float, int], tuple[Shape, galsim.GSObject]]] = {
    "star": _star,
    "elliptical": _elliptical,
    "spiral": _spiral,
    "edge_on": _edge_on,
    "pair": _pair,
    "trail": _trail,
}


def _sersic(
    rng: np.random.Generator, index: float, radius: tuple[float, float], min_axis_ratio: float
) -> tuple[Shape, galsim.GSObject]:
    """Randomly sized (log-uniform in ``radius``, arcsec), flattened and turned Sersic profile."""
    half_light_radius = log_uniform(rng, *radius)
    axis_ratio = rng.uniform(min_axis_ratio, 1.0)
    beta = rng.uniform(0.0, math.pi)
    shape = {
        "half_light_radius_arcsec": half_light_radius,
        "ellipticity": 1.0 - axis_ratio,
        "position_angle_deg": _position_angle(beta),
    }
    profile = _unit_sersic(index).dilate(half_light_radius)
    # shear keeps the geometric mean of the axes, so the half-light radius is the circularised one
    return shape, profile.shear(q=axis_ratio, beta=beta * galsim.radians)


@cache
def _unit_sersic(index: float) -> galsim.GSObject:
    """Sersic profile with unit flux and half-light radius, cut at five of them.

    Without the cut, the wings of index 4 ask for a transform ten times the stamp.
    """
    return galsim.Sersic(index, half_light_radius=1.0, trunc=5.0, gsparams=_ACCURACY)


@cache
def _seeing_profile(seeing: float) -> galsim.GSObject:
    """Point spread function of unit flux: a Moffat profile, whose wings are those of real stars."""
    return galsim.Moffat(beta=3.5, fwhm=seeing, gsparams=_ACCURACY)


def _canvas() -> tuple[np.ndarray, np.ndarray]:
    """Coordinates x, shape (1, N), and y, shape (N, 1), in arcsec from the centre of the canvas."""
    axis = (np.arange(_PAINT_SIZE) - 0.5 * (_PAINT_SIZE - 1)) * PIXEL_SCALE_ARCSEC
    return axis[None, :], axis[:, None]


def _beads(x: np.ndarray, y: np.ndarray, weight: np.ndarray, width: float) -> np.ndarray:
    """Gaussian blobs of height ``weight`` and standard deviation ``width`` arcsec on the canvas.

    einsum, not a matrix product: the threads of a BLAS would compete with our processes.
    """
    canvas_x, canvas_y = _canvas()
    in_x = np.exp(-0.5 * ((canvas_x - x[:, None]) / width) ** 2)
    in_y = np.exp(-0.5 * ((canvas_y.T - y[:, None]) / width) ** 2)
    return np.einsum("k,ki,kj->ij", weight, in_y, in_x)


def _painted(canvas: np.ndarray) -> galsim.GSObject:
    """A profile of unit flux from surface brightness on the canvas, shape (N, N)."""
    image = galsim.ImageD(canvas, scale=PIXEL_SCALE_ARCSEC)
    # Its extent and finest detail are known: skip the search for both.
    return galsim.InterpolatedImage(
        image, flux=1.0, calculate_stepk=False, calculate_maxk=False, gsparams=_ACCURACY
    )


def _position_angle(beta: float) -> float:
    """Angle from north (+y) through east (-x) in [0, 180) deg of ``beta``, radians from +x."""
    return (math.degrees(beta) - 90.0) % 180.0
