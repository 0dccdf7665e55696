"""Pictures in TensorBoard while a run learns, within a share of its time."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar as LightningBar
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from vae_astro.collapse.monitor import CollapseMonitor
from vae_astro.data.batches import Batch
from vae_astro.model.modes import in_evaluation
from vae_astro.progress import Sparse, say
from vae_astro.report.board import log_start, log_state
from vae_astro.report.full_disk import Curves, save_figure
from vae_astro.settings import check_int, check_number
from vae_astro.vae import VAE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vae_astro.collapse.forecast import Forecast

__all__ = ["N_BESIDE", "ProgressBar", "ProgressLines", "StampPanels", "draw_panels"]

N_TRAVERSED = 8
TRAVERSAL = np.linspace(-3, 3, 9)
N_BESIDE = 32
"""Stamps from the prior, and as many real ones beside them."""
FIRST_GUESS_SECONDS = 1.0
"""What drawing a set is taken to cost before the first is drawn."""

log = logging.getLogger(__name__)


class ProgressBar(TQDMProgressBar):
    """Counts optimiser steps, and shows what the model shows: numbers that no device is asked for.

    Lightning counts batches, of which each step takes ``trainer.accumulate_grad_batches``.
    """

    def init_train_tqdm(self) -> Tqdm:
        """See Lightning."""
        bar = super().init_train_tqdm()
        bar.unit = "step"
        return bar

    @property
    def total_train_batches(self) -> int | float:
        """Steps of an epoch; the last may be of fewer batches."""
        n_batches = super().total_train_batches
        return -(-n_batches // self.trainer.accumulate_grad_batches)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """See Lightning."""
        n_batches = batch_idx + 1
        n_steps, waiting = divmod(n_batches, trainer.accumulate_grad_batches)
        if waiting and n_batches == trainer.num_training_batches:
            n_steps += 1
        elif waiting:
            return
        super().on_train_batch_end(trainer, pl_module, outputs, batch, n_steps - 1)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """See Lightning."""
        shown = pl_module.training_log.shown if isinstance(pl_module, VAE) else {}
        return {**super().get_metrics(trainer, pl_module), **shown}


class ProgressLines(LightningBar):
    """Says now and then how far training or prediction has come, without a control character."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: Sparse | None = None
        self._steps_before = 0
        self._speaks = True

    def disable(self) -> None:
        """Say nothing: Lightning asks all processes but the first."""
        self._speaks = False

    def enable(self) -> None:
        """Say it again."""
        self._speaks = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See Lightning."""
        self._steps_before = trainer.global_step
        n_steps = trainer.estimated_stepping_batches - trainer.global_step
        self._lines = Sparse(n_steps if math.isfinite(n_steps) else None, "training", "step")

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """See Lightning."""
        if not self._speaks or self._lines is None:
            return
        if self._lines.update(trainer.global_step - self._steps_before - self._lines.n):
            shown = dict(self.get_metrics(trainer, pl_module))
            if isinstance(pl_module, VAE):
                shown |= pl_module.training_log.shown
            values = [f"{key} {value:.5g}" for key, value in shown.items() if _is_number(value)]
            epoch = f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}"
            say(", ".join([f"  {epoch}", *values]))

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See Lightning."""
        self._lines = Sparse(sum(trainer.num_predict_batches), "embedding", "batch")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """See Lightning."""
        if self._speaks and self._lines is not None:
            self._lines.update()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | torch.Tensor)


