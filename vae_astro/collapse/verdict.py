"""What became of the latent code, in one word and in one paragraph.

The word follows from figures alone. The paragraph says what was forecast, what happened, where they
differ, the cause if the code collapsed, the one change that would help most, and what the surviving
units encode: active units alone flatter a wide code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_FLOOR, Context
from typing import Any, Literal

import numpy as np

from vae_astro.collapse.forecast import Forecast, outlook
from vae_astro.collapse.meaning import CodeMeaning
from vae_astro.collapse.units import ACTIVE_VARIANCE, VERDICT_WORDS, Verdict, verdict_of
from vae_astro.errors import InputError
from vae_astro.objective.beta import RatePenalty, lowered

__all__ = ["Change", "Circumstances", "CollapseVerdict", "Explanation", "explain", "judge",
           "still_rising"]  # fmt: skip


@dataclass(frozen=True)
class CollapseVerdict:
    """What the latent code knows.

    Attributes
    ----------
    verdict : {"none", "partial", "full"}
        See `verdict_of`.
    active_units, latent_dim : int
        Units whose posterior mean varies, of how many.
    kl_per_unit_nats : tuple of float
        Mean divergence from the prior, for each unit.
    """

    verdict: Verdict
    active_units: int
    latent_dim: int
    kl_per_unit_nats: tuple[float, ...]

    @property
    def kl_nats(self) -> float:
        """Divergence summed over units."""
        return sum(self.kl_per_unit_nats)

    @property
    def figures(self) -> str:
        """What there is, in words."""
        verbs = "is active and carries" if self.active_units == 1 else "are active and carry"
        return (
            f"{self.active_units} of {self.latent_dim} latent units {verbs} "
            f"{self.kl_nats:.3g} nats per stamp"
        )


def judge(means: np.ndarray, kl_per_unit: np.ndarray, unit_std: np.ndarray) -> CollapseVerdict:
    """Judge a model by its posteriors over many stamps.

    Parameters
    ----------
    means : ndarray, shape (N, Z)
        Posterior means.
    kl_per_unit : ndarray, shape (N, Z)
        Divergence of each unit for each stamp, in nats.
    unit_std : ndarray, shape (Z,)
        Of the prior (`Prior.unit_std`): `ACTIVE_VARIANCE` is in units of its square.

    Returns
    -------
    CollapseVerdict

    Raises
    ------
    InputError
        If a posterior is not finite.
    """
    if not (np.isfinite(means).all() and np.isfinite(kl_per_unit).all()):
        raise InputError(
            "posteriors are not finite: the run diverged; lower optim.lr, or look for extreme "
            "pixels and set data.normalize.saturation"
        )
    variance = np.var(means, axis=0, dtype=np.float64)
    active_units = int((variance > ACTIVE_VARIANCE * np.square(unit_std)).sum())
    mean_kl = kl_per_unit.mean(axis=0, dtype=np.float64)
    latent_dim = means.shape[1]
    verdict = verdict_of(active_units, latent_dim, float(mean_kl.sum()))
    return CollapseVerdict(verdict, active_units, latent_dim, tuple(map(float, mean_kl)))


@dataclass(frozen=True)
class Circumstances:
    """What else a cause can lie in.

    Attributes
    ----------
    total_steps : int
        Optimiser steps of the run.
    judged_step : int or None
        Step of the checkpoint that was judged, None for the end of the run.
    still_rising : bool
        Whether the KL was still growing when the run ended.
    beta_moves : bool
        Whether a controller sets beta, so that a forecast knows only where it starts.
    end_state : str
        The monitor's at the end of the run.
    rescues : tuple of str
        What was changed on the way, in words, one for each rescue.
    beta : mapping
        Settings of the schedule.
    run : str
        Its folder, as a shell takes it.
    """

    total_steps: int
    judged_step: int | None = None
    still_rising: bool = False
    beta_moves: bool = False
    end_state: str = "healthy"
    rescues: tuple[str, ...] = ()
    beta: Mapping[str, Any] = field(default_factory=lambda: {"name": "linear"})
    run: str = "RUN"


@dataclass(frozen=True)
class Change:
    """What would help a collapsed code most.

    Attributes
    ----------
    words : str
        With the settings, as a user types them.
    kind : {"settings", "longer", "audit"}
        Another run with other settings, the same one longer, or a look at the network.
    settings : tuple of str
        ``KEY=VALUE`` each; empty but for the first kind.
    """

    words: str
    kind: Literal["settings", "longer", "audit"] = "settings"
    settings: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.words


LONGER = Change("a longer run, trainer.max_epochs", "longer")


@dataclass(frozen=True)
class Explanation:
    """The verdict for a person.

    Attributes
    ----------
    paragraph : str
        Everything, in plain words.
    cause : str or None
        Why the code collapsed; None where it did not.
    change : Change or None
        What would help; None where nothing needs to.
    """

    paragraph: str
    cause: str | None
    change: Change | None


def explain(
    verdict: CollapseVerdict,
    foreseen: Forecast | None,
    meaning: CodeMeaning | None,
    circumstances: Circumstances,
) -> Explanation:
    """Put forecast, outcome, cause, remedy and content into one paragraph.

    Parameters
    ----------
    verdict : CollapseVerdict
        What happened.
    foreseen : Forecast or None
        What was forecast, if anything.
    meaning : CodeMeaning or None
        What the active units follow, if measured.
    circumstances : Circumstances
        Of the run.
    """
    happened = {
        "none": f"No collapse: {verdict.figures}.",
        "partial": f"Partial collapse: only {verdict.figures}.",
        "full": f"Full collapse: {verdict.figures}; the code says nothing about the stamps.",
    }[verdict.verdict]
    parts = [happened]
    if circumstances.rescues:
        parts.append(f"Rescued on the way: {'; '.join(circumstances.rescues)}.")
    if circumstances.end_state == "collapsed" and verdict.verdict != "full":
        parts.append(
            "The run itself ended collapsed; this is its best checkpoint, from before"
            f"{_at_step(circumstances)}."
        )
    if foreseen is not None:
        parts.append(_compare(verdict, foreseen, circumstances))
    cause = change = None
    if verdict.verdict != "none":
        cause, change = _cause_and_change(verdict, foreseen, circumstances)
        parts += [f"Cause: {cause}", f"Most useful change: {change}."]
    if meaning is not None and verdict.verdict != "full":
        parts += meaning.sentences
    return Explanation(" ".join(parts), cause, change)


FEW_STEPS = 100
"""Optimiser steps below which a code that says nothing may just not have been learned."""
RISES = 1.25
"""Growth of the KL over the last fifth of a run from which it was still learning."""


def still_rising(kl_nats: Sequence[float]) -> bool:
    """Whether a run ended while its KL was growing; ``kl_nats`` at its validations, in order."""
    if len(kl_nats) < 2:
        return False
    before = kl_nats[-1 - max(1, len(kl_nats) // 5)]
    return kl_nats[-1] > max(RISES * before, 1e-3)


def _at_step(run: Circumstances) -> str:
    return "" if run.judged_step is None else f" (step {run.judged_step} of {run.total_steps})"


AGREES = 0.35
"""Share by which a deep network's KL may differ from its forecast before that is worth a word."""


