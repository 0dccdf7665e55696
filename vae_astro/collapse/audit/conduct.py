"""The audit: a copy of the model, all experiments on it, one report."""

from __future__ import annotations

import contextlib
import random
import time
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vae_astro.collapse.audit import decoder, encoder, module, noise, objective
from vae_astro.collapse.audit.adapters import Subject, adapt
from vae_astro.collapse.audit.bench import Bench, preserved
from vae_astro.collapse.audit.copies import copy_of
from vae_astro.collapse.audit.findings import (
    AuditReport,
    Finding,
    Untestable,
    Untested,
    root_causes,
)
from vae_astro.collapse.audit.losses import objective_of
from vae_astro.errors import InputError

__all__ = ["EXPERIMENTS", "audit"]

Experiment = Callable[[Bench], list[Finding]]

MANY_WEIGHTS = 10_000_000
"""From which a model is run on all threads."""

FIRST: dict[str, Experiment] = {
    "input left alone": module.input_is_left_alone,
    "shape and finiteness": decoder.output_is_finite,
}
"""Without these two nothing else means anything."""

EXPERIMENTS: dict[str, Experiment] = {
    **FIRST,
    "weights registered": module.weights_are_registered,
    "code reaches output": decoder.code_changes_output,
    "nothing but the code reaches output": decoder.input_stays_outside,
    "input reaches output": decoder.input_changes_output,
    "range of the output": decoder.output_reaches_stamps,
    "gradient to every latent unit": decoder.gradients_reach_encoder,
    "encoder tells stamps apart": encoder.encoder_tells_stamps_apart,
    "stamps of a batch kept apart": encoder.stamps_keep_apart,
    "layer before the code": encoder.bottleneck_is_alive,
    "form of the KL": objective.kl_is_that_of_gaussians,
    "weight of the KL": objective.weight_leaves_code_alive,
    "reductions of the loss": objective.reductions_agree,
    "repeatable in evaluation": noise.evaluation_is_repeatable,
    "noise against log-variance": noise.noise_follows_log_var,
    "one meaning of the log-variance": noise.one_meaning,
    "gradient to the log-variance": noise.log_var_learns_from_output,
    "range of the posterior": encoder.posterior_reaches_prior,
    "log-variance free to move": encoder.log_var_is_free,
    "room in the code": module.code_has_room,
}
"""All experiments by name, in the order in which they are made."""


def audit(
    model: nn.Module,
    stamps: np.ndarray | Tensor,
    *,
    loss: Callable[..., Any] | None = None,
) -> AuditReport:
    """Look for faults in a model by experiments on a copy of it.

    Nothing of the caller's changes: weights, buffers, training flags, gradients, stamps and random
    states stay as they are.

    Parameters
    ----------
    model : Module
        A `VAE` of this project, a pythae model, or any module that can be run on stamps and returns
        a reconstruction, better also mean and log-variance.
    stamps : ndarray or Tensor, shape (N, C, H, W), (N, H, W) or (N, D)
        As the model takes them, so normalised. 64 are enough.
    loss : callable, optional
        Of reconstruction, stamps, mean and log-variance; see `losses.FunctionLoss` for how
        arguments are matched. Without one, the training loss of a `VAE`, a method
        ``loss_function`` or the ``loss`` that forward returns.

    Returns
    -------
    AuditReport

    Raises
    ------
    InputError
        Stamps that cannot tell anything, a model that cannot be copied or run on them, a loss that
        cannot be called.
    """
    began = time.perf_counter()
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    wrapped = getattr(model, "_orig_mod", model)  # of torch.compile
    if isinstance(wrapped, nn.DataParallel | nn.parallel.DistributedDataParallel):
        wrapped = wrapped.module
    model = wrapped
    if any(nn.parameter.is_lazy(each) for each in model.parameters()):
        raise InputError(
            f"{type(model).__name__} has layers that take their size from the first batch; run it "
            "once on stamps first"
        )
    n_weights = sum(each.numel() for each in model.parameters())
    with _own_world(one_thread=n_weights < MANY_WEIGHTS):
        work = copy_of(model)
        if isinstance(loss, types.MethodType) and loss.__self__ is model:
            loss = types.MethodType(loss.__func__, work)
        given = _checked(stamps, *_place_of(work))
        for parameter in work.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_()
        with preserved(work):
            subject = _adapted(work, given[:4])
            _enough(len(given), subject.latent_dim)
            bench = Bench(subject, given)
            untested = []
            try:
                bench.objective = objective_of(subject, loss, given[:4])
            except Untestable as error:
                untested.append(Untested("the loss", str(error)))
            findings = _conduct(bench, untested)
    return AuditReport(
        model=type(model).__name__,
        interface=subject.interface,
        n_stamps=len(given),
        latent_dim=subject.latent_dim,
        findings=root_causes(findings),
        untested=tuple(untested),
        facts={"weights": n_weights, **bench.facts},
        seconds=time.perf_counter() - began,
    )


