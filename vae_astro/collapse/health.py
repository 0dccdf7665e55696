"""Is the code of a run under way alive? A state that does not change its mind at every validation.

One validation alone shows a code that is *healthy* (at least half of the units that the stamps can
feed are active), *collapsing* (fewer) or *collapsed* (none, or next to no KL). The state of the run
follows where two validations in a row say so, and comes back only past thresholds that lie higher.
KL that falls while beta rises is as it should be, so no state looks at a change of KL.

A run that was never healthy is *starting*, until it has had its fair chance: a code that is not
learned yet looks like one that is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from vae_astro.collapse.units import FULL_COLLAPSE_NATS

__all__ = ["FAIR_CHANCE", "STATES", "Health", "State"]

State = Literal["starting", "healthy", "collapsing", "collapsed"]
STATES: dict[State, int] = {"starting": -1, "healthy": 0, "collapsing": 1, "collapsed": 2}
"""How bad each is; the number that TensorBoard shows."""

FAIR_CHANCE = 0.15
"""Share of the run after which a code that never lived is called collapsed."""
SLOW_CHANCE = 0.5
"""Share after which one that lives in too few units, and never lived in more, is collapsing."""
RECOVERED_NATS = 2 * FULL_COLLAPSE_NATS
"""Total KL from which a collapsed code counts as alive again."""
GROWTH = 1.5
"""Factor from one validation to the next by which the KL of a code that is waking up grows, ..."""
STIRRING_NATS = 1e-3
"""... once it is above chance."""


@dataclass
class Health:
    """State of a run, from one validation to the next.

    Attributes
    ----------
    expected_units : int
        Units that the stamps can feed under an objective set right, at least 1.
    may_live : bool
        Whether the forecast leaves the run any hope; without one, True.
    state : State
        Of the run so far.
    began_at_step : int or None
        Optimiser step of the first validation of the trouble it is in: 0 for a run that never
        lived, None for one that is starting or healthy.
    """

    expected_units: int
    may_live: bool = True
    state: State = "starting"
    began_at_step: int | None = None
    _bad_since: int | None = field(default=None, repr=False)
    _before: State | None = field(default=None, repr=False)
    _kl_before: float = field(default=0.0, repr=False)

    @property
    def enough_units(self) -> int:
        """Active units below which a healthy run is collapsing."""
        return max(1, -(-self.expected_units // 2))

    @property
    def enough_again(self) -> int:
        """Active units from which one that was collapsing is healthy: an eighth more."""
        more = max(1, self.expected_units // 8)
        return min(self.expected_units, self.enough_units + more)

    @property
    def is_well(self) -> bool:
        """Whether run and last validation are both healthy: a state to come back to."""
        return self.state == self._before == "healthy"

    def update(
        self, step: int, progress: float, active_units: int, kl_nats: float, growing: bool = False
    ) -> bool:
        """Take in a validation.

        Parameters
        ----------
        step : int
            Optimiser step.
        progress : float
            Share of the run that is done.
        active_units : int
            Units whose posterior mean varies.
        kl_nats : float
            Summed over units, averaged over stamps.
        growing : bool
            Whether the schedule still holds the KL down (a capacity that rises): few active units
            then say nothing.

        Returns
        -------
        bool
            Whether the state has changed.
        """
        shown = self._shown(active_units, kl_nats)
        if shown == "collapsing" and growing:
            return False
        if shown == "healthy":
            self._bad_since = None
        elif self._bad_since is None:
            self._bad_since = step
        before, self._before = self._before, shown
        wakes = self.may_live and kl_nats > max(GROWTH * self._kl_before, STIRRING_NATS)
        self._kl_before = kl_nats
        if before is None:
            return False
        after = self._after(before, shown, progress, wakes)
        if after == self.state:
            return False
        if after == "healthy":
            self.began_at_step = None
        elif self.state == "starting":
            self.began_at_step = 0
        elif self.state == "healthy":
            self.began_at_step = self._bad_since
        self.state = after
        return True

    def _shown(self, active_units: int, kl_nats: float) -> State:
        """What a validation by itself shows; a run in trouble has to show more to be out of it."""
        collapsed, in_trouble = self.state == "collapsed", STATES[self.state] > 0
        if active_units == 0 or kl_nats < (RECOVERED_NATS if collapsed else FULL_COLLAPSE_NATS):
            return "collapsed"
        enough = self.enough_again if in_trouble else self.enough_units
        return "healthy" if active_units >= enough else "collapsing"

    def _after(self, before: State, shown: State, progress: float, wakes: bool) -> State:
        """The state that two validations in a row lead to."""
        best, worst = sorted((before, shown), key=STATES.__getitem__)
        if self.state == "starting":
            if worst == "healthy":
                return "healthy"
            lost = best == "collapsed" and progress >= FAIR_CHANCE and not wakes
            late = STATES[best] > 0 and progress >= SLOW_CHANCE
            return best if lost or late else "starting"
        if STATES[best] > STATES[self.state]:
            return best
        return worst if STATES[worst] < STATES[self.state] else self.state

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, in plain Python."""
        return asdict(self)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Health:
        """The reverse of `state_dict`."""
        return cls(**state)
