"""Watches the latent code at every validation, says when it collapses, and acts if it should."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from vae_astro.collapse.health import STATES, Health, State
from vae_astro.collapse.information import choose_stamps, measure_information
from vae_astro.collapse.rescue import Plan
from vae_astro.collapse.verdict import judge
from vae_astro.parts import StampScores
from vae_astro.ranks import gather
from vae_astro.settings import check_choice
from vae_astro.vae import VAE

__all__ = ["ACTIONS", "CollapseMonitor", "Validation", "rescues_in"]

ACTIONS = ("warn", "stop", "rescue")
"""What is done about a collapse: ``collapse.action``."""
PATIENCE = 0.1
"""Share of the run that a code may be collapsing before a rescue does not wait for the rest."""

SPOILED = 2.0
"""Chi-squared over the lowest so far from which a state is not one to come back to."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Validation:
    """What one validation found.

    Attributes
    ----------
    step : int
        Optimiser step.
    state : State
        Of the run from there on.
    active_units : int
        Units whose posterior mean varies by more than 0.01 of the prior's variance (Burda et al.
        2016).
    kl_per_unit_nats : list of float
        Mean divergence of each unit from the prior.
    mutual_information_nats, aggregate_mismatch_nats : float or None
        The two parts of the KL, see `measure_information`; None with too few stamps.
    chi2_per_pixel : float
        Median over stamps.
    """

    step: int
    state: State
    active_units: int
    kl_per_unit_nats: list[float]
    mutual_information_nats: float | None
    aggregate_mismatch_nats: float | None
    chi2_per_pixel: float

    @property
    def kl_nats(self) -> float:
        """Summed over units."""
        return sum(self.kl_per_unit_nats)


def rescues_in(checkpoint: dict[str, Any]) -> list[dict[str, Any]]:
    """Records of the rescues behind a checkpoint."""
    state = checkpoint["callbacks"].get(CollapseMonitor.__qualname__, {})
    return list(state.get("rescues", []))


