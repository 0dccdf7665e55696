"""How much a code changes when a stamp is turned or flipped: what it knows of the orientation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vae_astro.data.augment import N_SYMMETRIES, apply_symmetry
from vae_astro.errors import InputError
from vae_astro.model.posterior import DiagonalGaussian

__all__ = ["Invariance", "measure_invariance"]

MOST_STAMPS = 128
"""Each is encoded eight times."""


@dataclass(frozen=True)
class Invariance:
    """Change of the latent mean under the symmetries of a square, in posterior standard deviations.

    Attributes
    ----------
    units : tuple of int
        The U latent units that were looked at.
    change : ndarray, shape (N, 7, U), float64
        ``|mean(g x) - mean(x)| / std(x)`` of each stamp, symmetry (the identity apart) and unit.
        Below 1 the code cannot tell the two apart.
    """

    units: tuple[int, ...]
    change: np.ndarray

    @property
    def maximum(self) -> float:
        """Over stamps, symmetries and units."""
        return float(self.change.max())

    @property
    def median(self) -> float:
        """Over stamps and symmetries, of the root mean square over units."""
        return float(np.median(np.sqrt(np.mean(self.change**2, axis=2))))

    def as_dict(self) -> dict[str, object]:
        """Plain numbers for ``metrics.json``, the lists with one number per unit."""
        return {
            "n_stamps": len(self.change),
            "units": list(self.units),
            "max_std": self.maximum,
            "median_std": self.median,
            "max_per_unit_std": self.change.max((0, 1)).tolist(),
            "median_per_unit_std": np.median(self.change, (0, 1)).tolist(),
        }


@torch.no_grad()
def measure_invariance(
    encode: Callable[[Tensor], DiagonalGaussian],
    images: Iterable[Tensor],
    units: Sequence[int] | None = None,
) -> Invariance:
    """Encode stamps in all eight poses and compare.

    Parameters
    ----------
    encode : callable
        Stamps (B, C, H, W) to their posterior; of any model, in evaluation mode.
    images : iterable of Tensor, shape (B, C, H, W)
        Normalised stamps on the device of the model, masked pixels 0; H = W. The first
        `MOST_STAMPS` are looked at.
    units : sequence of int, optional
        Latent units that count: those that are clustered. All of them if not given.

    Raises
    ------
    InputError
        If there is no stamp, or no unit.
    """
    changes: list[np.ndarray] = []
    n_stamps = 0
    for batch in images:
        image = batch[: MOST_STAMPS - n_stamps]
        n_stamps += len(image)
        as_is = encode(image)
        chosen = list(range(as_is.mean.shape[1]) if units is None else units)
        moved = torch.stack(
            [
                (encode(apply_symmetry(image, turn)).mean - as_is.mean).abs() / as_is.std
                for turn in range(1, N_SYMMETRIES)
            ],
            dim=1,
        )
        changes.append(moved[:, :, chosen].double().cpu().numpy())
        if n_stamps == MOST_STAMPS:
            break
    change = np.concatenate(changes) if changes else np.empty((0, 0, 0))
    if not change.size:
        raise InputError("invariance needs at least one stamp and one latent unit")
    return Invariance(tuple(chosen), change)
