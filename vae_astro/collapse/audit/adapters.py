"""One way to speak to any model: run a batch through it, with the code swapped where asked.

A model is never asked for its source. Where its posterior comes from and where its code goes in is
found by running it: the decoder's entry is the first call that takes as many numbers as the code
has and that can be fed something else without the posterior changing.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vae_astro.collapse.audit.calls import METHODS, Call, Record, intercepted, reseed, survey
from vae_astro.collapse.audit.outputs import Reading, Spread, named_tensors, read_output
from vae_astro.errors import InputError
from vae_astro.vae import VAE

__all__ = ["AnySubject", "OwnSubject", "Subject", "adapt"]

DECODERS = ("decode()", "decoder")
"""Calls that are the decoder's if they take a code, whatever they do with it."""

_MEAN_LAYER = re.compile(r"(^|_)(z?mu|z?mean|means|loc)(_|\d|$)", re.IGNORECASE)
_SPREAD_LAYER = re.compile(r"(var|std|sigma|scale)", re.IGNORECASE)
_LOG_STD_LAYER = re.compile(r"log_?(std|sigma|scale)(?!2|_?sq)", re.IGNORECASE)


class Subject(ABC):
    """The model under audit: a copy, which experiments may change and the audit puts back.

    Attributes
    ----------
    module : Module
    interface : str
        How it is spoken to, for people.
    code_shape : tuple of int
        Shape of one stamp's code; empty where it could not be told.
    reaches_code : bool
        Whether the decoder can be fed a code of ours.
    """

    module: nn.Module
    interface: str
    code_shape: tuple[int, ...] = ()
    reaches_code: bool = False

    @abstractmethod
    def run(self, stamps: Tensor, code: Tensor | None = None) -> Reading:
        """One pass as in training; with ``code`` (B, *code_shape), that is decoded instead."""

    def draw(self, stamps: Tensor) -> Reading:
        """As `run`, where the reconstruction is not wanted."""
        return self.run(stamps)

    def changes(self, stamps: Tensor) -> float | None:
        """Share of the pixels of ``stamps`` that a pass over them changes; None: not one.

        ``stamps`` are not copied first, as they are everywhere else.
        """
        before = stamps.clone()
        self.pass_over(stamps)
        changed = float((stamps != before).double().mean())
        return changed or None

    @abstractmethod
    def pass_over(self, stamps: Tensor) -> None:
        """Run the model on these very stamps."""

    @property
    def latent_dim(self) -> int:
        """Latent units Z; 0 where unknown."""
        return torch.Size(self.code_shape).numel() if self.code_shape else 0


class OwnSubject(Subject):
    """A `VAE` of this project: its parts have names."""

    interface = "vae_astro"
    reaches_code = True

    def __init__(self, vae: VAE) -> None:
        self.module = self.vae = vae
        self.code_shape = (vae.latent_dim,)

    def run(self, stamps: Tensor, code: Tensor | None = None) -> Reading:
        """See `Subject`."""
        stamps = stamps.clone()
        network = self.vae.network
        posterior = network.encode(stamps)
        if code is None:
            code = network.sample(posterior, torch.randn_like(posterior.mean))
        good, alike = torch.ones_like(stamps, dtype=torch.bool), torch.ones_like(stamps)
        output = self.vae.likelihood.aligned(stamps, network.decode(code), good, alike)
        recon = self.vae.likelihood.location(output)
        return Reading(recon, posterior.mean, posterior.log_var, "log_var", code)

    def draw(self, stamps: Tensor) -> Reading:
        """See `Subject`."""
        posterior = self.vae.network.encode(stamps)
        code = self.vae.network.sample(posterior, torch.randn_like(posterior.mean))
        return Reading(None, posterior.mean, posterior.log_var, "log_var", code)

    def pass_over(self, stamps: Tensor) -> None:
        """See `Subject`."""
        self.vae(stamps)


