"""A collapsed code is not sorted, ranked or clustered unless that is wanted."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from vae_astro.collapse.monitor import CollapseMonitor
from vae_astro.collapse.units import verdict_of
from vae_astro.collapse.verdict import CollapseVerdict
from vae_astro.errors import InputError

__all__ = ["refuse_collapsed", "verdict_in"]

log = logging.getLogger(__name__)


def verdict_in(checkpoint: Mapping[str, Any]) -> CollapseVerdict | None:
    """Verdict of the last validation before a checkpoint was saved.

    Parameters
    ----------
    checkpoint : mapping
        As `vae_astro.checkpoint.load_checkpoint` returns it.

    Returns
    -------
    CollapseVerdict or None
        None where no monitor watched the run.
    """
    state = checkpoint.get("callbacks", {}).get(CollapseMonitor.__qualname__, {})
    validations = state.get("validations") or []
    if not validations:
        return None
    active_units = int(validations[-1]["active_units"])
    kl_per_unit = tuple(map(float, validations[-1]["kl_per_unit_nats"]))
    verdict = verdict_of(active_units, len(kl_per_unit), sum(kl_per_unit))
    return CollapseVerdict(verdict, active_units, len(kl_per_unit), kl_per_unit)


def refuse_collapsed(
    found: CollapseVerdict | Mapping[str, Any], force: bool
) -> CollapseVerdict | None:
    """Raise `InputError` with the verdict if the code has collapsed in full.

    Ask twice: of the checkpoint before the stamps are read, and of `judge` once they are embedded,
    since a code may say nothing about other stamps than those it was trained on.

    Parameters
    ----------
    found : CollapseVerdict or mapping
        What `judge` says of the stamps at hand, or a checkpoint, which knows what its last
        validation said.
    force : bool
        ``force=true``: log it and go on.

    Returns
    -------
    CollapseVerdict or None
        None where a checkpoint does not know. A partial collapse is logged and goes on.

    Raises
    ------
    InputError
        The collapse is full and ``force`` is off.
    """
    verdict = found if isinstance(found, CollapseVerdict) else verdict_in(found)
    if verdict is None or verdict.verdict == "none":
        return verdict
    said = f"{verdict.verdict} collapse: {verdict.figures}"
    if verdict.verdict == "full" and not force:
        raise InputError(
            f"checkpoint: {said}, so that nothing can be sorted by it; train it again (what to "
            "change stands in the last lines of its train.log), or give force=true"
        )
    log.warning("%s", said)
    return verdict
