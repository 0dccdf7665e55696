"""What each run came to, which of them compare, and in what their settings differ."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vae_astro.objective.beta import final_beta
from vae_astro.report.history import Curve, Run
from vae_astro.report.words import held, known_number

__all__ = ["Comparison", "Row", "compare_runs", "own_beta"]

NOT_OF_THE_STAMPS = {
    "allow_outside", "augment", "batch_size", "classes", "label_column", "labels",
    "max_bad_fraction", "n_workers", "on_bad", "pack", "progress", "resident", "shuffle",
    "store_dir", "stored_as",
}  # fmt: skip
"""Settings of ``data`` that change neither the validation stamps nor the unit of their pixels."""
NOT_OF_THE_DENSITY = {"kl_weight", "learn"}
"""Settings of ``likelihood`` that decide how it is trained, not what it is a density of."""
NOT_COMPARED = ("run_dir", "resume", "callbacks.", "progress", "log_every_n_steps")
"""Settings that differ between any two runs and change neither."""
MOST_TELLING = ("model", "prior", "beta", "likelihood", "optim", "seed", "init_from", "trainer")
"""Groups and keys whose differences are listed before the others."""


@dataclass(frozen=True)
class Row:
    """Final figures of one run; of one that is not over, those of its best validation so far.

    Attributes
    ----------
    run : Run
        Where they are from.
    group : str
        Letter of those that its ELBO compares with.
    is_finished : bool
        Whether the figures are final.
    note : str
        What is wrong or missing, in words; empty where nothing is.
    verdict : str or None
        ``none``, ``partial`` or ``full``.
    elbo_nats, reconstruction_nats, kl_nats, chi2_per_pixel : float or None
        Of the validation stamps, at beta = 1.
    kl_forecast_nats : float or None
        What was forecast.
    active_units, latent_dim : int or None
        Of the latent code.
    beta : float or None
        Weight of the KL where the run ends, or is.
    rate_nats, distortion_nats : float or None
        KL and minus the reconstruction at the last validation, where the weight is ``beta``: the
        best checkpoint may be of a step where it was another.
    nmi, ari, nmi_pca, ari_pca : float or None
        Clusters against labels, on the latents and on PCA.
    stamps_per_second, seconds_fit, seconds_total : float or None
        Speed of training, and time.
    n_val : int or None
        Validation stamps.
    """

    run: Run
    group: str
    is_finished: bool
    note: str
    verdict: str | None
    elbo_nats: float | None
    reconstruction_nats: float | None
    kl_nats: float | None
    chi2_per_pixel: float | None
    kl_forecast_nats: float | None
    active_units: float | None
    latent_dim: float | None
    beta: float | None
    rate_nats: float | None
    distortion_nats: float | None
    nmi: float | None
    ari: float | None
    nmi_pca: float | None
    ari_pca: float | None
    stamps_per_second: float | None
    seconds_fit: float | None
    seconds_total: float | None
    n_val: float | None

    def figures(self) -> dict[str, Any]:
        """Everything but the run itself: plain numbers and text."""
        own = {name: value for name, value in vars(self).items() if name != "run"}
        return {"name": self.run.name, "dir": str(self.run.dir), **own}


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes
    ----------
    rows : list of Row
        Group by group, in each the finished ones first, by falling ELBO.
    groups : dict of str to str
        What those of a letter have in common.
    warnings : list of str
        What keeps figures from being compared.
    differing : dict of str to list
        Settings that are not the same in all runs, with the value of each row; None where a run
        has no such setting.
    """

    rows: list[Row]
    groups: dict[str, str]
    warnings: list[str]
    differing: dict[str, list[Any]]

    @property
    def lines_of_beta(self) -> list[list[int]]:
        """Numbers of rows, two and more, that differ in the KL's weight alone; by rising beta."""
        families: dict[str, list[int]] = {}
        for k, row in enumerate(self.rows):
            if row.run.config and None not in (row.beta, row.rate_nats, row.distortion_nats):
                others = {
                    name: value
                    for name, value in flat(row.run.config).items()
                    if not name.startswith(("beta.", "likelihood.kl_weight", *NOT_COMPARED))
                }
                families.setdefault(_fingerprint(others), []).append(k)
        return [
            sorted(family, key=lambda k: self.rows[k].beta or 0.0)
            for family in families.values()
            if len(family) > 1
        ]


