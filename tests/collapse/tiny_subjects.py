"""Models and losses of a few numbers, whose figures are known without an experiment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vae_astro.collapse.audit.adapters import Subject
from vae_astro.collapse.audit.bench import Bench
from vae_astro.collapse.audit.losses import Objective
from vae_astro.collapse.audit.outputs import Reading


class Told(Subject):
    """A subject that answers what it was told to."""

    interface = "told"

    def __init__(
        self,
        answer: Callable[[Tensor], Reading],
        module: nn.Module | None = None,
        code_shape: tuple[int, ...] = (1,),
    ) -> None:
        self.module = nn.Identity() if module is None else module
        self.answer = answer
        self.code_shape = code_shape

    def run(self, stamps: Tensor, code: Tensor | None = None) -> Reading:
        return self.answer(stamps)

    def pass_over(self, stamps: Tensor) -> None:
        self.module(stamps)


class Weighed(Objective):
    """A loss given as a function, which keeps what it was called with."""

    def __init__(
        self,
        function: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
        *,
        takes_any_shape: bool = False,
        is_function: bool = True,
        samples_code: bool = False,
        learns: bool = False,
    ) -> None:
        self.function = function
        self.takes_any_shape = takes_any_shape
        self.is_function = is_function
        self.samples_code = samples_code
        self.learns = learns
        self.calls: list[dict[str, Tensor]] = []

    def __call__(self, recon: Tensor, stamps: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
        given = {"recon": recon, "stamps": stamps, "mean": mean, "spread": spread}
        self.calls.append({name: each.detach().clone() for name, each in given.items()})
        return self.function(recon, stamps, mean, spread)

    def learns_scale(self, recon: Tensor, stamps: Tensor, mean: Tensor, spread: Tensor) -> bool:
        given = {"recon": recon, "stamps": stamps, "mean": mean, "spread": spread}
        self.calls.append({name: each.detach().clone() for name, each in given.items()})
        return self.learns


def bench_of(
    stamps: Tensor, objective: Objective | None = None, code_shape: tuple[int, ...] = (2,)
) -> Bench:
    """A model whose output and code are zero, beside a loss."""

    def answer(given: Tensor) -> Reading:
        code = given.new_zeros(len(given), *code_shape)
        return Reading(recon=torch.zeros_like(given), mean=code, spread=code)

    return Bench(Told(answer, code_shape=code_shape), stamps, objective)


def kl_gradient(
    of_mean: float = 1.0, of_exp: float = 1.0, of_log: float = 1.0
) -> Callable[..., Any]:
    """Half of ``of_mean mean^2 + of_exp exp(spread) - of_log spread``, summed over everything."""

    def kl(mean: Tensor, spread: Tensor) -> Tensor:
        each = of_mean * mean.square() + of_exp * spread.exp() - of_log * spread
        return 0.5 * each.sum()

    return kl
