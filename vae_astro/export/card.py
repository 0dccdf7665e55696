"""A model card: what was trained on what, what became of it, and what it is not good for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml

import vae_astro
from vae_astro.checkpoint import find_checkpoint, load_checkpoint
from vae_astro.errors import InputError
from vae_astro.folders import run_folder_of
from vae_astro.settings import check_text
from vae_astro.vae import VAE

__all__ = ["card_of", "is_judged", "model_card"]

TAGS = ["astronomy", "astrophysics", "variational-autoencoder", "images"]
SHOWN_DATA = ("format", "n_stamps", "simulation_seed", "classes", "val_fraction", "test_fraction",
              "augment")  # fmt: skip
"""Settings of the data that say nothing about where on a disk they lie."""
CAPTIONS = {
    "reconstructions.png": "Stamps, reconstructions and residuals in units of the noise.",
    "prior_samples.png": "Expected pixels of codes drawn from the prior.",
    "traversals.png": "What each latent unit changes.",
    "kl_per_unit.png": "KL of each latent unit, in nats.",
}
OF_PRUNED = (
    "Verdict, figures and pictures above are of the model before, and number its units as `unit` "
    "does below. The codes that the files here give hold those that stay, numbered as in `after`."
)
USES = {
    "model.safetensors": (
        "vae_astro, bit for bit",
        "from vae_astro.export import load_safetensors\n\n"
        'vae = load_safetensors("FOLDER")\nlatents = vae.embed(stamps)',
    ),
    "encoder.onnx": (
        "onnxruntime, without vae_astro and without torch",
        "import onnxruntime\n\n"
        'encoder = onnxruntime.InferenceSession("FOLDER/encoder.onnx")\n'
        'mean, log_var = encoder.run(None, {"stamps": stamps})',
    ),
    "encoder.pt2": (
        "torch, without vae_astro",
        'import torch\n\nencoder = torch.export.load("FOLDER/encoder.pt2").module()\n'
        "mean, log_var = encoder(torch.from_numpy(stamps))",
    ),
}


def model_card(
    checkpoint: str | Path, run_dir: str | Path | None = None, *, licence: str | None = None
) -> str:
    """The card of a checkpoint, in Markdown with the front matter that model hubs read.

    Parameters
    ----------
    checkpoint : str or Path
        A ``.ckpt`` file.
    run_dir : str or Path, optional
        Run folder: its ``metrics.json`` gives the verdict and the figures.
    licence : str, optional
        Of the weights, by a name that hubs know (``cc-by-4.0``).

    Raises
    ------
    InputError
        The checkpoint or ``metrics.json`` cannot be read.
    """
    path = Path(checkpoint).expanduser()
    loaded = load_checkpoint(path)
    vae = VAE.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    folder = None if run_dir is None else Path(run_dir).expanduser()
    return card_of(vae, loaded, folder, licence=licence, judged=is_judged(path, folder))


def is_judged(checkpoint: Path, run_dir: Path | None) -> bool:
    """Whether what a run measured is of these weights; so it is where the file lies elsewhere.

    A run judges its best checkpoint, or its last where that is all there is.
    """
    own = run_folder_of(checkpoint)
    if own is None or run_dir is None or own.resolve() != run_dir.resolve():
        return True
    try:
        return find_checkpoint("checkpoint", str(own)).samefile(checkpoint)
    except InputError:  # neither of the two is there any more
        return False


def card_of(
    vae: VAE,
    checkpoint: Mapping[str, Any],
    run_dir: Path | None,
    *,
    licence: str | None = None,
    name: str | None = None,
    files: Sequence[str] = (),
    pictures: Sequence[str] = (),
    pruned: str | None = None,
    judged: bool = True,
) -> str:
    """As `model_card`, of a model that is loaded and files that were written.

    Parameters
    ----------
    vae : VAE
        As exported.
    checkpoint : mapping
        That it was loaded from.
    run_dir : Path or None
        Run folder.
    licence : str, optional
        Of the weights.
    name : str, optional
        Title; that of the run folder where absent.
    files, pictures : sequence of str
        What lies beside the card, by name.
    pruned : str, optional
        The table of units that went.
    judged : bool
        Whether the figures of the run are of these weights; see `is_judged`.
    """
    metrics = _metrics(run_dir) if judged else None
    if name is None:
        name = "vae_astro model" if run_dir is None else run_dir.resolve().name
    parts = [
        _front_matter(licence),
        f"# {name}\n\n{_summary(vae)}",
        _verdict(metrics, judged),
        _figures(metrics, pictures),
        _use(vae, files),
        _model(vae),
        _data(checkpoint, metrics),
        _limits(vae, metrics),
    ]
    if pruned is not None:
        parts.append(f"## Pruned units\n\n{OF_PRUNED}\n\n```text\n{pruned}\n```")
    parts += [_licence(licence), _origin(checkpoint)]
    return "\n\n".join(parts) + "\n"


def _metrics(run_dir: Path | None) -> dict[str, Any] | None:
    """What the run measured; None where it did not come to that."""
    path = None if run_dir is None else run_dir / "metrics.json"
    if path is None or not path.is_file():
        return None
    try:
        metrics: dict[str, Any] = json.loads(path.read_text("utf-8"))
        _ = metrics["val"]["elbo_nats"], metrics["val"].get("kl_nats")
        for key in ("verdict", "active_units", "latent_dim"):
            hash(metrics["collapse"][key])
        may_miss = [metrics.get(key) for key in ("test", "classes", "data")]
        for part in (*may_miss, metrics["collapse"].get("forecast")):
            if part is not None and not isinstance(part, dict):
                raise TypeError(f"{part!r} is no mapping")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not what a finished run writes ({error}); take it away, or have the run "
            f"judged again with resume={run_dir}"
        ) from error
    return metrics


def _front_matter(licence: str | None) -> str:
    about: dict[str, Any] = {"library_name": "vae_astro", "tags": TAGS}
    about["pipeline_tag"] = "image-feature-extraction"
    if licence is not None:
        about["license"] = check_text("licence", licence)
    return f"---\n{yaml.safe_dump(about, sort_keys=False)}---"


def _summary(vae: VAE) -> str:
    n_bands, size, _ = vae.stamp_shape
    bands = f"{n_bands} band{'s' if n_bands > 1 else ''} ({', '.join(vae.band_names)})"
    return (
        f"A variational autoencoder for astronomical stamps of {size}x{size} pixels in {bands}. "
        f"It describes a stamp by {vae.latent_dim} numbers with their uncertainties, and draws "
        "stamps from such numbers. Made with vae_astro."
    )


def _verdict(metrics: Mapping[str, Any] | None, judged: bool) -> str:
    if not judged:
        said = "Not known: these are weights of another checkpoint than the one that was judged."
        return f"## Verdict\n\n{said}"
    if metrics is None:
        said = "Not known: there is no `metrics.json` of a finished run beside the checkpoint."
        return f"## Verdict\n\n{said}"
    collapse = metrics["collapse"]
    said = {
        "none": "No collapse",
        "partial": "Partial collapse",
        "full": "**Full collapse: the code says nothing about a stamp**",
    }.get(collapse["verdict"], str(collapse["verdict"]))
    line = (
        f"{said}: {collapse['active_units']} of {collapse['latent_dim']} latent units were active "
        f"after training and carried {_number(metrics['val'].get('kl_nats'))} nats per stamp."
    )
    foreseen = collapse.get("forecast") or {}
    if foreseen.get("kl_nats") is not None:
        line += (
            f" Forecast before training: {foreseen.get('active_units')} active units, "
            f"{_number(foreseen['kl_nats'])} nats."
        )
    return f"## Verdict\n\n{line}"


def _figures(metrics: Mapping[str, Any] | None, pictures: Sequence[str]) -> str:
    lines = ["## Figures", ""]
    if metrics is None:
        lines.append("None were measured.")
    else:
        lines += [
            "Per stamp, at beta = 1. Validation stamps chose the checkpoint, test stamps nothing.",
            "",
            "| | validation | test |",
            "| --- | ---: | ---: |",
        ]
        names = {
            "elbo_nats": "ELBO (nats)",
            "reconstruction_nats": "log-density of the pixels (nats)",
            "kl_nats": "KL (nats)",
            "chi2_per_pixel": "chi-squared per pixel, median",
        }
        for key, name in names.items():
            row = [_number((metrics.get(split) or {}).get(key)) for split in ("val", "test")]
            lines.append(f"| {name} | {row[0]} | {row[1]} |")
        classes = metrics.get("classes") or {}
        if classes.get("nmi") is not None:
            lines += [
                "",
                f"k-means on the latents against labels: NMI {_number(classes['nmi'])} "
                f"({classes.get('n_labelled')} stamps of {classes.get('n_classes')} classes); on "
                f"16 principal components of the pixels: {_number(classes.get('nmi_pca'))}.",
            ]
    for picture in pictures:
        caption = CAPTIONS.get(Path(picture).name, Path(picture).stem.replace("_", " "))
        lines += ["", f"![{caption}]({picture})", "", caption]
    return "\n".join(lines)


def _use(vae: VAE, files: Sequence[str]) -> str:
    n_bands, size, _ = vae.stamp_shape
    lines = [
        "## Use",
        "",
        f"`stamps` is a float32 array (N, {n_bands}, {size}, {size}) of raw pixels, as the files "
        "hold them; NaN where a pixel is bad. Sky, noise and stretch are measured and applied "
        f"inside. What comes out has {vae.latent_dim} units per stamp.",
    ]
    for file, (where, code) in USES.items():
        if file in files:
            lines += ["", f"In {where}:", "", "```python", code, "```"]
    if files:
        lines += ["", f"Files: {', '.join(f'`{file}`' for file in files)}."]
    return "\n".join(lines)


def _model(vae: VAE) -> str:
    n_weights = sum(parameter.numel() for parameter in vae.parameters())
    rows = {"parameters": f"{n_weights / 1e6:.3g} million"}
    for group in ("model", "prior", "likelihood", "normalize"):
        rows[group] = _settings(vae.hparams.get(group) or {"defaults": True})
    return "## Model\n\n" + _table(rows)


def _data(checkpoint: Mapping[str, Any], metrics: Mapping[str, Any] | None) -> str:
    run = checkpoint["vae_astro"].get("settings") or {}
    data = run.get("data") or {}
    rows = {}
    for key in ("root", "labels"):
        if data.get(key):
            rows[key] = Path(str(data[key])).name  # a name, not where it lies on somebody's disk
    rows |= {key: str(data[key]) for key in SHOWN_DATA if data.get(key) is not None}
    counted = (metrics or {}).get("data") or {}
    names = {"n_train": "training stamps", "n_val": "validation stamps", "n_test": "test stamps",
             "n_rejected": "stamps set aside"}  # fmt: skip
    rows |= {name: str(counted[key]) for key, name in names.items() if counted.get(key) is not None}
    simulated = data.get("n_stamps") is not None
    said = "Simulated stamps (GalSim)." if simulated else "Stamps as below."
    if not rows:
        return "## Training data\n\nThe checkpoint does not say."
    return f"## Training data\n\n{said}\n\n{_table(rows)}"


def _limits(vae: VAE, metrics: Mapping[str, Any] | None) -> str:
    size = vae.stamp_shape[1]
    lines = [
        f"Stamps have to be like those of the training: the same bands in the same order, the same "
        f"pixel scale, {size}x{size} pixels with the source in the middle. Nothing checks that.",
        "Latent units have no names and no units; they compare between stamps of this model only.",
        "Classes, outliers and similarities found with it are candidates to be looked at, and no "
        "measurement.",
        "Figures above are of stamps drawn like the training's. Other surveys, depths or seeing "
        "were not tried.",
    ]
    if not vae.likelihood.is_density:
        lines.append("The training loss was no density of the pixels; its weights have no nats.")
    if vae.network.any_orientation:
        lines.append("The decoder draws a source in one of eight orientations of its own.")
    if metrics is not None and metrics["collapse"]["verdict"] == "full":
        lines.insert(0, "The code has collapsed: do not use the latents.")
    n_train = ((metrics or {}).get("data") or {}).get("n_train")
    if isinstance(n_train, int) and n_train < 1000:
        lines.insert(0, f"Trained on {n_train} stamps only.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _licence(licence: str | None) -> str:
    said = f"The weights: {licence}." if licence else "None was given for the weights."
    return f"## Licence\n\n{said} The code, vae_astro: BSD-3-Clause."


def _origin(checkpoint: Mapping[str, Any]) -> str:
    ours = checkpoint["vae_astro"]
    run = ours.get("settings") or {}
    rows = {
        "trained with": f"vae_astro {ours.get('version')}",
        "optimiser steps": str(checkpoint.get("global_step")),
        "seed": str(run.get("seed")),
        "exported with": f"vae_astro {vae_astro.__version__}, torch {torch.__version__}",
        "exported on": datetime.now(UTC).date().isoformat(),
    }
    return "## Origin\n\n" + _table(rows)


def _table(rows: Mapping[str, str]) -> str:
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["| | |", "| --- | --- |", *lines])


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items() if value is not None)


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "not measured"
