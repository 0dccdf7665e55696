"""Results as text, for a terminal."""

from __future__ import annotations

from vae_astro.collapse.forecast import Forecast, Outlook

__all__ = ["forecast_table"]

SHOWN = 20
"""Directions listed at most."""


def forecast_table(forecast: Forecast, model: str) -> str:
    """A forecast for a person: what the stamps offer, what the loss asks, what comes of it.

    Parameters
    ----------
    forecast : Forecast
        Of a run.
    model : str
        Name of its network: what is not known depends on it.
    """
    end = forecast.end
    lines = [
        f"{forecast.spectrum.n_stamps} stamps, {forecast.spectrum.n_pixels} pixels each; "
        f"{end.latent_dim} latent units",
        f"decoder variance s2   {', '.join(f'{value:.4g}' for value in end.decoder_variance)}"
        + (" (what the likelihood will learn)" if forecast.spectrum.learned_scale else ""),
        f"beta where it ends    {end.beta:.4g}",
        f"threshold beta * s2   {end.threshold:.4g}",
        "",
        " direction   eigenvalue   over threshold   KL [nats]",
        *_rows(end),
        "",
        *forecast.lines,
    ]
    if model != "linear":
        lines.append(
            f"Not known for model={model}: how many units it spreads this over. Known: whether it "
            "collapses, and roughly what the code carries."
        )
    return "\n".join(lines)


def _rows(end: Outlook) -> list[str]:
    rows = []
    shown = min(len(end.eigenvalues), max(end.latent_dim, end.n_surviving) + 2, SHOWN)
    for k, eigenvalue in enumerate(end.eigenvalues[:shown]):
        ratio = f"{eigenvalue / end.threshold:14.4g}" if end.threshold else f"{'-':>14}"
        carried = f"{end.kl_per_unit_nats[k]:9.3f}" if k < end.latent_dim else "no unit left"
        if eigenvalue <= end.threshold:
            carried = "collapses"
        rows.append(f"{k + 1:10d} {eigenvalue:12.4g} {ratio}   {carried:>9}")
    left = end.n_surviving - shown
    if left > 0:
        more = "or more " if end.n_surviving == len(end.eigenvalues) else ""
        rows.append(f"       ... {left} {more}further directions above the threshold")
    return rows
