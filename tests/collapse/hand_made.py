"""Models written out by hand, so that every figure of an experiment on them is known before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vae_astro.collapse.audit.adapters import Subject
from vae_astro.collapse.audit.bench import Bench
from vae_astro.collapse.audit.findings import Finding
from vae_astro.collapse.audit.outputs import Reading


class HandMade(Subject):
    """Answers each pass with what ``answer(stamps, code)`` returns, and notes the pass.

    Attributes
    ----------
    passes : list of (int, bool)
        Stamps, and whether in training mode, of each pass.
    """

    interface = "by hand"

    def __init__(
        self,
        answer: Callable[[Tensor, Tensor | None], Reading],
        module: nn.Module | None = None,
        latent_dim: int = 2,
    ) -> None:
        self.module = nn.Module() if module is None else module
        self.answer = answer
        self.code_shape = (latent_dim,)
        self.reaches_code = True
        self.passes: list[tuple[int, bool]] = []

    def run(self, stamps: Tensor, code: Tensor | None = None) -> Reading:
        self.passes.append((len(stamps), self.module.training))
        return self.answer(stamps, code)

    def pass_over(self, stamps: Tensor) -> None:
        self.run(stamps)


class Weights(nn.Module):
    """One vector of weights, in float64."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(values, dtype=torch.float64))


class Table(nn.Module):
    """A layer that gives the stamp of number k row k."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows[x[:, 0].long()]


def column(n: int) -> Tensor:
    """Stamps of one pixel, their numbers: (n, 1) in float64."""
    return torch.arange(n, dtype=torch.float64).view(-1, 1)


def bench_of(
    answer: Callable[[Tensor, Tensor | None], Reading],
    stamps: Tensor,
    module: nn.Module | None = None,
    latent_dim: int = 2,
) -> Bench:
    """A bench of a model in evaluation mode that answers so."""
    bench = Bench(HandMade(answer, module, latent_dim), stamps)
    bench.module.eval()
    return bench


def told(findings: Sequence[Finding]) -> list[tuple[str, str]]:
    """Names and measured sentences."""
    return [(each.name, each.measured) for each in findings]


def passes_of(bench: Bench) -> Any:
    """Those that a hand-made model has noted."""
    return bench.subject.passes  # type: ignore[attr-defined]


def signs_like(x: Tensor) -> Tensor:
    """-1 and 1 in a new order: as many of each, so mean and size of the noise are exact."""
    values = torch.ones(x.numel(), dtype=x.dtype)
    values[::2] = -1
    return values[torch.randperm(x.numel())].view(x.shape)


Sample = Callable[[Tensor, Tensor], Tensor]
"""Code from mean and spread."""


def sampled(
    sample: Sample,
    spread: Any = (0.0, 0.0),
    *,
    stamps: Tensor | None = None,
    make: Callable[[Tensor], Tensor] = lambda w: w,
) -> Bench:
    """Means -0.5 and 0.5, a spread for each unit made of its weight, and a code in training."""
    module = Weights(*spread)
    module.of_the_decoder = nn.Parameter(torch.ones(3))

    def answer(x: Tensor, code: Tensor | None) -> Reading:
        made = make(module.w).expand(len(x), len(spread))
        mean = (x % 2 - 0.5).expand_as(made)
        drawn = sample(mean, made) if module.training else mean
        return Reading(recon=drawn, mean=mean, spread=made, code=drawn)

    return bench_of(answer, column(40) if stamps is None else stamps, module, len(spread))


def fixed(
    sample: Sample, spread: Tensor, mean: Tensor | None = None, claim: str | None = None
) -> Bench:
    """Log-variances that no weight moves: rows of numbers, one for each stamp."""
    means = torch.zeros_like(spread) if mean is None else mean

    def answer(x: Tensor, code: Tensor | None) -> Reading:
        rows = x[:, 0].long()
        code = sample(means[rows], spread[rows])
        return Reading(recon=x, mean=means[rows], spread=spread[rows], code=code, claim=claim)  # type: ignore[arg-type]

    return bench_of(answer, column(len(spread)), Weights(0.0))