def compare_runs(runs: Sequence[Run]) -> Comparison:
    """Put runs side by side.

    Parameters
    ----------
    runs : sequence of Run
        Finished, going on, stopped or damaged: each gets a row with what is known of it.
    """
    keys = [_what_its_elbo_is_of(run) for run in runs]
    letters = {key: _letter(k) for k, key in enumerate(dict.fromkeys(keys))}
    rows = [_row_of(run, letters[key]) for run, key in zip(runs, keys, strict=True)]
    by_letter = dict(zip((row.group for row in rows), runs, strict=True))
    rows.sort(key=_place)
    order = list(dict.fromkeys(row.group for row in rows))
    renamed = {old: _letter(k) for k, old in enumerate(order)}  # A comes first
    groups = {renamed[old]: _in_words(by_letter[old]) for old in order}
    rows = [replace(row, group=renamed[row.group]) for row in rows]
    return Comparison(rows, groups, _warnings(rows, groups), _differing(rows))


def own_beta(run: Run) -> float | None:
    """Weight of the KL where the run ends, or is: the last that was logged, else as it is set."""
    for name in ("train/kl_weight", "beta"):
        logged = _last(run.history.get(name))
        if logged is not None:
            return logged
    return known_number(final_beta(run.config.get("beta")))


def flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Settings by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{above}{key}.")
        else:
            found[f"{above}{key}"] = value
    return found


def _differ(values: Iterable[Any]) -> bool:
    """Whether values are not all the same; 1 and 1.0 are, 1 and true are not."""
    return len({repr(_as_float(value)) for value in values}) > 1


def _fingerprint(settings: Mapping[str, Any]) -> str:
    numbers = {name: _as_float(value) for name, value in settings.items()}
    return json.dumps(numbers, sort_keys=True, default=str)


def _as_float(value: Any) -> Any:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


# -- one run -------------------------------------------------------------------------------------


def _row_of(run: Run, group: str) -> Row:
    metrics, history = run.metrics or {}, run.history
    best = _best_validation(history)

    def of(name: str, curve: str | None = None) -> float | None:
        """A figure of ``metrics.json``, or of the best validation where there is none."""
        if run.metrics is not None or curve is None:
            return _number(metrics, name)
        return _at(history.get(curve), best)

    collapse = metrics.get("collapse")
    verdict = collapse.get("verdict") if isinstance(collapse, Mapping) else None
    rate, reconstruction = (
        _last(history.get(f"val/{name}_nats")) for name in ("kl", "reconstruction")
    )
    if rate is None or reconstruction is None:
        rate, reconstruction = of("val.kl_nats"), of("val.reconstruction_nats")
    latent_dim = of("collapse.latent_dim")
    if latent_dim is None:
        latent_dim = _number(run.config, "model.latent_dim")
    return Row(
        run=run,
        group=group,
        is_finished=run.metrics is not None,
        note=_note(run),
        verdict=verdict if isinstance(verdict, str) else None,
        elbo_nats=of("val.elbo_nats", "val/elbo_nats"),
        reconstruction_nats=of("val.reconstruction_nats", "val/reconstruction_nats"),
        kl_nats=of("val.kl_nats", "val/kl_nats"),
        chi2_per_pixel=of("val.chi2_per_pixel", "val/chi2_per_pixel"),
        kl_forecast_nats=of("collapse.forecast.kl_nats"),
        active_units=of("collapse.active_units", "collapse/active_units"),
        latent_dim=latent_dim,
        beta=own_beta(run),
        rate_nats=rate,
        distortion_nats=None if reconstruction is None else -reconstruction,
        nmi=of("classes.nmi"),
        ari=of("classes.ari"),
        nmi_pca=of("classes.nmi_pca"),
        ari_pca=of("classes.ari_pca"),
        stamps_per_second=of("timing.train_stamps_per_second"),
        seconds_fit=of("timing.seconds_fit"),
        seconds_total=of("timing.seconds_total"),
        n_val=of("data.n_val"),
    )


def _note(run: Run) -> str:
    said = list(run.damaged)
    if run.metrics is None and not any(text.startswith("metrics.json") for text in said):
        epochs, planned = _last(run.history.get("epoch")), _number(run.config, "trainer.max_epochs")
        if epochs is None:
            reached = "no validation yet"
        else:
            reached = f"{epochs + 1:.0f}{f' of {planned:.0f}' if planned else ''} epochs"
        said.append(f"going on or stopped: {reached}")
        if last := _last_words(run):
            said.append(f"last line of train.log: {last}")
    elif run.metrics is not None and _number(run.metrics, "val.elbo_nats") is None:
        said.append("metrics.json has no val.elbo_nats")
    return "; ".join(said)


