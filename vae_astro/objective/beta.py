"""Beta schedules: how hard the KL term pulls, as a pure function of the optimiser step.

A schedule holds no counter. The value at a step depends on that step alone, so a resumed run goes
on exactly where it stopped. The one exception is `geco`, whose controller says so.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vae_astro.errors import InputError
from vae_astro.objective.geco import Geco
from vae_astro.settings import check_int, check_number

__all__ = ["FINAL_BETA", "SCHEDULES", "RatePenalty", "Schedule", "capacity", "constant", "cosine",
           "cyclical", "final_beta", "geco", "linear", "lowered", "sigmoid"]  # fmt: skip


@dataclass(frozen=True)
class RatePenalty:
    """What the KL term costs at one step.

    A training step has ``beta`` and ``capacity_nats`` as scalars on its device, where a controller
    moves them and where a compiled objective takes them without being compiled again.

    Attributes
    ----------
    beta : float
        Weight of the KL, dimensionless.
    free_bits_nats : float
        KL per latent unit, in nats, that costs no more than it already does (0: off).
    capacity_nats : float or None
        Total KL, in nats, that the penalty pulls towards (None: towards zero, as usual).
    """

    beta: float
    free_bits_nats: float = 0.0
    capacity_nats: float | None = None


@dataclass(frozen=True)
class Schedule:
    """A rate penalty for every step of a run.

    Attributes
    ----------
    beta : callable
        Step to beta.
    free_bits_nats : float
        As in `RatePenalty`.
    capacity_nats : callable or None
        Step to capacity in nats.
    controller : Geco or None
        What moves beta by what it is shown of each batch; beta then depends on the training so far
        and not on the step, and the controller's state belongs in the checkpoint.
    """

    beta: Callable[[int], float]
    free_bits_nats: float = 0.0
    capacity_nats: Callable[[int], float] | None = None
    controller: Geco | None = None

    def __call__(self, step: int) -> RatePenalty:
        capacity_nats = None if self.capacity_nats is None else self.capacity_nats(step)
        return RatePenalty(self.beta(step), self.free_bits_nats, capacity_nats)


def constant(*, value: float = 1.0, free_bits_nats: float = 0.0) -> Schedule:
    """The same beta at every step (Higgins et al. 2017; 1 is the plain ELBO)."""
    value = check_number("beta.value", value, minimum=0)
    return Schedule(lambda step: value, _free_bits(free_bits_nats))


def linear(
    *,
    total_steps: int,
    start: float = 0.0,
    end: float = 1.0,
    warmup_steps: int | None = None,
    warmup_fraction: float = 0.2,
    free_bits_nats: float = 0.0,
) -> Schedule:
    """From ``start`` to ``end`` in a straight line, then ``end`` (Bowman et al. 2016)."""
    ramp = _Ramp.checked(start, end, warmup_steps, warmup_fraction, total_steps)
    return Schedule(lambda step: ramp(step, lambda t: t), _free_bits(free_bits_nats))


def cosine(
    *,
    total_steps: int,
    start: float = 0.0,
    end: float = 1.0,
    warmup_steps: int | None = None,
    warmup_fraction: float = 0.2,
    free_bits_nats: float = 0.0,
) -> Schedule:
    """From ``start`` to ``end`` along half a cosine, flat at both ends."""
    ramp = _Ramp.checked(start, end, warmup_steps, warmup_fraction, total_steps)
    return Schedule(
        lambda step: ramp(step, lambda t: 0.5 - 0.5 * math.cos(math.pi * t)),
        _free_bits(free_bits_nats),
    )


def sigmoid(
    *,
    total_steps: int,
    start: float = 0.0,
    end: float = 1.0,
    warmup_steps: int | None = None,
    warmup_fraction: float = 0.2,
    steepness: float = 10.0,
    free_bits_nats: float = 0.0,
) -> Schedule:
    """From ``start`` to ``end`` along a logistic curve, stretched to reach both exactly.

    ``steepness`` is the width of the ramp in units of the logistic's own scale.
    """
    steepness = check_number("beta.steepness", steepness, above=0)
    ramp = _Ramp.checked(start, end, warmup_steps, warmup_fraction, total_steps)
    edge = math.tanh(steepness / 4)
    return Schedule(
        lambda step: ramp(step, lambda t: 0.5 + 0.5 * math.tanh(steepness * (t - 0.5) / 2) / edge),
        _free_bits(free_bits_nats),
    )


def cyclical(
    *,
    total_steps: int,
    start: float = 0.0,
    end: float = 1.0,
    n_cycles: int = 4,
    ramp_fraction: float = 0.5,
    free_bits_nats: float = 0.0,
) -> Schedule:
    """``n_cycles`` linear ramps from ``start`` to ``end``, each with a hold (Fu et al. 2019).

    ``ramp_fraction`` is the share of a cycle spent rising. After the last cycle beta stays at
    ``end``.
    """
    start = check_number("beta.start", start, minimum=0)
    end = check_number("beta.end", end, minimum=0)
    n_cycles = check_int("beta.n_cycles", n_cycles, minimum=1)
    ramp_fraction = check_number("beta.ramp_fraction", ramp_fraction, above=0, maximum=1)
    total_steps = max(total_steps, 1)

    def beta(step: int) -> float:
        if step >= total_steps:
            return end
        phase = math.fmod(step * n_cycles / total_steps, 1.0)
        return start + (end - start) * min(phase / ramp_fraction, 1.0)

    return Schedule(beta, _free_bits(free_bits_nats))


def capacity(
    *,
    total_steps: int,
    gamma: float = 1.0,
    capacity_nats: float = 25.0,
    warmup_steps: int | None = None,
    warmup_fraction: float = 0.8,
    free_bits_nats: float = 0.0,
) -> Schedule:
    """``gamma * |KL - C|`` with C rising in a straight line from 0 to ``capacity_nats``.

    Burgess et al. (2018), equation 8. ``gamma`` takes beta's place.
    """
    gamma = check_number("beta.gamma", gamma, minimum=0)
    capacity_nats = check_number("beta.capacity_nats", capacity_nats, minimum=0)
    ramp = _Ramp.checked(0.0, capacity_nats, warmup_steps, warmup_fraction, total_steps)
    return Schedule(
        lambda step: gamma, _free_bits(free_bits_nats), lambda step: ramp(step, lambda t: t)
    )


def geco(
    *,
    target_chi2: float = 1.0,
    tolerance: float = 0.1,
    start: float = 1.0,
    rate: float = 0.01,
    momentum: float = 0.9,
    minimum: float = 0.01,
    maximum: float = 10.0,
    free_bits_nats: float = 0.0,
) -> Schedule:
    """Whatever beta explains the stamps down to their noise; see `Geco` for the settings."""
    controller = Geco(
        target_chi2=target_chi2,
        tolerance=tolerance,
        start=start,
        rate=rate,
        momentum=momentum,
        minimum=minimum,
        maximum=maximum,
    )
    return Schedule(lambda step: controller.beta, _free_bits(free_bits_nats), controller=controller)


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "sigmoid": sigmoid,
    "cyclical": cyclical,
    "capacity": capacity,
    "geco": geco,
}

FINAL_BETA = {
    "constant": "value",
    "linear": "end",
    "cosine": "end",
    "sigmoid": "end",
    "cyclical": "end",
    "capacity": "gamma",
    "geco": "maximum",
}
"""Key of each schedule that is, or where a controller moves it bounds, the weight at the end."""
MOVED_BY_A_CONTROLLER = ("geco",)


def final_beta(settings: Any) -> float | None:
    """Weight of the KL that a run of these settings ends with, as it is set or by default.

    Parameters
    ----------
    settings : mapping or anything
        ``name`` and the keys of a schedule, or what was read from a file in their place.

    Returns
    -------
    float or None
        None where a controller finds it, and where there is no such schedule.
    """
    name = str(settings.get("name")) if isinstance(settings, Mapping) else ""
    if name not in FINAL_BETA or name in MOVED_BY_A_CONTROLLER:
        return None
    return _set_or_default(settings, FINAL_BETA[name])


def lowered(settings: Mapping[str, Any], end: float) -> dict[str, float]:
    """What to set of a schedule so that the weight of the KL ends at ``end``, or below.

    Parameters
    ----------
    settings : mapping
        ``name`` and the keys of a schedule.
    end : float
        Lower than it is.

    Returns
    -------
    dict of str to float
        The key of `FINAL_BETA`, and those that have to follow: a schedule that starts above it
        would pass it on its way, and GECO's bounds must not cross.
    """
    found = {FINAL_BETA[settings["name"]]: end}
    for key in ("start", "minimum"):
        value = _set_or_default(settings, key)
        if value is not None and value > end:
            found[key] = end
    return found


def _set_or_default(settings: Mapping[str, Any], key: str) -> float | None:
    """A number; None where the schedule has no such key, or where something else stands there."""
    parameter = inspect.signature(SCHEDULES[settings["name"]]).parameters.get(key)
    value = settings.get(key, None if parameter is None else parameter.default)
    return value if isinstance(value, int | float) else None


@dataclass(frozen=True)
class _Ramp:
    """A rise from ``start`` at step 0 to ``end`` at step ``n_steps``, then flat."""

    start: float
    end: float
    n_steps: int

    @classmethod
    def checked(
        cls,
        start: float,
        end: float,
        warmup_steps: int | None,
        warmup_fraction: float | None,
        total_steps: int,
    ) -> _Ramp:
        start = check_number("beta.start", start, minimum=0)
        end = check_number("beta.end", end, minimum=0)
        if warmup_steps is not None:
            return cls(start, end, check_int("beta.warmup_steps", warmup_steps, minimum=1))
        if warmup_fraction is None:
            raise InputError(
                "give beta.warmup_steps (in steps) or beta.warmup_fraction (of the run)"
            )
        fraction = check_number("beta.warmup_fraction", warmup_fraction, minimum=0, maximum=1)
        return cls(start, end, max(1, round(fraction * total_steps)))

    def __call__(self, step: int, shape: Callable[[float], float]) -> float:
        if step >= self.n_steps:
            return self.end
        return self.start + (self.end - self.start) * shape(step / self.n_steps)


def _free_bits(free_bits_nats: float) -> float:
    return check_number("beta.free_bits_nats", free_bits_nats, minimum=0, maximum=1e6)
