"""The page: Markdown from measured figures, worded by what they are."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from vae_astro.collapse.convert import convert_loss
from vae_astro.report.question.faults import FAULTS, PATHS
from vae_astro.report.question.figures import STRETCH_WORDS, TITLES, class_line
from vae_astro.report.question.measure import Answer, Needed, Outcome
from vae_astro.report.question.tables import (
    against_forecast,
    fault_name,
    fault_table,
    listed,
    needed_table,
    runs_table,
)

__all__ = ["page"]


def page(answer: Answer) -> str:
    """The whole page, in Markdown."""
    parts: list[Iterable[str]] = [
        [
            "# The question, answered",
            "",
            "> My KL divergence starts around 1e-4 and vanishes. Why, and should I scale the "
            "losses separately?",
            "",
            "Asked of a VAE on 63x63 astronomical images: two convolutions and a dense layer each "
            "way, Adam at 1e-4, two latent units, mean squared error. Every figure on this page "
            f"was measured by `{command(answer)}`.",
            "",
            *(
                ["**Runs too short to learn: this page only shows that the command works.**", ""]
                if answer.size != "full"
                else []
            ),
            "## The answer",
            "",
        ],
        (f"{number}. {line}" for number, line in enumerate(the_answer(answer), 1)),
        ["", "## Its six faults", "", *fault_table(answer), "", luck_line(answer), ""],
        orders_section(answer),
        weight_section(answer),
        classes_section(answer),
        ["## Every run", "", *how_to_read(answer)],
        *([f"### On {TITLES[data]}", "", *runs_table(answer, data), ""] for data in answer.data),
    ]
    return "\n".join(chain.from_iterable(parts)).rstrip() + "\n"


def command(answer: Answer) -> str:
    """What was typed for the page."""
    size = "" if answer.size == "full" else f" size={answer.size}"
    alerts = " alerts=ztf_alerts labels=ztf_alerts_labels.csv" if "ztf" in answer.data else ""
    return f"python scripts/question.py{alerts}{size}"


# -- the answer in five lines --------------------------------------------------------------------


def the_answer(answer: Answer) -> Iterable[str]:
    """Five lines, each worded by what was measured."""
    asked = {data: answer.outcomes[f"{data}-asked-wide"] for data in answer.data}
    repaired = {data: answer.outcomes[f"{data}-repaired-wide"] for data in answer.data}
    side = next(iter(asked.values())).size
    threshold = convert_loss(loss="mse", weight=1000, shape=f"{side}x{side}").threshold
    strongest = listed(
        f"{run.largest_eigenvalue:.3g} ({TITLES[data]})" for data, run in asked.items()
    )
    yield (
        f"**Why.** A weight of 1000 beside a *mean* over {side}x{side} pixels keeps a direction of "
        f"the stamps only if its variance exceeds {threshold:,.0f}; the strongest one has "
        f"{strongest}. And a softmax over a single channel is 1, whatever the code says. As asked, "
        f"the KL ends {listed(dict.fromkeys(map(ended, asked.values())))}."
    )
    fatal, unlucky, harmless = (listed(map(fault_name, part)) for part in split_faults(answer))
    by_luck = f"Fatal with some first weights and not with others: {unlucky}. " if unlucky else ""
    yield (
        f"**Which fault.** Fatal alone: {fatal or 'none'}. {by_luck}Not fatal alone: "
        f"{harmless or 'none'}."
    )
    yield f"**Which order.** {order_line(answer)}"
    yield f"**Should you scale the losses separately?** {lever_line(answer)}"
    kept = listed(
        f"{run.kl_nats:.1f} nats in {run.active_units} of {run.latent_dim} units ({TITLES[data]})"
        for data, run in repaired.items()
    )
    yield (
        f"**What you get.** With all six repaired the code carries {kept}. Sum over pixels, learn "
        "sigma, leave the KL at 1."
    )


def ended(run: Outcome) -> str:
    """Where the KL of a run ends."""
    return "below 0.001 nats" if run.kl_nats < 1e-3 else f"at {run.kl_nats:.3g} nats"


def split_faults(answer: Answer) -> tuple[list[int], list[int], list[int]]:
    """Faults that alone collapse the code fully: in all runs, in some, in none."""
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    for fault in FAULTS:
        runs = [run for data in answer.data for run in answer.seeds(data, (fault,))]
        n_full = sum(run.verdict == "full" for run in runs)
        parts[0 if n_full == len(runs) else 1 if n_full else 2].append(fault)
    return parts


def order_line(answer: Answer) -> str:
    """What has to be repaired before anything lives."""
    states = {frozenset(path[done:]) for path in PATHS.values() for done in range(len(path) + 1)}
    alive = [
        state
        for state in states
        if any(answer.at(data, state).verdict != "full" for data in answer.data)
    ]
    if any(state & {1, 2} for state in alive):
        return "In some order the code lives before both of 1 and 2 are repaired: see the figure."
    kept = [run for data in answer.data for run in answer.seeds(data, (3, 4, 5, 6))]
    n_alive = sum(run.verdict != "full" for run in kept)
    return (
        f"In {len(PATHS)} orders of repair nothing lived before 1 and 2 were both repaired. With "
        f"these two repaired and the other four left in, the code lived in {n_alive} of "
        f"{len(kept)} runs."
    )


def lever_line(answer: Answer) -> str:
    """Why the weight is the wrong lever, and sigma the right one."""
    own = [row.own_weight for row in answer.needed]
    ahead = [
        min(sigma.elbo_nats - run.elbo_nats for run in runs)
        for data in answer.data
        for runs, sigma in answer.sweeps(data).values()
    ]
    n_weights = max(len(runs) for runs, _ in answer.sweeps(answer.data[0]).values())
    if min(ahead) >= 0:
        stood = f"{min(ahead):.1f} to {max(ahead):.1f} nats above"
    elif max(ahead) <= 0:
        stood = f"{-max(ahead):.1f} to {-min(ahead):.1f} nats below"
    else:
        stood = f"between {-min(ahead):.1f} nats below and {max(ahead):.1f} nats above"
    return (
        "A weight can work, but you have to know it beforehand: the right one lies between "
        f"{min(own):.1e} and {max(own):.1e}, depending on the stamps and how they are normalised. "
        f"A learned sigma has nothing to tune: its ELBO ended {stood} that of the best of "
        f"{n_weights} weights."
    )


def luck_line(answer: Answer) -> str:
    """How much a difference between two runs has to be to mean anything."""
    luck = listed(
        f"{max(elbos) - min(elbos):.0f} nats ({TITLES[data]})"
        for data in answer.data
        for elbos in [[run.elbo_nats for run in answer.seeds(data, ())]]
    )
    return (
        "*Alone*: with the other five repaired; the ELBO is told against that of the repaired "
        f"network, which itself differs between seeds by {luck}. Where a fault draws other noise "
        "than the KL claims, the ELBO is that with the noise drawn."
    )


def how_to_read(answer: Answer) -> list[str]:
    """What the columns mean, and what the forecast cannot know."""
    runs = [
        run for run in answer.outcomes.values() if run.weight is None and run.stretch == "minmax"
    ]
    against = [against_forecast(run).split(":")[0] for run in runs]
    n_stamps = listed(
        f"{run.n_train} and {run.n_val} ({TITLES[data]})"
        for data in answer.data
        for run in [answer.at(data, ())]
    )
    return [
        "The first two rows are the question's own setting, Adam at a constant 1e-4 included, and "
        "its repair; all others train alike on smaller stamps, so that only the faults differ "
        f"(`{answer.common}`). Min-max normalisation, as asked. Stamps to train on and to judge "
        f"the end of the run by: {n_stamps}. Each run's own settings stand in "
        "[the-question.json](the-question.json), as they are typed behind `train.py`.",
        "",
        "- *ELBO*: at beta = 1, in nats per stamp; where the loss was a mean over pixels, under "
        "the Gaussian of the best shared sigma. Where faults 3 or 4 draw other noise than the KL "
        "claims, the KL of the noise drawn stands in brackets, and the ELBO takes that one.",
        "- *Forecast*: from the stamps and the loss alone, before training. It knows nothing of a "
        f"broken network: of {len(runs)} runs here and in the figure of the repairs, "
        f"{against.count('as forecast')} ended as it said, {against.count('better')} better, "
        f"{against.count('worse')} worse, and {against.count('less KL')} with less than half of "
        "its KL. The last column says what the network was found to do; finding that without "
        "training is the work of the [audit](audit.md).",
        "",
    ]


def orders_section(answer: Answer) -> list[str]:
    """Each order of repair."""
    return [
        "## What has to be repaired first",
        "",
        "![Each order of repair as a strip, one cell for each repair](images/question_repairs.png)",
        "",
        "Each strip starts with all six faults and repairs one more in every cell.",
        "",
    ]


# -- the weight ----------------------------------------------------------------------------------


def weight_section(answer: Answer) -> list[str]:
    """The asker's own idea, tried: figure, table, and what each data set would have needed."""
    first = answer.needed[0]
    return [
        '## "Should I scale the losses separately?"',
        "",
        "Everything else repaired, only the weight of the KL beside a mean over pixels is turned; "
        "the star is a learned sigma at beta = 1, which has no weight to turn.",
        "",
        "![KL and ELBO against the weight of the KL](images/question_weights.png)",
        "",
        *sweep_lines(answer),
        "",
        "At its own weight a mean over pixels is the same loss as a learned sigma in the end, but "
        "not on the way there: sigma starts wide and narrows as the network learns.",
        "",
        "Which weight would have been the right one? The table is a forecast at "
        f"{first.size}x{first.size} pixels, {first.latent_dim} latent units. *Its own* weight is "
        "that at which the loss is the evidence lower bound, 2 s2 / D, with s2 the variance of a "
        "pixel around the picture and D the number of pixels: what a learned sigma finds by "
        "itself.",
        "",
        *needed_table(answer.needed),
        "",
        *mismatch_lines(answer.needed),
        "",
    ]


