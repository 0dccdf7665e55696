r"""Orientation, flux and neighbours apart from shape: a stamp as rings, and the rest.

The code is :math:`z = [\text{shape} \mid \text{flux} \mid \text{background} \mid \text{rest}]`, and
only the shape units are clustered. What the decoder draws, with :math:`S` the stretch of the
normalisation, :math:`h_r` functions that interpolate in radius and :math:`\sigma_c` the noise of a
pixel of sky, is

.. math::
    x_c = S\Big(f \sum_r \sigma_c\, s_{cr}\, h_r + b_c\Big) + (1 - P)\, \mathrm{rest}_c .

Flux multiplies *before* the stretch: a source of twice the flux has twice the light in every pixel
of the sky, not of its logarithm, so only there is its profile the same profile. P projects on the
:math:`h_r`: the rest cannot say what the profile says.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vae_astro.data.focus import informative_radius
from vae_astro.data.normalize import Normalizer
from vae_astro.data.rings import harmonic_power, radii, ring_edges, ring_means, ring_members
from vae_astro.errors import InputError
from vae_astro.model.decoders import ConvDecoder
from vae_astro.model.encoders import ConvEncoder
from vae_astro.model.posterior import DiagonalGaussian

__all__ = ["Measured", "RingSystem", "RingsDecoder", "RingsEncoder", "fit_rings"]

BRIGHTEST = 60.0
"""Where the stretched mean of a ring stops growing: 7e8 noises, whose square is finite."""
LARGEST_LOG_FLUX = 20.0
"""The same for the flux, as its inverse hyperbolic sine."""
MOST_STAMPS = 4096
"""Stamps that the rings are fitted to, at most."""
SMALLEST_SPREAD = 1e-3
FIRST_LOG_VAR = -2.0
"""Of the shape units: between a prior that says nothing and a posterior that says all."""


class Measured(NamedTuple):
    """What is measured on stamps, the same in all eight poses.

    Attributes
    ----------
    shape : Tensor, shape (B, D)
        Profiles of all bands, each ring weighted by its own precision, over the flux; shrunk to 0
        where nothing is seen. Followed by the harmonics, where they are asked for.
    log_flux : Tensor, shape (B,)
        Inverse hyperbolic sine of the flux, which is in units of its noise and has the sign of the
        light of all bands and rings together.
    background : Tensor, shape (B, C)
        Of the pixels beyond the outer radius, in units of their noise, above the usual.
    """

    shape: Tensor
    log_flux: Tensor
    background: Tensor


class RingSystem(nn.Module):
    """Where the rings lie, and how light and noise come in them; buffers, so checkpoints have it.

    Parameters
    ----------
    n_bands, size : int
        C, H = W.
    n_rings : int
        R.
    harmonics : int
        Angular orders whose power is measured beside the mean of a ring; 0 for none.
    normalizer : Normalizer
        Whose stretch is undone.
    """

    outer_radius: Tensor
    members: Tensor
    basis: Tensor
    projector: Tensor
    outside: Tensor
    n_pixels: Tensor
    noise: Tensor
    level: Tensor
    center: Tensor
    flux_center: Tensor
    flux_spread: Tensor
    background_spread: Tensor

    def __init__(
        self, n_bands: int, size: int, n_rings: int, harmonics: int, normalizer: Normalizer
    ) -> None:
        super().__init__()
        self.shape = (n_bands, size, size)
        self.n_rings = n_rings
        self.harmonics = harmonics
        self.normalizer = normalizer
        self.n_profile = n_bands * n_rings
        self.n_features = self.n_profile * (1 + harmonics)
        n_pixels = size * size
        shapes = {
            "outer_radius": (),
            "members": (n_rings, n_pixels),
            "basis": (n_pixels, n_rings),
            "projector": (n_rings, n_pixels),
            "outside": (n_pixels,),
            "n_pixels": (n_rings,),
            "level": (n_bands,),
            "center": (self.n_features,),
            "flux_center": (),
        }
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape))
        for name, shape in {
            "noise": (n_bands,),
            "flux_spread": (),
            "background_spread": (n_bands,),
        }.items():
            self.register_buffer(name, torch.ones(shape))
        self.reach(0.5 * size)

    def reach(self, outer_radius: float) -> None:
        """Lay the rings out to ``outer_radius``, in pixels."""
        size = self.shape[1]
        edges = ring_edges(self.n_rings, outer_radius)
        distance = radii(size, size).flatten()
        nodes = 0.5 * (edges[:-1] + edges[1:])
        basis = _interpolation(distance, nodes, float(edges[-1]))
        self.outer_radius.fill_(outer_radius)
        self.members.copy_(ring_members(size, size, edges))
        self.n_pixels.copy_(self.members.sum(1).clamp(min=1))
        self.outside.copy_((distance >= outer_radius).float())
        self.basis.copy_(basis)
        self.projector.copy_(torch.linalg.pinv(basis))

    # -- from stamps -------------------------------------------------------------------------

    def measure(self, image: Tensor) -> Measured:
        """Shape, flux and background of ``image`` (B, C, H, W), normalised.

        Masked pixels are 0 by contract and are left out; so is a good pixel of exactly the sky's
        level, which has nothing to say.
        """
        image = image.float()
        mask = image != 0
        mean = ring_means(image, mask, self.members).clamp(-BRIGHTEST, BRIGHTEST)
        background = self._background(image, mask)
        light = self.normalizer.unstretched(mean) - self.level[:, None]
        # in units of the noise of each ring's mean, so that all rings count by what they know
        profile = light / self.noise[:, None] - background[:, :, None]
        profile = (profile * self.n_pixels.sqrt()).flatten(1)
        square = profile.square().sum(1, keepdim=True)
        total = (profile * self._root_counts()).sum(1, keepdim=True)
        sign = torch.where(total < 0, -1.0, 1.0)
        # of pure noise the square is n_profile: its direction says nothing
        shape = sign * profile * square.sqrt() / (square + self.n_profile)
        flux = sign * square.sqrt()
        parts = [shape]
        # power, not phase: what is left of arms, companions and trails in all poses
        if self.harmonics:
            power = harmonic_power(image, mask, self.members, self.harmonics)
            power = (power / self.noise[:, None, None].square()).flatten(1)
            # less what noise alone gives, over the flux as the profile is
            amplitude = (power - 1).clamp(min=0).sqrt()
            parts.append(amplitude / (square.sqrt() + math.sqrt(self.n_profile)))
        return Measured(torch.cat(parts, 1), torch.asinh(flux[:, 0]), background)

    def _root_counts(self) -> Tensor:
        return self.n_pixels.sqrt().repeat(self.shape[0])

    def _background(self, image: Tensor, mask: Tensor) -> Tensor:
        """Mean of what lies outside, (B, C), in noises; what is brighter than two counts as two."""
        light = self.normalizer.unstretched(image.clamp(-BRIGHTEST, BRIGHTEST))
        light = (light - self.level[:, None, None]) / self.noise[:, None, None]
        weight = mask.flatten(2) * self.outside
        total = (light.flatten(2).clamp(-2, 2) * weight).sum(2)
        return total / weight.sum(2).clamp(min=1)

    # -- to stamps ---------------------------------------------------------------------------

    def draw(self, profile: Tensor, log_flux: Tensor, background: Tensor) -> Tensor:
        """The symmetric part (B, C, H, W), normalised, of what `measure` would say.

        Parameters
        ----------
        profile : Tensor, shape (B, C * R)
            As the first entries of ``shape``.
        log_flux : Tensor, shape (B,)
        background : Tensor, shape (B, C)
        """
        flux = torch.sinh(log_flux.clamp(-LARGEST_LOG_FLUX, LARGEST_LOG_FLUX))
        in_rings = profile.unflatten(1, (self.shape[0], self.n_rings)) / self.n_pixels.sqrt()
        light = flux[:, None, None] * in_rings @ self.basis.T + background[:, :, None]
        light = light * self.noise[:, None] + self.level[:, None]
        return self.normalizer.stretched(light).unflatten(2, self.shape[1:])

    def without_rings(self, rest: Tensor) -> Tensor:
        """``rest`` (B, C, H, W) less all that the profile could say."""
        flat = rest.flatten(2)
        return (flat - (flat @ self.projector.T) @ self.basis.T).unflatten(2, self.shape[1:])


def _interpolation(distance: Tensor, nodes: Tensor, outer_radius: float) -> Tensor:
    """Linear interpolation between ``nodes`` (R,), shape (D, R), float32.

    Constant within the innermost node; from the outermost it falls to 0 at the outer radius.
    """
    knots = torch.cat([nodes, nodes.new_tensor([outer_radius])])
    above = torch.searchsorted(knots, distance.contiguous()).clamp(1, len(knots) - 1)
    left, right = knots[above - 1], knots[above]
    share = ((distance - left) / (right - left)).clamp(0, 1)
    basis = torch.zeros(len(distance), len(knots), dtype=distance.dtype)
    rows = torch.arange(len(distance))
    basis[rows, above - 1] = 1 - share
    basis[rows, above] += share
    return basis[:, :-1].float()


class _LinearAndResidual(nn.Module):
    """A linear map plus a small network that starts at 0."""

    def __init__(self, n_in: int, n_out: int, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n_in, n_out)
        self.residual = nn.Sequential(
            nn.Linear(n_in, hidden), nn.SiLU(), nn.Linear(hidden, n_out, bias=False)
        )
        nn.init.zeros_(self.residual[-1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.residual(x)


class RingsEncoder(nn.Module):
    """Posterior of shape, flux, background and rest, each from what concerns it.

    The mean of the shape units depends on the measured shape alone, so it is the same in all eight
    poses; their variance on the flux too, since a faint source says less of its shape.

    Parameters
    ----------
    rings : RingSystem
        Shared with the decoder.
    shape_units, rest_units : int
        Latent units of the shape, and of the rest (0 for none).
    hidden : int
        Width of the small networks.
    width : int
        Channels of the convolutions of the rest.
    """

    def __init__(
        self, rings: RingSystem, shape_units: int, rest_units: int, hidden: int, width: int
    ) -> None:
        super().__init__()
        self.rings = rings
        n_bands, size, _ = rings.shape
        self.shape_mean = _LinearAndResidual(rings.n_features, shape_units, hidden)
        self.shape_log_var = nn.Sequential(
            nn.Linear(rings.n_features + 1, hidden), nn.SiLU(), nn.Linear(hidden, shape_units)
        )
        n_levels = 1 + n_bands
        self.gain = nn.Parameter(torch.ones(n_levels))
        self.level_log_var = nn.Linear(n_levels, n_levels)
        self.rest = ConvEncoder(n_bands, size, rest_units, width) if rest_units else None
        nn.init.zeros_(self.level_log_var.weight)
        nn.init.constant_(self.level_log_var.bias, FIRST_LOG_VAR)
        head = self.shape_log_var[-1]
        nn.init.zeros_(head.weight)  # type: ignore[arg-type]
        nn.init.constant_(head.bias, FIRST_LOG_VAR)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> DiagonalGaussian:
        """Posterior of ``image`` (B, C, H, W)."""
        rings = self.rings
        with _float32(image):
            measured = rings.measure(image)
            shape = measured.shape - rings.center
            flux = ((measured.log_flux - rings.flux_center) / rings.flux_spread)[:, None]
            levels = torch.cat([flux, measured.background / rings.background_spread], 1)
            means = [self.shape_mean(shape), self.gain * levels]
            log_vars = [
                self.shape_log_var(torch.cat([shape, flux], 1)),
                self.level_log_var(levels),
            ]
        if self.rest is not None:
            rest = self.rest(image)
            means.append(rest.mean)
            log_vars.append(rest.log_var)
        return DiagonalGaussian(torch.cat(means, 1), torch.cat(log_vars, 1))


class RingsDecoder(nn.Module):
    """Rings times flux plus background, through the stretch; and the rest without rings.

    Parameters
    ----------
    rings, shape_units, rest_units, hidden, width
        As in `RingsEncoder`.
    """

    def __init__(
        self, rings: RingSystem, shape_units: int, rest_units: int, hidden: int, width: int
    ) -> None:
        super().__init__()
        self.rings = rings
        n_bands, size, _ = rings.shape
        self.units = [shape_units, 1, n_bands, rest_units]
        self.profile = _LinearAndResidual(shape_units, rings.n_profile, hidden)
        n_told = rest_units + (shape_units if rings.harmonics else 0)
        self.rest = ConvDecoder(n_bands, size, n_told, width) if rest_units else None

    def forward(self, z: Tensor) -> Tensor:
        """Location (B, C, H, W) of code ``z`` (B, Z)."""
        rings = self.rings
        shape, flux, background, rest = z.split(self.units, dim=1)
        with _float32(z):
            symmetric = rings.draw(
                self.profile(shape.float()),
                rings.flux_center + rings.flux_spread * flux[:, 0].float(),
                rings.background_spread * background.float(),
            )
        if self.rest is None:
            return symmetric
        drawn = self.rest(torch.cat([shape, rest], 1) if rings.harmonics else rest)
        with _float32(z):
            return symmetric + rings.without_rings(drawn.float())


def _float32(like: Tensor) -> torch.autocast:
    """Sums over rings keep their digits where the convolutions compute in bfloat16."""
    return torch.autocast(like.device.type, enabled=False)


@torch.no_grad()
def fit_rings(
    encoder: RingsEncoder,
    decoder: RingsDecoder,
    batches: Iterable[Mapping[str, Tensor]],
    outer_radius: float | None,
) -> None:
    """Lay the rings out as the stamps need it, and start from their principal components.

    Parameters
    ----------
    encoder, decoder
        Of one network.
    batches : iterable
        Training stamps: ``image``, ``mask`` and ``noise``, each (B, C, H, W).
    outer_radius : float, optional
        Pixels; `informative_radius` of the stamps if absent.

    Raises
    ------
    InputError
        Fewer than two stamps.
    """
    parts: list[Mapping[str, Tensor]] = []
    for batch in batches:
        parts.append({name: batch[name].cpu() for name in ("image", "mask", "noise")})
        if sum(len(part["image"]) for part in parts) >= MOST_STAMPS:
            break
    if sum(len(part["image"]) for part in parts) < 2:
        raise InputError("model=rings needs at least 2 training stamps to lay its rings out")
    rings = encoder.rings
    image, mask, noise = (
        torch.cat([part[name] for part in parts]) for name in ("image", "mask", "noise")
    )
    light = rings.normalizer.unstretched(image)
    for band in range(rings.shape[0]):
        good = mask[:, band]
        if good.any():
            rings.noise[band] = noise[:, band][good].median()
            rings.level[band] = light[:, band][good].median()
    if outer_radius is None:
        level, sky_noise = rings.level[:, None, None], rings.noise[:, None, None]
        outer_radius = informative_radius((light - level) / sky_noise, mask)
    rings.reach(outer_radius)
    chunks = [rings.measure(chunk.to(rings.noise.device)) for chunk in image.split(512)]
    measured = Measured(*(torch.cat(column) for column in zip(*chunks, strict=True)))
    rings.center.copy_(measured.shape.mean(0))
    rings.flux_center.copy_(measured.log_flux.mean())
    rings.flux_spread.copy_(measured.log_flux.std().clamp(min=SMALLEST_SPREAD))
    spread = measured.background.std(0).clamp(min=SMALLEST_SPREAD)
    rings.background_spread.copy_(spread)
    _start_from_components(encoder, decoder, measured.shape - rings.center)


def _start_from_components(encoder: RingsEncoder, decoder: RingsDecoder, shape: Tensor) -> None:
    """Linear parts that are PCA of ``shape`` (N, D), its scores scaled to unit variance."""
    covariance = shape.double().T @ shape.double() / len(shape)
    values, vectors = torch.linalg.eigh(covariance)
    n_units = encoder.shape_mean.linear.out_features
    n_units = min(n_units, len(values))
    vectors = vectors.flip(1)[:, :n_units].float()
    spread = values.flip(0)[:n_units].clamp(min=SMALLEST_SPREAD**2).sqrt().float()
    rings = encoder.rings
    encoder.shape_mean.linear.weight[:n_units] = (vectors / spread).T
    encoder.shape_mean.linear.bias.zero_()
    for both in (encoder.shape_mean, decoder.profile):  # whatever they were drawn as
        nn.init.zeros_(both.residual[-1].weight)  # type: ignore[arg-type]
    profile = decoder.profile.linear
    profile.weight[:, :n_units] = (vectors * spread)[: rings.n_profile]
    profile.bias.copy_(rings.center[: rings.n_profile])
