"""Classes in words, for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vae_astro.evaluate.agreement import Agreement, Readable
from vae_astro.evaluate.consensus import Consensus
from vae_astro.evaluate.mixtures import Curve
from vae_astro.report.words import shortened

__all__ = ["class_lines", "label_lines"]

WIDEST_NAME, WIDEST_LABEL = 24, 14
SHOWN_STRAYS = 3


def class_lines(
    consensus: Consensus,
    names: Sequence[str],
    n_stamps: int,
    n_networks: int,
    method: str,
    curve: Curve | None,
    criterion: str,
    unsure_below: float,
) -> list[str]:
    """What was found without labels, and how far it can be relied upon."""
    n_runs, k = len(consensus.votes), consensus.n_classes
    runs = f"{_many(n_runs, 'clustering')} of {_many(n_networks, 'network')}"
    lines = [f"{_many(k, 'class')} by {method} in {n_stamps} stamps, from {runs}"]
    if curve is not None:
        at, tried = curve.best(criterion), curve.n_classes
        lines.append(
            f"number of classes: {at} of {tried[0]} to {tried[-1]} has the lowest "
            f"{criterion.upper()} (BIC {curve.best('bic')}, ICL {curve.best('icl')})"
        )
        if at == tried[-1] > 1:
            lines.append("the largest number that was tried: raise max_classes, or set n_classes")
        if at == 1:
            lines.append("one: these codes hold no classes that stand apart; n_classes=N cuts them")
    most = max(map(len, consensus.votes))
    if k < most:
        lines.append(f"seeds do not agree on {most}: {k} are left when they vote")
    if consensus.ari is None:
        lines.append("stability not known from one clustering: raise n_seeds or give checkpoints")
    else:
        between = consensus.ari_between_networks
        lines.append(
            f"adjusted Rand index between clusterings {consensus.ari:.2f}"
            + ("" if between is None else f", between networks {between:.2f}")
        )
    lines.append(f"unsure, no class above {unsure_below:g}: {100 * consensus.unsure:.1f} %")
    width = min(max(map(len, names)), WIDEST_NAME)
    lines += ["", f"{'class':{width}}   share  unsure  stability"]
    for name, each in zip(names, consensus.classes, strict=True):
        stability = "-" if each.stability is None else f"{each.stability:.2f}"
        lines.append(f"{shortened(name, width):{width}} {100 * each.occupancy:5.1f} % "
                     f"{100 * each.unsure:5.1f} %  {stability:>8}  {each.verdict}")  # fmt: skip
    for stray in consensus.strays[:SHOWN_STRAYS]:
        where = "one seed only" if stray.found_in == 1 else f"{stray.found_in} of {n_runs} seeds"
        lines.append(
            f"a cluster of {100 * stray.occupancy:.1f} % of the stamps appears in {where}: "
            "unstable, no class is made of it"
        )
    left = len(consensus.strays) - SHOWN_STRAYS
    if left > 0:
        lines.append(f"and {left} smaller ones, as unstable; all of them stand in classes.json")
    return lines


def label_lines(labels: Agreement, read: Readable | None, names: Sequence[str]) -> list[str]:
    """How the classes lie to given labels."""
    lines = ["", f"beside {_many(labels.n_labelled, 'given label')}, which nothing was fitted to:"]
    if labels.nmi is None:
        lines.append(f"all labels are {labels.labels[0]!r}: no score can be taken from one label")
    else:
        lines.append(f"NMI {labels.nmi:.3f}, ARI {labels.ari:.3f}, homogeneity "
                     f"{labels.homogeneity:.3f}, completeness {labels.completeness:.3f}, "
                     f"purity {labels.overall_purity:.3f}")  # fmt: skip
    if read is not None:
        lines.append(
            f"from the codes, {read.n_folds} folds by object: 15 neighbours "
            f"{read.neighbours_balanced_accuracy:.3f} balanced, linear probe "
            f"{read.probe_accuracy:.3f} ({read.probe_balanced_accuracy:.3f} balanced)"
        )
    width = min(max(map(len, [*names, "none"])), WIDEST_NAME)
    columns = [shortened(label, WIDEST_LABEL) for label in labels.labels]
    widths = [max(len(column), len(str(labels.confusion.max()))) for column in columns]

    def row(name: str, cells: Iterable[object]) -> str:
        pairs = zip(cells, widths, strict=True)
        return f"{shortened(name, width):{width}}" + "".join(f"  {cell:>{w}}" for cell, w in pairs)

    lines.append(row("", columns))
    counts = labels.confusion.T
    for k, (name, label) in enumerate(zip(names, labels.mapping, strict=True)):
        mostly = f"  {100 * (labels.purity[k] or 0):.0f} % {label}" if label is not None else ""
        lines.append(row(name, counts[k]) + mostly)
    if counts[-1].any():
        lines.append(row("none", counts[-1]))
    return lines


def _many(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}{'es' if what.endswith('s') else 's'}"
