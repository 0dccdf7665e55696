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

from vae_astro.data.sky import FILL_VALUE_LIMIT, measure_sky
from vae_astro.errors import InputError
from vae_astro.settings import check_choice, check_number

__all__ = ["NOISE_FLOOR", "NormalizedStamps", "Normalizer", "PixelScale", "Sky"]

NOISE_FLOOR = 1e-4
"""Smallest propagated noise: far above float32 rounding, so no pixel weighs infinitely much."""

LARGEST_EXPONENT = 40.0
"""Where the inverse stretches stop growing: a pixel of 1e17 noises, whose square is finite."""


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

    def sky(self, raw: Tensor, mask: Tensor) -> Sky:
        """Background of the good pixels of ``raw``, (B, C, H, W), as `measure_sky` has it.

        Measured on the CPU, wherever the pixels are.
        """
        level, noise = measure_sky(raw.detach().cpu().numpy(), mask.cpu().numpy())
        return Sky(torch.from_numpy(level).to(raw.device), torch.from_numpy(noise).to(raw.device))

    def __call__(
        self, raw: Tensor, sky: Sky | None = None, noise: Tensor | None = None
    ) -> NormalizedStamps:
        """Normalise a batch.

        Parameters
        ----------
        raw : Tensor, shape (B, C, H, W), float32
            Pixels as the file holds them.
        sky : Sky, optional
            Measured before with `measure_sky`; measured here if absent.
        noise : Tensor, shape (B, C, H, W), float32, optional
            Standard deviation of each pixel in raw units, in place of sky noise and ``gain``.
            Pixels where it is not finite or not positive are masked.
        """
        mask = self.good_pixels(raw)
        if noise is not None:
            mask &= (noise > 0) & (noise < FILL_VALUE_LIMIT)
        if sky is None:
            sky = self.sky(raw, mask)
        level, sky_noise = (value[:, :, None, None] for value in sky)
        clean = raw.where(mask, level)
        scale = self._scale(clean, mask, PixelScale(level, sky_noise))
        t = (clean - scale.zero) / scale.unit
        if noise is not None:
            std = noise.where(mask, sky_noise) / scale.unit
        elif self.gain is not None:
            signal = (clean - level).clamp(min=0) / scale.unit
            poisson = signal / (self._per_band("gain", raw) * scale.unit)
            std = ((sky_noise / scale.unit).square() + poisson).sqrt()
        else:
            std = sky_noise / scale.unit
        std = std * self._slope(t)
        image = t
        if self.stretch != "minmax":
            image = _STRETCHES[self.stretch].forward(t, self.softening)
        zero, one = image.new_zeros(()), image.new_ones(())
        std = std.clamp(min=NOISE_FLOOR).where(mask, one)
        return NormalizedStamps(image.where(mask, zero), mask, std, scale)

    def invert(self, image: Tensor, scale: PixelScale) -> Tensor:
        """Raw pixels of a normalised ``image`` (B, C, H, W): the inverse of `__call__`.

        Exact up to float32 rounding for every good pixel; a masked pixel comes back as the zero
        point of ``scale``.
        """
        return self.unstretched(image) * scale.unit + scale.zero

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
        seen, expected = self.unstretched(image), self.unstretched(location)
        return (seen - expected) * self._slope(seen) / noise

    def stretched(self, t: Tensor) -> Tensor:
        """Normalised pixels of ``t``, pixels above the sky in units of its noise; any shape."""
        if self.stretch == "minmax":
            return t
        return _STRETCHES[self.stretch].forward(t, self.softening)

    def unstretched(self, image: Tensor) -> Tensor:
        """The inverse of `stretched`, which stops growing at a pixel of 1e17 noises."""
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
        low = clean.where(mask, clean.new_full((), torch.inf)).amin((2, 3), keepdim=True)
        high = clean.where(mask, clean.new_full((), -torch.inf)).amax((2, 3), keepdim=True)
        span = high - low
        usable = (span > 0) & span.isfinite()  # constant stamps and bands without a good pixel
        return PixelScale(
            low.where(low.isfinite(), sky.zero), span.where(usable, span.new_ones(()))
        )

    def per_band(self, key: str, n_bands: int) -> list[float]:
        """One value of ``gain`` or ``saturation`` for each of ``n_bands`` bands, if it is set.

        Raises
        ------
        InputError
            If it has another number of values.
        """
        values = _as_list(getattr(self, key))
        if len(values) not in (1, n_bands):
            raise InputError(
                f"data.normalize.{key} has {len(values)} values but the stamps have {n_bands} "
                "bands; give one value, or one for each band"
            )
        return values * n_bands if len(values) == 1 else values

    def _per_band(self, key: str, raw: Tensor) -> Tensor:
        # filled on the device: a tensor made from numbers would be copied there, and waited for
        values = [raw.new_full((), value) for value in self.per_band(key, raw.shape[1])]
        return torch.stack(values)[:, None, None]


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


def _as_list(value: float | Sequence[float] | None) -> list[float]:
    if value is None:
        return []
    if isinstance(value, Sequence) and not isinstance(value, str):
        return list(value)
    return [value]
