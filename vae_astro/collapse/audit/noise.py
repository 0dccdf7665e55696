"""Experiments on the sampling: is the noise what mean and log-variance claim?

The noise is what the decoder is given less the mean, in training mode. The log-variance is moved
by the weights of a copy that move it and leave the mean alone, and the noise must follow.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vae_astro.collapse.audit.adapters import OwnSubject
from vae_astro.collapse.audit.bench import (
    ROUNDING,
    Bench,
    Evidence,
    preserved,
    relative_change,
)
from vae_astro.collapse.audit.calls import reseed
from vae_astro.collapse.audit.findings import Finding, Untestable
from vae_astro.collapse.audit.outputs import STD_OF

__all__ = [
    "evaluation_is_repeatable",
    "log_var_learns_from_output",
    "noise_follows_log_var",
    "one_meaning",
]

STEADY = 0.25
"""Scatter of the logarithm of noise over formula, up to which the noise follows the formula."""
RESOLUTION = 3e-6
"""Of float32 in the difference of code and mean."""
SCALE_TOLERANCE = 1.25
"""Factor by which the noise may be off."""
LEVELS = (-3.0, -1.0, 1.0, 3.0)
"""Log-variances at which the noise is measured, nats."""
NO_NOISE = -30.0
"""Log-variance at which nothing of the noise is left."""
FEWEST_DRAWS = 400
"""Numbers from which the noise can be judged."""
N_DRAWS = 640
"""Numbers drawn at each level, about: their size is then known to 3 %."""


@dataclass(frozen=True)
class _Level:
    """Noise at one setting of the weights: P passes, B stamps, Z units."""

    error: Tensor  # (P, B, Z), code less mean
    mean: Tensor  # (P, B, Z)
    spread: Tensor  # (P, B, Z)


def evaluation_is_repeatable(bench: Bench) -> list[Finding]:
    """The same stamps twice in evaluation mode: the same mean, and the same output for a code."""
    n = min(len(bench.stamps), 16)
    readings = []
    for seed in (1, 2):
        reseed(seed)
        readings.append(bench.subject.run(bench.few(n)))
    first, second = readings
    findings = []
    if first.mean is not None and second.mean is not None:
        change = relative_change(first.mean, second.mean)
        if change > ROUNDING:
            measured = (
                "the same stamps twice in evaluation mode: the posterior mean differs by "
                f"{100 * change:.3g} % of its size"
            )
            findings.append(Finding.of("noise-in-evaluation", measured))
    if bench.subject.reaches_code and not findings:
        outputs = []
        for seed in (1, 2):
            reseed(seed)
            outputs.append(bench.subject.run(bench.few(n), bench.codes(n)).recon)
        assert outputs[0] is not None
        assert outputs[1] is not None
        change = relative_change(outputs[0], outputs[1])
        if change > ROUNDING:
            measured = (
                "the same code twice in evaluation mode: the output differs by "
                f"{100 * change:.3g} % of its size"
            )
            findings.append(Finding.of("noise-in-evaluation", measured))
    own = isinstance(bench.subject, OwnSubject)  # its forward decodes the mean
    if not (findings or own or first.recon is None or second.recon is None):
        bench.facts["forward_samples_in_evaluation"] = (
            relative_change(first.recon, second.recon) > ROUNDING
        )
    return findings


def noise_follows_log_var(bench: Bench) -> list[Finding]:
    """Measure the noise at several log-variances, and find the formula that it follows."""
    levels, silent = _measure_levels(bench)
    every = _Level(
        *(
            torch.cat([getattr(level, name) for level in levels])
            for name in ("error", "mean", "spread")
        )
    )
    low, high = (float(bound) for bound in every.spread.aminmax())
    if bool((every.error.abs() <= RESOLUTION * (every.mean.abs() + every.error.abs())).all()):
        measured = (
            f"in training mode, at log-variances from {low:.3g} to {high:.3g}, the code equals the "
            "mean"
        )
        return [Finding.of("noise-missing", measured)]
    if silent is not None and _is_shifted(silent, every):
        raise Untestable("the code is not mean plus noise: something acts on it, as a flow does")
    findings = _independence(levels)
    every = _resolved(every)
    low, high = (float(bound) for bound in every.spread.aminmax())
    formula = min(_FORMULAS, key=lambda each: _scatter(every, each))
    if not findings and high - low > 1.0:
        scatter = _scatter(every, formula)
        if scatter > STEADY:
            measured = (
                f"over log-variances from {low:.3g} to {high:.3g} the noise follows none of "
                f"{', '.join(_IN_WORDS.values())}; the nearest is {_IN_WORDS[formula]}, off by "
                f"{100 * scatter:.0f} %"
            )
            return [Finding.of("noise-formula", measured)]
        scale = float((every.error / _std(formula, every.spread)).square().mean().sqrt())
        measured = (
            f"over log-variances from {low:.3g} to {high:.3g} the noise is {scale:.3g} times "
            f"{_IN_WORDS[formula]}"
        )
        bench.noise = Evidence(formula, measured, is_positive=low > 0)
        return _size(every, formula)
    return findings + _size(every, bench.read(2).claim or _meaning(bench.kl) or "log_var")


def one_meaning(bench: Bench) -> list[Finding]:
    """The noise, the KL and the name of the log-variance must agree on what it is.

    Where noise and KL agree, the loss is a bound whatever the name says.
    """
    named, kl, noise = bench.read(2).claim, bench.kl, bench.noise
    if _meaning(kl) == _meaning(noise):
        return []
    told = [_meaning(each) for each in (kl, noise)]
    meant: str | None = named or ("log_var" if "log_var" in told else _meaning(kl))
    if meant is None and noise is not None:
        is_std = noise.meaning in ("std", "var") and noise.is_positive
        meant = noise.meaning if is_std else "log_var"
    findings = []
    if noise is not None and noise.meaning != meant:
        measured = noise.measured
        if named is None and kl is None:
            measured += "; if it is a log standard deviation, return it as log_std or give the loss"
        is_exp = (meant, noise.meaning) == ("log_var", "log_std")
        findings.append(Finding.of("noise-exp-log-var" if is_exp else "noise-formula", measured))
    if kl is not None and kl.meaning != meant:
        is_std = meant == "log_var" and kl.meaning in ("std", "log_std")
        name = "kl-log-var-taken-for-std" if is_std else "kl-formula"
        findings.append(Finding.of(name, f"{kl.measured}, where a {meant} is meant"))
    return findings


def log_var_learns_from_output(bench: Bench) -> list[Finding]:
    """The weights that move only the log-variance must get a gradient from the output."""
    n = min(len(bench.stamps), 16)
    with preserved(bench.module):
        bench.module.train()
        parameter, only_spread = _spread_weights(bench, n)
        recon = bench.read(n).recon
        assert recon is not None
        gradient = None
        if recon.requires_grad:
            scalar = (recon * torch.randn_like(recon)).sum()
            gradient = torch.autograd.grad(scalar, parameter, allow_unused=True)[0]
    strongest = 0.0 if gradient is None else float(gradient[only_spread].abs().max())
    if strongest > 0:
        return []
    n_weights = int(only_spread.sum())
    measured = f"the output moves none of the {n_weights} weights that set the log-variance"
    return [Finding.of("log-var-without-gradient", measured)]


# -- measuring ---------------------------------------------------------------------------------


def _measure_levels(bench: Bench) -> tuple[list[_Level], _Level | None]:
    """Noise as the model is and at `LEVELS`; and where it should have vanished, if that is told."""
    n = min(len(bench.stamps), 16)
    mean, _ = bench.posterior(n)
    if bench.read(n).code is None:
        raise Untestable("the code cannot be seen between encoder and decoder")
    n_passes = max(4, min(20, N_DRAWS // mean.numel()))
    levels = []
    with preserved(bench.module):
        bench.module.train()
        levels.append(_level(bench, n, n_passes))
        try:
            parameter, only_spread = _spread_weights(bench, n)
        except Untestable:
            return levels, None
        moved = bench.posterior(n)[1]
        gradient = torch.autograd.grad(moved.mean(), parameter)[0] * only_spread
        slope = gradient.sign() / gradient.abs().sum()  # moves the average spread by one
        start, average = parameter.detach().clone(), float(moved.detach().mean())
        for target in (*LEVELS, NO_NOISE):
            with torch.no_grad():
                parameter.copy_(start + (target - average) * slope)
            levels.append(_level(bench, n, n_passes))
    *levels, silent = levels
    return [each for each in levels if bool(each.error.isfinite().all())], silent


def _level(bench: Bench, n: int, n_passes: int) -> _Level:
    passes = []
    for seed in range(n_passes):
        reseed(seed)
        reading = bench.subject.draw(bench.few(n))
        assert reading.code is not None
        assert reading.mean is not None
        assert reading.spread is not None
        parts = (reading.code, reading.mean, reading.spread)
        code, mean, spread = (part.detach().flatten(1) for part in parts)
        passes.append((code - mean, mean, spread))
    error, means, spreads = (torch.stack(list(each)).double() for each in zip(*passes, strict=True))
    return _Level(error, means, spreads)


def _spread_weights(bench: Bench, n: int) -> tuple[Tensor, Tensor]:
    """The parameter that moves the spread most, and the part of it that leaves the mean alone."""
    mean, spread = bench.posterior(n)
    parameters = bench.parameters()
    if not spread.requires_grad:
        raise Untestable("no weight moves the log-variance")
    of_spread = torch.autograd.grad(spread.sum(), parameters, allow_unused=True, retain_graph=True)
    of_mean: tuple[Tensor | None, ...] = (None,) * len(parameters)
    if mean.requires_grad:
        weights = torch.rand_like(mean) + 0.5  # so that no sum cancels
        of_mean = torch.autograd.grad((mean * weights).sum(), parameters, allow_unused=True)
    best: tuple[float, Tensor, Tensor] | None = None
    for parameter, a, b in zip(parameters, of_spread, of_mean, strict=True):
        if a is None:
            continue
        only = (a != 0) if b is None else (a != 0) & (b == 0)
        strength = float((a * only).double().square().mean())
        if strength > 0 and (best is None or strength > best[0]):
            best = (strength, parameter, only)
    if best is None:
        raise Untestable("every weight that moves the log-variance moves the mean too")
    return best[1], best[2]


# -- judging -----------------------------------------------------------------------------------

_IN_WORDS = {
    "log_var": "exp(0.5 log_var)",
    "log_std": "exp(log_var)",
    "std": "log_var itself",
    "var": "the root of log_var",
    "constant": "a constant",
}
_FORMULAS = tuple(_IN_WORDS)


def _meaning(evidence: Evidence | None) -> str | None:
    return None if evidence is None else evidence.meaning


def _std(formula: str, spread: Tensor) -> Tensor:
    if formula == "constant":
        return torch.ones_like(spread)
    return STD_OF[formula](spread).clamp(min=1e-12)


def _scatter(level: _Level, formula: str) -> float:
    """How much the noise, in units of the formula's, changes over eight bins of the spread."""
    order = level.spread.flatten().argsort()
    ratio = (level.error / _std(formula, level.spread)).flatten()[order]
    sizes = torch.stack([each.square().mean().sqrt() for each in ratio.chunk(8)])
    return float(sizes.clamp(min=1e-30).log().std())


