"""What to change in a run that collapsed: as little as the forecast says is enough.

Nothing is done here. `plan_rescue` looks at the settings and the spectrum of the stamps and names
the next change.

What the forecast condemns is mended first, in this order: a lower final beta, a learned standard
deviation in place of one that is given, both, free bits; and the run goes on from its last healthy
state. Where the forecast finds the settings sound and the code collapsed all the same, the way
there was at fault, of which the forecast knows nothing: a decoder that learnt to do without the
code, a warm-up too short, steps too long. Then free bits and a longer warm-up are tried, a smaller
learning rate, a learned standard deviation, a lower beta; and the run starts over, since what lies
behind it is not to be trusted. No change is made twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from vae_astro.collapse.forecast import Forecast, Outlook, outlook
from vae_astro.collapse.spectrum import Spectrum
from vae_astro.objective.beta import SCHEDULES, RatePenalty, lowered
from vae_astro.settings import build

__all__ = ["MOST_RESCUES", "Plan", "changes", "outlook_set_right", "plan_rescue"]

MOST_RESCUES = 3
SAFETY = 2.0
"""A new beta stays this factor below the largest that would do."""
LEARNED: dict[str, Any] = {"name": "sigma", "learn": "closed_form"}
MOST_FREE_NATS = 0.5
"""Free bits of a unit, but for fewer where the stamps do not have so much to say."""
LONG_WARMUP, LONGER_WARMUP = 0.5, 0.8
"""Share of the run over which beta rises from 0."""
SLOWER = 10.0
"""Factor by which the learning rate is lowered."""

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """A change that the forecast says is enough.

    Attributes
    ----------
    kind : str
        What is changed, in a word or two; no kind is planned twice.
    settings : dict
        All settings of the run, changed.
    reason : str
        For a person.
    before, after : Outlook
        Forecast of the run as it is, and as planned.
    from_healthy : bool
        Whether to go on from the last healthy state; else the run starts over, because the way
        there was at fault or the weights would lose their meaning.
    """

    kind: str
    settings: dict[str, Any]
    reason: str
    before: Outlook
    after: Outlook
    from_healthy: bool


def outlook_set_right(spectrum: Spectrum, latent_dim: int) -> Outlook:
    """Outlook of a run set right: beta = 1, and a decoder variance that is learned."""
    return outlook(_learning(spectrum), latent_dim, RatePenalty(1.0))


def plan_rescue(
    settings: Settings,
    spectrum: Spectrum,
    latent_dim: int,
    total_steps: int,
    tried: Sequence[str] = (),
) -> Plan | None:
    """The least change that has not been tried and that is enough.

    Enough is half of the units that the stamps can feed under an objective set right; a lower beta
    aims at all of them. A beta below 1 beside a standard deviation that is given is no way out: the
    bound itself, by which checkpoints are chosen and runs compared, would still prefer the
    collapsed code.

    Parameters
    ----------
    settings : mapping
        Of the run; ``beta``, ``likelihood`` and ``optim`` are looked at.
    spectrum : Spectrum
        Of the training stamps, under the likelihood of the run.
    latent_dim : int
        Z.
    total_steps : int
        Optimiser steps of the run.
    tried : sequence of str
        Kinds of the rescues so far.

    Returns
    -------
    Plan or None
        None if the stamps feed no unit, or nothing is left to try.
    """
    right = outlook_set_right(spectrum, latent_dim)
    if len(tried) >= MOST_RESCUES or right.active_units == 0:
        return None
    view = _View(settings["likelihood"], spectrum, latent_dim, total_steps, right)
    before = view.outlook_of(settings)
    for kind, changed, reason in _candidates(settings, view, before):
        after = view.outlook_of(changed)
        if kind not in tried and changed != settings and view.is_enough(after):
            was, is_ = settings["likelihood"]["name"], changed["likelihood"]["name"]
            logits_become_pixels = was == "bernoulli" != is_
            from_healthy = not view.is_enough(before) and not logits_become_pixels
            return Plan(kind, changed, reason, before, after, from_healthy)
    return None


def changes(old: Settings, new: Settings) -> dict[str, list[Any]]:
    """What differs, as ``{"beta.end": [old, new]}``; None where a key is not on one side."""
    found: dict[str, list[Any]] = {}
    for key in {**old, **new}:
        was, is_ = old.get(key), new.get(key)
        if isinstance(was, Mapping) and isinstance(is_, Mapping):
            found |= {f"{key}.{name}": pair for name, pair in changes(was, is_).items()}
        elif was != is_:
            found[key] = [was, is_]
    return found


@dataclass(frozen=True)
class _View:
    """What the candidates are judged with."""

    likelihood: Settings
    spectrum: Spectrum
    latent_dim: int
    total_steps: int
    right: Outlook

    @property
    def enough(self) -> int:
        return -(-self.right.active_units // 2)

    def spectrum_of(self, settings: Settings) -> Spectrum:
        same = settings["likelihood"] == self.likelihood
        return self.spectrum if same else _learning(self.spectrum)

    def outlook_of(self, settings: Settings) -> Outlook:
        penalty = self.final_penalty(settings["beta"])
        return outlook(self.spectrum_of(settings), self.latent_dim, penalty)

    def final_penalty(self, beta: Settings) -> RatePenalty:
        schedule = build("beta", SCHEDULES, beta, total_steps=self.total_steps)
        penalty = schedule(self.total_steps)
        if schedule.controller is not None:  # it may move beta as far as that
            return RatePenalty(schedule.controller.maximum, penalty.free_bits_nats)
        return penalty

    def is_enough(self, foreseen: Outlook) -> bool:
        return foreseen.active_units >= self.enough and foreseen.verdict != "full"

    def lower_beta(self, settings: Settings) -> float | None:
        """A final beta well below what the units need; None if that is no way out."""
        spectrum, now = self.spectrum_of(settings), self.outlook_of(settings)
        room = Forecast(spectrum, self.latent_dim, now, now)
        at_least = room.largest_beta(self.enough) / SAFETY
        beta = at_least
        if at_least >= 1:
            beta = max(1.0, room.largest_beta(self.right.active_units) / SAFETY)
        is_bound = beta >= 1 or spectrum.learned_scale
        return float(f"{beta:.2g}") if 0 < beta < now.beta and is_bound else None


def _candidates(
    settings: Settings, view: _View, before: Outlook
) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Kind, settings and reason of each change that could be made, the least first."""
    alive = f"{before.active_units} of {view.latent_dim} units"
    learned = dict(settings)
    if not view.spectrum_of(settings).learned_scale:
        focus = {k: v for k, v in settings["likelihood"].items() if k == "focus_radius"}
        learned = _with(settings, likelihood={**LEARNED, **focus})
    said_learned = (
        f"likelihood={settings['likelihood']['name']} takes the width of its density as given; "
        "likelihood=sigma learns it"
    )
    if view.is_enough(before):
        surprise = f"the forecast finds the settings sound ({alive}), so the way there was at fault"
        yield "free bits and warm-up", _gentler(settings, view), surprise
        yield "learning rate", _slower(settings), f"{surprise}: shorter steps"
        yield "learned sigma", learned, said_learned
        yield "lower beta", _with_lower_beta(settings, view), f"{surprise}: more room"
        return
    too_high = f"the final beta of {before.beta:.3g} leaves {alive}"
    yield "lower beta", _with_lower_beta(settings, view), too_high
    yield "learned sigma", learned, said_learned
    both = f"{said_learned}, and {too_high}"
    yield "learned sigma and lower beta", _with_lower_beta(learned, view), both
    yield "free bits", _with_free_bits(settings, view), f"the settings leave {alive}"


