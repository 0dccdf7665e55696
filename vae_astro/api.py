"""Forecast and audit in one call each: what ``from vae_astro import forecast, audit`` gives."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from vae_astro.checkpoint import find_checkpoint, load_checkpoint
from vae_astro.collapse.audit import AuditReport
from vae_astro.collapse.audit import audit as audit_module
from vae_astro.collapse.forecast import Forecast, forecast_run
from vae_astro.data.augment import N_SYMMETRIES, apply_symmetries
from vae_astro.data.batches import Batch
from vae_astro.data.datamodule import StampDataModule
from vae_astro.data.given import Stamps, given_stamps
from vae_astro.data.normalize import Normalizer
from vae_astro.data.raw import in_batches
from vae_astro.errors import InputError
from vae_astro.model.focus import build_likelihood
from vae_astro.model.networks import MOST_UNITS
from vae_astro.objective.beta import SCHEDULES
from vae_astro.settings import build, check_int, construct
from vae_astro.vae import VAE

__all__ = ["N_SIMULATED", "as_trained", "audit", "forecast", "made_by", "normalized_stamps",
           "stamps_to_audit", "trained_with"]  # fmt: skip

N_AUDITED = 64
N_SIMULATED = 200
"""Stamps that are drawn for an audit where none are given, a few seconds' worth."""
CHUNK = 256

Settings = str | Mapping[str, Any]


def forecast(
    stamps: Stamps | StampDataModule,
    *,
    likelihood: Settings = "sigma",
    beta: float | Settings = "linear",
    latent_dim: int = 16,
    normalize: Mapping[str, Any] | None = None,
    n_stamps: int = 20000,
    steps: int = 1500,
    seed: int = 0,
) -> Forecast:
    """Say before training whether the latent code will collapse.

    What ``scripts/forecast.py`` calls. ``print`` it; its figures are attributes.

    Parameters
    ----------
    stamps : StampDataModule, folder, or whatever `VAE.embed` takes
        A folder is packed into a store as for training; arrays, NDData and files stay in memory.
        Of a datamodule its training stamps count; in every case each pose.
    likelihood : str or mapping
        ``name`` and settings: a group of ``conf/likelihood/``.
    beta : float, str or mapping
        A constant, or ``name`` and settings of a group of ``conf/beta/``.
    latent_dim : int
        Z.
    normalize : mapping, optional
        Settings of `Normalizer`, where ``stamps`` is not a datamodule, which has its own.
    n_stamps : int
        Training stamps to look at, poses counted.
    steps : int
        Optimiser steps of the run, for the schedule.
    seed : int
        Of the choice of stamps.

    Returns
    -------
    Forecast

    Raises
    ------
    InputError
        A setting that is unknown or out of range; stamps that cannot be read or do not differ.
    """
    check_int("latent_dim", latent_dim, minimum=1, maximum=MOST_UNITS)
    check_int("n_stamps", n_stamps, minimum=2)
    if not isinstance(beta, str | Mapping):
        beta = {"name": "constant", "value": beta}
    steps = check_int("steps", steps, minimum=1)
    schedule = build("beta", SCHEDULES, _named(beta), total_steps=steps)
    settings = _named(likelihood)
    normalizer = _normalizer_of(stamps, normalize)
    build_likelihood(settings, n_bands=1, size=64, normalizer=normalizer)  # refused before reading
    batches, (n_bands, size, _) = _training_stamps(stamps, normalizer, normalize, n_stamps, seed)
    built = build_likelihood(settings, n_bands=n_bands, size=size, normalizer=normalizer)
    built.prepare(batches())
    return forecast_run(batches(), built, latent_dim, schedule, steps)


