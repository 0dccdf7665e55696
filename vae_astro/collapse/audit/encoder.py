"""Experiments on the encoder: does it tell stamps apart, and can its posterior go where it must?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vae_astro.collapse.audit.bench import (
    INDEPENDENT,
    ROUNDING,
    Bench,
    preserved,
    reach,
    relative_change,
)
from vae_astro.collapse.audit.calls import reseed, survey
from vae_astro.collapse.audit.findings import Finding, Untestable
from vae_astro.collapse.audit.outputs import STD_OF

__all__ = [
    "bottleneck_is_alive",
    "encoder_tells_stamps_apart",
    "log_var_is_free",
    "posterior_reaches_prior",
    "stamps_keep_apart",
]

NARROW = 8
"""Rectified units before the code that are a handful."""
NEEDED_MEAN = 1.5
"""Posterior means must get this far both ways to cover a unit Gaussian."""
NEEDED_STD = 0.37
"""A posterior must get at least this narrow: half its nat beside a prior of 1."""
MOSTLY = 0.9
"""Share of the stamps at a clamp from which a unit counts as stuck."""
AT_THE_END = 1e-3
"""Distance from the end of the range, in units of it, at which a hidden unit is saturated."""


def encoder_tells_stamps_apart(bench: Bench) -> list[Finding]:
    """Different stamps must have different posteriors."""
    n = min(len(bench.stamps), 64)
    for training in (False, True):
        bench.module.train(training)
        reading = bench.read(n)
        if reading.mean is None:
            raise Untestable("the model hands out no posterior")
        parts = [each for each in (reading.mean, reading.spread) if each is not None]
        changes = [relative_change(each, each[:1].expand_as(each)) for each in parts]
        if max(changes) <= INDEPENDENT:
            mode = "training" if training else "evaluation"
            measured = (
                f"{n} stamps in {mode} mode: their posteriors differ by {max(changes):.1e} of "
                "their size"
            )
            return [Finding.of("encoder-ignores-input", measured)]
    if len(parts) == 2 and relative_change(*parts) <= ROUNDING:
        measured = f"mean and log-variance of {n} stamps are the same numbers"
        return [Finding.of("log-var-copies-mean", measured)]
    return []


def stamps_keep_apart(bench: Bench) -> list[Finding]:
    """The posterior of a stamp must not change with the stamps beside it."""
    n = min(len(bench.stamps), 8)
    half = n // 2
    stamps = bench.few(n)
    # twice the others, turned around: other neighbours in a batch of the same size
    others = -2 * stamps[half:].flip(0)
    reseed(0)
    first = bench.subject.run(stamps).mean
    reseed(0)
    second = bench.subject.run(torch.cat([stamps[:half], others])).mean
    if first is None or second is None:
        raise Untestable("the model hands out no posterior")
    change = relative_change(first[:half], second[:half])
    if change <= 100 * ROUNDING:
        return []
    measured = (
        f"in evaluation mode, beside other stamps the means of the same {half} stamps differ by "
        f"{100 * change:.3g} % of their size"
    )
    return [Finding.of("stamps-mixed", measured)]


def bottleneck_is_alive(bench: Bench) -> list[Finding]:
    """What the last layer before the code is given: constant, saturated, or able to die?"""
    n = min(len(bench.stamps), 64)
    with torch.no_grad():
        hidden = _hidden(bench, n)
    units, width = hidden.units, hidden.units.shape[1]
    alive = int((units.std(0) > ROUNDING * units.abs().mean()).sum())
    zeros = float((units == 0).double().mean())
    bench.facts["bottleneck_units"], bench.facts["bottleneck_alive"] = width, alive
    what = f"{width} units before the code ({hidden.name}), over {n} stamps"
    findings = []
    if alive == 0 or 4 * alive < min(bench.subject.latent_dim, width):
        measured = f"{what}: {alive} differ between stamps, {100 * zeros:.0f} % of values are 0"
        findings.append(Finding.of("dead-bottleneck", measured))
    if width <= NARROW and _is_rectified(bench, units):
        measured = f"{what}: none can fall below 0, {100 * zeros:.0f} % of values are 0"
        findings.append(Finding.of("bottleneck-can-die", measured))
    low, high = units.aminmax()
    near = AT_THE_END * float(high - low)
    top = float((units >= high - near).double().mean())
    ends = top + float((units <= low + near).double().mean())
    if alive and top > 0.2 and ends > 0.95:
        measured = (
            f"{what}: {100 * ends:.0f} % of values lie at {float(low):.3g} or {float(high):.3g}, "
            "the ends of their range"
        )
        findings.append(Finding.of("saturated-bottleneck", measured))
    return findings


def posterior_reaches_prior(bench: Bench) -> list[Finding]:
    """Push means and log-variances of a copy as far as they go."""
    n = min(len(bench.stamps), 4)
    reading = bench.read(n)
    if reading.mean is None:
        raise Untestable("the model hands out no posterior")
    findings = []
    still = reading.spread is None or _is_still(bench, reading.spread)

    def mean() -> Tensor:
        value = bench.read(n).mean
        assert value is not None
        return value

    low, high = (_pushed(bench, mean, sign, sign * NEEDED_MEAN) for sign in (-1, 1))
    if low > -NEEDED_MEAN or high < NEEDED_MEAN:
        measured = f"with all weights pushed, the posterior means reach {low:.3g} to {high:.3g}"
        findings.append(Finding.of("mean-range", measured))
    if still:
        return findings
    agreed = bench.noise or bench.kl
    meaning = reading.claim or ("log_var" if agreed is None else agreed.meaning)
    to_std = STD_OF.get(meaning, STD_OF["log_var"])
    narrowest = _pushed(bench, lambda: to_std(bench.posterior(n)[1]), -1, NEEDED_STD)
    if narrowest > NEEDED_STD:
        measured = (
            "with all weights pushed, the posterior's standard deviation gets no smaller than "
            f"{narrowest:.3g}"
        )
        findings.append(Finding.of("log-var-range", measured))
    return findings


def log_var_is_free(bench: Bench) -> list[Finding]:
    """Log-variances that all have the same, outermost value must have a gradient."""
    n = min(len(bench.stamps), 64)
    _, spread = bench.posterior(n)
    if not spread.requires_grad:
        raise Untestable("no weight moves the log-variance")
    low, high = spread.detach().aminmax()
    findings = []
    for bound in {float(low), float(high)}:
        at_bound = spread == bound
        stuck = at_bound.double().mean(0) > MOSTLY
        if not bool(stuck.any()) or n < 2:
            continue
        at_bound &= stuck
        gradients = torch.autograd.grad(
            spread[at_bound].sum(), bench.parameters(), allow_unused=True, retain_graph=True
        )
        if any(each is not None and bool(each.any()) for each in gradients):
            continue
        measured = (
            f"the log-variances of {int(stuck.sum())} of {len(stuck)} units are exactly "
            f"{bound:.4g} for {100 * float(at_bound.double().mean(0).max()):.0f} % of {n} stamps, "
            "and no weight moves them"
        )
        findings.append(Finding.of("log-var-stuck", measured))
    return findings


@dataclass(frozen=True)
class _Hidden:
    """What the layer of the means is given, (N, n), and which layer gave it."""

    name: str
    units: Tensor


def _hidden(bench: Bench, n: int) -> _Hidden:
    mean: Tensor | None = None

    def run() -> None:
        nonlocal mean
        mean = bench.read(n).mean

    records = [
        record
        for record in survey(bench.module, run)
        if record.is_layer and isinstance(record.output, Tensor)
    ]
    if mean is None:
        raise Untestable("the model hands out no posterior")
    head = next((record for record in records if _holds(record.output, mean)), None)
    if head is None:
        raise Untestable("the layer that makes the means could not be told")
    given = head.given
    if _holds(given, bench.few(n)):
        raise Untestable("there is no layer between the stamps and the code")
    before = [record.call.key for record in records if _holds(given, record.output)]
    name = before[-1] if before else f"what {head.call.key} is given"
    return _Hidden(name, given.reshape(n, -1))


def _holds(output: Tensor, part: Tensor) -> bool:
    """Whether ``output`` is ``part``, or has it as one of its equal parts."""
    if output.untyped_storage().data_ptr() == part.untyped_storage().data_ptr():
        return True
    # the same numbers in another place tell nothing where they are the same for all stamps
    if len(output) != len(part) or torch.equal(part, part[:1].expand_as(part)):
        return False
    whole, wanted = output.flatten(1), part.flatten(1)
    n_units = wanted.shape[1]
    return any(
        torch.equal(whole[:, first : first + n_units], wanted)
        for first in range(0, whole.shape[1] - n_units + 1, n_units)
    )


def _is_rectified(bench: Bench, units: Tensor) -> bool:
    """Whether no unit is ever negative and, pushed down, they end at exactly zero."""
    if bool((units < 0).any()):
        return False
    if bool((units == 0).any()):
        return True
    below = -torch.finfo(units.dtype).tiny
    return _pushed(bench, lambda: _hidden(bench, 4).units, -1, below) == 0.0


def _is_still(bench: Bench, spread: Tensor) -> bool:
    """Whether the weights do set the spread and none of them can move it from where it is."""
    if not spread.requires_grad:
        return False
    gradients = torch.autograd.grad(spread.sum(), bench.parameters(), allow_unused=True)
    return not any(each is not None and bool(each.any()) for each in gradients)


def _pushed(bench: Bench, measure: Callable[[], Tensor], sign: int, goal: float) -> float:
    with preserved(bench.module):
        return reach(measure, bench.parameters(), sign, goal)
