"""The figures of a finished run: ``metrics.json`` and the closing lines."""

from __future__ import annotations

import json
import os
import shlex
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vae_astro.collapse.verdict import CollapseVerdict, Explanation
from vae_astro.command.files import write_whole
from vae_astro.data.datamodule import StampDataModule
from vae_astro.errors import InputError
from vae_astro.evaluate.scores import StampTable
from vae_astro.progress import duration

if TYPE_CHECKING:
    from vae_astro.evaluate.pca_baseline import LabelScores

__all__ = ["closing_lines", "metrics_of", "write_metrics"]

LINE_WIDTH, NAME_WIDTH = 110, 19


def metrics_of(
    held_out: StampTable,
    test: StampTable,
    verdict: CollapseVerdict,
    classes: LabelScores | None,
    datamodule: StampDataModule,
) -> dict[str, Any]:
    """What ``metrics.json`` holds but for timing: plain numbers, None for what was not computed.

    Parameters
    ----------
    held_out, test : StampTable
        Validation stamps, which chose the checkpoint, and test stamps, which chose nothing.
    verdict : CollapseVerdict
        Of the same stamps.
    classes : LabelScores or None
        Clusters against labels.
    datamodule : StampDataModule
        For the number of stamps.
    """
    return {
        "val": _bound_of(held_out),
        "test": _bound_of(test),
        "collapse": {
            "verdict": verdict.verdict,
            "active_units": verdict.active_units,
            "latent_dim": verdict.latent_dim,
            "kl_per_unit_nats": list(verdict.kl_per_unit_nats),
        },
        "classes": {
            "n_classes": None if classes is None else classes.latent.n_classes,
            "n_labelled": None if classes is None else classes.latent.n_labelled,
            "nmi": None if classes is None else classes.latent.nmi,
            "ari": None if classes is None else classes.latent.ari,
            "nmi_pca": None if classes is None else classes.pca.nmi,
            "ari_pca": None if classes is None else classes.pca.ari,
        },
        "data": {
            "n_train": len(datamodule.train_rows),
            "n_val": len(datamodule.val_rows),
            "n_test": len(datamodule.test_rows),
            "n_rejected": datamodule.store.n_rejected,
        },
    }


def _bound_of(table: StampTable) -> dict[str, float | None]:
    if not len(table.index):
        return dict.fromkeys(("elbo_nats", "reconstruction_nats", "kl_nats", "chi2_per_pixel"))
    reconstruction = float(table.reconstruction_nats.mean(dtype=np.float64))
    kl = float(table.kl_per_unit.mean(axis=0, dtype=np.float64).sum())
    return {
        "elbo_nats": reconstruction - kl,
        "reconstruction_nats": reconstruction,
        "kl_nats": kl,
        "chi2_per_pixel": float(np.median(table.chi2_per_pixel)),
    }


def write_metrics(run_dir: Path, metrics: dict[str, Any]) -> None:
    """Write ``metrics.json``, whole or not at all."""
    try:
        write_whole(run_dir / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    except OSError as error:
        raise InputError(
            f"cannot write {run_dir / 'metrics.json'}: {error}; the training is over and kept: "
            f"free space there and have it judged with resume={run_dir}"
        ) from error


def _is_here(folder: Path) -> bool:
    return folder.resolve().is_relative_to(Path.cwd())


def _wrapped(name: str, text: str) -> list[str]:
    """``text`` beside its name, in lines that a terminal shows whole."""
    lines = textwrap.wrap(text, LINE_WIDTH - NAME_WIDTH, break_on_hyphens=False)
    names = [name, *[""] * (len(lines) - 1)]
    return [f"{name:{NAME_WIDTH}}{line}" for name, line in zip(names, lines, strict=True)]


def closing_lines(
    metrics: dict[str, Any], explanation: Explanation, run_dir: Path, page: Path | None = None
) -> str:
    """What a run says at its end, for a person; ``page`` is the file that explains it."""
    val, classes, collapse = metrics["val"], metrics["classes"], metrics["collapse"]
    shown = shlex.quote(os.path.relpath(run_dir) if _is_here(run_dir) else str(run_dir))
    above = shlex.quote(
        os.path.relpath(run_dir.parent) if _is_here(run_dir) else str(run_dir.parent)
    )
    lines = [
        f"trained and judged in {duration(metrics['timing']['seconds_total'])}",
        f"ELBO at beta = 1   {val['elbo_nats']:.1f} nats per stamp "
        f"(reconstruction {val['reconstruction_nats']:.1f}, KL {val['kl_nats']:.2f})",
        f"active units       {collapse['active_units']} of {collapse['latent_dim']}",
        f"chi2 per pixel     {val['chi2_per_pixel']:.3f} (median over validation stamps)",
    ]
    if classes["nmi"] is not None:
        lines.append(
            f"k-means NMI        {classes['nmi']:.3f} on the latents, {classes['nmi_pca']:.3f} on "
            f"PCA(16) ({classes['n_labelled']} stamps of {classes['n_classes']} classes)"
        )
    lines += [
        *_wrapped("verdict", explanation.paragraph),
        *([] if page is None else [f"the run explained  {shown}/{page.name}"]),
        f"best checkpoint    {shown}/checkpoints/best.ckpt",
        f"pictures           {shown}/figures",
        f"next               tensorboard --logdir {above}",
    ]
    if collapse["verdict"] != "full":
        again = f"python train.py init_from={shown}   (another run from these weights)"
        lines.append(f"{'':{NAME_WIDTH}}{again}")
    return "\n".join(lines)
