"""The eight exact symmetries of a square: no pixel is invented, none is lost.

What a pose is, on tensors, for data and networks alike. Batches are turned while they are gathered,
by `kernels`, which is tested against this.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

__all__ = ["N_SYMMETRIES", "apply_symmetries", "apply_symmetry"]

N_SYMMETRIES = 8
"""Four quarter-turns, each with and without a flip."""


def apply_symmetry(image: Tensor, symmetry: int) -> Tensor:
    """One symmetry of the square: ``symmetry % 4`` quarter-turns, then a flip from 4 on.

    Parameters
    ----------
    image : Tensor, shape (..., H, W)
        H = W.
    symmetry : int
        0 (the identity) to 7.
    """
    turned = torch.rot90(image, symmetry % 4, dims=(-2, -1))
    return tv.horizontal_flip_image(turned) if symmetry >= 4 else turned


def apply_symmetries(images: Tensor, symmetries: Tensor) -> Tensor:
    """Each stamp its own symmetry.

    Parameters
    ----------
    images : Tensor, shape (B, C, H, W)
        H = W; not changed.
    symmetries : Tensor, shape (B,), int64
        0 to 7 for each stamp.
    """
    turned = images.clone()
    for symmetry in range(1, N_SYMMETRIES):
        chosen = (symmetries == symmetry).nonzero()[:, 0]
        if len(chosen):
            turned[chosen] = apply_symmetry(images[chosen], symmetry)
    return turned
