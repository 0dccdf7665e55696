"""Going on with a run: bit for bit, or with other settings of its objective."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from vae_astro.checkpoint.keeping import BestCheckpoint
from vae_astro.checkpoint_file.rebuild import different_weights
from vae_astro.errors import InputError
from vae_astro.vae import VAE

__all__ = ["RandomState", "carry_over", "refuse_other_weights", "refuse_without_state"]


GOES_ON_FROM = ("optimizer_states", "lr_schedulers", "loops")


def refuse_other_weights(vae: VAE, theirs: Mapping[str, Tensor], path: Path) -> None:
    """Raise `InputError` unless ``vae`` has the weights of the checkpoint, each in its shape.

    Parameters
    ----------
    vae : VAE
        What is to go on.
    theirs : mapping of str to Tensor
        Weights of the checkpoint.
    path : Path
        For the message.
    """
    different = different_weights(vae.state_dict(), theirs)
    if different:
        name, (there, here) = next(iter(different.items()))
        raise InputError(
            f"resume={path} is of another model: {len(different)} weights differ, the first "
            f"{name}: {there} there, {here} here; "
            "keep the settings of the model as they were, or take over what fits with init_from="
        )


def refuse_without_state(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Raise `InputError` where only the model was kept, as exports do, pruned or not."""
    missing = [key for key in GOES_ON_FROM if not checkpoint.get(key)]
    if missing:
        raise InputError(
            f"resume={path} holds weights, as an export does, but not the state of a run to go on "
            f"with ({missing[0]} is missing); start a new run from its weights with init_from="
        )


def carry_over(checkpoint: dict[str, Any], vae: VAE) -> dict[str, Any]:
    """A checkpoint from which ``vae`` goes on, though its objective has other settings.

    Weights, steps, order of the stamps and random state stay. The best score is forgotten: bounds
    of other objectives do not compare. With another likelihood, what that learns starts anew, and
    so do the optimiser's moments, which are in units of the old gradients. Network and number of
    trained parameters must be the same.
    """
    carried = copy.deepcopy(checkpoint)
    theirs, ours = carried["state_dict"], vae.state_dict()
    carried["state_dict"] = {
        name: theirs[name] if name in theirs and theirs[name].shape == value.shape else value
        for name, value in ours.items()
    }
    other_likelihood = dict(carried["hyper_parameters"]["likelihood"]) != vae.hparams["likelihood"]
    if other_likelihood:
        for state in carried["optimizer_states"]:
            state["state"] = {}
    carried["callbacks"] = {
        name: state
        for name, state in carried["callbacks"].items()
        if not name.startswith(BestCheckpoint.__qualname__)
    }
    carried["hyper_parameters"] = copy.deepcopy(dict(vae.hparams))
    carried["vae_astro"]["settings"] = vae.run_settings
    return carried


class RandomState(Callback):
    """Carries the random state, so that a resumed run goes on exactly.

    Processes that train together have the same one: each draws the noise of the whole batch. So it
    does not matter how many go on.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        return _random_state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        state = self._loaded
        if state is None and trainer.world_size > 1:
            state = _random_state()  # the first process may have drawn what others have not
        if state is None:
            return
        state = trainer.strategy.broadcast(state)
        torch.set_rng_state(state["torch"])
        if state["cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])
        version, internal, gauss = state["python"]
        random.setstate((version, tuple(internal), gauss))
        self._loaded = None


def _random_state() -> dict[str, Any]:
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
        "python": [version, list(internal), gauss],
    }