def _adapted(model: nn.Module, few: Tensor) -> Subject:
    try:
        return adapt(model, few)
    except InputError:
        raise
    except Exception as error:  # the user's model may raise anything, at any pass
        raise InputError(
            f"{type(model).__name__} raised {type(error).__name__} when it was run on stamps of "
            f"shape {tuple(few.shape)}: {error}"
        ) from error


def _conduct(bench: Bench, untested: list[Untested]) -> list[Finding]:
    findings: list[Finding] = []
    for name, experiment in EXPERIMENTS.items():
        if name not in FIRST and {"output-shape", "not-finite"} & {each.name for each in findings}:
            untested.append(Untested(name, "the output is of no use"))
            continue
        if experiment.__module__ == objective.__name__ and bench.objective is None:
            continue  # said once
        bench.module.eval()
        try:
            with preserved(bench.module):
                findings += experiment(bench)
        except Untestable as error:
            untested.append(Untested(name, str(error)))
        except Exception as error:  # the model is not ours: one experiment less, not no audit
            reason = (str(error).splitlines() or [""])[0]
            untested.append(Untested(name, f"raised {type(error).__name__}: {reason}"))
    return findings


@contextlib.contextmanager
def _own_world(one_thread: bool) -> Iterator[None]:
    """Gradients on, warnings off, and all random states put back at the end.

    Small passes wait longer for a second thread than it saves them, on shared cores very much so.
    """
    n_threads = torch.get_num_threads()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    states = random.getstate(), np.random.get_state()  # noqa: NPY002  # a model may draw from it
    try:
        with (
            torch.random.fork_rng(devices),
            torch.inference_mode(False),
            torch.enable_grad(),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            if one_thread:
                torch.set_num_threads(1)
            yield
    finally:
        torch.set_num_threads(n_threads)
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


def _place_of(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    tensors = [*model.parameters(), *model.buffers()]
    devices = list(dict.fromkeys(each.device for each in tensors))  # the first one first
    if any(device.type == "meta" for device in devices):
        raise InputError(
            "the model has weights on the meta device, which holds no values; build it on the CPU "
            "or load its weights first"
        )
    if any(device.type == "mps" for device in devices):
        model.cpu()  # whose random state can be put back
        devices = [torch.device("cpu")]
    floating = [each.dtype for each in tensors if each.is_floating_point()]
    dtype = floating[0] if floating else torch.float32
    if dtype in (torch.float16, torch.bfloat16):
        model.float()
        dtype = torch.float32
    return next(iter(devices), torch.device("cpu")), dtype


def _checked(stamps: Any, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The caller's stamps, copied to where the model is."""
    try:
        given = torch.as_tensor(np.asarray(stamps) if isinstance(stamps, list) else stamps)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"stamps must be an array of numbers: {error}") from error
    if given.device.type == "meta":
        raise InputError("the stamps are on the meta device, which holds no values")
    if given.ndim not in (2, 3, 4) or given.numel() == 0 or given.is_complex():
        raise InputError(
            f"stamps have shape {tuple(given.shape)} of {given.dtype}; give (N, C, H, W), "
            "(N, H, W) or (N, D)"
        )
    given = given.detach().to(device, dtype, copy=True)
    if given.ndim == 3:
        given = given[:, None]
    if not bool(given.isfinite().all()):
        n_bad = int((~given.isfinite()).sum())
        raise InputError(f"the stamps hold {n_bad} NaN or infinite pixels; normalise them first")
    if len(given) < 2:
        raise InputError("one stamp says nothing of a code; give 64")
    if bool((given == given[:1]).all()):
        raise InputError(
            f"all {len(given)} stamps are the same: there is nothing to tell apart; give stamps "
            "that differ"
        )
    if bool((given.flatten(1) == given.flatten(1)[:, :1]).all()):
        raise InputError(
            f"every one of the {len(given)} stamps is constant: there is nothing to draw"
        )
    return given


def _enough(n_stamps: int, latent_dim: int) -> None:
    if n_stamps < latent_dim:
        raise InputError(
            f"{n_stamps} stamps for {latent_dim} latent units: give at least {latent_dim} "
            "(n_audited of scripts/audit.py), better 64"
        )