def audit(
    model: nn.Module | Callable[[], nn.Module] | str | os.PathLike[str],
    stamps: Stamps | StampDataModule | None = None,
    *,
    loss: Callable[..., Any] | None = None,
    normalize: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> AuditReport:
    """Look for faults in any VAE, by experiments on a copy of it; ``print`` the report.

    Parameters
    ----------
    model : Module, callable, str or Path
        A `VAE` of this project, a model of pythae, any module that returns a reconstruction; a
        function or class that makes one; or a run folder or checkpoint.
    stamps : optional
        As `forecast` takes them. A `VAE` normalises raw ones by itself. For other models arrays are
        taken as they are, that is, as the model takes them, unless ``normalize`` is given; those
        of files and of folders are always normalised. Without any, those of the run are taken
        if a checkpoint was given, and else some are simulated.
    loss : callable, optional
        Of reconstruction, stamps, mean and log-variance; the model's own if absent.
    normalize : mapping, optional
        Settings of `Normalizer` for models of others.
    seed : int
        Of the weights that a function or class starts with.

    Returns
    -------
    AuditReport

    Raises
    ------
    InputError
        As `vae_astro.collapse.audit.audit`; a checkpoint or stamps that cannot be read.
    """
    if isinstance(model, str | os.PathLike):
        model, data = trained_with(os.fspath(model))
        if stamps is None and data is not None:
            return audit_module(model, stamps_to_audit(data, model.stamp_shape), loss=loss)
    elif not isinstance(model, nn.Module):
        model = _made(model, seed)
    return audit_module(model, _as_audited(model, stamps, normalize), loss=loss)


def trained_with(checkpoint: str) -> tuple[VAE, dict[str, Any] | None]:
    """The model of a run folder or checkpoint, and the data settings of its run, if it had one.

    Raises
    ------
    InputError
        It is no checkpoint of this project.
    """
    path = find_checkpoint("checkpoint", checkpoint)
    saved = load_checkpoint(path)["vae_astro"]["settings"]
    vae = VAE.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    return vae, None if saved is None else as_trained(vae, saved["data"])


def as_trained(vae: VAE, data: Mapping[str, Any]) -> dict[str, Any]:
    """Settings ``data`` of `StampDataModule`, normalising as the model was trained."""
    return {**data, "normalize": _settings_of(vae)}


def made_by(make: Callable[[], nn.Module], seed: object, name: str, remedy: str) -> nn.Module:
    """The model that a function or class makes, from weights of this seed; random states stay.

    Parameters
    ----------
    make : callable
        Without arguments.
    seed : int
        Of the weights.
    name, remedy : str
        What to call it where it fails, and what to do then.

    Raises
    ------
    InputError
        It raises, or makes no module.
    """
    with torch.random.fork_rng():
        torch.manual_seed(check_int("seed", seed, minimum=0))
        try:
            made = make()
        except Exception as error:  # a constructor may raise anything
            told = f"{type(error).__name__}: {error}"
            raise InputError(f"{name} cannot be made: {told}; {remedy}") from error
    if not isinstance(made, nn.Module):
        raise InputError(f"{name} makes a {type(made).__name__}, not a torch.nn.Module")
    return made


def stamps_to_audit(
    data: Mapping[str, Any], shape: tuple[int, ...] | None = None, n_stamps: int = N_AUDITED
) -> Tensor:
    """Normalised stamps (N, C, H, W) of a data group, spread over its store.

    Parameters
    ----------
    data : mapping
        Settings of `StampDataModule`.
    shape : tuple of int, optional
        C, H, W that the model takes.
    n_stamps : int
        How many, if there are so many.

    Raises
    ------
    InputError
        Stamps that cannot be read, or of another shape.
    """
    if shape is not None:
        data = {**data, "size": shape[1]}
    return _spread(StampDataModule(**{**data, "progress": False}), shape, n_stamps)


def normalized_stamps(
    stamps: Stamps,
    normalizer: Normalizer,
    band_names: list[str] | None = None,
    size: int | None = None,
) -> Batch:
    """Stamps that are held in Python as one batch, on the CPU; ``index`` counts them.

    Without ``size`` all have that of the first, cut to a square.
    """
    pieces = given_stamps(stamps, band_names, size)
    first = next(pieces)
    size = size or min(first.pixels.shape[2:])
    parts = [
        normalizer(pixels, noise=noise)
        for pixels, noise in in_batches(chain([first], pieces), size, CHUNK)
    ]
    image, mask, noise, _ = (list(each) for each in zip(*parts, strict=True))
    n_stamps = sum(map(len, image))
    joined = {"image": torch.cat(image), "mask": torch.cat(mask), "noise": torch.cat(noise)}
    return {**joined, "index": torch.arange(n_stamps)}


# -- stamps --------------------------------------------------------------------------------------


def _training_stamps(
    stamps: Stamps | StampDataModule,
    normalizer: Normalizer,
    normalize: Mapping[str, Any] | None,
    n_stamps: int,
    seed: int,
) -> tuple[Callable[[], Iterator[Batch]], tuple[int, ...]]:
    """What makes batches as training sees them, and the shape of a stamp."""
    if _is_folder(stamps):
        stamps = StampDataModule(_address(stamps), normalize=normalize, seed=seed, progress=False)
    if isinstance(stamps, StampDataModule):
        module = stamps
        module.prepare_data()
        module.setup()
        return lambda: module.training_sample(n_stamps), module.store.stamp_shape
    whole = normalized_stamps(stamps, normalizer)
    if len(whole["image"]) < 2:  # its eight poses would pass for as many stamps
        raise InputError("a forecast needs at least 2 stamps that differ, there is 1")
    return lambda: _posed(whole, n_stamps, seed), tuple(whole["image"].shape[1:])


def _posed(whole: Batch, n_stamps: int, seed: int) -> Iterator[Batch]:
    """Each stamp once in each of its poses, in random order, until ``n_stamps`` have come."""
    rng = np.random.default_rng(seed)
    n_held = len(whole["image"])
    poses = torch.from_numpy(rng.integers(N_SYMMETRIES, size=n_held))
    for turn in range(N_SYMMETRIES):
        order = torch.from_numpy(rng.permutation(n_held)[:n_stamps])
        n_stamps -= len(order)
        for chosen in order.split(CHUNK):
            pose = (poses[chosen] + turn) % N_SYMMETRIES
            yield {
                name: values[chosen] if name == "index" else apply_symmetries(values[chosen], pose)
                for name, values in whole.items()
            }
        if not n_stamps:
            return


def _as_audited(
    model: nn.Module, stamps: Stamps | StampDataModule | None, normalize: Mapping[str, Any] | None
) -> Tensor | np.ndarray:
    """Stamps as the model takes them."""
    own = model if isinstance(model, VAE) else None
    shape = None if own is None else own.stamp_shape
    settings = dict(normalize or {}) if own is None else _settings_of(own)
    if isinstance(stamps, StampDataModule):
        return _spread(stamps, shape, N_AUDITED)
    if stamps is None:
        with tempfile.TemporaryDirectory() as folder:  # nothing was asked for that should stay
            places = {"root": f"{folder}/stamps", "store_dir": f"{folder}/stores"}
            data = {**places, "n_stamps": N_SIMULATED, "normalize": settings}
            return stamps_to_audit(data, shape)
    if _is_folder(stamps):
        return stamps_to_audit({"root": _address(stamps), "normalize": settings}, shape)
    if own is not None:
        size = own.stamp_shape[1]
        return normalized_stamps(stamps, own.normalizer, own.band_names, size)["image"]
    if isinstance(stamps, np.ndarray | Tensor) and normalize is None:
        return stamps
    return normalized_stamps(stamps, construct("normalize", Normalizer, settings))["image"]


def _settings_of(vae: VAE) -> dict[str, Any]:
    return dict(vae.hparams["normalize"] or {})


def _spread(module: StampDataModule, shape: tuple[int, ...] | None, n_stamps: int) -> Tensor:
    module.prepare_data()
    module.setup()
    rows = np.arange(len(module.store))
    n_stamps = min(check_int("n_audited", n_stamps, minimum=2), len(rows))
    chosen = rows[:: max(1, len(rows) // n_stamps)][:n_stamps]
    stamps = torch.cat([batch["image"] for batch in module.in_order(chosen)])
    if shape is not None and tuple(stamps.shape[1:]) != shape:
        raise InputError(
            f"the stamps have shape {tuple(stamps.shape[1:])}, the checkpoint takes {shape}; give "
            "data=... with its bands"
        )
    return stamps


def _is_folder(stamps: object) -> TypeGuard[str | os.PathLike[str]]:
    return isinstance(stamps, str | os.PathLike) and Path(stamps).expanduser().is_dir()


def _address(folder: str | os.PathLike[str]) -> str:
    return str(Path(folder).expanduser())


# -- settings ------------------------------------------------------------------------------------


def _named(settings: Settings) -> Mapping[str, Any]:
    return {"name": settings} if isinstance(settings, str) else settings


def _normalizer_of(stamps: object, normalize: Mapping[str, Any] | None) -> Normalizer:
    if not isinstance(stamps, StampDataModule):
        return construct("normalize", Normalizer, normalize or {})
    if normalize is not None:
        raise InputError("normalize belongs to the datamodule; give it there")
    return stamps.normalizer


def _made(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """`made_by` of what may not be callable."""
    if not callable(make):
        raise InputError(
            f"model must be a torch.nn.Module, what makes one, or a checkpoint, got "
            f"{type(make).__name__}"
        )
    name = getattr(make, "__name__", type(make).__name__)
    remedy = f"give a model, or a function without arguments: audit(lambda: {name}(...))"
    return made_by(make, seed, f"{name}()", remedy)
