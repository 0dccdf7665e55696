"""The simulated sky: what lies on a stamp, and how a detector would have recorded it.

One stamp is the light of one object (drawn in `vae_astro.data.profiles` and blurred by the seeing;
cosmic rays are not), the light of its neighbours, a flat sky, Poisson and read noise, a full well,
and now and then dead pixels or the edge of the detector. Numbers are close to those of a one-metre
survey such as ZTF (Bellm et al. 2019). Lengths on the sky are arcsec, lengths on the stamp are
pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import galsim
import numpy as np

from vae_astro.data.profiles import (
    PIXEL_SCALE_ARCSEC,
    class_profile,
    cosmic_ray,
    expose,
    log_uniform,
    neighbours,
)
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
SKY_LEVEL_ADU = (50.0, 400.0)
SIGNAL_TO_NOISE = (10.0, 300.0)
# Few values, because GalSim pays a set-up for every new one.
SEEING_ARCSEC = (1.5, 1.8, 2.1, 2.5, 3.0, 3.5)  # full width at half maximum

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
    sky_level = log_uniform(rng, *SKY_LEVEL_ADU)
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
            shape, light = cosmic_ray(rng, offset, size)
        else:
            shape, profile = class_profile(label, rng, seeing, size)
            light = expose(profile.shift(*(offset * PIXEL_SCALE_ARCSEC)), seeing, size)
        snr = log_uniform(rng, *SIGNAL_TO_NOISE)
        signal = _scaled_to(snr, light, sky_level)
        truth |= shape | {
            "snr": snr,
            "flux_adu": float(signal.sum()),
            "x_offset_px": float(offset[0]),
            "y_offset_px": float(offset[1]),
        }
        if others := neighbours(rng, truth["sky_noise_adu"], size):
            signal = signal + expose(galsim.Add(others), seeing, size)
            truth["n_neighbours"] = len(others)

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
