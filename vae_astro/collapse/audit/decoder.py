"""Experiments on the decoder: does it listen to the code, to nothing else, and can it draw?"""

from __future__ import annotations

import torch
from torch import Tensor

from vae_astro.collapse.audit.bench import (
    INDEPENDENT,
    ROUNDING,
    Bench,
    preserved,
    reach,
    relative_change,
)
from vae_astro.collapse.audit.calls import reseed
from vae_astro.collapse.audit.findings import Finding
from vae_astro.errors import first_of

__all__ = [
    "code_changes_output",
    "gradients_reach_encoder",
    "input_changes_output",
    "input_stays_outside",
    "output_is_finite",
    "output_reaches_stamps",
]

OUT_OF_REACH = 0.01
"""Share of pixels beyond the decoder's range from which that is a finding."""
SLACK = 0.01
"""Of the stamps' range, that a decoder may fall short by."""


def output_is_finite(bench: Bench) -> list[Finding]:
    """Shape of the output against that of the stamps, and NaN anywhere."""
    n = min(len(bench.stamps), 64)
    reading = bench.read(n)
    recon = reading.recon
    findings = []
    if recon is not None and (len(recon) != n or recon.numel() != bench.few(n).numel()):
        measured = (
            f"stamps of shape {tuple(bench.few(n).shape)} went in, {tuple(recon.shape)} came out"
        )
        findings.append(Finding.of("output-shape", measured))
    parts = {"output": recon, "mean": reading.mean, "log-variance": reading.spread}
    bad = {
        name: float((~tensor.isfinite()).double().mean())
        for name, tensor in parts.items()
        if tensor is not None and not bool(tensor.isfinite().all())
    }
    if bad:
        shares = ", ".join(f"{100 * share:.3g} % of the {name}" for name, share in bad.items())
        findings.append(
            Finding.of("not-finite", f"{shares} is NaN or infinite on {n} finite stamps")
        )
    return findings


def code_changes_output(bench: Bench) -> list[Finding]:
    """Decode codes drawn from the prior, and ten times wider: does the output differ at all?"""
    n = min(len(bench.stamps), 16)
    changes = []
    for scale in (1.0, 10.0):
        codes = bench.codes(n, scale)
        changes.append(relative_change(_recon(bench, n, codes), _recon(bench, n, codes.roll(1, 0))))
    bench.facts["output_change_with_code"] = changes[0]
    if max(changes) > INDEPENDENT:
        return []
    return [
        Finding.of(
            "decoder-ignores-code",
            f"{n} codes drawn with standard deviation 1 and 10: the output differs by "
            f"{max(changes):.1e} of its size",
        )
    ]


def input_stays_outside(bench: Bench) -> list[Finding]:
    """The same codes beside other stamps: the output must not follow the stamps."""
    n = min(len(bench.stamps), 16)
    codes = bench.codes(n)
    first = _recon(bench, n, codes)
    reseed(0)
    second = bench.subject.run(bench.few(n).roll(1, 0), codes).recon
    assert second is not None
    by_input = relative_change(first, second)
    by_code = relative_change(first, _recon(bench, n, codes.roll(1, 0)))
    if by_input <= ROUNDING:
        return []
    measured = (
        f"with the code held, other stamps change the output by {100 * by_input:.3g} % of its size;"
        f" with the stamps held, other codes by {100 * by_code:.3g} %"
    )
    return [Finding.of("decoder-sees-input", measured)]


def input_changes_output(bench: Bench) -> list[Finding]:
    """Other stamps with the same noise: the output of the whole model must differ."""
    n = min(len(bench.stamps), 16)
    first = _recon(bench, n, None)
    reseed(0)
    second = bench.subject.run(bench.few(n).roll(1, 0)).recon
    assert second is not None
    change = relative_change(first, second)
    if change > INDEPENDENT:
        return []
    measured = f"other stamps, the same noise: the output differs by {change:.1e} of its size"
    return [Finding.of("output-ignores-input", measured)]


def output_reaches_stamps(bench: Bench) -> list[Finding]:
    """Push all weights and the code of a copy up and down: which pixel values can it draw?"""
    pixels = bench.stamps.flatten()
    low, high = (float(bound) for bound in pixels.aminmax())
    slack = SLACK * (high - low)
    seen: list[Tensor] = []
    floor = _furthest(bench, -1, low + slack, seen)
    ceiling = _furthest(bench, 1, high - slack, seen)
    axis = _softmax_axis(seen, bench.stamps)
    if axis is not None:
        measured = (
            f"whatever the weights and the code, the output sums to 1 over {axis}; it reaches "
            f"{floor:.3g} to {ceiling:.3g}, the stamps {low:.3g} to {high:.3g}"
        )
        return [Finding.of("softmax-output", measured)]
    share = float(((pixels < floor - slack) | (pixels > ceiling + slack)).double().mean())
    if share < OUT_OF_REACH:
        return []
    measured = (
        f"with weights and code pushed as far as they go the output reaches {floor:.3g} to "
        f"{ceiling:.3g}; the stamps run from {low:.3g} to {high:.3g}, {100 * share:.3g} % of their "
        "pixels lie outside"
    )
    return [Finding.of("output-range", measured)]


