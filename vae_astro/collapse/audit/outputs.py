"""What a model hands back, read by names where it has any and by shapes where not."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = ["STD_OF", "Reading", "Spread", "named_tensors", "read_output", "substitute"]

Spread = Literal["log_var", "log_std", "std", "var"]
"""What a model may mean by the second number of a posterior."""

STD_OF = {
    "log_var": lambda spread: torch.exp(0.5 * spread),
    "log_std": torch.exp,
    "std": torch.abs,
    "var": lambda spread: spread.abs().sqrt(),
}
"""Standard deviation of each."""

_NAMES: dict[str, set[str]] = {
    "recon": {
        "recon", "reconx", "xrecon", "recons", "reconstruction", "reconstructions", "reconstructed",
        "xhat", "xrec", "rec", "decoded", "output", "out", "pred", "xpred", "xtilde", "logits",
        "reconlogits", "image", "xprime", "xreconstructed", "mux", "xmu", "yhat", "generated",
    },
    "input": {"x", "input", "inputs", "data", "target", "targets", "original", "stamps"},
    "mean": {
        "mu", "mean", "zmean", "zmu", "muz", "meanz", "embedding", "loc", "zloc", "qmu", "qmean",
        "mus", "means", "posteriormean", "latentmean",
    },
    "log_var": {
        "logvar", "logvars", "logvariance", "logcovariance", "zlogvar", "logvarz", "lv",
        "logsigma2", "logsigmasq", "logsigmasquared", "qlogvar", "posteriorlogvar", "latentlogvar",
    },
    "log_std": {"logstd", "logsigma", "logscale", "zlogsigma", "zlogstd"},
    "std": {"std", "stds", "sigma", "sigmas", "scale", "stddev", "zstd", "zsigma", "stdz"},
    "var": {"var", "variance", "zvar", "sigma2", "covariance"},
    "code": {"z", "zs", "latent", "latents", "code", "codes", "zsample", "zsampled"},
    "loss": {"loss", "totalloss"},
}  # fmt: skip
_ROLE_OF = {name: role for role, names in _NAMES.items() for name in names}
_SPREADS: tuple[Spread, ...] = ("log_var", "log_std", "std", "var")


@dataclass(frozen=True)
class Reading:
    """One pass through a model, in the model's own tensors.

    Attributes
    ----------
    recon : Tensor or None, shape (B, ...)
        Output pixels.
    mean, spread : Tensor or None, shape (B, ...)
        Of the posterior.
    claim : {"log_var", "log_std", "std", "var"} or None
        What ``spread`` is by its name; None where it has none.
    code : Tensor or None, shape (B, ...)
        What the decoder was given.
    loss : Tensor or None
        Scalar that came along.
    extras : tuple of Tensor
        Other outputs of the stamp's size, such as a predicted noise.
    nameless : tuple of Tensor
        Posterior numbers that only their position names, in order.
    """

    recon: Tensor | None = None
    mean: Tensor | None = None
    spread: Tensor | None = None
    claim: Spread | None = None
    code: Tensor | None = None
    loss: Tensor | None = None
    extras: tuple[Tensor, ...] = ()
    nameless: tuple[Tensor, ...] = ()


def named_tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Floating tensors of any nesting of containers and objects, with the last name on the way."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield name, value
    elif isinstance(value, torch.distributions.Distribution):
        yield "mean", value.mean
        yield "std", value.stddev
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from named_tensors(each, str(key))
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        for key, each in zip(value._fields, value, strict=True):
            yield from named_tensors(each, key)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from named_tensors(each)
    elif hasattr(value, "__dict__") and not isinstance(value, type | torch.nn.Module):
        for key, each in vars(value).items():
            yield from named_tensors(each, key)


def read_output(
    output: Any, stamps: Tensor, roles: Sequence[int] = (0, 1, 2), *, pictured: bool = True
) -> Reading:
    """Find reconstruction, posterior, code and loss in what a model returned.

    Parameters
    ----------
    output : any
        Tensor, tuple, mapping, dataclass, distribution, in any nesting.
    stamps : Tensor, shape (B, ...)
        What went in.
    roles : sequence of int
        Where mean, spread and code stand among the tensors that only their position names.
    pictured : bool
        Whether a reconstruction is among them; an encoder's output has none.

    Returns
    -------
    Reading
        With None for what was not found.
    """
    n_stamps, n_pixels = len(stamps), stamps[0].numel()
    found: dict[str, list[Tensor]] = {}
    pictures: list[Tensor] = []
    nameless: list[Tensor] = []
    for name, tensor in named_tensors(output):
        role = _ROLE_OF.get("".join(filter(str.isalnum, name.lower())), "")
        if role:
            found.setdefault(role, []).append(tensor)
        elif tensor.ndim and len(tensor) == n_stamps:
            is_picture = tensor.numel() == n_stamps * n_pixels
            (pictures if is_picture else nameless).append(tensor)
        elif tensor.numel() > 1:
            nameless.append(tensor)
    # the stamps themselves are handed back by some models, beside or in place of an output
    pictures = [each for each in pictures if not _same(each, stamps)] or pictures[:1]
    recon = next(iter(found.get("recon", [])), None)
    if recon is None and pictures:
        recon, *pictures = pictures
    elif recon is None and pictured and nameless and (len(nameless) != 2 or "mean" in found):
        recon, *nameless = nameless  # of another shape than the stamps, which is a finding
    reading = Reading(
        recon=recon,
        mean=_varying(found.get("mean", [])),
        code=next(iter(found.get("code", [])), None),
        loss=next(iter(found.get("loss", [])), None),
        extras=tuple(pictures),
    )
    for claim in _SPREADS:
        if claim in found:
            reading = dataclasses.replace(reading, spread=_varying(found[claim]), claim=claim)
            break
    if reading.mean is None:
        reading = _by_position(reading, nameless, roles)
    return reading


def _by_position(reading: Reading, nameless: list[Tensor], roles: Sequence[int]) -> Reading:
    alike = [each for each in nameless if each.shape == nameless[0].shape]
    reading = dataclasses.replace(reading, nameless=tuple(alike))
    if len(alike) >= 3:
        mean, spread, code = (alike[place] for place in roles)
        return dataclasses.replace(reading, mean=mean, spread=spread, code=code)
    if len(alike) == 2:
        return dataclasses.replace(reading, mean=alike[0], spread=alike[1])
    if len(alike) == 1:
        return dataclasses.replace(reading, mean=alike[0])
    return reading


def _varying(tensors: list[Tensor]) -> Tensor | None:
    """The first that differs between stamps: a prior may stand beside the posterior."""
    different = (each for each in tensors if len(each) > 1 and bool((each != each[:1]).any()))
    return next(different, next(iter(tensors), None))


def _same(tensor: Tensor, stamps: Tensor) -> bool:
    return tensor is stamps or bool((tensor.reshape(stamps.shape) == stamps).all())


def substitute(value: Any, old: Sequence[Tensor], new: Sequence[Tensor]) -> Any:
    """``value`` with each tensor of ``old``, found by identity, replaced by its ``new``.

    Containers are copied, never changed; what is not on the way to a tensor is shared.
    """
    if isinstance(value, Tensor):
        return next((b for a, b in zip(old, new, strict=True) if value is a), value)
    if isinstance(value, Mapping):
        changed: Any = copy.copy(value)
        for key, each in value.items():
            changed[key] = substitute(each, old, new)
        return changed
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(substitute(each, old, new) for each in value))
    if isinstance(value, list | tuple):
        return type(value)(substitute(each, old, new) for each in value)
    if hasattr(value, "__dict__") and not isinstance(value, type | torch.nn.Module):
        changed = copy.copy(value)
        for key, each in vars(value).items():
            object.__setattr__(changed, key, substitute(each, old, new))
        return changed
    return value
