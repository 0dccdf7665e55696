"""What training and validation tell the loggers: scalars that come late, figures of all stamps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from operator import attrgetter

import torch
from lightning.fabric.loggers.logger import Logger
from torch import Tensor

from vae_astro.late import LateValues
from vae_astro.model.likelihoods import Likelihood
from vae_astro.objective.beta import Schedule
from vae_astro.parts import StampScores, Trained
from vae_astro.ranks import gather, mean_over_ranks

__all__ = ["TrainingLog", "ValidationScores"]


class TrainingLog:
    """Scalars of training steps, logged under their step once they have come from the device.

    Parameters
    ----------
    likelihood : Likelihood
        What it has learned is logged too, and pixels that it has no density for are told late.
    band_names : sequence of str
        One for each band.

    Attributes
    ----------
    shown : dict of str to float
        For a progress bar, as of the last step that was logged.
    """

    def __init__(self, likelihood: Likelihood, band_names: Sequence[str]) -> None:
        self.shown: dict[str, float] = {}
        self._likelihood = likelihood
        self._band_names = band_names
        self._late = LateValues()

    def put(self, step: int, trained: Trained, image: Tensor) -> None:
        """Send off the scalars of a step and of its pixels ``image`` (B, C, H, W)."""
        means = torch.stack([trained.loss.detach(), trained.reconstruction, trained.kl])
        names = ("train/loss", "train/reconstruction", "train/kl_nats")
        values = dict(zip(names, mean_over_ranks(means).unbind(), strict=True))
        values["train/kl_weight"] = trained.beta
        for name, learned in self._likelihood.learned().items():
            for band, value in zip(self._band_names, learned.unbind(), strict=True):
                values[f"likelihood/{name}_{band}"] = value
        if self._likelihood.pixel_range is not None:
            values["darkest"], values["brightest"] = image.aminmax()
        self._late.put(step, values)

    def write(self, loggers: Iterable[Logger], schedule: Schedule, wait: bool = False) -> None:
        """Log what has come; with ``wait``, all that was sent.

        Parameters
        ----------
        loggers : iterable of Logger
            Where to.
        schedule : Schedule
            Of the run, for its capacity.
        wait : bool
            Whether to wait for the device.

        Raises
        ------
        InputError
            Pixels that the likelihood has no density for.
        """
        for step, values in self._late.arrived(wait):
            if self._likelihood.pixel_range is not None:
                self._likelihood.check_range(values.pop("darkest"), values.pop("brightest"))
            # the weight without the likelihood's own
            values["beta"] = values["train/kl_weight"] / self._likelihood.kl_weight
            self.shown["beta"] = values["beta"]
            if schedule.capacity_nats is not None:
                values["capacity_nats"] = schedule.capacity_nats(step)
            for logger in loggers:
                logger.log_metrics(values, step)


class ValidationScores:
    """Scores of the batches of a validation, and what is logged of all its stamps."""

    def __init__(self) -> None:
        self._batches: list[StampScores] = []

    def clear(self) -> None:
        """A validation begins, or ends."""
        self._batches.clear()

    def take(self, scores: StampScores) -> None:
        """Keep the scores of a batch, but for its pictures: of all stamps they fill the device."""
        self._batches.append(replace(scores, location=scores.location.new_empty(0)))

    def column(self, name: str) -> Tensor:
        """A score of all stamps of all processes, such as ``elbo.kl``; shape (N, ...)."""
        return gather(torch.cat([attrgetter(name)(scores) for scores in self._batches]))

    def figures(self) -> dict[str, Tensor]:
        """Means over the stamps in nats, and the median chi squared; alike in all processes."""
        return {
            "val/elbo_nats": self.column("elbo.nats").mean(),
            "val/reconstruction_nats": self.column("elbo.reconstruction").mean(),
            "val/kl_nats": self.column("elbo.kl").mean(),
            "val/chi2_per_pixel": self.column("chi2_per_pixel").quantile(0.5),
        }
