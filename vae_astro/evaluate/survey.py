"""One pass of a trained model over a store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vae_astro.vae import VAE

__all__ = ["StampTable", "survey"]


@dataclass(frozen=True)
class StampTable:
    """What the model says of each stamp, in the order of the store.

    Attributes
    ----------
    mean, log_var, kl_per_unit : ndarray, shape (N, Z)
        Posterior, and its divergence from the prior in nats.
    reconstruction_nats, chi2_per_pixel : ndarray, shape (N,)
        Log-density of the good pixels at one posterior sample; mean squared residual at the
        posterior mean in units of the propagated noise.
    """

    mean: np.ndarray
    log_var: np.ndarray
    kl_per_unit: np.ndarray
    reconstruction_nats: np.ndarray
    chi2_per_pixel: np.ndarray

    def __len__(self) -> int:
        return len(self.mean)

    def rows(self, rows: np.ndarray) -> StampTable:
        """The table of some rows only."""
        return StampTable(
            self.mean[rows],
            self.log_var[rows],
            self.kl_per_unit[rows],
            self.reconstruction_nats[rows],
            self.chi2_per_pixel[rows],
        )


def survey(vae: VAE, loader: Any) -> StampTable:
    """Score every stamp of ``loader``.

    Parameters
    ----------
    vae : VAE
        On the device it is to run on.
    loader : iterable of batches
        In the order of the store, as `StampDataModule.predict_dataloader` gives them.

    Returns
    -------
    StampTable
        Memory grows with the number of stamps times latent units, not with pixels.
    """
    columns: list[list[torch.Tensor]] = [[], [], [], [], []]
    for _, scores in vae.score_all(loader):
        values = (
            scores.posterior.mean,
            scores.posterior.log_var,
            scores.elbo.kl_per_unit,
            scores.elbo.reconstruction,
            scores.chi2_per_pixel,
        )
        for column, value in zip(columns, values, strict=True):
            column.append(value.cpu())
    return StampTable(*(torch.cat(column).numpy() for column in columns))
