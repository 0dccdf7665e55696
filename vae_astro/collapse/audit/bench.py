"""What every experiment works on, and how it pushes a model to the end of what it can do."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vae_astro.collapse.audit.adapters import Subject
from vae_astro.collapse.audit.calls import reseed
from vae_astro.collapse.audit.findings import Untestable
from vae_astro.collapse.audit.losses import Objective
from vae_astro.collapse.audit.outputs import Reading

__all__ = ["INDEPENDENT", "ROUNDING", "Bench", "Evidence", "preserved", "reach", "relative_change"]

ROUNDING = 1e-6
"""Relative change below which two float32 results count as the same."""
INDEPENDENT = 1e-7
"""Relative change up to which nothing at all depends: a deep network at its start passes little."""
N_STEPS = 44
"""Of `reach`; the step then has grown by eight orders of magnitude."""


@dataclass(frozen=True)
class Evidence:
    """What a part of a model was found to take the spread for.

    Attributes
    ----------
    meaning : str
        ``log_var``, ``log_std``, ``std``, ``var`` or ``constant``.
    measured : str
        What shows it.
    is_positive : bool
        Whether every spread was above zero, wherever it was moved.
    """

    meaning: str
    measured: str
    is_positive: bool = False


@dataclass
class Bench:
    """A model, stamps and what earlier experiments learned.

    Attributes
    ----------
    subject : Subject
        The model.
    stamps : Tensor, shape (N, ...)
        All of them, as the model takes them.
    objective : Objective or None
        The loss, where there is one.
    facts : dict
        Figures for the report.
    kl, noise : Evidence or None
        What the KL of the loss, and the noise, take the spread for.
    """

    subject: Subject
    stamps: Tensor
    objective: Objective | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    kl: Evidence | None = None
    noise: Evidence | None = None

    @property
    def module(self) -> nn.Module:
        """The model itself."""
        return self.subject.module

    def few(self, n: int) -> Tensor:
        """The first ``n`` stamps."""
        return self.stamps[:n]

    def read(self, n: int, code: Tensor | None = None) -> Reading:
        """A pass over ``n`` stamps, always with the same noise."""
        reseed(0)
        return self.subject.run(self.few(n), code)

    def codes(self, n: int, scale: float = 1.0) -> Tensor:
        """``n`` draws from a normal of this standard deviation, in the shape of a code."""
        if not self.subject.reaches_code:
            raise Untestable("the code cannot be reached between encoder and decoder")
        generator = torch.Generator().manual_seed(1)
        draws = torch.randn(n, *self.subject.code_shape, generator=generator)
        return scale * draws.to(self.stamps)

    def posterior(self, n: int) -> tuple[Tensor, Tensor]:
        """Mean and spread of ``n`` stamps, (n, Z) each."""
        reading = self.read(n)
        if reading.mean is None or reading.spread is None:
            raise Untestable("the model hands out no mean and log-variance")
        return reading.mean.flatten(1), reading.spread.flatten(1)

    def parameters(self) -> list[nn.Parameter]:
        """Those that a gradient can move."""
        return [each for each in self.module.parameters() if each.is_floating_point()]


@contextlib.contextmanager
def preserved(module: nn.Module) -> Iterator[None]:
    """Put weights, buffers and training flags back as they were, whatever happens inside."""
    tensors = [*module.parameters(), *module.buffers()]
    values = [each.detach().clone() for each in tensors]
    flags = [(each, each.training) for each in module.modules()]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)
                tensor.grad = None
        for each, training in flags:
            each.training = training


def relative_change(a: Tensor, b: Tensor) -> float:
    """Root mean square of ``a - b`` over that of ``a`` and ``b``; 0 where both are zero."""
    a, b = a.detach().double(), b.detach().double()
    size = torch.stack([a.square().mean(), b.square().mean()]).mean().sqrt()
    change = (a - b).square().mean().sqrt()
    return float(change / size) if size > 0 else float(change)


def reach(
    measure: Callable[[], Tensor], parameters: Sequence[Tensor], sign: int, goal: float
) -> float:
    """Furthest value that an element of ``measure()`` takes when the parameters push it.

    All parameters move along the sign of the gradient of the mean, in steps that grow by half each
    time, so that what has no bound passes any goal and what has one shows it.

    Parameters
    ----------
    measure : callable
        Differentiable function of the parameters.
    parameters : sequence of Tensor
        Changed in place: call within `preserved`.
    sign : {1, -1}
        Up or down.
    goal : float
        Where it is far enough.

    Returns
    -------
    float
        Never short of where it started.
    """
    best, step = -torch.inf, 1e-3
    for _ in range(N_STEPS):
        pushed = sign * measure()
        values = pushed.detach()[~pushed.detach().isnan()]
        best = max(best, float(values.max()) if len(values) else -torch.inf)
        if best >= sign * goal or not bool(pushed.isfinite().all()) or not pushed.requires_grad:
            break
        gradients = torch.autograd.grad(pushed.mean(), list(parameters), allow_unused=True)
        if not any(each is not None and bool(each.any()) for each in gradients):
            break
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    parameter += step * gradient.nan_to_num().sign()
        step *= 1.5
    return sign * best
