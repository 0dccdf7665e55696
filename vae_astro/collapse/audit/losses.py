"""Calling a loss that somebody else wrote: as a function of output, stamps, mean and log-variance.

An `Objective` hides whose loss it is: a `VAE` of this project, a function, a method of the model,
or a number that comes out of the model's own forward.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vae_astro.collapse.audit.adapters import AnySubject, OwnSubject, Subject
from vae_astro.collapse.audit.calls import Call, intercepted, reseed, survey
from vae_astro.collapse.audit.findings import Untestable
from vae_astro.collapse.audit.outputs import (
    STD_OF,
    Reading,
    named_tensors,
    read_output,
    substitute,
)
from vae_astro.collapse.spectrum import collapsed_picture
from vae_astro.errors import InputError
from vae_astro.model.posterior import DiagonalGaussian
from vae_astro.objective.elbo import Elbo

__all__ = ["FunctionLoss", "Objective", "objective_of"]

METHODS = ("loss_function",)
"""Methods of a model that are taken for its loss where none is given."""
LATE_STEP = 2**40
"""An optimiser step after the end of any schedule."""

_ROLE_OF_ARGUMENT = {
    "recon": (
        "recon", "reconx", "recons", "reconstruction", "xhat", "xrecon", "xrec", "output_x", "pred",
        "yhat", "decoded", "xprime", "reconbatch",
    ),
    "stamps": (
        "x", "input", "inputs", "target", "targets", "data", "batch", "images", "image", "stamps",
        "original", "y",
    ),
    "mean": ("mu", "mean", "zmean", "means", "zmu", "loc"),
    "spread": (
        "logvar", "logvariance", "zlogvar", "lv", "logcovariance", "logsigma2", "logstd",
        "logsigma", "std", "sigma", "var", "logvars", "zlogsigma",
    ),
    "code": ("z", "latent", "code"),
    "output": ("output", "outputs", "out", "result", "results", "modeloutput", "forwardoutput"),
}  # fmt: skip
_ROLES = {name: role for role, names in _ROLE_OF_ARGUMENT.items() for name in names}


class Objective(ABC):
    """What is minimised, with all it depends on given from outside."""

    takes_any_shape = False
    """Whether stamps of another size and codes of another width may be tried."""
    is_function = True
    """Whether it depends on its arguments alone, so that its KL can be told in full."""
    samples_code = False
    """Whether the loss takes a draw of the code, so that its KL may be an estimate."""

    @abstractmethod
    def __call__(self, recon: Tensor, stamps: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
        """Scalar loss of a batch; ``recon`` as the decoder emits it."""

    def collapsed(self, stamps: Tensor) -> Tensor:
        """What a decoder emits whose code says nothing, in the shape of one of ``stamps``.

        Here pixels: those of the mean stamp, a little towards its own average, since cross-entropy
        has poles at 0 and 1.
        """
        mean_stamp = stamps.mean(0)
        return mean_stamp + 0.05 * (mean_stamp.mean() - mean_stamp)

    def learns_scale(self, recon: Tensor, stamps: Tensor, mean: Tensor, spread: Tensor) -> bool:
        """Whether training also adapts how residuals are weighed, as with a learned sigma."""
        loss = self(recon, stamps, mean, spread)
        weights = self.weights()
        if not weights or not loss.requires_grad:
            return False
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        return any(each is not None and bool(each.any()) for each in gradients)

    def weights(self) -> list[Tensor]:
        """What an optimiser might move and the loss might depend on."""
        return []


class OwnLoss(Objective):
    """The training loss of a `VAE` at the end of its schedule, every pixel good, noise 1."""

    takes_any_shape = True

    def __init__(self, subject: OwnSubject) -> None:
        self.vae = subject.vae
        self.is_function = not self.vae.prior.learns  # a prior moves beside it
        self.penalty = self.vae.penalty(LATE_STEP)

    def __call__(self, recon: Tensor, stamps: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
        """See `Objective`."""
        mask, noise = _all_good(stamps)
        elbo = Elbo(
            self.vae.likelihood.training_term(stamps, recon, mask, noise),
            self.vae.prior.kl_per_unit(DiagonalGaussian(mean, spread)),
        )
        return elbo.loss(self.penalty)

    def collapsed(self, stamps: Tensor) -> Tensor:
        """See `Objective`; where the likelihood is largest, which may be in logits."""
        return collapsed_picture(self.vae.likelihood, stamps, *_all_good(stamps))

    def learns_scale(self, recon: Tensor, stamps: Tensor, mean: Tensor, spread: Tensor) -> bool:
        """See `Objective`: what is learned in closed form moves when a batch is shown."""
        if self.vae.schedule.controller is not None:
            return True  # GECO moves the weight itself
        if super().learns_scale(recon, stamps, mean, spread):
            return True
        before = self(recon, stamps, mean, spread)
        far = recon.detach() + 3 * (recon.detach() - stamps)
        state = {k: v.clone() for k, v in self.vae.likelihood.state_dict().items()}
        self.vae.likelihood.observe(stamps, far, *_all_good(stamps))
        after = self(recon, stamps, mean, spread)
        self.vae.likelihood.load_state_dict(state)
        return not torch.equal(before, after)

    def weights(self) -> list[Tensor]:
        """See `Objective`."""
        return list(self.vae.likelihood.parameters())


def _all_good(stamps: Tensor) -> tuple[Tensor, Tensor]:
    """Mask and noise of stamps of which nothing else is known."""
    return torch.ones_like(stamps, dtype=torch.bool), torch.ones_like(stamps)


class FunctionLoss(Objective):
    """A function or method, called by the names of its arguments.

    Names are matched with those in use (``recon_x``, ``x``, ``mu``, ``log_var``, ``z``, ...); an
    argument called ``output`` gets what the model returned, with reconstruction and posterior
    replaced. Without names that are known, four arguments are taken for reconstruction, stamps,
    mean and log-variance in this order, and two for output and stamps.
    """

    def __init__(self, function: Callable[..., Any], subject: Subject, few: Tensor) -> None:
        self.function = function
        self.subject = subject
        self.roles = _roles_of(function)
        self.takes_any_shape = "output" not in self.roles.values()
        self.samples_code = "code" in self.roles.values()
        self.extras: list[Tensor] = []
        self.shape_of = "flat" if "flat" in subject.interface else "stamps"
        reseed(0)
        self.reading = subject.run(few)

    def __call__(self, recon: Tensor, stamps: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
        """See `Objective`."""
        if self.shape_of == "flat":
            stamps = stamps.flatten(1)
        elif self.shape_of == "recon":
            stamps = stamps.reshape(recon.shape)
        given = {"recon": recon, "stamps": stamps, "mean": mean, "spread": spread}
        if "code" in self.roles.values():
            to_std = STD_OF[self.reading.claim or "log_var"]
            given["code"] = mean + to_std(spread) * torch.randn_like(mean)
        if "output" in self.roles.values():
            given["output"] = self._output(recon, stamps, mean, spread)
        positional = [given[role] for name, role in self.roles.items() if name.isdigit()]
        named = {name: given[role] for name, role in self.roles.items() if not name.isdigit()}
        return total(self.function(*positional, **named), (recon, mean, spread))

    def _output(self, recon: Tensor, stamps: Tensor, mean: Tensor, spread: Tensor) -> Any:
        if not isinstance(self.subject, AnySubject):
            return {"recon": recon, "mean": mean, "log_var": spread}
        with torch.no_grad():
            output = self.subject.call(stamps.clone())
        reading = read_output(output, stamps)
        self.extras = [each.clone().requires_grad_() for each in reading.extras]
        old = (reading.recon, reading.mean, reading.spread, *reading.extras)
        new = (recon, mean, spread, *self.extras)
        pairs = [(a, b) for a, b in zip(old, new, strict=True) if a is not None]
        return substitute(output, [a for a, _ in pairs], [b for _, b in pairs])

    def weights(self) -> list[Tensor]:
        """See `Objective`; a noise that the decoder predicts is one of them."""
        owners = (self.subject.module, self.function, getattr(self.function, "__self__", None))
        modules = [owner for owner in owners if isinstance(owner, nn.Module)]
        return [*self.extras, *(weight for owner in modules for weight in owner.parameters())]


class ForwardLoss(Objective):
    """The loss that comes out of forward, with posterior and reconstruction swapped on their way.

    Raises
    ------
    LookupError
        Where they are not made by a submodule or by encode and decode.
    """

    def __init__(self, subject: AnySubject, few: Tensor) -> None:
        self.subject = subject
        self.is_function = False
        self.samples_code = True
        reading: Reading | None = None

        def run() -> None:
            nonlocal reading
            reading = subject.run(few)

        records = survey(subject.module, run)
        assert reading is not None
        self.places: dict[Call, list[tuple[int, str]]] = {}
        for role in ("mean", "spread", "recon"):
            tensor = getattr(reading, role)
            for record in records:
                made = [each for _, each in named_tensors(record.output)]
                place = next((k for k, each in enumerate(made) if each is tensor), None)
                if tensor is not None and place is not None:
                    self.places.setdefault(record.call, []).append((place, role))
                    break
            else:
                raise LookupError(f"the {role} is made inside forward, where it cannot be swapped")

    def __call__(self, recon: Tensor, stamps: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
        """See `Objective`."""
        new = {"recon": recon, "mean": mean, "spread": spread}

        def after(call: Call, output: Any) -> Any:
            if call not in self.places:
                return None
            made = [each for _, each in named_tensors(output)]
            old = [made[place] for place, _ in self.places[call]]
            return substitute(
                output,
                old,
                [
                    new[role].reshape(each.shape)
                    for (_, role), each in zip(self.places[call], old, strict=True)
                ],
            )

        with intercepted(self.subject.module, lambda call, tensor: None, after):
            loss = read_output(self.subject.call(stamps.clone()), stamps).loss
        assert loss is not None
        return loss.mean()

    def weights(self) -> list[Tensor]:
        """See `Objective`."""
        return list(self.subject.module.parameters())


def objective_of(subject: Subject, loss: Callable[..., Any] | None, few: Tensor) -> Objective:
    """The loss to examine.

    Parameters
    ----------
    subject : Subject
    loss : callable or None
        What the user gave.
    few : Tensor, shape (B, ...)
        Stamps to try it on.

    Raises
    ------
    InputError
        If the loss that the user gave cannot be called.
    Untestable
        If none was given and the model has none that can be used.
    """
    if loss is not None:
        if not callable(loss):
            raise InputError(f"loss must be a function, got {type(loss).__name__}")
        return _tried(loss, subject, few)
    if isinstance(subject, OwnSubject):
        return OwnLoss(subject)
    assert isinstance(subject, AnySubject)
    reason = "no loss was given, and the model has none"
    for name in METHODS:
        method = getattr(subject.module, name, None)
        if callable(method):
            try:
                return _tried(method, subject, few)
            except InputError as error:
                reason = str(error)
    try:
        if subject.run(few).loss is not None:
            return ForwardLoss(subject, few)
    except Exception as error:  # the user's model may raise anything
        reason = str(error)
    raise Untestable(reason)


def _tried(function: Callable[..., Any], subject: Subject, few: Tensor) -> FunctionLoss:
    """``function`` as an objective, if a call works."""
    objective = FunctionLoss(function, subject, few)
    reading = objective.reading
    assert reading.recon is not None
    if reading.mean is None or reading.spread is None:
        raise InputError("the loss needs a mean and a log-variance, and the model hands out none")
    first_error = None
    for shape in (objective.shape_of, "recon"):
        objective.shape_of = shape
        try:
            objective(reading.recon, few, reading.mean, reading.spread)
        except Exception as error:  # the user's function may raise anything
            first_error = first_error or error
        else:
            return objective
    name = getattr(objective.function, "__name__", type(objective.function).__name__)
    raise InputError(
        f"the loss {name} could not be called with {', '.join(objective.roles.values())}: "
        f"{type(first_error).__name__}: {first_error}; give a function of recon, x, mean, log_var"
    ) from first_error


def _roles_of(function: Callable[..., Any]) -> dict[str, str]:
    """What to hand to each argument: name to role, numbers for those given by position."""
    positional = {"0": "recon", "1": "stamps", "2": "mean", "3": "spread"}
    call = function.forward if isinstance(function, nn.Module) else function
    try:
        parameters = list(inspect.signature(call).parameters.values())
    except (TypeError, ValueError):  # built in C
        return positional
    if any(each.kind is each.VAR_POSITIONAL for each in parameters):
        return positional
    needed = [
        each
        for each in parameters
        if each.default is each.empty and each.kind is not each.VAR_KEYWORD
    ]
    roles: dict[str, str] = {}
    for each in parameters:
        role = _ROLES.get("".join(filter(str.isalnum, each.name.lower())))
        if (
            role is not None
            and role not in roles.values()
            and each.kind is not each.POSITIONAL_ONLY
        ):
            roles[each.name] = role
    if all(each.name in roles for each in needed) and set(roles.values()) & {"recon", "output"}:
        return roles
    if len(needed) == 2:
        return {"0": "output", "1": "stamps"}
    return positional


def total(returned: Any, inputs: tuple[Tensor, ...]) -> Tensor:
    """The scalar to minimise, out of what a loss returned.

    A mapping's ``loss``; of several numbers the one that depends on most of ``inputs``, the first
    of these; where none depends on all that any does, their sum. What has one value for each stamp
    is averaged.
    """
    if isinstance(returned, Tensor):
        return returned.mean()
    if isinstance(returned, Mapping):
        named = {str(key).lower(): value for key, value in returned.items()}
        if isinstance(named.get("loss"), Tensor):
            return named["loss"].mean()
    values = [each.mean() for _, each in named_tensors(returned)]
    if not values:
        raise TypeError(f"it returned no tensor but {type(returned).__name__}")
    watched = [each for each in inputs if each.requires_grad]
    if not watched:
        return values[0]

    def depends(value: Tensor) -> set[int]:
        if not value.requires_grad:
            return set()
        gradients = torch.autograd.grad(value, watched, allow_unused=True, retain_graph=True)
        return {k for k, each in enumerate(gradients) if each is not None}

    everything = [depends(value) for value in values]
    whole = set().union(*everything)
    for value, each in zip(values, everything, strict=True):
        if each == whole:
            return value
    return torch.stack(values).sum()
