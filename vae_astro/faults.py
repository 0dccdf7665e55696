"""Numbers that are not finite: the run stops, and says at which step, in which term, for what."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.utils import get_total_norm

from vae_astro.data.batches import Batch
from vae_astro.errors import InputError, first_of
from vae_astro.model.modes import in_evaluation
from vae_astro.parts import StampScores
from vae_astro.vae import VAE

__all__ = ["Finding", "FiniteGuard", "examine"]

N_NAMED = 5
"""Stamps, units and the like that a message names."""
MOST = 0.5
"""Share of a batch above which its stamps are no exceptions: then it is the weights."""


@dataclass(frozen=True)
class Finding:
    """What of a batch is not finite.

    Attributes
    ----------
    terms : tuple of str
        Such as ``reconstruction (g)`` or ``KL (units 0, 3)``; ``gradient of the KL`` where the term
        itself is finite. Empty where all is finite.
    rows : tuple of int
        Of the catalogue: stamps that have such a term.
    peaks : tuple of float
        Their largest absolute pixel, normalised.
    n_stamps : int
        Of the batch.
    usual_peak : float
        Median over the batch.
    blank_fails : bool
        Whether even a stamp without any light has such a term.
    bad_weights : tuple of str
        Weights and running figures that are not finite.
    """

    terms: tuple[str, ...]
    rows: tuple[int, ...]
    peaks: tuple[float, ...]
    n_stamps: int
    usual_peak: float
    blank_fails: bool
    bad_weights: tuple[str, ...]

    @property
    def is_of_weights(self) -> bool:
        """Whether the weights are at fault, and not the few stamps that show it."""
        most = self.n_stamps > 2 and len(self.rows) > MOST * self.n_stamps
        return bool(self.bad_weights) or self.blank_fails or most


def examine(vae: VAE, batch: Batch) -> Finding:
    """Look at every term of every stamp of a batch, and where all are finite at the gradients.

    Parameters
    ----------
    vae : VAE
        Left in the mode it was in; its weights, gradients and running figures stay.
    batch : dict
        On the model's device.
    """
    with in_evaluation(vae):  # each stamp by itself, whatever stands beside it
        bad, terms = _bad_terms(vae, batch)
        if not bad.any():
            bad, terms = _bad_gradients(vae, batch)
        blank = {name: value[:1] for name, value in batch.items()}
        blank["image"] = torch.zeros_like(blank["image"])
        blank["noise"] = torch.ones_like(blank["noise"])
        blank_fails = bool(_bad_terms(vae, blank)[0].any())
    peaks = batch["image"].where(batch["mask"], batch["image"].new_zeros(())).abs()
    peaks = peaks.flatten(1).amax(1).float().cpu()
    return Finding(
        tuple(terms),
        tuple(batch["index"].cpu()[bad].tolist()),
        tuple(peaks[bad].tolist()),
        len(bad),
        float(peaks.nanmedian()),
        blank_fails,
        tuple(not_finite(vae)),
    )


def not_finite(vae: LightningModule) -> list[str]:
    """Names of the weights and running figures that hold a NaN or an infinity."""
    state = {name: value for name, value in vae.state_dict().items() if value.is_floating_point()}
    finite = torch.stack([torch.isfinite(value).all() for value in state.values()]).tolist()
    return [name for name, is_finite in zip(state, finite, strict=True) if not is_finite]


@torch.no_grad()
def _bad_terms(vae: VAE, batch: Batch) -> tuple[Tensor, list[str]]:
    """Which stamps (B,) have a term that is not finite, on the CPU, and the names of the terms."""
    image, mask, noise = batch["image"], batch["mask"], batch["noise"]
    posterior = vae.network.encode(image)
    eps = vae.evaluation_noise(batch["index"])
    output = vae.network.decode(vae.network.sample(posterior, eps))
    finite_kl = torch.isfinite(vae.prior.kl_per_unit(posterior)).cpu()
    finite_term = torch.isfinite(vae.likelihood.training_term(image, output, mask, noise)).cpu()
    terms = []
    if not finite_term.all():
        bands = []
        for band, name in enumerate(vae.band_names):
            only = torch.zeros_like(mask)
            only[:, band] = mask[:, band]
            term = vae.likelihood.training_term(image, output, only, noise)
            if not torch.isfinite(term).all():
                bands.append(name)
        terms.append(f"reconstruction ({first_of(bands, N_NAMED)})" if bands else "reconstruction")
    if not finite_kl.all():
        units = (~finite_kl).any(0).nonzero().flatten().tolist()
        everything = len(units) == vae.latent_dim
        terms.append(f"KL ({'all units' if everything else f'units {first_of(units, N_NAMED)}'})")
    return ~(finite_term & finite_kl.all(1)), terms


def _bad_gradients(vae: VAE, batch: Batch) -> tuple[Tensor, list[str]]:
    """As `_bad_terms`, by the gradient of each term."""
    parameters = [parameter for parameter in vae.parameters() if parameter.requires_grad]
    names = ("reconstruction", "KL")
    bad = torch.zeros(len(batch["index"]), dtype=torch.bool)

    def fails(rows: list[int], which: int) -> bool:
        few = {name: value[rows] for name, value in batch.items()}
        with torch.enable_grad():
            posterior = vae.network.encode(few["image"])
            if which:
                total = vae.prior.kl_per_unit(posterior).sum()
            else:
                eps = vae.evaluation_noise(few["index"])
                output = vae.network.decode(vae.network.sample(posterior, eps))
                total = vae.likelihood.training_term(
                    few["image"], output, few["mask"], few["noise"]
                ).sum()
            mean = total / len(bad)
            gradients = torch.autograd.grad(mean, parameters, allow_unused=True)
        # the norm, as in training: it overflows from 1e19 on
        norm = get_total_norm([gradient for gradient in gradients if gradient is not None])
        return not bool(torch.isfinite(norm))

    def search(rows: list[int], which: int) -> list[int]:
        """By halves: a batch has few such stamps, or all of them."""
        if not fails(rows, which):
            return []
        if len(rows) == 1:
            return rows
        middle = len(rows) // 2
        # each half alone may be finite, where only their sum is not
        return search(rows[:middle], which) + search(rows[middle:], which) or rows

    terms = []
    for which, name in enumerate(names):
        found = search(list(range(len(bad))), which)
        if found:
            bad[found] = True
            terms.append(f"gradient of the {name}")
    return bad, terms


class FiniteGuard(Callback):
    """Stops a fit whose loss, gradient, weights or validation are not finite.

    Every step is judged (`FiniteUpdates`): at once on the CPU; on a device when something is logged
    or saved and at the end of an epoch, and until then no update happens. A checkpoint is never
    written with weights that are not finite.

    Raises
    ------
    InputError
        With the step, the terms, the stamps, and what to change.
    """

    def __init__(self) -> None:
        self._taken: list[tuple[int, Batch]] = []
        self._scored: list[tuple[Tensor, Tensor]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, VAE)
        self._taken.clear()
        pl_module.updates.start(lambda step: self._stop(trainer, pl_module, step))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        # on a device a batch would take memory until it is read: its rows do to gather it again
        at_hand = batch if _is_free_to_read(pl_module) else {"index": batch["index"]}
        self._taken.append((trainer.global_step, at_hand))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, VAE)
        if _is_free_to_read(pl_module):
            self._taken = [taken for taken in self._taken if taken[0] == trainer.global_step]
        elif trainer.global_step % pl_module.log_every_n_steps == 0:
            pl_module.updates.poll()
            oldest = trainer.global_step - 2 * pl_module.log_every_n_steps  # told one call late
            self._taken = [taken for taken in self._taken if taken[0] >= oldest]

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._scored.clear()
        self._read(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._read(pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._read(pl_module)
        bad = not_finite(pl_module)
        if bad:
            raise InputError(
                f"after step {trainer.global_step} the weights are not finite: "
                f"{first_of(bad, N_NAMED)}; no checkpoint is written of them; lower optim.lr"
                f"{_way_on(trainer)}"
            )

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
        self._scored.append((batch["index"], outputs.elbo.nats))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, VAE)
        index, nats = (torch.cat(column).cpu() for column in zip(*self._scored, strict=True))
        self._scored.clear()
        bad = index[~torch.isfinite(nats)]
        # none of the processes may go on alone
        if trainer.strategy.reduce_boolean_decision(len(bad) > 0, all=False):
            found = "the validation ELBO is not finite after step"
            self._refuse(trainer, pl_module, f"{found} {trainer.global_step}", [bad])

    def _read(self, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, VAE)
        pl_module.updates.read()
        self._taken.clear()

    def _stop(self, trainer: Trainer, vae: VAE, step: int) -> None:
        batches = [batch for taken_at, batch in self._taken if taken_at == step]
        self._taken.clear()
        found = f"the loss or its gradient is not finite at step {step}"
        whole = all("image" in batch for batch in batches)
        self._refuse(trainer, vae, found, batches if whole else [b["index"] for b in batches])

    def _refuse(
        self, trainer: Trainer, vae: VAE, found: str, what: list[Batch] | list[Tensor]
    ) -> None:
        findings = []
        with trainer.precision_plugin.forward_context():
            for batch in _batches_of(trainer, vae, what):
                here = {name: value.to(vae.device) for name, value in batch.items()}
                finding = examine(vae, here)
                findings += [finding] if finding.terms or finding.bad_weights else []
        raise InputError(_explained(trainer, vae, found, _of_all_processes(findings)))


def _is_free_to_read(pl_module: LightningModule) -> bool:
    assert isinstance(pl_module, VAE)
    return pl_module.updates.is_free_to_read(pl_module.device)


def _batches_of(trainer: Trainer, vae: VAE, what: list[Batch] | list[Tensor]) -> Iterator[Batch]:
    """Batches as they are, or gathered again by their rows; none where nobody can do that."""
    datamodule = getattr(trainer, "datamodule", None)
    for batch in what:
        if isinstance(batch, dict):
            yield batch
        elif len(batch) and datamodule is not None:
            yield from datamodule.in_order(np.asarray(batch.cpu()))


def _of_all_processes(findings: list[Finding]) -> list[Finding]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return findings
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, findings)
    return [finding for theirs in everyone for finding in theirs]


def _explained(trainer: Trainer, vae: VAE, found: str, findings: list[Finding]) -> str:
    if not findings:
        exact = trainer.precision == "32-true"
        change = "" if exact else "set trainer.precision=32-true or "
        return (
            f"{found}, and finite when looked at again with other noise: the numbers are close to "
            f"the largest that there are; {change}lower optim.lr (now {vae.optim.lr:g})"
            f"{_way_on(trainer)}"
        )
    terms = dict.fromkeys(term for finding in findings for term in finding.terms)
    rows = [row for finding in findings for row in finding.rows]
    n_stamps = sum(finding.n_stamps for finding in findings)
    text = f"{found}: {' and '.join(terms) or 'the weights'}"
    if rows:
        text += f" of {len(rows)} of {n_stamps} stamps"
    if any(finding.is_of_weights for finding in findings):
        bad = findings[0].bad_weights
        text += f" ({_named(trainer, rows)})" if rows else ""
        why = "have run away"
        if bad:
            why = f"are not finite ({first_of(bad, N_NAMED)})"
        return f"{text}. It is not these stamps, the weights {why}: lower optim.lr (now " + (
            f"{vae.optim.lr:g}){_way_on(trainer)}"
        )
    peak = max(peak for finding in findings for peak in finding.peaks)
    usual = float(np.median([finding.usual_peak for finding in findings]))
    return (
        f"{text}: {_named(trainer, rows)}. Their largest pixel is {peak:.3g} when normalised, "
        f"usual is {usual:.3g}, and the model is finite for other stamps: mask such pixels with "
        f"data.normalize.saturation, or leave these stamps out{_way_on(trainer)}"
    )


def _named(trainer: Trainer, rows: list[int]) -> str:
    """A few of the stamps by their names in the catalogue."""
    store = getattr(getattr(trainer, "datamodule", None), "store", None)
    shown = rows[: N_NAMED + 1]
    if store is None:
        return first_of((f"row {row}" for row in shown), N_NAMED)
    return first_of(store.catalogue["id"].take(shown).to_pylist(), N_NAMED)


def _way_on(trainer: Trainer) -> str:
    """What there is to go on from."""
    run_dir = Path(trainer.default_root_dir)
    if not (run_dir / "checkpoints" / "last.ckpt").exists():
        return "; nothing has been saved yet, start again"
    return f"; the last good state is kept, go on from it with resume={shlex.quote(str(run_dir))}"
