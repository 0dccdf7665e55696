"""The tables of the page, as lines of Markdown."""

from __future__ import annotations

from collections.abc import Iterable

from vae_astro.collapse.units import FULL_COLLAPSE_NATS, VERDICT_WORDS
from vae_astro.report.question.faults import FAULTS
from vae_astro.report.question.figures import STRETCH_WORDS, TITLES, short
from vae_astro.report.question.measure import Answer, Needed, Outcome

__all__ = [
    "against_forecast",
    "fault_name",
    "fault_table",
    "listed",
    "needed_table",
    "runs_table",
    "why_worse",
]

ORDER = ("none", "partial", "full")
MUCH_LESS = 0.5
"""Share of the forecast KL below which an outcome falls short of it, whatever the verdict."""


def fault_table(answer: Answer) -> list[str]:
    """What each fault is, and what it does alone."""
    rows = [
        [
            str(number),
            fault.name,
            fault.asked,
            fault.repaired,
            *(alone(answer, data, number) for data in answer.data),
        ]
        for number, fault in FAULTS.items()
    ]
    header = ["", "fault", "as asked", "repaired"]
    return table([*header, *(f"alone, {TITLES[data]}" for data in answer.data)], rows)


def alone(answer: Answer, data: str, fault: int) -> str:
    """Verdict of one fault in an otherwise repaired network, and what it costs where it lives."""
    runs = answer.seeds(data, (fault,))
    living = [run for run in runs if run.verdict != "full"]
    if not living:
        return "**full collapse**"
    said = f"ELBO {mean_elbo(living) - mean_elbo(answer.seeds(data, ())):+.1f} nats"
    if runs[0].bottleneck_units < runs[0].latent_dim:
        alive = [run.living_bottleneck_units for run in living]
        said += f"; {min(alive)} to {max(alive)} of {runs[0].bottleneck_units} units answer"
    if abs(runs[0].drawn_kl_nats - runs[0].kl_nats) > FULL_COLLAPSE_NATS:
        said += f"; KL {runs[0].kl_nats:.3g} claimed, {runs[0].drawn_kl_nats:.3g} drawn"
    if len(living) == len(runs):
        return said
    return f"**full collapse in {len(runs) - len(living)} of {len(runs)}**, else {said}"


def mean_elbo(runs: list[Outcome]) -> float:
    """Over seeds, in nats."""
    return sum(run.elbo_nats for run in runs) / len(runs)


def runs_table(answer: Answer, data: str) -> list[str]:
    """Every fault alone, every repair alone, and both ends, on one data set."""
    everything = tuple(FAULTS)
    rows = [
        row_of("all six, as asked", answer.outcomes[f"{data}-asked-wide"]),
        row_of("none", answer.outcomes[f"{data}-repaired-wide"]),
        row_of("all six", answer.at(data, everything)),
    ]
    for fault in FAULTS:
        left = [other for other in everything if other != fault]
        rows.append(row_of(f"all but {fault_name(fault)}", answer.at(data, left)))
    for fault in FAULTS:
        rows += [row_of(f"only {fault_name(fault)}", run) for run in answer.seeds(data, (fault,))]
    rows += [row_of("only 3, 4, 5 and 6", run) for run in answer.seeds(data, (3, 4, 5, 6))]
    rows += [row_of("none", run) for run in answer.seeds(data, ())]
    header = ["faults left in", "stamps", "KL [nat]", "active units", "reconstruction [nat]",
              "ELBO [nat]", "chi2 per pixel", "forecast", "outcome", "against it"]  # fmt: skip
    return table(header, rows)


def row_of(left: str, run: Outcome) -> list[str]:
    """One run as a row."""
    kl = short(run.kl_nats)
    if abs(run.drawn_kl_nats - run.kl_nats) > 0.01 * max(run.kl_nats, 1):
        kl += f" ({run.drawn_kl_nats:.3g} drawn)"
    return [
        f"{left}, seed {run.seed}" if run.seed else left,
        f"{run.size}x{run.size}",
        kl,
        f"{run.active_units} of {run.latent_dim}",
        f"{run.reconstruction_nats:.1f}",
        f"{run.elbo_nats:.1f}",
        f"{run.chi2_per_pixel:.{0 if run.chi2_per_pixel >= 100 else 2}f}",
        f"{VERDICT_WORDS[run.forecast_verdict]}, {run.forecast_kl_nats:.3g} nats",
        f"**{VERDICT_WORDS[run.verdict]}**",
        against_forecast(run),
    ]


def against_forecast(run: Outcome) -> str:
    """``as forecast``, ``better``, or ``worse`` or ``less KL`` and why."""
    difference = ORDER.index(run.verdict) - ORDER.index(run.forecast_verdict)
    fell_short = (
        run.forecast_kl_nats > FULL_COLLAPSE_NATS and run.kl_nats < MUCH_LESS * run.forecast_kl_nats
    )
    if difference > 0:
        return f"worse: {why_worse(run)}"
    if difference < 0:
        return "better"
    return f"less KL: {why_worse(run)}" if fell_short else "as forecast"


def why_worse(run: Outcome) -> str:
    """What the network was found to do that data and loss know nothing of."""
    if not run.output_moves:
        return "it draws the same picture for every code"
    living, n_units = run.living_bottleneck_units, run.bottleneck_units
    if living == 0:
        return "no unit of its bottleneck answers to the stamp"
    if living < n_units and living < run.latent_dim:
        return f"only {living} of {n_units} bottleneck units answer to the stamp"
    if n_units < run.latent_dim:
        return f"{n_units} bottleneck units feed {run.latent_dim} latent ones"
    if abs(run.drawn_kl_nats - run.kl_nats) > FULL_COLLAPSE_NATS:
        return f"the KL is not that of the noise drawn, {run.drawn_kl_nats:.3g} nats"
    return "not explained by what was measured here"


def needed_table(needed: list[Needed]) -> list[str]:
    """What each scaling asks of the weight, and what the others' weights do to it."""
    names = [STRETCH_WORDS.get(name, name) for name in needed[0].units_at]
    header = ["stamps", "normalised by", "largest eigenvalue", "nothing lives above"]
    header += ["all units live up to", "its own", *(f"units at {name}'s own" for name in names)]
    rows = [
        [
            TITLES[row.data],
            STRETCH_WORDS.get(row.scaling, row.scaling),
            *(
                f"{value:.2g}"
                for value in (row.largest_eigenvalue, row.keeps_one, row.keeps_all, row.own_weight)
            ),
            *map(str, row.units_at.values()),
        ]
        for row in needed
    ]
    return table(header, rows)


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def fault_name(fault: int) -> str:
    """Number and name."""
    return f"{fault} {FAULTS[fault].name}"


def listed(words: Iterable[str]) -> str:
    """``a, b and c``."""
    *most, last = [*words] or [""]
    return f"{', '.join(most)} and {last}" if most else last