def _resolved(level: _Level) -> _Level:
    """What float32 resolves: neither means nor spreads far out, as a bad start makes them."""
    near = (level.spread.abs() < 6) & (level.mean.abs() < 30)
    if int(near.sum()) < FEWEST_DRAWS:
        raise Untestable("means and log-variances lie too far out to tell the noise from rounding")
    return _Level(level.error[near], level.mean[near], level.spread[near])


def _size(level: _Level, formula: str) -> list[Finding]:
    ratio = level.error / _std(formula, level.spread)
    findings = []
    size, centre = float(ratio.square().mean().sqrt()), float(ratio.mean())
    if abs(centre) > 0.2 * size:
        measured = (
            f"in units of {_IN_WORDS[formula]} the noise averages {centre:.3g}, with a root mean "
            f"square of {size:.3g}"
        )
        findings.append(Finding.of("noise-biased", measured))
    if not 1 / SCALE_TOLERANCE < size < SCALE_TOLERANCE:
        measured = (
            f"over {ratio.numel()} draws in training mode the noise is {size:.3g} times "
            f"{_IN_WORDS[formula]}"
        )
        findings.append(Finding.of("noise-scale", measured))
    return findings


def _is_shifted(silent: _Level, every: _Level) -> bool:
    """Whether code and mean differ, always alike, where there should be no noise at all."""
    apart = float(silent.error.square().mean().sqrt())
    return (
        bool((silent.spread < NO_NOISE / 2).all())
        and apart > 0.01 * float(every.error.square().mean().sqrt())
        and relative_change(silent.error[0], silent.error[1]) < 0.01
    )


def _independence(levels: list[_Level]) -> list[Finding]:
    """Whether stamps, units and passes get noise of their own."""
    level = min(levels, key=lambda each: abs(float(each.spread.mean())))
    size = level.error.square().mean().sqrt()
    noise = level.error / level.error.square().mean((0, 1)).sqrt().clamp(min=1e-30)
    if relative_change(noise[0], noise[1]) < 0.01:
        measured = (
            f"{len(noise)} passes in training mode with other seeds drew the same noise, of a "
            f"root mean square of {float(size):.3g}"
        )
        return [Finding.of("noise-frozen", measured)]
    scaled = level.error / _std("log_var", level.spread)
    for axis, name in ((1, "stamps of a batch"), (2, "units of a stamp")):
        if noise.shape[axis] < 2:
            continue
        for each in (noise, scaled):
            within = each.std(axis).mean() / each.square().mean().sqrt()
            if float(within) < 0.05:
                measured = (
                    f"the {noise.shape[axis]} {name} share one draw: within them the noise varies "
                    f"by {100 * float(within):.2g} % of its size"
                )
                return [Finding.of("noise-shared", measured)]
    return []