def _last_words(run: Run) -> str:
    """The last line of its log, without time and level."""
    try:
        with (run.dir / "train.log").open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 4096))
            lines = file.read().decode("utf-8", "replace").strip().splitlines()
    except OSError:
        return ""
    return re.sub(r"^(\[[^\]]*\]\s*)*", "", lines[-1])[:100] if lines else ""


def _number(content: Any, name: str) -> float | None:
    """A finite number by its dotted name; None for anything else that may stand there."""
    return known_number(held(content, name))


def _best_validation(history: Mapping[str, Curve]) -> int | None:
    """Step of the highest validation ELBO: that of the best checkpoint."""
    curve = history.get("val/elbo_nats")
    if curve is None or not np.isfinite(curve.values).any():
        return None
    return int(curve.steps[np.nanargmax(np.where(np.isfinite(curve.values), curve.values, np.nan))])


def _at(curve: Curve | None, step: int | None) -> float | None:
    """Value at the last step up to ``step``."""
    if curve is None or step is None:
        return None
    place = int(np.searchsorted(curve.steps, step, side="right")) - 1
    value = float(curve.values[place]) if place >= 0 else math.nan
    return value if math.isfinite(value) else None


def _last(curve: Curve | None) -> float | None:
    return None if curve is None else _at(curve, int(curve.steps[-1]))


# -- all of them ---------------------------------------------------------------------------------


def _what_its_elbo_is_of(run: Run) -> str:
    """What has to be the same for two ELBOs to compare: pixels, their unit, and their density."""
    if not run.config:
        return f"unknown settings of {run.dir}"
    return _fingerprint(_of_its_elbo(run.config))


def _of_its_elbo(config: Mapping[str, Any]) -> dict[str, Any]:
    data, likelihood = (config.get(part) or {} for part in ("data", "likelihood"))
    kept = {key: value for key, value in data.items() if key not in NOT_OF_THE_STAMPS}
    density = {key: value for key, value in likelihood.items() if key not in NOT_OF_THE_DENSITY}
    return flat({"data": kept, "likelihood": density})


def _in_words(run: Run) -> str:
    if not run.config:
        return "settings not known"
    settings = _of_its_elbo(run.config)
    names = ("likelihood.name", "data.normalize.stretch", "data.root", "data.size")
    return ", ".join(f"{name}={settings[name]}" for name in names if settings.get(name) is not None)


def _place(row: Row) -> tuple[bool, int, str, bool, float]:
    """Known groups first, as they were given; in each the finished first, by falling ELBO."""
    elbo = math.inf if row.elbo_nats is None else -row.elbo_nats
    return not row.run.config, len(row.group), row.group, not row.is_finished, elbo


def _place_of_setting(name: str, known: Sequence[Mapping[str, Any]]) -> tuple[bool, int]:
    """What all runs have first: that one network has settings of its own is told by its name."""
    group = name.partition(".")[0]
    place = MOST_TELLING.index(group) if group in MOST_TELLING else len(MOST_TELLING)
    return any(name not in settings for settings in known), place


def _letter(k: int) -> str:
    """A ... Z, then AA ... ZZ."""
    return chr(ord("A") + k % 26) * (k // 26 + 1)


def _warnings(rows: Sequence[Row], groups: Mapping[str, str]) -> list[str]:
    said = []
    if len(groups) > 1:
        known = {
            row.group: _of_its_elbo(row.run.config) for row in reversed(rows) if row.run.config
        }
        names = sorted({name for settings in known.values() for name in settings})
        differ = [
            name for name in names if _differ(settings.get(name) for settings in known.values())
        ]
        because = f" (they differ in {', '.join(differ)})" if differ else ""
        said.append(
            f"ELBO and reconstruction compare within a group only, not between the {len(groups)}"
            f"{because}"
        )
    for group in groups:
        counts = {int(row.n_val) for row in rows if row.group == group and row.n_val is not None}
        if len(counts) > 1:
            sizes = ", ".join(str(count) for count in sorted(counts))
            said.append(
                f"group {group}: the runs have different validation stamps ({sizes}); differences "
                "of ELBO hold only roughly"
            )
    return said


def _differing(rows: Iterable[Row]) -> dict[str, list[Any]]:
    settings = [flat(row.run.config) for row in rows]
    known = [each for each in settings if each]
    names = dict.fromkeys(
        name for each in known for name in each if not name.startswith(NOT_COMPARED)
    )
    return {
        name: [each.get(name) for each in settings]
        for name in sorted(names, key=lambda name: _place_of_setting(name, known))
        if _differ(each.get(name) for each in known)
    }