def sweep_lines(answer: Answer) -> Iterable[str]:
    """Each normalisation of each data set: which weights killed, which was best."""
    for data in answer.data:
        for stretch, (runs, sigma) in answer.sweeps(data).items():
            dead = [run.weight for run in runs if run.verdict == "full" and run.weight]
            best = max(runs, key=lambda run: run.elbo_nats)
            gap = sigma.elbo_nats - best.elbo_nats
            killed = f"full collapse from {min(dead):g} up" if dead else "no full collapse"
            yield (
                f"- {TITLES[data]}, {STRETCH_WORDS.get(stretch, stretch)}: {killed}; the best "
                f"weight tried is {best.weight:g}, ELBO {best.elbo_nats:.1f} nats. Learned sigma: "
                f"{sigma.elbo_nats:.1f}, {abs(gap):.1f} {'above' if gap >= 0 else 'below'}, at its "
                f"own weight of {sigma.own_weight:.2g}."
            )


def mismatch_lines(needed: list[Needed]) -> Iterable[str]:
    """What a weight that is right for one normalisation does to the others."""
    pairs = [
        units / row.latent_dim
        for row in needed
        for name, units in row.units_at.items()
        if name != row.scaling
    ]
    at_one = listed(
        f"{STRETCH_WORDS.get(row.scaling, row.scaling)} ({TITLES[row.data]})"
        for row in needed
        if row.keeps_one < 1
    )
    yield f"- At a weight of 1, the losses as they come, nothing lives on: {at_one or 'none'}."
    dead, thin = sum(share == 0 for share in pairs), sum(0 < share < 0.5 for share in pairs)
    yield (
        f"- The weight that is right for one normalisation, used on another of the same stamps: "
        f"{dead} of {len(pairs)} pairs are left without a unit, {thin} with fewer than half."
    )
    yield (
        "- A weight below its own keeps every unit; what that cost in the runs is in the lower "
        "panels of the figure."
    )


# -- classes and words ---------------------------------------------------------------------------


def classes_section(answer: Answer) -> list[str]:
    """What the asker wanted."""
    lines = [
        "## What it was for: classes without labels",
        "",
        "The repaired network with two latent units, asinh normalisation. A Gaussian mixture finds "
        "classes in its plane, as many as the Bayesian information criterion prefers (at most 7); "
        "no label is used before the picture is coloured.",
        "",
    ]
    for data, tables in reversed(answer.classes.items()):
        lines += [
            f"![{TITLES[data]} in two latent units](images/question_classes_{data}.png)",
            "",
            *(f"- {class_line(k, found)}" for k, found in enumerate(tables)),
            "",
        ]
    return [*lines, "More units keep more of each stamp, and are no plane any more.", ""]
