"""How long a run is: optimiser steps as Lightning counts them, and what the stamps leave open."""

from __future__ import annotations

import logging
from typing import Any

from lightning import Trainer

from vae_astro.errors import InputError
from vae_astro.hardware import EPOCHS, USUAL_STEPS

__all__ = ["batches_taken", "set_length", "steps_per_epoch", "total_steps"]

STEPS_BETWEEN_VALIDATIONS = 50
"""So that a small data set does not spend its time on validation."""

log = logging.getLogger(__name__)


def batches_taken(key: str, limit: int | float, n_batches: int) -> int:
    """Of ``n_batches``, how many a limit of the trainer lets through.

    Parameters
    ----------
    key : str
        Setting that the limit comes from, for messages.
    limit : int or float
        As ``Trainer.limit_train_batches`` has it: a whole number is a number of batches, any other
        a share of them, rounded down.
    n_batches : int
        Of an epoch, on each process.

    Raises
    ------
    InputError
        A share of which nothing is left.
    """
    if isinstance(limit, int):
        return min(limit, n_batches)
    taken = int(limit * n_batches)
    if n_batches and not taken:
        raise InputError(
            f"{key}={limit:g} of {n_batches} batches is less than one; give a larger share, or a "
            "whole number of batches"
        )
    return taken


def steps_per_epoch(trainer: Trainer, n_batches: int) -> int:
    """Optimiser steps in an epoch of ``n_batches`` that all processes share.

    Raises
    ------
    InputError
        As `batches_taken`.
    """
    taken = batches_taken("trainer.limit_train_batches", trainer.limit_train_batches, n_batches)
    return -(-taken // trainer.accumulate_grad_batches)


def total_steps(trainer: Trainer, n_batches: int) -> int:
    """Optimiser steps of the run, once its length is set: ``estimated_stepping_batches``.

    Lightning knows that number only when the fit has begun.
    """
    n_steps = int(trainer.fit_loop.max_epochs or 1) * steps_per_epoch(trainer, n_batches)
    return n_steps if trainer.max_steps == -1 else min(n_steps, trainer.max_steps)


def set_length(trainer: Trainer, options: dict[str, Any], n_batches: int) -> None:
    """Fill in what the trainer's settings leave to the number of stamps.

    Parameters
    ----------
    trainer : Trainer
        Changed in place.
    options : dict
        Settings of the group ``trainer``.
    n_batches : int
        Of an epoch.

    Raises
    ------
    InputError
        As `batches_taken`.
    """
    per_epoch = steps_per_epoch(trainer, n_batches)
    if options["max_epochs"] is None:
        fewest, most = EPOCHS
        trainer.fit_loop.max_epochs = min(max(-(-USUAL_STEPS // per_epoch), fewest), most)
        log.info(
            "length: %d epochs of %d steps; set trainer.max_epochs for another",
            trainer.fit_loop.max_epochs,
            per_epoch,
        )
    if options["check_val_every_n_epoch"] is None:
        n_epochs = max(1, STEPS_BETWEEN_VALIDATIONS // per_epoch)
        trainer.check_val_every_n_epoch = min(n_epochs, trainer.fit_loop.max_epochs or n_epochs)