def _with(settings: Settings, **groups: Settings) -> dict[str, Any]:
    return deepcopy({**settings, **groups})


def _learning(spectrum: Spectrum) -> Spectrum:
    return spectrum if spectrum.learned_scale else spectrum.with_learned_scale()


def _with_lower_beta(settings: Settings, view: _View) -> dict[str, Any]:
    """The settings as they are where a lower beta is no way out."""
    value = view.lower_beta(settings)
    if value is None:
        return dict(settings)
    return _with(settings, beta={**settings["beta"], **lowered(settings["beta"], value)})


def _with_free_bits(settings: Settings, view: _View) -> dict[str, Any]:
    had = settings["beta"].get("free_bits_nats", 0.0)
    each = view.right.kl_nats / view.right.active_units
    nats = float(f"{max(min(MOST_FREE_NATS, each / 2), 2 * had):.2g}")
    return _with(settings, beta={**settings["beta"], "free_bits_nats": nats})


def _gentler(settings: Settings, view: _View) -> dict[str, Any]:
    """Free bits, and beta from 0 over half of the run where the schedule has a rise."""
    changed = _with_free_bits(settings, view)
    beta = changed["beta"]
    if beta["name"] == "constant":
        end = beta.pop("value", 1.0)
        beta |= {"name": "linear", "end": end}
    if beta["name"] in ("linear", "cosine", "sigmoid"):
        longer = LONGER_WARMUP if (beta.get("warmup_fraction") or 0) >= LONG_WARMUP else LONG_WARMUP
        beta |= {"start": 0.0, "warmup_steps": None, "warmup_fraction": longer}
    return changed


def _slower(settings: Settings) -> dict[str, Any]:
    optim = settings["optim"]
    return _with(settings, optim={**optim, "lr": float(f"{optim['lr'] / SLOWER:.3g}")})
