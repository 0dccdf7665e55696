"""The simulated sky: what each class looks like, and how a detector would have recorded it.

One stamp is the light of one object (drawn by GalSim and blurred by the seeing; cosmic rays are
not), the light of its neighbours, a flat sky, Poisson and read noise, a full well, and now and then
dead pixels or the edge of the detector. Numbers are close to those of a one-metre survey such as
ZTF (Bellm et al. 2019). Lengths on the sky are arcsec, lengths on the stamp are pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import galsim
import numpy as np

from vae_astro.errors import InputError

__all__ = [
    "CLASSES",
    "GAIN_E_PER_ADU",
    "PIXEL_SCALE_ARCSEC",
    "READ_NOISE_E",
    "SATURATION_ADU",
    "SEEING_ARCSEC",
    "TRUTH_COLUMNS",
    "SimulatedStamp",
    "draw_stamp",
    "signal_to_noise",
]

CLASSES: tuple[str, ...] = (
    "star",
    "elliptical",
    "spiral",
    "edge_on",
    "pair",
    "trail",
    "cosmic_ray",
    "empty",
)

GAIN_E_PER_ADU = 6.2
READ_NOISE_E = 10.0
SATURATION_ADU = 50_000.0  # full well; every value above is clipped to it
PIXEL_SCALE_ARCSEC = 1.0  # per pixel
SKY_LEVEL_ADU = (50.0, 400.0)
SIGNAL_TO_NOISE = (10.0, 300.0)
# Few values, because GalSim pays a set-up for every new one.
SEEING_ARCSEC = (1.5, 1.8, 2.1, 2.5, 3.0, 3.5)  # full width at half maximum
SERSIC_INDICES = (1.0, 2.5, 4.0)

TRUTH_COLUMNS: tuple[str, ...] = (
    "snr",
    "flux_adu",
    "seeing_arcsec",
    "sky_level_adu",
    "sky_noise_adu",
    "x_offset_px",
    "y_offset_px",
    "half_light_radius_arcsec",
    "ellipticity",
    "position_angle_deg",
    "separation_arcsec",
    "length_arcsec",
    "n_neighbours",
    "n_bad_pixels",
    "n_saturated_pixels",
)

# Folding of 1 % instead of 0.5 % halves the largest transforms; the rest are GalSim's defaults,
# since the ringing of a looser one would show around saturated stars.
_ACCURACY = galsim.GSParams(folding_threshold=1e-2)
_PAINT_SIZE = 80  # pixels of the canvas that spiral arms and tidal tails are painted on


@dataclass(frozen=True)
class SimulatedStamp:
    """One drawn stamp and everything that is known of it.

    Attributes
    ----------
    pixels : ndarray, shape (size, size), float32
        ADU, sky included, at most `SATURATION_ADU`; NaN where a pixel is dead or off the detector.
    label : str
        One of `CLASSES`.
    id : str
        ``sim{seed}-{index:08d}``.
    ra, dec : float
        ICRS position of the centre of the stamp in degrees.
    truth : dict
        One number for each of `TRUTH_COLUMNS`, NaN where it has no meaning for the class.

        ``snr`` is `signal_to_noise` of the main object; ``flux_adu`` its light on the stamp before
        noise; ``sky_noise_adu`` the standard deviation of a pixel of bare sky. The offsets are
        those of the object (of the midpoint of a pair, of a point on a trail or track) from the
        centre of the stamp. ``half_light_radius_arcsec`` (circularised for elliptical and pair,
        where it is that of the brighter galaxy; that of the disc seen face-on for spiral and
        edge_on), ``ellipticity`` (1 - b/a) and ``position_angle_deg`` (north through east, 0 to
        180) are those before the seeing; a pair's angle is that of the line through both nuclei,
        ``separation_arcsec`` its length. ``length_arcsec`` is that of a trail or track, beyond the
        stamp included.
    """

    pixels: np.ndarray = field(repr=False)
    label: str
    id: str
    ra: float
    dec: float
    truth: dict[str, float]


def draw_stamp(index: int, *, seed: int, size: int = 63) -> SimulatedStamp:
    """Draw stamp number ``index`` of a simulation.

    A pure function of its arguments: every stamp has a random generator of its own, so it does not
    matter which process draws it, nor which stamps were drawn before.

    Parameters
    ----------
    index : int
        Number of the stamp, from 0.
    seed : int
        Seed of the simulation, 0 or more.
    size : int
        Height and width in pixels, 16 or more.

    Returns
    -------
    SimulatedStamp

    Raises
    ------
    InputError
        If ``seed`` or ``size`` is out of range.
    """
    if size < 16:
        raise InputError(f"data.size must be at least 16 pixels, got {size}")
    if seed < 0:
        raise InputError(f"seed must be 0 or more, got {seed}")
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index,)))
    label = CLASSES[rng.integers(len(CLASSES))]
    # Rounded so that header, catalogue and memory hold the same number.
    ra = round(rng.uniform(0.0, 360.0), 7) % 360.0
    dec = round(math.degrees(math.asin(rng.uniform(-1.0, 1.0))), 7)
    seeing = SEEING_ARCSEC[rng.integers(len(SEEING_ARCSEC))]
    sky_level = _log_uniform(rng, *SKY_LEVEL_ADU)
    truth = dict.fromkeys(TRUTH_COLUMNS, math.nan) | {
        "seeing_arcsec": seeing,
        "sky_level_adu": sky_level,
        "sky_noise_adu": float(_noise_std(0.0, sky_level)),
        "n_neighbours": 0,
    }

    signal = np.zeros((size, size))
    if label != "empty":
        offset = rng.normal(0.0, 0.7, size=2)  # 1 pixel rms in two dimensions
        if label == "cosmic_ray":
            shape, light = _cosmic_ray(rng, offset, size)
        else:
            shape, profile = _PROFILES[label](rng, seeing, size)
            light = _expose(profile.shift(*(offset * PIXEL_SCALE_ARCSEC)), seeing, size)
        snr = _log_uniform(rng, *SIGNAL_TO_NOISE)
        signal = _scaled_to(snr, light, sky_level)
        truth |= shape | {
            "snr": snr,
            "flux_adu": float(signal.sum()),
            "x_offset_px": float(offset[0]),
            "y_offset_px": float(offset[1]),
        }
        neighbours = _neighbours(rng, sky_level, size)
        if neighbours:
            signal = signal + _expose(galsim.Add(neighbours), seeing, size)
            truth["n_neighbours"] = len(neighbours)

    pixels = _record(rng, signal, sky_level)
    truth["n_saturated_pixels"] = int(np.count_nonzero(pixels >= SATURATION_ADU))
    pixels[_bad_pixels(rng, size)] = np.nan
    truth["n_bad_pixels"] = int(np.count_nonzero(np.isnan(pixels)))
    return SimulatedStamp(pixels, label, f"sim{seed}-{index:08d}", ra, dec, truth)


def signal_to_noise(signal: np.ndarray, sky_level: float) -> float:
    r"""Matched-filter signal-to-noise of an object whose shape is known.

    :math:`\sqrt{\sum_i s_i^2 / \sigma_i^2}` over the pixels of the stamp, with
    :math:`\sigma_i^2 = (\max(s_i, 0) + b) / g + (r / g)^2` in ADU squared, for the light
    :math:`s` of the object alone, sky :math:`b`, gain :math:`g` and read noise :math:`r` (Horne
    1986). Neighbours, dead pixels and saturation are left out of it.

    Parameters
    ----------
    signal : ndarray, shape (H, W)
        Noiseless light of the object in ADU, without sky.
    sky_level : float
        ADU per pixel.

    Returns
    -------
    float
    """
    return float(np.sqrt(np.sum((signal / _noise_std(signal, sky_level)) ** 2)))


def _noise_std(signal: np.ndarray | float, sky_level: float) -> np.ndarray:
    """Standard deviation of a pixel in ADU: shot noise of object and sky, and read noise."""
    shot = (np.maximum(signal, 0.0) + sky_level) / GAIN_E_PER_ADU
    return np.sqrt(shot + (READ_NOISE_E / GAIN_E_PER_ADU) ** 2)


def _scaled_to(snr: float, light: np.ndarray, sky_level: float) -> np.ndarray:
    """``light`` times the factor that gives it a `signal_to_noise` of ``snr``.

    S/N grows as flux to a power between 1/2 (bright) and 1 (faint); stepping with 2/3 shrinks the
    error at least threefold each time, so twenty steps reach rounding.
    """
    signal = light * (snr / signal_to_noise(light, sky_level))
    for _ in range(20):
        ratio = snr / signal_to_noise(signal, sky_level)
        if abs(ratio - 1.0) < 1e-9:
            break
        signal = signal * ratio**1.4
    return signal


def _record(rng: np.random.Generator, signal: np.ndarray, sky_level: float) -> np.ndarray:
    """What the detector reads: float32 ADU with noise as in `_noise_std`, clipped at full well."""
    electrons = rng.poisson((np.maximum(signal, 0.0) + sky_level) * GAIN_E_PER_ADU)
    recorded = (electrons + rng.normal(0.0, READ_NOISE_E, signal.shape)) / GAIN_E_PER_ADU
    return np.minimum(recorded, SATURATION_ADU).astype(np.float32)


def _bad_pixels(rng: np.random.Generator, size: int) -> np.ndarray:
    """Mask, shape (size, size), of dead pixels (6 % of stamps), columns (2 %) and edges (4 %)."""
    bad = np.zeros((size, size), dtype=bool)
    if rng.random() < 0.06:
        n_dead = rng.integers(1, 9)
        bad[rng.integers(size, size=n_dead), rng.integers(size, size=n_dead)] = True
    if rng.random() < 0.02:
        bad[:, rng.integers(size)] = True
    if rng.random() < 0.04:
        # Less than half the stamp: a survey would not report an object that is off the detector.
        depth = rng.integers(2, max(3, int(0.4 * size)))
        strip = slice(0, depth) if rng.random() < 0.5 else slice(size - depth, size)
        bad[(strip, slice(None)) if rng.random() < 0.5 else (slice(None), strip)] = True
    return bad


@cache
def _seeing_profile(seeing: float) -> galsim.GSObject:
    """Point spread function of unit flux: a Moffat profile, whose wings are those of real stars."""
    return galsim.Moffat(beta=3.5, fwhm=seeing, gsparams=_ACCURACY)


@cache
def _unit_sersic(index: float) -> galsim.GSObject:
    """Sersic profile with unit flux and half-light radius, cut at five of them.

    Without the cut, the wings of index 4 ask for a transform ten times the stamp.
    """
    return galsim.Sersic(index, half_light_radius=1.0, trunc=5.0, gsparams=_ACCURACY)


def _expose(profile: galsim.GSObject, seeing: float, size: int) -> np.ndarray:
    """Light per pixel, shape (size, size), of a profile blurred by seeing and pixels."""
    image = galsim.ImageD(size, size, scale=PIXEL_SCALE_ARCSEC)
    blurred = galsim.Convolve(profile, _seeing_profile(seeing), gsparams=_ACCURACY)
    return blurred.drawImage(image).array


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def _position_angle(beta: float) -> float:
    """Angle from north (+y) through east (-x) in [0, 180) deg of ``beta``, radians from +x."""
    return (math.degrees(beta) - 90.0) % 180.0


_Shape = dict[str, float]


def _sersic(
    rng: np.random.Generator, index: float, radius: tuple[float, float], min_axis_ratio: float
) -> tuple[_Shape, galsim.GSObject]:
    """Randomly sized (log-uniform in ``radius``, arcsec), flattened and turned Sersic profile."""
    half_light_radius = _log_uniform(rng, *radius)
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


def _star(rng: np.random.Generator, seeing: float, size: int) -> tuple[_Shape, galsim.GSObject]:
    return {}, galsim.DeltaFunction(gsparams=_ACCURACY)


def _elliptical(
    rng: np.random.Generator, seeing: float, size: int
) -> tuple[_Shape, galsim.GSObject]:
    return _sersic(rng, rng.choice((2.5, 4.0)), radius=(2.0, 5.0), min_axis_ratio=0.55)


def _spiral(rng: np.random.Generator, seeing: float, size: int) -> tuple[_Shape, galsim.GSObject]:
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


def _edge_on(rng: np.random.Generator, seeing: float, size: int) -> tuple[_Shape, galsim.GSObject]:
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


def _pair(rng: np.random.Generator, seeing: float, size: int) -> tuple[_Shape, galsim.GSObject]:
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


def _trail(rng: np.random.Generator, seeing: float, size: int) -> tuple[_Shape, galsim.GSObject]:
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


_PROFILES: dict[
    str, Callable[[np.random.Generator, float, int], tuple[_Shape, galsim.GSObject]]
] = {
    "star": _star,
    "elliptical": _elliptical,
    "spiral": _spiral,
    "edge_on": _edge_on,
    "pair": _pair,
    "trail": _trail,
}


def _cosmic_ray(
    rng: np.random.Generator, offset: np.ndarray, size: int
) -> tuple[_Shape, np.ndarray]:
    """Charge of one particle, shape (size, size): a dot, a straight track or a wandering worm.

    It never passed the atmosphere or the optics, so each step falls into one pixel, unblurred.
    """
    length = _log_uniform(rng, 1.0, 0.5 * size)  # pixels
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


def _neighbours(rng: np.random.Generator, sky_level: float, size: int) -> list[galsim.GSObject]:
    """Stars and small galaxies away from the centre, in ADU: in two stamps of five, one to three.

    One star in twenty is bright enough to saturate.
    """
    if rng.random() > 0.4:
        return []
    neighbours = []
    for _ in range(rng.integers(1, 4)):
        while True:
            x, y = rng.uniform(-0.5 * size, 0.5 * size, size=2) * PIXEL_SCALE_ARCSEC
            if math.hypot(x, y) > 0.3 * size * PIXEL_SCALE_ARCSEC:
                break
        flux = _log_uniform(rng, 20.0, 600.0) * float(_noise_std(0.0, sky_level))
        if rng.random() < 0.4:
            _, profile = _sersic(rng, 1.0, radius=(1.0, 3.0), min_axis_ratio=0.4)
        else:
            profile = galsim.DeltaFunction(gsparams=_ACCURACY)
            if rng.random() < 0.05:
                flux = _log_uniform(rng, 2e5, 2e6)
        neighbours.append((profile * flux).shift(x, y))
    return neighbours


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
