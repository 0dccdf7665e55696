"""A finished run before its judge: scores, verdict, and what the code turned out to know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vae_astro.collapse.forecast import Forecast
from vae_astro.collapse.information import choose_stamps, information_of
from vae_astro.collapse.meaning import CodeMeaning, explain_code
from vae_astro.collapse.units import ACTIVE_VARIANCE
from vae_astro.collapse.verdict import Circumstances, CollapseVerdict, Explanation, explain, judge
from vae_astro.data.datamodule import StampDataModule
from vae_astro.evaluate.invariance import measure_invariance
from vae_astro.evaluate.pca_baseline import labelled_rows, score_against_labels
from vae_astro.evaluate.properties import measure_properties
from vae_astro.evaluate.scores import StampTable, score_stamps
from vae_astro.report import summary
from vae_astro.vae import VAE

__all__ = ["Judgement", "judge_run"]


@dataclass(frozen=True)
class Judgement:
    """What is said of a run.

    Attributes
    ----------
    verdict : CollapseVerdict
        In figures.
    explanation : Explanation
        In words.
    metrics : dict
        What ``metrics.json`` holds but for timing: plain numbers, None for what was not computed.
    """

    verdict: CollapseVerdict
    explanation: Explanation
    metrics: dict[str, Any]


def judge_run(
    vae: VAE,
    datamodule: StampDataModule,
    labels: np.ndarray,
    foreseen: Forecast | None,
    circumstances: Circumstances,
) -> Judgement:
    """Score what was held out and what is labelled; no more, however large the store is.

    Parameters
    ----------
    vae : VAE
        With the weights to judge.
    datamodule : StampDataModule
        Set up.
    labels : ndarray, shape (N,), str
        Of the rows of the store, empty where unknown.
    foreseen : Forecast or None
        What was forecast of the run.
    circumstances : Circumstances
        Of the run.
    """
    labelled = labelled_rows(labels)
    rows = np.unique(np.concatenate([datamodule.val_rows, datamodule.test_rows, labelled]))
    table = score_stamps(vae, datamodule.in_order(rows, on_device=True))
    held_out, test = table.of(datamodule.val_rows), table.of(datamodule.test_rows)
    unit_std = vae.prior.unit_std().cpu().numpy()
    verdict = judge(held_out.mean, held_out.kl_per_unit, unit_std)
    classes = score_against_labels(
        table.of(labelled).mean[:, list(vae.clustered_units)],
        labels[labelled],
        datamodule.in_order(labelled),
    )
    meaning = _meaning(held_out, unit_std, datamodule)
    explanation = explain(verdict, foreseen, meaning, circumstances)
    metrics = summary.metrics_of(held_out, test, verdict, classes, datamodule)
    few = datamodule.val_rows[choose_stamps(len(datamodule.val_rows))]
    information = information_of(vae, datamodule.in_order(few, on_device=True))
    metrics["prior"] = vae.prior.as_dict()
    for name in ("mutual_information_nats", "aggregate_mismatch_nats"):
        metrics["collapse"][name] = None if information is None else getattr(information, name)
    images = (batch["image"] for batch in datamodule.in_order(few, on_device=True))
    metrics["invariance"] = measure_invariance(
        vae.network.encode, images, vae.clustered_units
    ).as_dict()
    change = explanation.change
    metrics["collapse"] |= {
        "forecast": None if foreseen is None else foreseen.as_dict(),
        "explanation": explanation.paragraph,
        "cause": explanation.cause,
        "change": None if change is None else change.words,
        "change_kind": None if change is None else change.kind,
        "change_settings": [] if change is None else list(change.settings),
        "meaning": meaning.as_dict(),
    }
    return Judgement(verdict, explanation, metrics)


def _meaning(
    held_out: StampTable, unit_std: np.ndarray, datamodule: StampDataModule
) -> CodeMeaning:
    """What the active units follow, over the validation stamps."""
    variance = np.var(held_out.mean, axis=0, dtype=np.float64)
    active = variance > ACTIVE_VARIANCE * np.square(unit_std)
    kl = held_out.kl_per_unit.mean(axis=0, dtype=np.float64)
    properties = measure_properties(datamodule.store, held_out.index, datamodule.normalizer)
    return explain_code(held_out.mean, kl, active, properties)