class StampPanels(Callback):
    """Draws reconstructions, traversals, prior samples and KL per unit at validation.

    A set of panels is drawn only if the time spent drawing stays within ``time_share`` of the time
    spent training; the state of the code is told in words beside it. What was forecast is shown
    when the fit begins. `draw_last` is called when the run is over.

    Parameters
    ----------
    n_stamps : int
        Validation stamps to show.
    time_share : float
        Between 0 and 1.

    Attributes
    ----------
    foreseen : Forecast or None
        What was forecast of the fit.
    """

    def __init__(self, n_stamps: int = 8, time_share: float = 0.02) -> None:
        self.n_stamps = check_int("callbacks.n_stamps", n_stamps, minimum=1)
        self.time_share = check_number("callbacks.time_share", time_share, minimum=0, maximum=1)
        self.foreseen: Forecast | None = None
        self.seconds_spent = 0.0
        self._seconds_a_set = FIRST_GUESS_SECONDS
        self._started = 0.0
        self._shown: Batch | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.perf_counter()
        if trainer.is_global_zero:
            log_start(trainer, self.foreseen)
            self.seconds_spent += time.perf_counter() - self._started

    @property
    def n_held(self) -> int:
        """Validation stamps that a set is drawn of."""
        return max(self.n_stamps, N_BESIDE)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._shown is None and trainer.is_global_zero:
            self._shown = {name: value[: self.n_held].clone() for name, value in batch.items()}

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        elapsed = time.perf_counter() - self._started
        if self.seconds_spent + self._seconds_a_set <= self.time_share * elapsed:
            assert isinstance(pl_module, VAE)
            if self._shown is not None:
                self._draw(trainer, pl_module, self._shown)
                log_state(trainer)
            log.debug("drawing took %.1f s of %.1f s so far", self.seconds_spent, elapsed)

    def draw_last(
        self,
        trainer: Trainer,
        vae: VAE,
        stamps: Batch,
        folder: Path,
        kl_per_unit_nats: Sequence[float] | None = None,
    ) -> None:
        """Draw the panels of the finished model for ``stamps``; also as PNG files in ``folder``.

        ``kl_per_unit_nats`` orders the units: their KL over all that the run was judged by, where
        these stamps are few of them.
        """
        stamps = {name: value.to(vae.device) for name, value in stamps.items()}
        for name, figure in self._draw(trainer, vae, stamps, kl_per_unit_nats).items():
            if not save_figure(figure, folder / f"{name}.png"):
                return

    def _draw(
        self,
        trainer: Trainer,
        vae: VAE,
        stamps: Batch,
        kl_per_unit_nats: Sequence[float] | None = None,
    ) -> dict[str, Figure]:
        began = time.perf_counter()
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        monitors = [callback for callback in callbacks if isinstance(callback, CollapseMonitor)]
        monitor = monitors[0] if monitors else None
        panels = draw_panels(vae, stamps, monitor, self.n_stamps, kl_per_unit_nats)
        for logger in trainer.loggers:
            if isinstance(logger, Curves):
                for name, figure in panels.items():
                    logger.add_figure(name, figure, trainer.global_step)
        self._seconds_a_set = time.perf_counter() - began
        self.seconds_spent += self._seconds_a_set
        return panels


@torch.no_grad()
def draw_panels(
    vae: VAE,
    batch: Batch,
    monitor: CollapseMonitor | None,
    n_stamps: int = 8,
    kl_per_unit_nats: Sequence[float] | None = None,
) -> dict[str, Figure]:
    """The panels of one model.

    Parameters
    ----------
    vae : VAE
        Left in the mode it was in; no random state is touched.
    batch : dict
        Stamps to show, on the model's device.
    monitor : CollapseMonitor or None
        History of the KL.
    n_stamps : int
        Stamps to reconstruct, the first of the batch; all stand beside those from the prior.
    kl_per_unit_nats : sequence of float, optional
        Mean KL of every unit, where it is known of more stamps than these.

    Returns
    -------
    dict of str to Figure
        By name.
    """
    from vae_astro.report import figures  # Matplotlib: not before there is something to draw

    real = batch["image"][:N_BESIDE, 0].where(batch["mask"][:N_BESIDE, 0], torch.nan).cpu().numpy()
    batch = {name: value[:n_stamps] for name, value in batch.items()}
    with in_evaluation(vae):
        posterior = vae.network.encode(batch["image"])
        location = vae(batch["image"], batch["mask"], batch["noise"])
        if kl_per_unit_nats is None:
            kl = vae.prior.kl_per_unit(posterior).mean(0).cpu()
        else:
            kl = torch.as_tensor(kl_per_unit_nats)
        units = kl.argsort(descending=True)[:N_TRAVERSED].tolist()
        values = torch.as_tensor(TRAVERSAL, dtype=torch.float32, device=vae.device)
        codes = posterior.mean[:1].repeat(len(units) * len(values), 1)
        for row, unit in enumerate(units):
            codes[row * len(values) : (row + 1) * len(values), unit] = values
        decoded = vae.decode(codes)[:, 0].unflatten(0, (len(units), len(values)))
        drawn = vae.sample(len(real))[:, 0]
    residual = vae.normalizer.residual(batch["image"], location, batch["noise"])
    image, drawn_as, off_by, mask = (
        value.cpu().numpy() for value in (batch["image"], location, residual, batch["mask"])
    )
    panels = {
        "reconstructions": figures.reconstructions(image, drawn_as, off_by, mask, vae.band_names),
        "traversals": figures.traversals(
            decoded.cpu().numpy(), units, [float(kl[unit]) for unit in units]
        ),
        "prior_samples": figures.beside(real, drawn, vae.band_names[0]),
    }
    if monitor is not None and monitor.steps:
        panels["kl_per_unit"] = figures.kl_history(monitor.steps, np.array(monitor.kl_per_unit))
    return panels