class AnySubject(Subject):
    """Any module that can be run on stamps: what comes back is read by names or by shapes.

    Parameters
    ----------
    module : Module
    stamps : Tensor, shape (B, ...)
        A few, to find out with.

    Raises
    ------
    InputError
        If no way to call it works, or nothing comes back that could be an output.
    """

    def __init__(self, module: nn.Module, stamps: Tensor) -> None:
        self.module = module
        self._roles: Sequence[int] = (0, 1, 2)
        self._claim: Spread | None = None
        self._statistics: Call | None = None
        self._pair: dict[Call, str] = {}
        self._entry: Call | None = None
        module.eval()  # dropout would pass for sampling
        self.interface, self.call = _find_call(module, stamps)
        records = survey(module, lambda: self.call(stamps.clone()))
        reading = self._listen_for_posterior(records, stamps)
        if reading.recon is None:
            raise InputError(
                f"{type(module).__name__} returned nothing that could be stamps of shape "
                f"{tuple(stamps.shape)}; return the reconstruction first, or under the name recon"
            )
        if reading.mean is not None:
            self.code_shape = tuple(reading.mean.shape[1:])
            self._claim = reading.claim or _claim_of_layer(records, reading.spread)
            self._entry = self._find_entry(records, stamps)
            self.reaches_code = self._entry is not None

    def run(self, stamps: Tensor, code: Tensor | None = None) -> Reading:
        """See `Subject`."""
        caught: dict[str, Any] = {}

        def before(call: Call, tensor: Tensor) -> Tensor | None:
            if call != self._entry:
                return None
            swapped = None if code is None else code.reshape(tensor.shape)
            caught["code"] = tensor if swapped is None else swapped
            return swapped

        def after(call: Call, output: Any) -> None:
            if call == self._statistics:
                caught["statistics"] = output
            elif call in self._pair:
                caught[self._pair[call]] = output

        calls = [call for call in (self._entry, self._statistics, *self._pair) if call]
        with intercepted(self.module, before, after, {call.key for call in calls}):
            output = self.call(stamps.clone())
        return self._read(output, caught, stamps)

    def pass_over(self, stamps: Tensor) -> None:
        """See `Subject`."""
        self.call(stamps)

    def _read(self, output: Any, caught: dict[str, Any], stamps: Tensor) -> Reading:
        reading = read_output(output, stamps, self._roles)
        if "statistics" in caught:
            found = read_output(caught["statistics"], stamps, self._roles, pictured=False)
            reading = replace(
                found, recon=reading.recon, loss=reading.loss, extras=reading.extras,
                code=found.code if reading.code is None else reading.code,
            )  # fmt: skip
        if "mean" in caught:
            reading = replace(reading, mean=caught["mean"], spread=caught.get("spread"))
        if reading.mean is not None and len(reading.mean) != len(stamps):
            return replace(reading, mean=None, spread=None, code=None)  # many draws of each stamp
        if "code" in caught and reading.mean is not None:
            reading = replace(reading, code=caught["code"].reshape(reading.mean.shape))
        return replace(reading, claim=reading.claim or self._claim)

    # -- finding out -------------------------------------------------------------------------

    def _listen_for_posterior(self, records: list[Record], stamps: Tensor) -> Reading:
        """Where mean and spread are: in the output, or else in that of a call on the way."""
        reading = self.run(stamps)
        if reading.mean is None or reading.spread is None:
            self._statistics = _call_with_posterior(records, stamps)
            if self._statistics is None:
                self._pair = _pair_of_layers(records)
            if self._statistics is None and not self._pair and reading.mean is None:
                self._statistics = _plain_encoder(records)
            reading = self.run(stamps)
        if len(reading.nameless) >= 3:
            self._roles = self._find_roles(reading, stamps)
            reading = self.run(stamps)
        return reading

    def _find_roles(self, reading: Reading, stamps: Tensor) -> Sequence[int]:
        """Which of three nameless tensors is the code: the one that is drawn anew each time."""
        again = self.run(stamps)
        pairs = zip(reading.nameless, again.nameless, strict=True)
        drawn = [place for place, (a, b) in enumerate(pairs) if not torch.equal(a, b)]
        if len(drawn) != 1:  # no noise: the code equals the mean
            first = reading.nameless[0]
            drawn = [k for k in (1, 2) if torch.equal(first, reading.nameless[k])] or [2]
        others = [place for place in range(3) if place != drawn[0]]
        return (*others, drawn[0])

    def _find_entry(self, records: list[Record], stamps: Tensor) -> Call | None:
        """The first call that takes a code and nothing else of the stamp's noise."""
        reading = _seeded(lambda: self.run(stamps))
        assert reading.mean is not None
        other = torch.randn_like(reading.mean)
        without_effect = None
        for record in records:
            if len(record.given) != len(stamps) or record.given.numel() != reading.mean.numel():
                continue
            self._entry = record.call
            try:
                swapped, again = (_seeded(lambda: self.run(stamps, other), k) for k in (0, 1))
            except Exception:  # what was swapped was needed as it was
                continue
            finally:
                self._entry = None
            is_inside = not (
                _equal(swapped.mean, reading.mean)
                and _equal(swapped.spread, reading.spread)
                and _equal(swapped.recon, again.recon)  # else the noise comes another way too
            )
            if is_inside:
                continue
            # a decoder that is called so may ignore its code; another call then is none
            if record.call.key in DECODERS or not _equal(swapped.recon, reading.recon):
                return record.call
            without_effect = without_effect or record.call
        return without_effect


