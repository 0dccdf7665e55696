"""The variational autoencoder: encoder, reparameterization, decoder and the beta-scheduled ELBO."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any, Self

import torch
from lightning import Callback
from torch import Tensor

import vae_astro
from vae_astro import prior_epochs
from vae_astro.array_calls import ArrayCalls
from vae_astro.checkpoint_file import CHECKPOINT_FORMAT, read_by_the_door, rebuilt
from vae_astro.data.batches import Batch
from vae_astro.errors import InputError
from vae_astro.model.posterior import DiagonalGaussian
from vae_astro.objective.aggressive import AggressiveInference, aggressive_inference
from vae_astro.objective.beta import SCHEDULES, RatePenalty, Schedule
from vae_astro.objective.elbo import Elbo
from vae_astro.objective.geco import Geco
from vae_astro.objective.kl import mutual_information
from vae_astro.objective.optim import Optim
from vae_astro.parts import StampScores, Trained, build_parts, check_stamps, weights_at
from vae_astro.ranks import mean_over_ranks, n_ranks, own_rows
from vae_astro.settings import build, check_int, construct, plain
from vae_astro.training_log import TrainingLog, ValidationScores

__all__ = ["VAE"]

log = logging.getLogger(__name__)


class VAE(ArrayCalls):
    """A VAE for stamps, trained on a bound in nats per stamp.

    Every argument is plain Python, so that a checkpoint rebuilds the model by itself under
    ``weights_only=True``.

    Parameters
    ----------
    stamp_shape : sequence of int
        C, H, W; H = W, at least 16.
    model, likelihood, prior, beta, optim : mapping, optional
        ``name`` and settings of each part: the groups of ``conf/``.
    normalize : mapping, optional
        Settings of `Normalizer`, for raw stamps given to `embed` and the like.
    band_names : sequence of str, optional
        One for each band.
    log_every_n_steps : int
        How often training scalars are logged.

    Raises
    ------
    InputError
        A setting that is unknown or out of range.
    """

    def __init__(
        self,
        stamp_shape: Sequence[int],
        *,
        model: Mapping[str, Any] | None = None,
        likelihood: Mapping[str, Any] | None = None,
        prior: Mapping[str, Any] | None = None,
        beta: Mapping[str, Any] | None = None,
        optim: Mapping[str, Any] | None = None,
        normalize: Mapping[str, Any] | None = None,
        band_names: Sequence[str] | None = None,
        log_every_n_steps: int = 20,
    ) -> None:
        super().__init__()
        # what is stored with the weights
        stamp_shape, band_names = plain(stamp_shape), plain(band_names)
        model, likelihood, prior = plain(model), plain(likelihood), plain(prior)
        beta, optim, normalize = plain(beta), plain(optim), plain(normalize)
        log_every_n_steps = check_int("log_every_n_steps", log_every_n_steps, minimum=1)
        self.save_hyperparameters(logger=False)
        self.stamp_shape, self.band_names = check_stamps(stamp_shape, band_names)
        self.parts = build_parts(self.stamp_shape, model, likelihood, prior, normalize)
        """What the modules do together; `compile_parts` puts a compiled one here."""
        self.normalizer = self.parts.normalizer
        self.network = self.parts.network
        self.micro_batches = self.network.micro_batches
        self.latent_dim = self.network.latent_dim
        self.likelihood = self.parts.likelihood
        self.prior = self.parts.prior
        self.beta_settings = dict(beta or {"name": "linear"})
        self.total_steps = 1
        """Optimiser steps of the run that the schedules are made for; see `set_length`."""
        self.schedule = self._schedule()
        self.optim = construct("optim", Optim, optim or {})
        self.inference = aggressive_inference(self.optim.aggressive)
        self.log_every_n_steps = log_every_n_steps
        self.training_log = TrainingLog(self.likelihood, self.band_names)
        self._val_scores = ValidationScores()
        self._has_looked = False
        self.run_settings: dict[str, Any] | None = None
        """What the run was composed of, in plain Python; travels in the checkpoint."""
        self.predict_scores = False
        """Whether `predict_step` asks the decoder too."""

    # -- the model ---------------------------------------------------------------------------

    @property
    def clustered_units(self) -> tuple[int, ...]:
        """The latent units that classes are made of: those that say what a stamp shows."""
        return self.network.clustered_units

    @property
    def object_units(self) -> tuple[int, ...]:
        """Those and the flux, where it has a unit: what neighbours and probes are asked in."""
        return self.network.object_units

    def forward(
        self, image: Tensor, mask: Tensor | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """Expected pixels (B, C, H, W) at the posterior mean of ``image``, both normalised.

        With ``model.symmetry=d4`` they are turned as the stamp most probably lies, for which
        ``mask`` and ``noise`` count (without them: all pixels good, and alike).
        """
        output = self.network.decode(self.network.encode(image).mean)
        mask = torch.ones_like(image, dtype=torch.bool) if mask is None else mask
        noise = torch.ones_like(image) if noise is None else noise
        return self.likelihood.location(self.likelihood.aligned(image, output, mask, noise))

    @torch.no_grad()
    def score(self, batch: Batch, eps: Tensor) -> StampScores:
        """Judge a batch without gradients; ``eps`` (B, Z) is standard normal noise."""
        said = self.parts.evaluate(batch["image"], batch["mask"], batch["noise"], eps)
        return StampScores(
            DiagonalGaussian(said.mean, said.log_var),
            Elbo(said.reconstruction, said.kl_per_unit),
            said.location,
            said.chi2_per_pixel,
        )

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As `torch.nn.Module`; with all of another model's weights comes what it has looked at."""
        loaded = super().load_state_dict(state_dict, strict=strict, assign=assign)
        self._has_looked |= strict
        return loaded

    # -- training ----------------------------------------------------------------------------

    def set_length(self, total_steps: int) -> None:
        """Make the schedules of beta and of the learning rate for a run of ``total_steps``.

        A fit does so when it begins, and a checkpoint is of a run of some length already. What a
        controller of beta has learned stays.

        Parameters
        ----------
        total_steps : int
            Optimiser steps.

        Raises
        ------
        InputError
            Less than one.
        """
        self.total_steps = check_int("total_steps", total_steps, minimum=1)
        if self.schedule.controller is None:  # it depends on the training so far, not on the step
            self.schedule = self._schedule()

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Look at training stamps before the first step, where the parts of the model want to.

        What they have learned by then is lost: not for a model that `is_prepared`.
        """
        self.parts.prepare(batches)
        self._has_looked = True

    @property
    def is_prepared(self) -> bool:
        """Whether a first step can follow: stamps were looked at, by this model or by that whose
        weights it has, or no part of it wants to.
        """
        return self._has_looked or not self.parts.wants_stamps

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch: minus the ELBO, with the KL weighted by the schedule."""
        image, controller = batch["image"], self.schedule.controller
        eps = self._training_noise(len(image))
        weights = weights_at(
            self.global_step, self.schedule, self.likelihood.kl_weight, image.device
        )
        learned_before = [buffer.clone() for buffer in self.buffers()]

        def forward() -> Trained:
            return self.parts.train(
                image,
                batch["mask"],
                batch["noise"],
                eps,
                weights,
                self.schedule.free_bits_nats,
                controller,
                self._decoder_learns,
            )

        def again() -> Trained:
            """The same once more, from the same running figures."""
            for buffer, value in zip(self.buffers(), learned_before, strict=True):
                buffer.copy_(value)
            return forward()

        trained = self.micro_batches.repeat(forward, again, len(image), image.device)
        if controller is not None and trained.controller is not None:
            controller.state = trained.controller.clone()  # a replayed graph writes over its own
        # logging costs about a millisecond a call: not at every step
        if self.global_step % self.log_every_n_steps == 0:
            self._log_late(wait=True)
            self.training_log.put(self.global_step, trained, image)
        self._log_late()
        return self.sent_back(trained.loss, lambda: again().loss, len(image))

    def _training_noise(self, n_stamps: int) -> Tensor:
        """Standard normal noise (n_stamps, Z) from the random state.

        Processes that train together have the same random state: each draws the noise of the whole
        batch, as one process would, and takes that of its own stamps.
        """
        shape = (n_stamps * n_ranks(), self.latent_dim)
        return own_rows(torch.randn(shape, device=self.device))

    @property
    def _decoder_learns(self) -> bool:
        return self.inference is None or self.inference.decoder_learns

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Leave the encoder alone to learn where aggressive inference says so."""
        if self.inference is None or not self.inference.active:
            return
        if not self._decoder_learns:
            encoder = set(self.network.encoder.parameters())
            for parameter in set(self.parameters()) - encoder:
                parameter.grad = None  # one of zeros would still be stepped, by its momentum
        loss = mean_over_ranks(self._step_loss).clone()
        self.inference.observe(loss, self.global_step / self.total_steps)

    def penalty(self, step: int) -> RatePenalty:
        """What the KL costs at optimiser step ``step``, the likelihood's own weight included."""
        penalty = self.schedule(step)
        return replace(penalty, beta=penalty.beta * self.likelihood.kl_weight)

    def _log_late(self, wait: bool = False) -> None:
        self.training_log.write(self.loggers, self.schedule, wait)

    def on_train_end(self) -> None:
        self._log_late(wait=True)

    def on_validation_epoch_start(self) -> None:
        self._log_late(wait=True)
        self._val_scores.clear()

    def validation_step(  # type: ignore[override]  # callbacks take the scores as they are
        self, batch: Batch, batch_idx: int
    ) -> StampScores:
        """Scores at beta = 1 with the same noise at every epoch, so that epochs compare."""
        scores = self.score(batch, self.evaluation_noise(batch["index"]))
        self._val_scores.take(scores)
        return scores

    def on_validation_epoch_end(self) -> None:
        if self.inference is not None and self.inference.active:
            mean, log_var = map(self._val_scores.column, ("posterior.mean", "posterior.log_var"))
            eps = self.evaluation_noise(torch.arange(len(mean), device=mean.device))
            self.inference.validated(float(mutual_information(mean, log_var, eps)))
        # every process has gathered the same numbers
        self.log_dict(self._val_scores.figures(), sync_dist=True)
        self._val_scores.clear()

    def configure_optimizers(self) -> Any:
        """Adam or AdamW, with the learning rate as a pure function of the step."""
        # with a scaled loss, clipping needs the gradients apart from the step
        fused = self.device.type in ("cpu", "cuda") and not self.loss_is_scaled
        optimizer = self.optim.optimizer(self, fused=fused)
        # the length of the run is filled in at its start: asking the trainer for it here would make
        # the loaders before a resumed run knows where it goes on
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self.optim.factor(step, self.total_steps)
        )
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    def on_train_start(self) -> None:
        for optimizer in self.trainer.optimizers:
            self.optim.lay_out(optimizer)
        prior_epochs.check_run(self.prior, self.trainer)
        total_steps = int(self.trainer.estimated_stepping_batches)
        if self.global_step and total_steps != self.total_steps:
            log.warning(
                "the run is now %d steps long, not %d: beta and the learning rate go on as in a run"
                " of that length",
                total_steps,
                self.total_steps,
            )
        self.set_length(total_steps)

    def on_train_epoch_start(self) -> None:
        prior_epochs.begin_epoch(self.prior, self.network, self.trainer)

    def _schedule(self) -> Schedule:
        return build("beta", SCHEDULES, self.beta_settings, total_steps=self.total_steps)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["vae_astro"] = {
            "format": CHECKPOINT_FORMAT,
            "version": vae_astro.__version__,
            "total_steps": self.total_steps,
            "settings": self.run_settings,
            "state": {group: part.state_dict() for group, part in self._moving_parts().items()},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        ours = checkpoint["vae_astro"]
        self.set_length(ours["total_steps"])
        for group, state in ours["state"].items():
            if group in self._moving_parts():
                self._moving_parts()[group].load_state_dict(state)
        self.optim.take_over(checkpoint)

    def configure_callbacks(self) -> list[Callback]:
        """None; called before a trainer reads a checkpoint, which it then does by our door."""
        read_by_the_door(self.trainer)
        return []

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # no hparams_file: all is in the file
        cls,
        checkpoint_path: str | PathLike[str],
        map_location: str | torch.device | None = None,
        *,
        weights_only: bool | None = True,
        **settings: Any,
    ) -> Self:
        """The model of a checkpoint, which needs nothing else; code in the file is never run.

        Parameters
        ----------
        checkpoint_path : str or path
            A checkpoint, or a run folder, of which the best is taken.
        map_location : str or torch.device, optional
            Where the model goes; the CPU if absent.
        weights_only : bool, optional
            True; what else a file may hold is refused, so that one of a stranger can be opened.
        **settings
            Hyper-parameters that replace those of the checkpoint.

        Raises
        ------
        InputError
            No checkpoint of this project, or one of a network that this version does not make;
            ``weights_only=False``; an option or a device that there is not.
        """
        if weights_only is False:
            raise InputError(
                "weights_only=False would run code that a checkpoint may hold; ours hold none, so "
                "leave it away"
            )
        return rebuilt(cls, checkpoint_path, map_location or "cpu", **settings)

    def _moving_parts(self) -> dict[str, Geco | AggressiveInference]:
        """What training moves beside the weights, by the group of its settings."""
        parts = {"beta": self.schedule.controller, "optim": self.inference}
        return {group: part for group, part in parts.items() if part is not None}

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Columns of a catalogue for a batch; the encoder alone unless `predict_scores`.

        Returns
        -------
        dict of str to Tensor
            ``index`` (B,); ``latent_mean`` and ``latent_std`` (B, Z); ``kl_nats`` (B,). With
            `predict_scores`, which needs mask and noise in the batch, the figures of `score` too,
            each (B,): ``reconstruction_nats``, ``elbo_nats`` and ``chi2_per_pixel``.
        """
        columns = {"index": batch["index"]}
        if self.predict_scores:
            scores = self.score(batch, self.evaluation_noise(batch["index"]))
            posterior, kl = scores.posterior, scores.elbo.kl
            columns["reconstruction_nats"] = scores.elbo.reconstruction
            columns["elbo_nats"] = scores.elbo.nats
            columns["chi2_per_pixel"] = scores.chi2_per_pixel
        else:
            posterior = self.network.encode(batch["image"])
            eps = posterior.mean
            if self.prior.draws:  # the hash of a hundred million rows takes a while
                eps = self.evaluation_noise(batch["index"])
            kl = self.prior.divergence(posterior, eps).sum(dim=1)
        columns |= {"latent_mean": posterior.mean, "latent_std": posterior.std, "kl_nats": kl}
        return columns