def gradients_reach_encoder(bench: Bench) -> list[Finding]:
    """Follow the gradient of the output back to each latent unit, and on to the encoder."""
    n = min(len(bench.stamps), 16)
    with preserved(bench.module):
        bench.module.train()
        code = bench.codes(n).requires_grad_()
        recon = _recon(bench, n, code)
        weights = torch.randn_like(recon)
        by_unit = _gradient(recon, weights, [code])[0]
        parameters = bench.parameters()
        decoder_only = _moved(_gradient(recon, weights, parameters))
        gradients = _gradient(_recon(bench, n, None), weights, parameters)
        through = _moved(gradients)
    bench.facts["decoder_weights"] = sum(parameters[k].numel() for k in decoder_only)
    strength = torch.zeros(bench.subject.latent_dim) if by_unit is None else _per_unit(by_unit)
    silent = (strength <= 1e-12 * strength.max()).nonzero().flatten().tolist()
    findings = []
    broken = sum(each is not None and not bool(each.isfinite().all()) for each in gradients)
    if broken:
        measured = (
            f"the gradient of the finite output is NaN or infinite at {broken} of "
            f"{len(parameters)} weight tensors"
        )
        return [Finding.of("not-finite", measured)]
    if len(silent) == len(strength):
        measured = f"the gradient of the output is zero at all {len(strength)} latent units"
        return [Finding.of("gradient-cut", measured)]
    if silent:
        measured = (
            f"{len(silent)} of {len(strength)} latent units ({first_of(silent, 6)}) get no "
            f"gradient from the output, the strongest {float(strength.max()):.2g}"
        )
        findings.append(Finding.of("units-without-gradient", measured))
    if through <= decoder_only:
        measured = (
            f"the output moves {len(decoder_only)} weights of the decoder and none of the encoder"
        )
        findings.append(Finding.of("gradient-cut", measured))
    return findings


def _recon(bench: Bench, n: int, code: Tensor | None) -> Tensor:
    recon = bench.read(n, code).recon
    assert recon is not None
    return recon


def _furthest(bench: Bench, sign: int, goal: float, seen: list[Tensor]) -> float:
    """As `reach`, for the output; in a second attempt only the last layers are pushed.

    Pushing everything at once can silence rectifiers on the way.
    """
    n = min(len(bench.stamps), 4)
    best = -torch.inf
    for last_only in (False, True):
        with preserved(bench.module):
            code = None
            if bench.subject.reaches_code:
                code = bench.codes(n).requires_grad_()

            def measure(code: Tensor | None = code) -> Tensor:
                recon = _recon(bench, n, code)
                seen.append(recon.detach())
                return recon

            parameters: list[Tensor] = [*bench.parameters()]
            if last_only:
                gradients = _gradient(measure(), torch.ones(()), parameters)
                parameters = [parameters[place] for place in sorted(_moved(gradients))][-2:]
            elif code is not None:
                parameters.append(code)
            if parameters:
                best = max(best, sign * reach(measure, parameters, sign, goal))
        if best >= sign * goal:
            break
    return sign * best


def _softmax_axis(seen: list[Tensor], stamps: Tensor) -> str | None:
    """The axis over which all outputs, and not the stamps, sum to 1."""
    finite = [each for each in seen if bool(each.isfinite().all())]
    shape = finite[0].shape if finite else torch.Size()
    axes: dict[str, tuple[int, ...]] = {
        f"axis {axis} of {shape[axis]}": (axis,) for axis in range(1, len(shape))
    }
    if len(shape) > 2:
        axes["all pixels"] = tuple(range(1, len(shape)))
    for name, axis in axes.items():
        to_one = all(bool(((each.sum(axis) - 1).abs() < 1e-3).all()) for each in finite)
        like_stamps = stamps.numel() == stamps.reshape(len(stamps), *shape[1:]).numel() and bool(
            ((stamps.reshape(len(stamps), *shape[1:]).sum(axis) - 1).abs() < 1e-3).all()
        )
        if to_one and all(bool((each >= 0).all()) for each in finite) and not like_stamps:
            return name
    return None


def _gradient(
    output: Tensor, weights: Tensor, inputs: list[Tensor] | list[torch.nn.Parameter]
) -> tuple[Tensor | None, ...]:
    if not output.requires_grad:
        return (None,) * len(inputs)
    scalar = (output * weights.to(output)).sum()
    return torch.autograd.grad(scalar, list(inputs), allow_unused=True, retain_graph=True)


def _moved(gradients: tuple[Tensor | None, ...]) -> set[int]:
    """Places of the gradients that are there and not all zero."""
    return {k for k, each in enumerate(gradients) if each is not None and bool(each.any())}


def _per_unit(gradient: Tensor) -> Tensor:
    return gradient.flatten(1).abs().amax(0)
