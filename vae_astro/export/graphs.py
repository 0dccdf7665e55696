"""Encoder and decoder as plain modules of tensors: what leaves the package as a graph."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from vae_astro.export.sky import traced_sky
from vae_astro.model.posterior import DiagonalGaussian
from vae_astro.model.symmetry import GroupConv
from vae_astro.vae import VAE

__all__ = ["LocationDecoder", "RawEncoder"]


class RawEncoder(nn.Module):
    """Raw stamps to the posterior, normalisation inside.

    Parameters
    ----------
    vae : VAE
        Whose encoder and normalisation these are.
    """

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        # the parts of a network and not the whole: a program carries all weights of its module
        self.encoder = _with_fixed_filters(vae.network.encoder)
        self.minimum_rate = vae.network.minimum_rate
        self.normalizer = vae.normalizer

    def forward(self, stamps: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, each (N, Z), of raw ``stamps`` (N, C, H, W), float32.

        NaN, infinities, fill values and saturated pixels are left out, as `VAE.embed` has it.
        """
        sky = traced_sky(stamps, self.normalizer.good_pixels(stamps))
        said = self.encoder(self.normalizer(stamps, sky).image)
        posterior = self.minimum_rate(DiagonalGaussian(said.mean.float(), said.log_var.float()))
        return posterior.mean, posterior.log_var


class LocationDecoder(nn.Module):
    """Codes to expected pixels, in normalised units.

    Parameters
    ----------
    vae : VAE
        Whose decoder and likelihood these are.
    """

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.decoder = vae.network.decoder
        self.likelihood = vae.likelihood

    def forward(self, z: Tensor) -> Tensor:
        """Expected pixels (N, C, H, W) of codes ``z`` (N, Z); `VAE.decode`."""
        return self.likelihood.location(self.decoder(z).float())


def _with_fixed_filters(encoder: nn.Module) -> nn.Module:
    """An encoder whose group convolutions have drawn their filters once and for all.

    The eight poses of a filter are made of one at every pass in training; a graph of that has
    hundreds of operations more, and gives the same.
    """
    if not any(isinstance(module, GroupConv) for module in encoder.modules()):
        return encoder
    encoder = copy.deepcopy(encoder)
    for module in encoder.modules():
        if isinstance(module, GroupConv):
            with torch.no_grad():
                module.register_buffer("drawn", module.filters())
            module.filters = _drawn.__get__(module)  # type: ignore[method-assign]
            module.register_parameter("weight", None)
    return encoder


def _drawn(module: GroupConv) -> Tensor:
    filters: Tensor = module.drawn  # type: ignore[assignment]
    return filters
