"""Representations of stamps that nothing is trained for: what any latent code has to beat."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from vae_astro.data.augment import N_SYMMETRIES, apply_symmetry
from vae_astro.data.focus import informative_radius
from vae_astro.data.rings import ring_means, ring_members
from vae_astro.evaluate.pca_baseline import pca_codes

__all__ = ["BASELINES", "Stamps", "codes_of_baselines"]

CENTRE = 21
"""Side of the central window, in pixels."""
N_RINGS, OUTER_RADIUS = 8, 9.0
"""Rings, and where they end, in pixels."""


class Stamps:
    """Normalised stamps.

    Parameters
    ----------
    image : Tensor, shape (N, C, H, W)
        Masked pixels 0.
    mask : Tensor, shape (N, C, H, W)
        True where good.
    light : Tensor, shape (N, C, H, W)
        Pixels above the sky in units of its noise, before a stretch; of some of the stamps.
    light_mask : Tensor
        Theirs.
    """

    def __init__(self, image: Tensor, mask: Tensor, light: Tensor, light_mask: Tensor) -> None:
        self.image, self.mask = image, mask
        self.radius = informative_radius(light, light_mask)

    def profiles(self, outer_radius: float) -> Tensor:
        """Mean of the good pixels in rings of one width, shape (N, C, R)."""
        height, width = self.image.shape[2:]
        reach = min(outer_radius, 0.5 * min(height, width))
        edges = torch.linspace(0, reach, N_RINGS + 1, dtype=torch.float64)
        return ring_means(self.image, self.mask, ring_members(height, width, edges))


def whole_stamp(stamps: Stamps) -> np.ndarray:
    """Pixels as they are."""
    return stamps.image.numpy()


def symmetric_centre(stamps: Stamps) -> np.ndarray:
    """Mean of the central window over its flips and quarter-turns: it has no orientation."""
    height, width = stamps.image.shape[2:]
    side = min(CENTRE, height, width)
    top, left = round((height - side) / 2), round((width - side) / 2)
    centre = stamps.image[..., top : top + side, left : left + side]
    poses = [apply_symmetry(centre, symmetry) for symmetry in range(N_SYMMETRIES)]
    return torch.stack(poses).mean(0).numpy()


def rings(stamps: Stamps) -> np.ndarray:
    """Ring profiles out to 9 pixels."""
    return stamps.profiles(OUTER_RADIUS).numpy()


def rings_by_data(stamps: Stamps) -> np.ndarray:
    """Ring profiles out to where the stamps themselves have something to tell."""
    return stamps.profiles(stamps.radius).numpy()


def shape_and_flux(stamps: Stamps) -> np.ndarray:
    """Ring profiles at unit norm, beside the logarithm of the norm."""
    flat = stamps.profiles(OUTER_RADIUS).flatten(1)
    norm = flat.norm(dim=1, keepdim=True).clamp(min=1e-6)
    return torch.cat([flat / norm, norm.log()], dim=1).numpy()


BASELINES: dict[str, tuple[Callable[[Stamps], np.ndarray], int]] = {
    "PCA(16), whole stamp": (whole_stamp, 16),
    "PCA(16), mean of the 8 symmetries of the central 21 px": (symmetric_centre, 16),
    "PCA(8), 8 rings out to 9 px": (rings, 8),
    "PCA(8), 8 rings out to a radius by the data": (rings_by_data, 8),
    "PCA(4), the rings out to 9 px, shape and flux apart": (shape_and_flux, 4),
}
"""What is looked at, and how many principal components are taken of it."""


def codes_of_baselines(stamps: Stamps) -> dict[str, np.ndarray]:
    """Codes (N, D) of each of `BASELINES`."""
    return {name: pca_codes(seen(stamps), n) for name, (seen, n) in BASELINES.items()}
