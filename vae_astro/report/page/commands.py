"""What was typed and what to type next: settings, versions and commands of a run."""

from __future__ import annotations

import platform
import shlex
from importlib import metadata

import yaml

import vae_astro
from vae_astro.report.history import Run
from vae_astro.report.page.facts import why_useless
from vae_astro.report.page.remedies import remedies
from vae_astro.report.words import held, shown_path

__all__ = [
    "classes_command", "command", "commands", "outliers_command", "settings_text", "versions",
]  # fmt: skip

PACKAGES = ("torch", "lightning", "numpy", "astropy", "scikit-learn", "matplotlib")


def settings_text(run: Run) -> str | None:
    """All settings of the run as YAML; None where they are not known."""
    if not run.config:
        return None
    return yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True)


def versions(trained_with: str | None) -> list[tuple[str, str]]:
    """What the run was trained with, and what the page was made with."""
    rows = [] if trained_with is None else [("trained with", f"vae_astro {trained_with}")]
    rows.append(("page made with", f"vae_astro {vae_astro.__version__}"))
    rows.append(("page: Python", f"{platform.python_version()} on {platform.system()}"))
    for package in PACKAGES:
        try:
            rows.append((f"page: {package}", metadata.version(package)))
        except metadata.PackageNotFoundError:
            continue
    return rows


def command(*words: str) -> str:
    """A command that can be pasted into a shell."""
    return " ".join(["python", *(shlex.quote(word) for word in words)])


def commands(run: Run) -> list[tuple[str, str]]:
    """What to do with the run next: words and command.

    Nothing that uses a code that is of no use: what helps instead comes first.
    """
    here = shown_path(run.dir)
    again = ("This page again, with what has been found since",
             command("scripts/report.py", f"run={here}"))  # fmt: skip
    if why_useless(run) is not None:
        helps = [(words, command(*typed)) for words, typed in remedies(run)]
        longer = held(run.metrics, "collapse.change_kind") == "longer"
        return [*([_more_training(run)] if longer else []), *helps, again]
    train = [
        _more_training(run),
        ("Another run from these weights", command("train.py", f"init_from={here}")),
    ]
    use = [
        ("Codes of the stamps, as a catalogue",
         command("scripts/embed.py", f"checkpoint={here}", f"out={here}/latents.parquet")),
        ("Codes of other stamps", command("scripts/embed.py", f"checkpoint={here}", "data=fits",
                                          "data.root=FOLDER", "out=others.parquet")),
        ("Classes, found without labels", classes_command(run)),
        ("Odd stamps, with p-values", outliers_command(run)),
    ]  # fmt: skip
    return [*train, *use, again]


def _more_training(run: Run) -> tuple[str, str]:
    resume = f"resume={shown_path(run.dir)}"
    if run.metrics is None:
        return "Go on training where it stopped", command("train.py", resume)
    epochs = held(run.config, "trainer", "max_epochs")
    if "epoch" in run.history:  # from 0; it also counts where the settings left the number open
        epochs = int(run.history["epoch"].values[-1]) + 1
    if not isinstance(epochs, int):
        return "Go on training", command("train.py", resume, "trainer.max_epochs=MORE")
    return (
        f"Go on training, to twice as many epochs as these {epochs}",
        command("train.py", resume, f"trainer.max_epochs={2 * epochs}"),
    )


def classes_command(run: Run) -> str:
    """What finds the classes that the page shows."""
    here = shown_path(run.dir)
    return command("scripts/classify.py", f"checkpoint={here}", f"out={here}/classes")


def outliers_command(run: Run) -> str:
    """What ranks the stamps that the page shows."""
    here = shown_path(run.dir)
    return command("scripts/outliers.py", f"checkpoint={here}", f"out={here}/outliers.parquet",
                   f"figure={here}/outliers.png")  # fmt: skip