def _compare(verdict: CollapseVerdict, foreseen: Forecast, run: Circumstances) -> str:
    end = foreseen.end
    if not np.isfinite(end.kl_nats):
        return "Without a weight on the KL nothing was forecast of it."
    told = (
        f"Forecast before training: {VERDICT_WORDS[end.verdict]}, {end.kl_nats:.3g} nats in "
        f"{end.active_units} {'unit' if end.active_units == 1 else 'units'}"
    )
    if run.beta_moves:
        return f"{told} at the beta where it starts; the run has moved beta since."
    if (end.verdict == "full") != (verdict.verdict == "full"):
        if end.verdict == "full" and run.judged_step is not None:
            return (
                f"{told}; the judged checkpoint is that of step {run.judged_step} of "
                f"{run.total_steps}, and the code at the end of the schedule is another."
            )
        return f"{told}; it did not come so."
    if verdict.verdict == "full":
        return "It was forecast before training."
    off = verdict.kl_nats / end.kl_nats - 1 if end.kl_nats else 0.0
    if abs(off) <= AGREES:
        return f"{told}; the KL came within {100 * abs(off):.0f} %."
    more = "more" if off > 0 else "less"
    return f"{told}; the run carries {100 * abs(off):.0f} % {more}."


def _cause_and_change(
    verdict: CollapseVerdict, foreseen: Forecast | None, run: Circumstances
) -> tuple[str, Change]:
    """Why, and what would help most."""
    if foreseen is not None and foreseen.end.verdict in ("full", verdict.verdict):
        return _too_heavy(foreseen, run)
    if run.still_rising:
        return (
            f"the run was too short: after {run.total_steps} steps the KL was still rising.",
            LONGER,
        )
    if verdict.verdict == "full" and run.total_steps < FEW_STEPS:
        return f"{run.total_steps} steps are too few to tell.", LONGER
    if verdict.verdict == "full":
        return (
            "not the weight of the KL, which leaves room for a code; the network does not use it.",
            Change(
                f"an audit of the network, python scripts/audit.py checkpoint={run.run}", "audit"
            ),
        )
    fewer = f"model.latent_dim={max(1, verdict.active_units)}"
    return (
        "the network gathers what the loss pays for in fewer units than it has; "
        "their KL is what counts.",
        Change(f"fewer latent units, {fewer}, or a longer run", settings=(fewer,)),
    )


def _too_heavy(foreseen: Forecast, run: Circumstances) -> tuple[str, Change]:
    """The threshold is too high: by a loss that is no density, a sigma too large or beta."""
    end = foreseen.end
    cause = (
        f"beta * s2 is {end.threshold:.3g}, and the stamps vary by {end.largest_eigenvalue:.3g} "
        "along their strongest direction"
    )
    if end.verdict == "partial":
        cause += f"; directions that exceed it: {end.active_units}"
    if not foreseen.spectrum.learned_scale:
        learned = foreseen.spectrum.with_learned_scale()
        better = outlook(learned, foreseen.latent_dim, RatePenalty(min(end.beta, 1.0)))
        if better.active_units > end.active_units:
            return (
                f"{cause}.",
                Change(
                    f"likelihood=sigma, which learns s2 (forecast: {better.kl_nats:.3g} nats in "
                    f"{better.active_units} units)",
                    settings=("likelihood=sigma",),
                ),
            )
    half = -(-foreseen.latent_dim // 2)
    room = foreseen.largest_beta(half)
    if room == 0:
        fewer = f"model.latent_dim={max(1, end.n_surviving)}"
        return (
            f"{cause}; the stamps have no more directions.",
            Change(f"fewer latent units, {fewer}", settings=(fewer,)),
        )
    told = _round_down(room / 2)
    lower = tuple(f"beta.{key}={told}" for key in lowered(run.beta, float(told)))
    return f"{cause}.", Change(f"a lower final beta, {' '.join(lower)}", settings=lower)


def _round_down(value: float) -> str:
    """Two digits, for people; never more than ``value``."""
    # of its shortest decimal form: 0.29 is stored as a little less, and stays 0.29
    digits = Context(prec=2, rounding=ROUND_FLOOR).create_decimal(repr(float(value)))
    return f"{float(digits):.2g}"