def adapt(module: nn.Module, stamps: Tensor) -> Subject:
    """A `Subject` for ``module``, which it takes over; ``stamps`` (B, ...) are a few to try with.

    Raises
    ------
    InputError
        If the model cannot be run on such stamps.
    """
    if not isinstance(module, VAE):
        return AnySubject(module, stamps)
    if tuple(stamps.shape[1:]) != module.stamp_shape:
        raise InputError(
            f"the stamps have shape {tuple(stamps.shape[1:])}, the model takes "
            f"{module.stamp_shape}: set data.size, or give stamps with its bands"
        )
    return OwnSubject(module)


class _Inputs(dict[str, Tensor]):
    """``inputs["data"]`` and ``inputs.data``, as pythae has it."""

    def __getattr__(self, name: str) -> Tensor:
        if name in self:
            return self[name]
        raise AttributeError(name)


def _find_call(module: nn.Module, stamps: Tensor) -> tuple[str, Callable[[Tensor], Any]]:
    calls: dict[str, Callable[[Tensor], Any]] = {
        "forward(stamps)": lambda x: module(x),
        "forward(flattened stamps)": lambda x: module(x.flatten(1)),
        "forward({'data': stamps})": lambda x: module(_Inputs(data=x)),
    }
    if hasattr(module, "model_config"):  # pythae
        calls = dict(sorted(calls.items(), key=lambda call: "data" not in call[0]))
    has_parts = all(callable(getattr(module, name, None)) for name in METHODS)
    if has_parts and type(module).forward is nn.Module.forward:
        calls = {
            "encode and decode": lambda x: _composed(module, x),
            "encode and decode of flattened stamps": lambda x: _composed(module, x.flatten(1)),
        }
    failures: dict[str, str] = {}
    for name, call in calls.items():
        try:
            output = call(stamps.clone())
        except Exception as error:  # the user's model may raise anything
            failures[name] = f"{type(error).__name__}: {(str(error).splitlines() or ['?'])[0]}"
            continue
        if next(named_tensors(output), None) is not None:
            return name, call
        failures[name] = f"it returned no tensor but {type(output).__name__}"
    tried = "; ".join(f"{name}: {failure}" for name, failure in failures.items())
    raise InputError(
        f"{type(module).__name__} cannot be run on stamps of shape {tuple(stamps.shape)}. {tried}"
    )


def _composed(module: Any, stamps: Tensor) -> dict[str, Any]:
    """What forward would do, for a model that has only the parts."""
    encoded = module.encode(stamps)
    found = read_output(encoded, stamps, pictured=False)
    if found.mean is None:
        raise TypeError("encode returned nothing that could be a code")
    code = found.mean if found.code is None else found.code
    sampler = next((getattr(module, name) for name in _SAMPLERS if hasattr(module, name)), None)
    if sampler is not None and found.code is None and found.spread is not None:
        code = sampler(found.mean, found.spread)
    return {"recon": module.decode(code), "posterior": encoded}


_SAMPLERS = ("reparameterize", "reparametrize", "reparameterise", "reparametrise")


def _call_with_posterior(records: list[Record], stamps: Tensor) -> Call | None:
    """The outermost call whose output holds a mean and a spread."""
    for record in records:
        if isinstance(record.output, Tensor) or record.output is None:
            continue
        found = read_output(record.output, stamps, pictured=False)
        if found.mean is not None and found.spread is not None:
            return record.call
    return None


def _pair_of_layers(records: list[Record]) -> dict[Call, str]:
    """Two layers of one width that are called what posteriors are called."""
    layers = [(record.call.key.rsplit(".", 1)[-1], record) for record in records if record.is_layer]
    for name, mean in layers:
        if not _MEAN_LAYER.search(name):
            continue
        for other, spread in layers:
            if _SPREAD_LAYER.search(other) and spread.output.shape == mean.output.shape:
                return {mean.call: "mean", spread.call: "spread"}
    return {}


def _plain_encoder(records: list[Record]) -> Call | None:
    """An encoder that returns the code itself, as in an autoencoder without noise."""
    calls = (record.call for record in records)
    return next((call for call in calls if call.key in ("encode()", "encoder")), None)


def _claim_of_layer(records: list[Record], spread: Tensor | None) -> Spread | None:
    """``log_std`` where the call that made ``spread`` is called so; None: nothing is known."""
    for record in records:
        is_called_so = _LOG_STD_LAYER.search(record.call.key.rsplit(".", 1)[-1])
        if is_called_so and isinstance(record.output, Tensor) and _equal(record.output, spread):
            return "log_std"
    return None


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.numel() == b.numel() and torch.equal(a.flatten(), b.flatten())


def _seeded(run: Callable[[], Reading], seed: int = 0) -> Reading:
    reseed(seed)
    return run()
