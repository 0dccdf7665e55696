"""The next fit after one that collapsed: from where, with what settings, and how long."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vae_astro.checkpoint import AtomicCheckpoints, carry_over, load_checkpoint
from vae_astro.collapse.forecast import Outlook
from vae_astro.collapse.rescue import Plan, changes
from vae_astro.data.datamodule import StampDataModule
from vae_astro.training import Attempt, new_attempt
from vae_astro.vae import VAE

__all__ = ["rescue"]

SHORTEST_REST = 0.5
"""Share of a run that has to follow a rescue; it is made longer where less is left."""

log = logging.getLogger(__name__)


def rescue(
    attempt: Attempt,
    plan: Plan,
    datamodule: StampDataModule,
    run_dir: Path,
    begin: Callable[[dict[str, Any]], VAE],
) -> tuple[Attempt, VAE, Path | None]:
    """Go back to the last healthy state, or to the start, with the settings of ``plan``.

    A healthy state that has been gone back to once is not tried again. The run goes on from
    ``checkpoints/rescue_N.ckpt``: a rescue is a resumed run with other settings, and can be
    repeated as one. The best checkpoint of what collapsed is kept as ``collapsed_N.ckpt``.

    Parameters
    ----------
    attempt : Attempt
        The fit that collapsed.
    plan : Plan
        What to change.
    datamodule : StampDataModule
        Of the run.
    run_dir : Path
        Run folder.
    begin : callable
        Settings to the model as a run of these settings starts with.

    Returns
    -------
    tuple of Attempt, VAE, and Path or None
        The next fit, its model, and the checkpoint it goes on from.
    """
    monitor, folder = attempt.monitor, run_dir / "checkpoints"
    number = len(monitor.rescues) + 1
    healthy, best = folder / "healthy.ckpt", folder / "best.ckpt"
    back = load_checkpoint(healthy) if plan.from_healthy and healthy.exists() else None
    from_step = 0 if back is None else back["global_step"]
    settings = _long_enough(attempt, plan.settings, datamodule, from_step)
    record = {
        **monitor.finding(),
        "from_step": from_step,
        "kind": plan.kind,
        "change": changes(attempt.settings, settings),
        "reason": plan.reason,
        "forecast_before": _brief(plan.before),
        "forecast_after": _brief(plan.after),
    }
    _say(number, record)
    following = new_attempt(settings, run_dir, [*monitor.rescues, record])
    following.set_length(datamodule)
    vae = begin(settings)
    resume = None
    if back is not None:
        carried = carry_over(back, vae)
        carried["callbacks"][monitor.state_key]["rescues"] = following.monitor.rescues
        resume = folder / f"rescue_{number}.ckpt"
        for path in (resume, folder / "last.ckpt"):  # the latter for a run that is killed now
            AtomicCheckpoints().save_checkpoint(carried, path)
    healthy.unlink(missing_ok=True)
    if best.exists():
        best.replace(folder / f"collapsed_{number}.ckpt")
    return following, vae, resume


def _long_enough(
    attempt: Attempt, settings: dict[str, Any], datamodule: StampDataModule, from_step: int
) -> dict[str, Any]:
    """The settings, with more epochs where less than `SHORTEST_REST` of the run would follow."""
    per_epoch = attempt.steps_per_epoch(datamodule)
    n_epochs = int(attempt.trainer.fit_loop.max_epochs or 1)
    done = -(-from_step // per_epoch)
    rest = -int(-SHORTEST_REST * n_epochs // 1)
    if done + rest <= n_epochs:
        return settings
    log.info("rescue: %d epochs are to follow, so the run becomes %d long", rest, done + rest)
    return {**settings, "trainer": {**settings["trainer"], "max_epochs": done + rest}}


def _brief(foreseen: Outlook) -> dict[str, Any]:
    """The figures that matter; the whole forecast of the run stands beside its verdict."""
    keys = ("verdict", "kl_nats", "active_units", "latent_dim", "beta", "threshold",
            "largest_eigenvalue")  # fmt: skip
    return {key: foreseen.as_dict()[key] for key in keys}


def _say(number: int, record: dict[str, Any]) -> None:
    foreseen = record["forecast_after"]
    back = f"step {record['from_step']}, the last healthy" if record["from_step"] else "the start"
    changed = ", ".join(f"{key} {old} -> {new}" for key, (old, new) in record["change"].items())
    log.warning("rescue %d: back to %s; %s", number, back, changed)
    log.warning("rescue %d: %s", number, record["reason"])
    log.warning(
        "rescue %d: forecast %d of %d units, KL about %.3g nats",
        number,
        foreseen["active_units"],
        foreseen["latent_dim"],
        foreseen["kl_nats"] or 0.0,
    )
