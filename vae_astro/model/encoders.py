"""Stamps to posteriors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from vae_astro.model.blocks import GRID, ResidualBlock, padded_size
from vae_astro.model.posterior import DiagonalGaussian

__all__ = ["ConvEncoder", "LinearEncoder", "MLPEncoder", "QuestionEncoder"]


class LinearEncoder(nn.Module):
    """Mean linear in the pixels, one variance per unit for all stamps (Lucas et al. 2019).

    This is all the encoder that a linear decoder can use: the posterior of probabilistic PCA has
    exactly this form.

    Parameters
    ----------
    n_bands, size, latent_dim : int
        C, H = W and Z.
    """

    def __init__(self, n_bands: int, size: int, latent_dim: int) -> None:
        super().__init__()
        self.mean = nn.Linear(n_bands * size * size, latent_dim)
        self.log_var = nn.Parameter(torch.zeros(latent_dim))

    def forward(self, image: Tensor) -> DiagonalGaussian:
        """Posterior of ``image`` (B, C, H, W)."""
        mean = self.mean(image.flatten(1))
        return DiagonalGaussian(mean, self.log_var.expand_as(mean))


class MLPEncoder(nn.Module):
    """Dense layers on the flattened stamp: knows nothing of neighbouring pixels.

    Parameters
    ----------
    n_bands, size, latent_dim : int
        C, H = W and Z.
    hidden : sequence of int
        Widths of the hidden layers, from the pixels to the code.
    """

    def __init__(self, n_bands: int, size: int, latent_dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        widths = (n_bands * size * size, *hidden)
        layers = (
            nn.Sequential(nn.Linear(n_in, n_out), nn.SiLU()) for n_in, n_out in pairwise(widths)
        )
        self.trunk = nn.Sequential(nn.Flatten(), *layers)
        self.head = nn.Linear(widths[-1], 2 * latent_dim)
        _start_near_the_prior(self.head)

    def forward(self, image: Tensor) -> DiagonalGaussian:
        """Posterior of ``image`` (B, C, H, W)."""
        mean, log_var = self.head(self.trunk(image)).chunk(2, dim=1)
        return DiagonalGaussian(mean, log_var)


class ConvEncoder(nn.Module):
    """Residual convolutions on a pixel-unshuffled stamp; any size from 16 up, any bands.

    The stamp is padded with sky (zeros) to a multiple of 16, folded 4 x 4 into channels, and halved
    twice. Folding first keeps every convolution wide: one-channel convolutions at full resolution
    run at a tenth of the rate. Group normalisation has no batch statistics.

    Parameters
    ----------
    n_bands, size, latent_dim : int
        C, H = W and Z.
    width : int
        Channels at the first of three resolutions; doubled at each halving.
    """

    def __init__(self, n_bands: int, size: int, latent_dim: int, width: int) -> None:
        super().__init__()
        grid = padded_size(size)
        self.padding = grid - size
        self.trunk = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(16 * n_bands, width, 3, padding=1),
            ResidualBlock(width),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            ResidualBlock(2 * width),
            nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1),
            ResidualBlock(4 * width),
            nn.SiLU(),
        )
        self.head = nn.Linear(4 * width * (grid // GRID) ** 2, 2 * latent_dim)
        _start_near_the_prior(self.head)

    def forward(self, image: Tensor) -> DiagonalGaussian:
        """Posterior of ``image`` (B, C, H, W)."""
        before = self.padding // 2
        after = self.padding - before
        features = self.trunk(F.pad(image, (before, after, before, after)))
        mean, log_var = self.head(features.flatten(1)).chunk(2, dim=1)
        return DiagonalGaussian(mean, log_var)


class QuestionEncoder(nn.Module):
    """The encoder of the question that started this project, its faults as switches.

    Two unpadded 3x3 convolutions of 16 and 8 channels, a dense bottleneck, two dense heads.

    Parameters
    ----------
    n_bands, size, latent_dim : int
        C, H = W and Z.
    bottleneck_units : int
        Width of the dense layer: 4 in the question.
    dying_bottleneck : bool
        ReLU after the dense layer, as asked; a unit that is negative for every stamp never
        recovers. Otherwise SiLU.
    """

    def __init__(
        self,
        n_bands: int,
        size: int,
        latent_dim: int,
        bottleneck_units: int,
        dying_bottleneck: bool,
    ) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(n_bands, 16, 3),
            nn.ReLU(),
            nn.Conv2d(16, 8, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8 * (size - 4) ** 2, bottleneck_units),
            nn.ReLU() if dying_bottleneck else nn.SiLU(),
        )
        self.mean = nn.Linear(bottleneck_units, latent_dim)
        self.log_var = nn.Linear(bottleneck_units, latent_dim)

    def forward(self, image: Tensor) -> DiagonalGaussian:
        """Posterior of ``image`` (B, C, H, W)."""
        features = self.trunk(image)
        return DiagonalGaussian(self.mean(features), self.log_var(features))


def _start_near_the_prior(head: nn.Linear) -> None:
    """Small weights, so that the first posteriors are close to the prior and the first KL small."""
    nn.init.normal_(head.weight, std=1e-2)
    nn.init.zeros_(head.bias)