class CollapseMonitor(Callback):
    """Logs ``collapse/*``, keeps the history and the state of the run, and acts on a collapse.

    History and state travel in the checkpoint.

    Parameters
    ----------
    action : {"warn", "stop", "rescue"}
        ``warn``: a line in the log where the state changes. ``stop``: end the fit when the code has
        collapsed. ``rescue``: when it has collapsed, or has been collapsing for `PATIENCE` of the
        run, ask for a plan, and end the fit if there is one.
    healthy_path : Path, optional
        Where to keep the last healthy state, as a checkpoint.
    rescues : sequence of dict
        Records of the rescues behind this run.

    Attributes
    ----------
    health : Health or None
        State of the run; None until the fit starts.
    validations : list of Validation
        One for each, oldest first.
    planner : callable or None
        What to ask for a plan when a rescue is due; answers None where nothing is left to try.
    plan : Plan or None
        Its answer: the fit was ended to be rescued by it.
    """

    def __init__(
        self,
        action: str = "warn",
        healthy_path: Path | None = None,
        rescues: Sequence[dict[str, Any]] = (),
    ) -> None:
        self.action = check_choice("collapse.action", action, ACTIONS)
        self.healthy_path = healthy_path
        self.rescues = list(rescues)
        self.health: Health | None = None
        self.validations: list[Validation] = []
        self.planner: Callable[[], Plan | None] | None = None
        self.plan: Plan | None = None
        self._gave_up = False
        self._expected: tuple[int | None, bool] = (None, True)
        self._batches: list[dict[str, Tensor]] = []

    @property
    def steps(self) -> list[int]:
        """Optimiser step of each validation."""
        return [validation.step for validation in self.validations]

    @property
    def kl_per_unit(self) -> list[list[float]]:
        """Mean KL of each unit at each validation, in nats."""
        return [validation.kl_per_unit_nats for validation in self.validations]

    def expect(self, n_units: int | None, may_live: bool) -> None:
        """Tell what the forecast says; see `Health`. None: all of the units may live."""
        self._expected = (n_units, may_live)

    def finding(self) -> dict[str, Any]:
        """Step, state, begin and figures of the last validation: plain numbers."""
        last = self.validations[-1]
        return {
            "step": last.step,
            "state": last.state,
            "began_at_step": self.health.began_at_step if self.health else None,
            "active_units": last.active_units,
            "kl_nats": last.kl_nats,
        }

    # -- what Lightning calls ----------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, VAE)
        n_units, may_live = self._expected
        if self.health is None:
            self.health = Health(pl_module.latent_dim)
        self.health.expected_units = n_units or pl_module.latent_dim
        self.health.may_live = may_live
        trainer.should_stop |= self.plan is not None

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert isinstance(outputs, StampScores)
        self._batches.append(
            {
                "index": batch["index"],
                "mean": outputs.posterior.mean,
                "log_var": outputs.posterior.log_var,
                "kl": outputs.elbo.kl_per_unit,
                "chi2": outputs.chi2_per_pixel,
            }
        )

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, VAE)
        assert self.health is not None
        columns = {
            name: gather(torch.cat([batch[name] for batch in self._batches]))
            for name in self._batches[0]
        }
        self._batches.clear()
        found = self._judged(trainer, pl_module, columns)
        self.validations.append(found)
        self._log(pl_module, found)
        if self.action != "warn":
            # the first process alone has seen the forecast; all stop together or hang
            trainer.should_stop |= bool(trainer.strategy.broadcast(self._acts(pl_module, found)))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        validated = bool(self.validations) and self.validations[-1].step == trainer.global_step
        if self.healthy_path is not None and validated and self._is_worth_keeping:
            trainer.save_checkpoint(self.healthy_path, weights_only=False)  # with the optimiser

    # -- the parts ---------------------------------------------------------------------------

    @property
    def _is_worth_keeping(self) -> bool:
        """Whether the last validation shows a state to come back to."""
        chi2 = [validation.chi2_per_pixel for validation in self.validations]
        # steps too long can leave a code that lives, beside a decoder that draws nothing
        spoiled = chi2[-1] > SPOILED * min(chi2)
        return self.health is not None and self.health.is_well and not spoiled

    def _judged(self, trainer: Trainer, vae: VAE, columns: dict[str, Tensor]) -> Validation:
        verdict = judge(
            columns["mean"].cpu().numpy(),
            columns["kl"].cpu().numpy(),
            vae.prior.unit_std().cpu().numpy(),
        )
        chosen = choose_stamps(len(columns["index"]))
        few = {name: values.float().cpu().numpy()[chosen] for name, values in columns.items()}
        eps = vae.evaluation_noise(columns["index"].cpu()[chosen]).numpy()
        information = measure_information(few["mean"], few["log_var"], few["kl"], eps)
        step = trainer.global_step
        self._move(step, vae, verdict.active_units, verdict.kl_nats)
        assert self.health is not None
        return Validation(
            step,
            self.health.state,
            verdict.active_units,
            list(verdict.kl_per_unit_nats),
            None if information is None else information.mutual_information_nats,
            None if information is None else information.aggregate_mismatch_nats,
            float(columns["chi2"].float().quantile(0.5)),
        )

    def _move(self, step: int, vae: VAE, active_units: int, kl_nats: float) -> None:
        """Take the validation into the state of the run, and say so where it changes."""
        health = self.health
        assert health is not None
        now, end = vae.schedule(step).capacity_nats, vae.schedule(vae.total_steps).capacity_nats
        growing = now is not None and end is not None and now < end
        before = health.state
        progress = step / max(vae.total_steps, 1)
        if not health.update(step, progress, active_units, kl_nats, growing):
            return
        figures = (
            f"{active_units} of {vae.latent_dim} units active, KL {kl_nats:.3g} nats per stamp"
        )
        if health.state == "healthy":
            if before != "starting":
                log.warning("collapse: healthy again at step %d: %s", step, figures)
            return
        log.warning(
            "collapse: %s at step %d, since step %d: %s; %d would be enough",
            health.state,
            step,
            health.began_at_step,
            figures,
            health.enough_units,
        )

    def _log(self, vae: VAE, found: Validation) -> None:
        units = sorted(found.kl_per_unit_nats, reverse=True)
        vae.log("collapse/active_units", float(found.active_units), prog_bar=True, sync_dist=True)
        values = {
            "collapse/state": float(STATES[found.state]),
            "collapse/strongest_unit_nats": units[0],
            "collapse/weakest_unit_nats": units[-1],
            "collapse/mutual_information_nats": found.mutual_information_nats,
            "collapse/aggregate_mismatch_nats": found.aggregate_mismatch_nats,
        }
        known = {name: value for name, value in values.items() if value is not None}
        vae.log_dict(known, sync_dist=True)

    def _acts(self, vae: VAE, found: Validation) -> bool:
        """Whether the fit is to end here."""
        if self.action == "stop":
            before = self.validations[-2].state if len(self.validations) > 1 else "starting"
            # only where it has become so: a run resumed after a stop is meant to go on
            stops = found.state == "collapsed" != before
            if stops:
                log.warning("collapse.action=stop: the fit ends at step %d", found.step)
            return stops
        began = self.health.began_at_step if self.health else None
        lasting = began is not None and found.step - began >= PATIENCE * vae.total_steps
        if found.state == "collapsed" or (found.state == "collapsing" and lasting):
            self._ask_for_a_plan()
        return self.plan is not None

    def _ask_for_a_plan(self) -> None:
        if self._gave_up:
            return
        self.plan = None if self.planner is None else self.planner()
        self._gave_up = self.plan is None
        if self._gave_up:
            log.warning("collapse.action=rescue: nothing is left to try, the run goes on as it is")

    # -- what stays --------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """State, history and rescues for ``metrics.json``: plain numbers, None where unknown."""
        columns = [
            "step", "state", "active_units", "kl_nats", "mutual_information_nats",
            "aggregate_mismatch_nats", "chi2_per_pixel",
        ]  # fmt: skip
        return {
            "state": self.health.state if self.health else "starting",
            "began_at_step": self.health.began_at_step if self.health else None,
            "history": {
                name: [getattr(validation, name) for validation in self.validations]
                for name in columns
            },
            "rescues": self.rescues,
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "validations": [asdict(validation) for validation in self.validations],
            "health": None if self.health is None else self.health.state_dict(),
            "rescues": self.rescues,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.validations = [Validation(**values) for values in state_dict["validations"]]
        health = state_dict["health"]
        self.health = None if health is None else Health.from_state_dict(health)
        self.rescues = list(state_dict["rescues"])
        # a run that was stopped, or is over, before it could be rescued
        lost = self.health is not None and self.health.state == "collapsed"
        if lost and self.action == "rescue":
            self._ask_for_a_plan()
