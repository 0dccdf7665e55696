"""A soft central window over the pixels' log-density, so that neighbours cost nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from vae_astro.data.focus import informative_radius
from vae_astro.data.normalize import Normalizer
from vae_astro.data.rings import radii
from vae_astro.errors import InputError
from vae_astro.model.likelihoods import LIKELIHOODS, Likelihood
from vae_astro.settings import build, check_number

__all__ = ["FocusedLikelihood", "build_likelihood", "central_window", "trains_a_density"]

MOST_STAMPS = 4096
EDGE = 0.5
"""Width of the window's edge over its radius."""


def central_window(size: int, radius: float) -> Tensor:
    """Weight of each pixel, shape (size, size): 1 inside, half at ``radius``, 0 outside.

    The edge is half a cosine, `EDGE` times the radius wide. Pixels.
    """
    phase = (radii(size, size) - radius) / (EDGE * radius) + 0.5
    return (0.5 * (1 + torch.cos(math.pi * phase.clamp(0, 1)))).float()


class FocusedLikelihood(Likelihood):
    r"""Another likelihood, trained on :math:`\sum_i w_i \ln p(x_i | z)` with a central window w.

    The weighted sum is no density of the stamp: the bound that is trained on is one for a part of
    its pixels. `log_prob` is still that of all of them, unweighted, and so is every figure of
    validation; it is low where neighbours lie that nobody has modelled. A learned scale is that of
    the pixels whose weight is above one half.

    Parameters
    ----------
    inner : Likelihood
        A density.
    size : int
        H = W.
    radius : float, optional
        Where the weight is one half, in pixels; chosen by the training stamps if absent.
    normalizer : Normalizer
        Whose stretch is undone for that choice.
    """

    weight: Tensor

    def __init__(
        self, inner: Likelihood, size: int, radius: float | None, normalizer: Normalizer
    ) -> None:
        super().__init__()
        if not inner.is_density:
            raise InputError(
                "likelihood.focus_radius needs a likelihood that is a density; "
                "set it to null, or choose likelihood=sigma"
            )
        self.inner = inner
        self.size = size
        self.radius = radius
        self.normalizer = normalizer
        self.kl_weight = inner.kl_weight
        self.learns_scale = inner.learns_scale
        self.pixel_range = inner.pixel_range
        # a radius that is given stays so, whatever checkpoint weights are taken from
        window = central_window(size, radius or 0.5 * size)
        self.register_buffer("weight", window, persistent=radius is None)

    @property
    def trains_a_density(self) -> bool:
        """Never: pixels outside the window count for less."""
        return False

    @property
    def wants_stamps(self) -> bool:
        """See `Likelihood`."""
        return self.radius is None

    def prepare(self, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Choose the radius from training ``batches``, where it is not given."""
        if self.radius is not None:
            return
        parts = [
            ((self.normalizer.unstretched(batch["image"]) / _sky_noise(batch)), batch["mask"])
            for batch in batches
        ]
        light, mask = (torch.cat(column)[:MOST_STAMPS] for column in zip(*parts, strict=True))
        self.weight.copy_(central_window(self.size, informative_radius(light, mask)))

    @property
    def started(self) -> bool:  # type: ignore[override]
        """See `Likelihood`."""
        return self.inner.started

    @property
    def pixel_weight(self) -> Tensor:
        """See `Likelihood`; the window, shape (H, W)."""
        return self.weight

    def log_prob(self, image: Tensor, output: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        """Of all good pixels, unweighted."""
        return self.inner.log_prob(image, output, mask, noise)

    def log_density(self, image: Tensor, output: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        """Of all good pixels, unweighted."""
        return self.inner.log_density(image, output, mask, noise)

    def training_term(self, image: Tensor, output: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        """Weighted log-density of the good pixels, shape (B,), in nats of the pixels that count."""
        # pixels are independent given the code: each may stand as a stamp of its own
        single = [_as_single_pixels(values) for values in (image, output, mask, noise)]
        per_pixel = self.inner.log_density(*single).unflatten(0, (len(image), -1))
        return per_pixel @ self.weight.flatten()

    def check_range(self, low: float, high: float) -> None:
        """See `Likelihood`."""
        self.inner.check_range(low, high)

    def observe(self, image: Tensor, output: Tensor, mask: Tensor, noise: Tensor) -> None:
        """See `Likelihood`; where the weight is above one half."""
        self.inner.observe(image, output, mask & (self.weight > 0.5), noise)

    def settle(self, image: Tensor, output: Tensor, mask: Tensor, noise: Tensor) -> None:
        """See `Likelihood`; where the weight is above one half."""
        inside = (self.weight > 0.5).to(mask.device)
        self.inner.settle(image, output, mask & inside, noise)

    def location(self, output: Tensor) -> Tensor:
        """See `Likelihood`."""
        return self.inner.location(output)

    def learned(self) -> dict[str, Tensor]:
        """See `Likelihood`."""
        return self.inner.learned()


def build_likelihood(
    settings: Mapping[str, Any], *, n_bands: int, size: int, normalizer: Normalizer
) -> Likelihood:
    """The likelihood of these settings, behind a window where ``focus_radius`` asks for one.

    Raises
    ------
    InputError
        A setting that is unknown or out of range.
    """
    options = dict(settings)
    radius = options.pop("focus_radius", None)
    inner = build("likelihood", LIKELIHOODS, options, n_bands=n_bands)
    if radius is None:
        return inner
    if radius != "auto":
        radius = check_number("likelihood.focus_radius", radius, minimum=2)
    return FocusedLikelihood(inner, size, None if radius == "auto" else radius, normalizer)


def trains_a_density(settings: Any) -> bool:
    """`Likelihood.trains_a_density` of what `build_likelihood` makes of ``settings``, unbuilt.

    Parameters
    ----------
    settings : mapping or anything
        As `build_likelihood` takes them, or what was read from a file in their place.

    Returns
    -------
    bool
        False too where no likelihood is named.
    """
    if not isinstance(settings, Mapping):
        return False
    kind: Any = LIKELIHOODS.get(str(settings.get("name")))
    return kind is not None and kind.is_density and settings.get("focus_radius") is None


def _sky_noise(batch: Mapping[str, Tensor]) -> Tensor:
    """Median noise of each band's good pixels, shape (C, 1, 1)."""
    noise = batch["noise"].where(batch["mask"], torch.nan)
    return noise.transpose(0, 1).flatten(1).nanmedian(1).values.nan_to_num(1.0)[:, None, None]


def _as_single_pixels(values: Tensor) -> Tensor:
    """(B, C, H, W) to (B * H * W, C, 1, 1)."""
    return values.movedim(1, 3).flatten(0, 2)[:, :, None, None]
