"""Latent codes to the location of the pixel density, always at exactly the stamp's shape."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from vae_astro.model.blocks import GRID, ResidualBlock, padded_size

__all__ = ["ConvDecoder", "LinearDecoder", "MLPDecoder", "QuestionDecoder"]


class LinearDecoder(nn.Module):
    """Pixels linear in the code: with a Gaussian likelihood this VAE is probabilistic PCA.

    Parameters
    ----------
    n_bands, size, latent_dim : int
        C, H = W and Z.
    """

    def __init__(self, n_bands: int, size: int, latent_dim: int) -> None:
        super().__init__()
        self.shape = (n_bands, size, size)
        self.location = nn.Linear(latent_dim, n_bands * size * size)

    def forward(self, z: Tensor) -> Tensor:
        """Location (B, C, H, W) of code ``z`` (B, Z)."""
        return self.location(z).unflatten(1, self.shape)


class MLPDecoder(nn.Module):
    """Mirror of `MLPEncoder`.

    Parameters
    ----------
    n_bands, size, latent_dim : int
        C, H = W and Z.
    hidden : sequence of int
        Widths of the hidden layers, from the code to the pixels.
    """

    def __init__(self, n_bands: int, size: int, latent_dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        shape = (n_bands, size, size)
        widths = (latent_dim, *hidden)
        layers = (
            nn.Sequential(nn.Linear(n_in, n_out), nn.SiLU()) for n_in, n_out in pairwise(widths)
        )
        self.trunk = nn.Sequential(
            *layers, nn.Linear(widths[-1], n_bands * size * size), nn.Unflatten(1, shape)
        )

    def forward(self, z: Tensor) -> Tensor:
        """Location (B, C, H, W) of code ``z`` (B, Z)."""
        return self.trunk(z)


class ConvDecoder(nn.Module):
    """Mirror of `ConvEncoder`: a dense layer, residual convolutions, pixel shuffles, a crop.

    Parameters
    ----------
    n_bands, size, latent_dim, width : int
        As in `ConvEncoder`.
    """

    def __init__(self, n_bands: int, size: int, latent_dim: int, width: int) -> None:
        super().__init__()
        self.size = size
        grid = padded_size(size)
        cells = grid // GRID
        self.before = (grid - size) // 2
        self.trunk = nn.Sequential(
            nn.Linear(latent_dim, 4 * width * cells**2),
            nn.Unflatten(1, (4 * width, cells, cells)),
            ResidualBlock(4 * width),
            nn.Conv2d(4 * width, 8 * width, 3, padding=1),
            nn.PixelShuffle(2),
            ResidualBlock(2 * width),
            nn.Conv2d(2 * width, 4 * width, 3, padding=1),
            nn.PixelShuffle(2),
            ResidualBlock(width),
            nn.SiLU(),
            nn.Conv2d(width, 16 * n_bands, 3, padding=1),
            nn.PixelShuffle(4),
        )

    def forward(self, z: Tensor) -> Tensor:
        """Location (B, C, H, W) of code ``z`` (B, Z)."""
        inside = slice(self.before, self.before + self.size)
        return self.trunk(z)[:, :, inside, inside]


class QuestionDecoder(nn.Module):
    """The decoder of the question: dense, one hidden transposed convolution, one output.

    Parameters
    ----------
    n_bands, size, latent_dim : int
        C, H = W and Z.
    softmax_output : bool
        Softmax over the channels, as asked. With one channel the output is 1 everywhere and no
        gradient reaches the code.
    """

    def __init__(self, n_bands: int, size: int, latent_dim: int, softmax_output: bool) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Linear(latent_dim, 8 * (size - 4) ** 2),
            nn.ReLU(),
            nn.Unflatten(1, (8, size - 4, size - 4)),
            nn.ConvTranspose2d(8, 8, 3),
            nn.ReLU(),
            nn.ConvTranspose2d(8, n_bands, 3),
            nn.Softmax(dim=1) if softmax_output else nn.Identity(),
        )

    def forward(self, z: Tensor) -> Tensor:
        """Location (B, C, H, W) of code ``z`` (B, Z)."""
        return self.trunk(z)
