"""Experiments on the module as a whole: what it does to its input, and which weights it owns."""

from __future__ import annotations

import torch
from torch import Tensor

from vae_astro.collapse.audit.bench import Bench, preserved
from vae_astro.collapse.audit.findings import Finding, Untestable

__all__ = ["code_has_room", "input_is_left_alone", "weights_are_registered"]

MOST_STAMPS = 64
"""Stamps that `code_has_room` looks at: with more, ever fainter directions count."""
WORTH_NATS = 0.35
"""A direction counts if coding it saves that much: twice the variance of the noise floor."""
TOO_MANY = 8
"""Directions per latent unit that are far more than the code can hold."""


def input_is_left_alone(bench: Bench) -> list[Finding]:
    """Compare the stamps before and after a pass."""
    n = min(len(bench.stamps), 16)
    findings = []
    with preserved(bench.module):
        for training in (True, False):
            bench.module.train(training)
            given = bench.few(n).clone()
            changed = bench.subject.changes(given)
            if changed is not None:
                mode = "training" if training else "evaluation"
                measured = (
                    f"a pass over {n} stamps in {mode} mode changed "
                    f"{100 * changed:.3g} % of the pixels that it was given"
                )
                findings.append(Finding.of("mutates-input", measured))
                break
    return findings


def weights_are_registered(bench: Bench) -> list[Finding]:
    """Walk the graph of the output back to its leaves: each must be a parameter."""
    n = min(len(bench.stamps), 4)
    with preserved(bench.module):
        bench.module.train()
        reading = bench.read(n)
    known = {id(each) for each in bench.module.parameters()}
    roots = [each for each in (reading.recon, reading.mean, reading.spread) if each is not None]
    strangers = [each for each in _leaves(roots) if id(each) not in known]
    if not strangers:
        return []
    n_weights = sum(each.numel() for each in strangers)
    shapes = ", ".join(str(tuple(each.shape)) for each in strangers[:4])
    measured = (
        f"the output depends on {n_weights} weights in {len(strangers)} tensors ({shapes}) that "
        "model.parameters() does not hold"
    )
    return [Finding.of("weights-outside-parameters", measured)]


def code_has_room(bench: Bench) -> list[Finding]:
    """Count directions of the stamps that are worth coding, on stamps that did not choose them.

    Principal directions of one half of the stamps are judged by the variance of the other half
    along them against the noise floor, what all directions leave over: a direction with a variance
    of r noise floors is worth 0.5 ln r nats.
    """
    n_units = bench.subject.latent_dim
    if n_units == 0:
        raise Untestable("the width of the code is not known")
    stamps = bench.few(MOST_STAMPS).flatten(1).double()
    halves = stamps[::2], stamps[1::2]
    if len(halves[1]) < 2 * TOO_MANY * min(n_units, 2):
        raise Untestable(f"{len(stamps)} stamps are too few to count their directions")
    nats = 0.5 * (_nats(*halves) + _nats(*halves[::-1]))
    ordered = nats.sort(descending=True).values
    n_directions = int((ordered > WORTH_NATS).sum())
    bench.facts["directions_worth_coding"] = n_directions
    share = float(ordered[:n_units].sum() / ordered.sum())  # NaN where there is none
    if n_directions < TOO_MANY * n_units or share > 0.3:
        return []
    measured = (
        f"{n_units} latent units, and {n_directions} directions of {len(stamps)} stamps that stand "
        f"out of the noise; the first {n_units} are worth {100 * share:.0f} % of their nats"
    )
    return [Finding.of("code-too-narrow", measured)]


def _nats(one: Tensor, other: Tensor) -> Tensor:
    """Worth of each principal direction of ``one`` for ``other``, both (N, D), in nats."""
    n = min(len(one), len(other))
    one, other = one[:n], other[:n]
    directions = torch.linalg.svd(one - one.mean(0), full_matrices=False).Vh[: n - 1]
    centred = other - one.mean(0)
    along = (centred @ directions.T).square().mean(0)
    left = centred.square().sum(1).mean() - along.sum()
    floor = left.clamp(min=1e-12 * float(along.sum())) / max(centred.shape[1] - n + 1, 1)
    return (0.5 * torch.log(along / floor)).clamp(min=0)


def _leaves(roots: list[Tensor]) -> list[Tensor]:
    """Tensors that a gradient of ``roots`` would be gathered in."""
    pending = [each.grad_fn for each in roots if each.grad_fn is not None]
    seen, leaves = set(pending), {}
    while pending:
        node = pending.pop()
        variable = getattr(node, "variable", None)  # of an AccumulateGrad
        if variable is not None:
            leaves[id(variable)] = variable
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                pending.append(following)
    return list(leaves.values())
