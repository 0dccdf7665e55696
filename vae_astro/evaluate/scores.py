"""What a trained model says of each stamp."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from vae_astro.data.batches import Batch
from vae_astro.vae import VAE

__all__ = ["StampTable", "score_stamps"]


@dataclass(frozen=True)
class StampTable:
    """Scores of N stamps.

    Attributes
    ----------
    index : ndarray, shape (N,), int64
        Rows of the catalogue.
    mean, kl_per_unit : ndarray, shape (N, Z)
        Posterior mean, and divergence of the posterior from the prior in nats.
    reconstruction_nats, chi2_per_pixel : ndarray, shape (N,)
        As in `StampScores`.
    """

    index: np.ndarray
    mean: np.ndarray
    kl_per_unit: np.ndarray
    reconstruction_nats: np.ndarray
    chi2_per_pixel: np.ndarray

    def of(self, rows: np.ndarray) -> StampTable:
        """The table of some rows of the catalogue only, in the order they have here."""
        chosen = np.isin(self.index, rows)
        return StampTable(
            self.index[chosen],
            self.mean[chosen],
            self.kl_per_unit[chosen],
            self.reconstruction_nats[chosen],
            self.chi2_per_pixel[chosen],
        )


def score_stamps(vae: VAE, loader: Iterable[Batch]) -> StampTable:
    """Score every stamp of ``loader`` on the model's device, at beta = 1.

    Memory grows with the number of stamps times latent units, not with pixels.
    """
    vae.eval()
    columns: list[list[torch.Tensor]] = [[], [], [], [], []]
    for batch in loader:
        here = {name: value.to(vae.device) for name, value in batch.items()}
        scores = vae.score(here, vae.evaluation_noise(here["index"]))
        values = (
            here["index"],
            scores.posterior.mean,
            scores.elbo.kl_per_unit,
            scores.elbo.reconstruction,
            scores.chi2_per_pixel,
        )
        for column, value in zip(columns, values, strict=True):
            column.append(value.cpu())
    return StampTable(*(torch.cat(column).numpy() for column in columns))
