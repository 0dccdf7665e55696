"""What a prior that learns does at the beginning of an epoch: shown stamps, it starts or mends.

A function of the weights and of the training stamps alone, done once for each epoch: a run that is
resumed does it as the run that was not stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor

from vae_astro.data.batches import Batch
from vae_astro.model.modes import in_evaluation
from vae_astro.model.networks import Network
from vae_astro.model.priors import Prior
from vae_astro.objective.noise import noise_of_stamps

__all__ = ["begin_epoch", "check_run"]


def check_run(prior: Prior, trainer: Trainer) -> None:
    """Before training: refuse, or warn of, a run that the prior cannot do with.

    Raises
    ------
    InputError
        See `Prior.check_run`.
    """
    if prior.learns:
        rows = getattr(_datamodule(trainer), "train_rows", None)
        prior.check_run(None if rows is None else len(rows), _n_epochs(trainer))


def begin_epoch(prior: Prior, network: Network, trainer: Trainer) -> None:
    """Do what the prior does before the first step of an epoch, the same in all processes.

    Parameters
    ----------
    prior : Prior
        Its figures of the epoch before go to the loggers.
    network : Network
        That the codes are of; left in the mode it was in.
    trainer : Trainer
        At the beginning of an epoch, or in its middle after a resume: then nothing is done.

    Raises
    ------
    InputError
        Fewer stamps than components.
    """
    epoch, n_epochs = trainer.current_epoch, _n_epochs(trainer)
    if not prior.learns or int(prior.epoch) == epoch:
        return
    figures = prior.figures()
    if figures:
        for logger in trainer.loggers:
            logger.log_metrics(figures, trainer.global_step)
    n_stamps = prior.n_wanted(epoch, n_epochs)
    shown = _shown(prior, network, trainer, n_stamps) if n_stamps else None
    if not prior.begin_epoch(epoch, n_epochs, shown):
        return
    if trainer.world_size > 1:  # devices may round differently
        state = {name: value.cpu() for name, value in prior.state_dict().items()}
        prior.load_state_dict(trainer.strategy.broadcast(state))
    for optimizer in trainer.optimizers:
        for parameter in prior.parameters():
            optimizer.state.pop(parameter, None)


@torch.no_grad()
def _shown(prior: Prior, network: Network, trainer: Trainer, n_stamps: int) -> Tensor:
    """Training stamps, or draws of their posteriors, at most ``n_stamps`` of either."""
    device = next(network.parameters()).device
    seen = []
    with in_evaluation(network):
        for batch in _training_stamps(trainer, n_stamps):
            image = batch["image"].to(device)
            if prior.starts_from == "codes":
                # draws and not means: the prior is of the code with its noise
                eps = noise_of_stamps(batch["index"].to(device), prior.latent_dim)
                seen.append(network.encode(image).sample(eps))
            else:
                seen.append(image)
    return torch.cat(seen)[:n_stamps]


def _training_stamps(trainer: Trainer, n_stamps: int) -> Iterator[Batch]:
    datamodule = _datamodule(trainer)
    if hasattr(datamodule, "training_sample"):
        yield from datamodule.training_sample(n_stamps)
        return
    n_seen = 0
    state = torch.get_rng_state()  # a loader may draw its order from it
    for batch in trainer.train_dataloader:  # type: ignore[union-attr]
        yield batch
        n_seen += len(batch["index"])
        if n_seen >= n_stamps:
            break
    torch.set_rng_state(state)


def _datamodule(trainer: Trainer) -> Any:
    return getattr(trainer, "datamodule", None)


def _n_epochs(trainer: Trainer) -> int:
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        return trainer.max_epochs
    return -(-int(trainer.estimated_stepping_batches) // max(int(trainer.num_training_batches), 1))
