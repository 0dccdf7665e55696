"""Watches the latent code at every validation: KL per unit and active units."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from vae_astro.collapse.verdict import judge
from vae_astro.vae import StampScores, gather

__all__ = ["CollapseMonitor"]


class CollapseMonitor(Callback):
    """Logs ``collapse/*`` and keeps the history of KL per unit, which travels in the checkpoint.

    Attributes
    ----------
    steps : list of int
        Optimiser step of each validation.
    kl_per_unit : list of list of float
        Mean KL of each unit at each of them, in nats.
    """

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.kl_per_unit: list[list[float]] = []
        self._means: list[Tensor] = []
        self._kl: list[Tensor] = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert isinstance(outputs, StampScores)
        self._means.append(outputs.posterior.mean)
        self._kl.append(outputs.elbo.kl_per_unit)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        means, kl = (gather(torch.cat(values)) for values in (self._means, self._kl))
        self._means.clear()
        self._kl.clear()
        verdict = judge(means.cpu().numpy(), kl.cpu().numpy())
        self.steps.append(trainer.global_step)
        self.kl_per_unit.append(list(verdict.kl_per_unit_nats))
        units = sorted(verdict.kl_per_unit_nats, reverse=True)
        pl_module.log(
            "collapse/active_units", float(verdict.active_units), prog_bar=True, sync_dist=True
        )
        pl_module.log_dict(
            {"collapse/strongest_unit_nats": units[0], "collapse/weakest_unit_nats": units[-1]},
            sync_dist=True,
        )

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "kl_per_unit": self.kl_per_unit}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps = list(state_dict["steps"])
        self.kl_per_unit = [list(row) for row in state_dict["kl_per_unit"]]
