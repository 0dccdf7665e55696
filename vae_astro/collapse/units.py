"""When a latent unit counts as active, and when a code counts as collapsed."""

from __future__ import annotations

from typing import Literal

__all__ = ["ACTIVE_VARIANCE", "FULL_COLLAPSE_NATS", "VERDICT_WORDS", "Verdict", "verdict_of"]

ACTIVE_VARIANCE = 0.01
"""A unit is active if its posterior mean varies more than this over stamps (Burda et al. 2016)."""
FULL_COLLAPSE_NATS = 0.1
"""Total KL below which the code says nothing, whatever its units seem to do."""

Verdict = Literal["none", "partial", "full"]
VERDICT_WORDS: dict[str, str] = {
    "none": "no collapse",
    "partial": "partial collapse",
    "full": "full collapse",
}
"""For a person: "verdict none" would be no verdict."""


def verdict_of(active_units: int, latent_dim: int, kl_nats: float) -> Verdict:
    """``full``: no active unit, or less than `FULL_COLLAPSE_NATS` in total; ``partial``: fewer
    than half of the units active; ``none`` otherwise.
    """
    if active_units == 0 or kl_nats < FULL_COLLAPSE_NATS:
        return "full"
    return "partial" if 2 * active_units < latent_dim else "none"
