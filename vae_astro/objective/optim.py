"""The optimiser and its learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from vae_astro.objective.aggressive import aggressive_inference
from vae_astro.settings import check_choice, check_int, check_number

__all__ = ["Optim"]


@dataclass(frozen=True)
class Optim:
    """Adam or AdamW, and a learning rate that is a pure function of the step.

    Parameters
    ----------
    name : {"adam", "adamw"}
        Kingma & Ba (2015), or with decoupled weight decay (Loshchilov & Hutter 2019).
    lr : float
        Learning rate at its highest.
    weight_decay : float
        As the optimiser has it.
    schedule : {"cosine", "constant"}
        Half a cosine down to a hundredth of ``lr`` at the end of the run, or flat.
    warmup_steps : int
        Optimiser steps of linear rise at the start.
    aggressive : bool or mapping
        Whether the encoder runs ahead at first, or how: see `AggressiveInference`.

    Raises
    ------
    InputError
        A setting out of range.
    """

    name: str = "adam"
    lr: float = 1e-3
    weight_decay: float = 0.0
    schedule: str = "cosine"
    warmup_steps: int = 100
    aggressive: bool | Mapping[str, Any] = False

    def __post_init__(self) -> None:
        check_choice("optim.name", self.name, ("adam", "adamw"))
        check_number("optim.lr", self.lr, above=0)
        check_number("optim.weight_decay", self.weight_decay, minimum=0)
        check_choice("optim.schedule", self.schedule, ("constant", "cosine"))
        check_int("optim.warmup_steps", self.warmup_steps, minimum=0)
        aggressive_inference(self.aggressive)

    def optimizer(self, module: torch.nn.Module, fused: bool = True) -> torch.optim.Optimizer:
        """An optimiser of all parameters of ``module``; ``fused`` updates them in one pass."""
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[self.name]
        return kind(module.parameters(), lr=self.lr, weight_decay=self.weight_decay, fused=fused)

    @staticmethod
    @torch.no_grad()
    def lay_out(optimizer: torch.optim.Optimizer) -> None:
        """Give the moments of a checkpoint the order in memory that the weights have here.

        A fused optimiser goes through the memory of both and does not look at strides.
        """
        for parameter, state in optimizer.state.items():
            for name, value in state.items():
                if value.shape == parameter.shape and value.stride() != parameter.stride():
                    state[name] = torch.empty_like(parameter).copy_(value)

    def take_over(self, checkpoint: dict[str, Any]) -> None:
        """Give a saved optimiser and its schedule this learning rate, in place."""
        for state in checkpoint.get("optimizer_states", []):
            for group in state["param_groups"]:
                group["lr"] *= self.lr / group["initial_lr"]
                group["initial_lr"] = self.lr
        for state in checkpoint.get("lr_schedulers", []):
            state["base_lrs"] = [self.lr] * len(state["base_lrs"])

    def factor(self, step: int, total_steps: int) -> float:
        """Share of ``lr`` at ``step`` of a run of ``total_steps``."""
        rise = min(1.0, (step + 1) / (self.warmup_steps + 1))
        if self.schedule == "constant":
            return rise
        progress = min(step / max(total_steps, 1), 1.0)
        return rise * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
