"""Raw pixels to numbers a network can learn from, and back; batched and without fitted state.

Each stamp and band is measured against its own sky, so nothing has to be learned from a data set:
the settings alone travel in the checkpoint, and the same stamp always gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vae_astro.errors import InputError
from vae_astro.settings import check_choice, check_number

__all__ = ["FILL_VALUE_LIMIT", "NormalizedStamps", "Normalizer", "PixelScale", "Sky", "measure_sky"]

FILL_VALUE_LIMIT = 1e18
"""Magnitude from which a finite value is a fill value (-3.4e38 in ZTF templates), not light.

Its square still fits in float32.
"""

NOISE_FLOOR = 1e-4
"""Smallest propagated noise: far above float32 rounding, so no pixel weighs infinitely much."""

LARGEST_EXPONENT = 40.0
"""Where the inverse stretches stop growing: a pixel of 1e17 noises, whose square is finite."""

MAD_TO_STD = 1.4826022185056018
"""Standard deviation of a Gaussian over its median absolute deviation."""


class Sky(NamedTuple):
    """Background of each stamp and band, in raw units, each (B, C) float32."""

    level: Tensor
    noise: Tensor


class PixelScale(NamedTuple):
    """The linear part of a normalisation, each (B, C, 1, 1): ``t = (raw - zero) / unit``."""

    zero: Tensor
    unit: Tensor


class NormalizedStamps(NamedTuple):
    """What a network sees of a batch, each (B, C, H, W).

    Attributes
    ----------
    image : Tensor, float32
        Normalised pixels; 0 where masked.
    mask : Tensor, bool
        True where the pixel is good.
    noise : Tensor, float32
        Standard deviation of each pixel in the units of ``image``; 1 where masked.
    scale : PixelScale
        What `Normalizer.invert` needs.
    """

    image: Tensor
    mask: Tensor
    noise: Tensor
    scale: PixelScale


@dataclass(frozen=True)
class Normalizer:
    r"""Sky subtraction, noise scaling and a stretch, with an exact inverse.

    With t the pixel in units of its sky noise, :math:`t = (x - \mathrm{sky}) / \sigma`, the
    stretches are ``linear`` t; ``asinh`` :math:`a\,\mathrm{asinh}(t / a)`, which leaves the sky
    noise at 1 and compresses what is brighter than a; ``log``
    :math:`a\,\mathrm{sign}(t) \ln(1 + |t| / a)`; ``minmax`` (x - min) / (max - min), as many
    tutorials have it. Noise is propagated to first order through each.

    Parameters
    ----------
    stretch : {"asinh", "linear", "log", "minmax"}
        See above.
    softening : float
        a, in units of the sky noise.
    gain : float or sequence of float, optional
        Electrons per raw unit, for all bands or for each; adds the Poisson noise of the source,
        ``max(x - sky, 0) / gain`` in variance. Without it the noise is that of the sky.
    saturation : float or sequence of float, optional
        Raw value from which a pixel is masked, for all bands or for each.

    Raises
    ------
    InputError
        A setting out of range.

    Notes
    -----
    NaN, infinities, fill values and saturated pixels are masked. A stamp without noise (constant,
    or more than half of it one value) takes its standard deviation for the noise, and 1 raw unit
    if that is zero too: its pixels then stay finite.
    """

    stretch: str = "asinh"
    softening: float = 3.0
    gain: float | Sequence[float] | None = None
    saturation: float | Sequence[float] | None = None

    def __post_init__(self) -> None:
        check_choice("data.normalize.stretch", self.stretch, (*_STRETCHES, "minmax"))
        check_number("data.normalize.softening", self.softening, above=0)
        for key in ("gain", "saturation"):
            for value in _as_list(getattr(self, key)):
                check_number(f"data.normalize.{key}", value, above=0)

    def good_pixels(self, raw: Tensor) -> Tensor:
        """Mask of ``raw`` (B, C, H, W), True where the value is light and not a defect."""
        good = raw.abs() < FILL_VALUE_LIMIT  # False for NaN and infinities too
        if self.saturation is not None:
            good &= raw < self._per_band("saturation", raw)
        return good

    def __call__(self, raw: Tensor, sky: Sky | None = None) -> NormalizedStamps:
        """Normalise a batch.

        Parameters
        ----------
        raw : Tensor, shape (B, C, H, W), float32
            Pixels as the file holds them.
        sky : Sky, optional
            Measured before with `measure_sky`; measured here if absent.
        """
        mask = self.good_pixels(raw)
        if sky is None:
            sky = measure_sky(raw, mask)
        level, sky_noise = (value[:, :, None, None] for value in sky)
        clean = raw.where(mask, level)
        scale = self._scale(clean, mask, PixelScale(level, sky_noise))
        t = (clean - scale.zero) / scale.unit
        noise = sky_noise / scale.unit
        if self.gain is not None:
            signal = (clean - level).clamp(min=0) / scale.unit
            poisson = signal / (self._per_band("gain", raw) * scale.unit)
            noise = (noise.square() + poisson).sqrt()
        noise = noise * self._slope(t)
        image = t
        if self.stretch != "minmax":
            image = _STRETCHES[self.stretch].forward(t, self.softening)
        zero, one = image.new_zeros(()), image.new_ones(())
        noise = noise.clamp(min=NOISE_FLOOR).where(mask, one)
        return NormalizedStamps(image.where(mask, zero), mask, noise, scale)

    def invert(self, image: Tensor, scale: PixelScale) -> Tensor:
        """Raw pixels of a normalised ``image`` (B, C, H, W): the inverse of `__call__`.

        Exact up to float32 rounding for every good pixel; a masked pixel comes back as the zero
        point of ``scale``.
        """
        return self._unstretched(image) * scale.unit + scale.zero

    def residual(self, image: Tensor, location: Tensor, noise: Tensor) -> Tensor:
        """Difference between stamp and model in units of the pixel noise, before the stretch.

        Squared, it averages 1 over the pixels of a perfect model; a few per cent less with a
        gain, because the Poisson variance is that of the noisy pixel. After a stretch it would
        not: asinh with a softening of 3 would read 1.2, its slope being that of the noisy pixel.

        Parameters
        ----------
        image, location, noise : Tensor, shape (B, C, H, W)
            Normalised stamp, expected pixels, and noise as `NormalizedStamps` has it.
        """
        seen, expected = self._unstretched(image), self._unstretched(location)
        return (seen - expected) * self._slope(seen) / noise

    def _unstretched(self, image: Tensor) -> Tensor:
        if self.stretch == "minmax":
            return image
        return _STRETCHES[self.stretch].inverse(image, self.softening)

    def _slope(self, t: Tensor) -> Tensor:
        if self.stretch == "minmax":
            return torch.ones_like(t)
        return _STRETCHES[self.stretch].slope(t, self.softening)

    def _scale(self, clean: Tensor, mask: Tensor, sky: PixelScale) -> PixelScale:
        if self.stretch != "minmax":
            return sky
        low = clean.where(mask, clean.new_tensor(torch.inf)).amin((2, 3), keepdim=True)
        high = clean.where(mask, clean.new_tensor(-torch.inf)).amax((2, 3), keepdim=True)
        span = high - low
        usable = (span > 0) & span.isfinite()  # constant stamps and bands without a good pixel
        return PixelScale(
            low.where(low.isfinite(), sky.zero), span.where(usable, span.new_ones(()))
        )

    def _per_band(self, key: str, raw: Tensor) -> Tensor:
        values = _as_list(getattr(self, key))
        n_bands = raw.shape[1]
        if len(values) not in (1, n_bands):
            raise InputError(
                f"data.normalize.{key} has {len(values)} values but the stamps have {n_bands} "
                "bands; give one value, or one for each band"
            )
        return raw.new_tensor(values)[:, None, None]


def measure_sky(raw: Tensor, mask: Tensor, *, n_clips: int = 3, clip: float = 3.0) -> Sky:
    """Median and MAD-based noise of each stamp and band, sources clipped away.

    Parameters
    ----------
    raw : Tensor, shape (B, C, H, W), float32
        Pixels in raw units.
    mask : Tensor, shape (B, C, H, W), bool
        True where good.
    n_clips : int
        How often pixels further than ``clip`` noises from the median are set aside.
    clip : float
        Clipping distance in units of the noise.

    Returns
    -------
    Sky
        Level 0 and noise 1 for a band without a good pixel. Where the MAD is zero (more than half
        of the pixels are equal) the noise is the standard deviation, or 1 if that is zero as well.
    """
    shape = raw.shape[:2]
    pixels = raw.flatten(2).flatten(0, 1)
    good = mask.flatten(2).flatten(0, 1)
    ordered = pixels.where(good, pixels.new_tensor(torch.inf)).sort(dim=1).values
    count = good.sum(1)
    first, last = torch.zeros_like(count), count
    level, noise = _median_and_mad(ordered, first, last)
    for _ in range(n_clips):
        # sorted once: what lies within the clip is a range of positions, never a new array
        reach = (clip * noise)[:, None]
        first = torch.searchsorted(ordered, level[:, None] - reach)[:, 0]
        last = torch.searchsorted(ordered, level[:, None] + reach, right=True)[:, 0].minimum(count)
        clipped_level, clipped_noise = _median_and_mad(ordered, first, last)
        # a MAD of zero would clip everything but one value away
        keep = noise > 0
        level, noise = clipped_level.where(keep, level), clipped_noise.where(keep, noise)
    empty, flat = count == 0, noise <= 0
    if bool(flat.any()):
        spread = _std(pixels, good)
        noise = noise.where(~flat, spread.where(spread > 0, spread.new_ones(())))
    # a noise-free simulation has wings of 1e-32: no pixel may lie so far out that its square
    # leaves float32
    reach = _at(ordered, count - 1) - ordered[:, 0]
    noise = noise.maximum(reach / FILL_VALUE_LIMIT)
    zero, one = level.new_zeros(()), level.new_ones(())
    return Sky(level.where(~empty, zero).view(shape), noise.where(~empty, one).view(shape))


class _Stretch(NamedTuple):
    """A monotonic function of t, its derivative and its inverse, each given softening a."""

    forward: Callable[[Tensor, float], Tensor]
    slope: Callable[[Tensor, float], Tensor]
    inverse: Callable[[Tensor, float], Tensor]


_STRETCHES = {
    "linear": _Stretch(lambda t, a: t, lambda t, a: torch.ones_like(t), lambda y, a: y),
    "asinh": _Stretch(
        lambda t, a: a * torch.asinh(t / a),
        lambda t, a: torch.rsqrt(1 + (t / a).square()),
        lambda y, a: a * torch.sinh((y / a).clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT)),
    ),
    "log": _Stretch(
        lambda t, a: a * t.sign() * (t.abs() / a).log1p(),
        lambda t, a: 1 / (1 + t.abs() / a),
        lambda y, a: a * y.sign() * (y.abs() / a).clamp(max=LARGEST_EXPONENT).expm1(),
    ),
}


def _median_and_mad(ordered: Tensor, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Median and scaled MAD of positions ``first`` to ``last`` (exclusive) of each sorted row."""
    count = last - first
    level = 0.5 * (_at(ordered, first + (count - 1) // 2) + _at(ordered, first + count // 2))
    mad = 0.5 * (
        _nth_deviation(ordered, level, first, last, (count - 1) // 2 + 1)
        + _nth_deviation(ordered, level, first, last, count // 2 + 1)
    )
    return level, MAD_TO_STD * mad


def _nth_deviation(
    ordered: Tensor, level: Tensor, first: Tensor, last: Tensor, n: Tensor
) -> Tensor:
    """The n-th smallest distance from ``level`` in each sorted row, without another sort.

    The n nearest values are neighbours in the row. As a window of n values moves right, its left
    edge comes nearer to the level and its right edge goes away: bisect for where they balance.
    """
    low, high = first, (last - n).maximum(first)
    for _ in range(ordered.shape[1].bit_length()):
        middle = (low + high) // 2
        balanced = _at(ordered, middle + n - 1) - level >= level - _at(ordered, middle)
        low, high = low.where(balanced, (middle + 1).minimum(high)), middle.where(balanced, high)

    def reach(start: Tensor) -> Tensor:
        right, left = _at(ordered, start + n - 1) - level, level - _at(ordered, start)
        return right.maximum(left)

    return reach(low).minimum(reach((low - 1).maximum(first)))


def _at(ordered: Tensor, position: Tensor) -> Tensor:
    """One value of each row."""
    return ordered.gather(1, position.clamp(0, ordered.shape[1] - 1)[:, None])[:, 0]


def _std(pixels: Tensor, good: Tensor) -> Tensor:
    """Standard deviation of the good pixels of each row."""
    values = pixels.double().where(good, pixels.new_zeros((), dtype=torch.float64))
    n_good = good.sum(1).clamp(min=1)
    mean = values.sum(1) / n_good
    deviation = (values - mean[:, None]).where(good, values.new_zeros(()))
    return (deviation.square().sum(1) / n_good).sqrt().to(pixels.dtype)


def _as_list(value: float | Sequence[float] | None) -> list[float]:
    if value is None:
        return []
    if isinstance(value, Sequence) and not isinstance(value, str):
        return list(value)
    return [value]
