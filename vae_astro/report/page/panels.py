"""The pictures of a page: drawn from the checkpoint where it and the stamps are there."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from vae_astro.collapse.forecast import passed_threshold
from vae_astro.data.datamodule import StampDataModule
from vae_astro.model.focus import trains_a_density
from vae_astro.report import figures
from vae_astro.report.callbacks import N_BESIDE, draw_panels
from vae_astro.report.history import Curve, Run
from vae_astro.report.odd_stamps import draw_odd_stamps
from vae_astro.report.page.curves import learning_curves
from vae_astro.report.page.facts import kl_per_unit
from vae_astro.report.page.galleries import Outliers
from vae_astro.report.page.pictures import Picture, drawing, photograph, stored
from vae_astro.report.page.stamps import Model
from vae_astro.report.words import held

__all__ = ["Panels", "draw", "kl_factor"]

N_RECONSTRUCTED = 8

ALTS = {
    "reconstructions": "Rows of validation stamps, of what the model makes of them, and of the "
    "residuals in units of the pixel noise on a scale from −5 to 5.",
    "traversals": "A row for each of the strongest latent units: the decoded stamp while the unit "
    "goes from −3 to 3.",
    "prior_samples": "Left, real stamps of the validation; right, stamps decoded from codes that "
    "were drawn from the prior, on the same stretch.",
    "kl_per_unit": "KL of every latent unit, in nats, over the optimiser steps; a row for each "
    "unit, the strongest at the top.",
}
CAPTIONS = {
    "reconstructions": "Validation stamps, normalised as the network sees them; residuals in units "
    "of the pixel noise: what is left should look like noise between −3 and 3. Bad pixels "
    "are blank.",
    "traversals": "What each unit changes on one stamp, the unit with the largest KL first; the "
    "codes of most stamps lie between −2 and 2. A unit that changes nothing says nothing.",
    "prior_samples": "Real stamps have noise; those from the prior are expected pixels, without "
    "it. A prior that the codes fill gives stamps that could be real.",
    "kl_per_unit": "A row that goes dark is a unit that is switched off.",
}


@dataclass
class Panels:
    """Pictures by their place on the page; what could not be drawn is None."""

    curves: Picture | None = None
    spectrum: Picture | None = None
    kl_per_unit: Picture | None = None
    traversals: Picture | None = None
    reconstructions: Picture | None = None
    prior_samples: Picture | None = None
    outliers: Picture | None = None
    from_files: list[str] = field(default_factory=list)


def draw(
    run: Run,
    model: Model | None,
    datamodule: StampDataModule | None,
    outliers: Outliers | None,
) -> Panels:
    """All pictures but those of the map and of classes.

    Parameters
    ----------
    run : Run
    model : Model or None
        Its checkpoint.
    datamodule : StampDataModule or None
        Its stamps. Without them, pictures that the run left in ``figures/`` are taken.
    outliers : Outliers or None
        Its odd stamps.
    """
    panels = Panels(curves=_curves(run, model), spectrum=_spectrum(run))
    if model is not None and model.monitor.steps:
        panels.kl_per_unit = photograph(
            figures.kl_history(model.monitor.steps, np.array(model.monitor.kl_per_unit)),
            ALTS["kl_per_unit"],
            CAPTIONS["kl_per_unit"],
        )
    if model is not None and datamodule is not None:
        _draw_stamps(panels, model, datamodule, kl_per_unit(run, model.vae.latent_dim))
        if outliers is not None and len(outliers.index):
            n = len(outliers.top)
            figure = draw_odd_stamps(
                model.vae, datamodule, outliers.index[:n], outliers.p_value[:n]
            )
            panels.outliers = photograph(
                figure,
                f"The {n} oddest stamps: each above what the model makes of it and a map of where "
                "it is odd.",
                "The oddest stamps first; below each, what the model expects and the smoothed "
                "residual in units of its noise.",
            )
    for name in ALTS:
        if getattr(panels, name) is None:
            found = stored(run.dir / "figures" / f"{name}.png", ALTS[name], CAPTIONS[name])
            if found is not None:
                setattr(panels, name, found)
                panels.from_files.append(name)
    if outliers is not None and panels.outliers is None:
        alt = "The oddest stamps, what the model makes of them, and where they are odd."
        panels.outliers = stored(outliers.path.with_suffix(".png"), alt)
    return panels


def _curves(run: Run, model: Model | None) -> Picture | None:
    history = dict(run.history)
    rec, kl = (history.get(f"train/{name}") for name in ("reconstruction", "kl_nats"))
    if rec is not None and kl is not None and _of_whole_stamps(run, model):
        # both are logged at the same steps, but a file may break off between them
        steps, of_rec, of_kl = np.intersect1d(rec.steps, kl.steps, return_indices=True)
        elbo = rec.values[of_rec] - kl.values[of_kl]
        history["train/elbo_nats"] = Curve(steps, elbo, rec.wall_times[of_rec])
    forecast = held(run.metrics, "collapse", "forecast", "kl_nats")
    is_best = model is not None and model.path.name == "best.ckpt"
    best = model.checkpoint["global_step"] if model is not None and is_best else None
    figure = learning_curves(history, forecast if isinstance(forecast, float) else None, best)
    if figure is None:
        return None
    factor = kl_factor(run, model)
    times = "" if factor == 1 else f", which is multiplied by likelihood.kl_weight = {factor:g}"
    elbo = "ELBO and KL of training and validation"
    if "train/elbo_nats" not in history:
        elbo = "ELBO of validation, KL of training and validation"
    caption = "The scale is that of what comes after the first tenth of the steps."
    if rec is not None and not _of_whole_stamps(run, model):
        caption += " What is trained on is no log-density of whole stamps, so it is not drawn."
    if factor != 1:
        caption += f" The KL weighs beta times likelihood.kl_weight = {factor:g} in the loss."
    return drawing(
        figure,
        f"Curves over the optimiser steps: {elbo}, active units, and below them the weight beta "
        f"of the KL{times}.",
        caption,
    )


def _of_whole_stamps(run: Run, model: Model | None) -> bool:
    """Whether the reconstruction that training logs compares with that of a validation."""
    if model is not None:
        return model.vae.likelihood.trains_a_density
    return trains_a_density(held(run.config, "likelihood"))


def kl_factor(run: Run, model: Model | None) -> float:
    """What the likelihood multiplies beta by."""
    if model is not None:
        return float(model.vae.likelihood.kl_weight)
    factor = held(run.config, "likelihood", "kl_weight")
    return float(factor) if isinstance(factor, int | float) else 1.0


def _spectrum(run: Run) -> Picture | None:
    foreseen = held(run.metrics, "collapse", "forecast")
    eigenvalues, threshold = (held(foreseen, key) for key in ("eigenvalues", "threshold"))
    latent_dim = held(foreseen, "latent_dim")
    if not eigenvalues or threshold is None or latent_dim is None:
        return None
    passed = passed_threshold(threshold, held(foreseen, "lowest", "threshold"))
    figure = figures.spectrum(eigenvalues, threshold, latent_dim, passed)
    above = sum(value > threshold for value in eigenvalues)
    return drawing(
        figure,
        f"Bars: variance of the stamps along each direction, on a logarithmic scale. {above} of "
        f"{len(eigenvalues)} exceed the threshold of {threshold:.3g}.",
        "A direction of the stamps survives in the code if its variance exceeds the threshold "
        "beta · s². This is known before training.",
    )


@torch.no_grad()
def _draw_stamps(
    panels: Panels,
    model: Model,
    datamodule: StampDataModule,
    kl_per_unit_nats: list[float] | None,
) -> None:
    vae = model.vae
    batches = list(datamodule.in_order(datamodule.val_rows[:N_BESIDE]))
    shown = {
        name: torch.cat([batch[name] for batch in batches]).to(vae.device) for name in batches[0]
    }
    drawn = draw_panels(vae, shown, None, N_RECONSTRUCTED, kl_per_unit_nats)
    for name, figure in drawn.items():
        setattr(panels, name, photograph(figure, ALTS[name], CAPTIONS[name]))
