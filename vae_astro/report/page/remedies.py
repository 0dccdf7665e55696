"""What to type where the code of a run is of no use: the same run with what would help most."""

from __future__ import annotations

from collections.abc import Sequence

from vae_astro.command.typed import key_of
from vae_astro.objective.beta import final_beta, lowered
from vae_astro.report.history import Run
from vae_astro.report.page.facts import why_useless
from vae_astro.report.words import held, known_number, shown_path

__all__ = ["remedies"]

OF_THE_RUN = ("run_dir", "resume", "init_from", "plan", "debug", "hydra")
"""Keys that another run does not take over."""
FOR_FORECAST = ("data", "model", "likelihood", "beta", "seed")
"""Groups and keys that scripts/forecast.py has as well."""


def remedies(run: Run) -> list[tuple[str, list[str]]]:
    """Words and the words of a command for each way out; none where the code is of use.

    Parameters
    ----------
    run : Run
        Judged. The settings that the verdict found to help most (``collapse.change_settings``) are
        typed behind what the run was started with.

    Returns
    -------
    list of (str, list of str)
        The words of a command are not quoted yet.
    """
    useless = why_useless(run)
    if useless is None:
        return []
    typed = [word for word in run.overrides if key_of(word).split(".")[0] not in OF_THE_RUN]
    if useless == "nuisances":
        return _against_nuisances(run, typed)
    found: list[tuple[str, list[str]]] = []
    if held(run.metrics, "collapse.change_kind") == "audit":
        words = ["scripts/audit.py", f"checkpoint={shown_path(run.dir)}"]
        found.append(("Look where the network goes wrong", words))
    if settings := held(run.metrics, "collapse.change_settings"):
        changed = _with(run, typed, settings)
        if forecast := _forecast(changed):
            found.append(("What would come of it, before any training", forecast))
        found.append(("This run again, with the most useful change", ["train.py", *changed]))
    rescued = _with(run, typed, ["collapse.action=rescue"])
    found.append(("This run again, which changes its settings itself when its code collapses",
                  ["train.py", *rescued]))  # fmt: skip
    return found


def _with(run: Run, typed: Sequence[str], settings: Sequence[str]) -> list[str]:
    """What was typed, changed. A group that is chosen anew loses what was set of the old one."""
    changed = list(typed)
    for setting in settings:
        key = key_of(setting)
        changed = [word for word in changed
                   if key_of(word) != key and not key_of(word).startswith(f"{key}.")]  # fmt: skip
    changed += settings
    new = {key_of(setting) for setting in settings}
    weighted = held(run.config, "likelihood.kl_weight") is not None
    if "likelihood" in new and weighted and any(key_of(word) == "experiment" for word in typed):
        # the experiment sets it, and likelihood=sigma has no such key
        changed.append("~likelihood.kl_weight")
    return changed


def _forecast(changed: Sequence[str]) -> list[str]:
    """The forecast of a run; nothing where an experiment decides, which the command does not know.

    Groups alone: it builds no trainer.
    """
    if any(key_of(word) == "experiment" for word in changed):
        return []
    kept = [word for word in changed if key_of(word).split(".")[0] in FOR_FORECAST]
    return ["scripts/forecast.py", *kept]


def _against_nuisances(run: Run, typed: Sequence[str]) -> list[tuple[str, list[str]]]:
    found = []
    stretch = held(run.config, "data.normalize.stretch")
    if stretch not in (None, "asinh"):
        changed = _with(run, typed, ["data.normalize.stretch=asinh"])
        found.append((f"The sky normalised away, which data.normalize.stretch={stretch} leaves",
                      ["train.py", *changed]))  # fmt: skip
    if held(run.config, "model.name") not in (None, "rings"):
        changed = _with(run, typed, ["model=rings"])
        if not any(key_of(word) == "experiment" for word in changed):
            found.append(("Units of shape that know neither sky nor flux",
                          ["train.py", *changed]))  # fmt: skip
    schedule = held(run.config, "beta")
    beta = known_number(final_beta(schedule))
    if beta:
        lower = [f"beta.{key}={value:g}" for key, value in lowered(schedule, beta / 10).items()]
        changed = _with(run, typed, lower)
        found.append(("A lower final beta, which leaves room for more than nuisances",
                      ["train.py", *changed]))  # fmt: skip
    return found
