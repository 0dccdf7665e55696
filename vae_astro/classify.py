"""From checkpoints and stamps to classes, and from kept classes to the classes of other stamps.

What ``scripts/classify.py`` calls.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

import vae_astro
from vae_astro.catalogue import free_path, write_catalogue
from vae_astro.checkpoint import find_checkpoint, load_checkpoint
from vae_astro.class_passes import (
    CatalogueOfClasses,
    provenance_of,
    renamed,
    sample_of,
)
from vae_astro.collapse.refusal import refuse_collapsed
from vae_astro.collapse.units import ACTIVE_VARIANCE
from vae_astro.collapse.verdict import judge
from vae_astro.command.files import whole, write_whole
from vae_astro.command.typed import is_typed
from vae_astro.data.datamodule import StampDataModule
from vae_astro.embed import embed
from vae_astro.errors import InputError
from vae_astro.evaluate.agreement import compare, readable
from vae_astro.evaluate.class_model import ClassModel, Network, Search, fit_classes, read_found
from vae_astro.evaluate.class_names import default_name, read_names, write_names
from vae_astro.evaluate.clusters import frame_of, hard_classes, units_named
from vae_astro.folders import is_first_process
from vae_astro.model.posterior import DiagonalGaussian
from vae_astro.model.priors import MixturePrior
from vae_astro.report.class_summary import class_lines, label_lines
from vae_astro.report.gallery import curve_figure
from vae_astro.report.gallery_files import Shown, write_galleries
from vae_astro.settings import check_bool, check_int, check_text
from vae_astro.vae import VAE

__all__ = ["classify"]

FOUND, NAMES, CLUSTERS, CATALOGUE = (
    "classes.json",
    "classes.yaml",
    "clusters.npz",
    "catalogue.parquet",
)
NEW_CATALOGUE = "classified.parquet"


def classify(settings: Mapping[str, Any], overrides: Sequence[str] = ()) -> str | None:
    """Find classes; or, with ``names``, name them; or, with ``classes``, give them to other stamps.

    Parameters
    ----------
    settings : mapping
        The keys of ``conf/classify.yaml``, as plain Python.
    overrides : sequence of str
        What was typed, as `vae_astro.embed.embed` takes it.

    Returns
    -------
    str or None
        What to print; None on all processes but the first.

    Raises
    ------
    InputError
        A mistake in the settings, the checkpoints, the stamps or the names.
    """
    overwrite = check_bool("overwrite", settings["overwrite"])
    new_stamps = is_typed("data", overrides)
    if settings["classes"] is not None and (new_stamps or settings["names"] is None):
        return _assign(settings, overrides, overwrite)
    if settings["names"] is not None:
        return _rename(settings, overwrite)
    return _find(settings, overrides, overwrite)


def _find(settings: Mapping[str, Any], overrides: Sequence[str], overwrite: bool) -> str | None:
    keys = {field.name for field in fields(Search)}
    search = Search(**{key: settings[key] for key in keys})
    n_fit = check_int("n_fit", settings["n_fit"], minimum=10)
    n_gallery = check_int("n_gallery", settings["n_gallery"], minimum=0)
    force = check_bool("force", settings["force"])
    show = check_bool("progress", settings["progress"])
    out = _free_folder(settings["out"], overwrite)
    extra = None
    if settings["catalogue"] is not None:
        extra = _free_catalogue(settings["catalogue"], overwrite)
    checkpoints = _checkpoints(settings["checkpoint"])
    for path in checkpoints:
        refuse_collapsed(load_checkpoint(path), force)
    vaes = [_loaded(path) for path in checkpoints]
    networks = [_network(vae, settings["units"]) for vae in vaes]
    if search.method == "prior" and networks[0].responsibilities is None:
        raise InputError(
            f"method=prior needs a checkpoint of prior=mixture, {checkpoints[0]} has "
            f"prior={_prior_name(vaes[0])}; take method=mixture"
        )
    with _work_folder(out) as folder:
        files = _embedded(settings, overrides, checkpoints, folder)
        if files is None:
            return None
        sample = sample_of(files, n_fit, search.seed)
        for vae, (mean, std) in zip(vaes, sample.posteriors, strict=True):
            _refuse_collapsed_codes(vae, mean, std, force)
        model, consensus, curve = fit_classes(
            sample.posteriors, networks, search, ACTIVE_VARIANCE, show
        )
        told = hard_classes(consensus.shares)
        labels = compare(told, sample.labels, model.n_classes)
        codes = model.frames[0](*sample.posteriors[0])[0]
        asked = vaes[0].object_units if settings["units"] == "clustered" else networks[0].units
        frame = frame_of(*sample.posteriors[0], asked, ACTIVE_VARIANCE)
        read = readable(frame(*sample.posteriors[0])[0], sample.labels, sample.objects)
        names = [default_name(k) for k in range(model.n_classes)]
        stability = [each.stability for each in consensus.classes]
        made_by = {
            "classes": {
                "clustering": model.digest,
                "search": asdict(search),
                "checkpoints": [_identified(path) for path in checkpoints],
                "names": names,
            }
        }
        catalogue = CatalogueOfClasses(files, model, stability, names, search.unsure_below, made_by)
        data = provenance_of(files[0])["data"]
        _make_room(out)
        n_stamps = write_catalogue(out / CATALOGUE, catalogue.schema, catalogue, overwrite=True)
        if extra is not None:
            _copied(out / CATALOGUE, extra, overwrite)
    model.save(out / CLUSTERS)
    write_names(out / NAMES, model.digest, consensus.classes, labels)
    if curve is not None:
        with whole(out / "n_classes.png") as partial:
            curve_figure(curve, curve.best(search.criterion), search.criterion).savefig(
                partial, dpi=130
            )
    found = {
        "version": vae_astro.__version__,
        "clustering": model.digest,
        "checkpoints": [_identified(path) for path in checkpoints],
        "search": asdict(search),
        "units": [list(frame.units) for frame in model.frames],
        "n_stamps": n_stamps,
        "n_fitted": len(sample.index),
        "occupancy": (catalogue.counts / n_stamps).tolist(),
        "unsure": catalogue.n_unsure / n_stamps,
        "n_classes_curve": None if curve is None else curve.as_dict(),
        "found": consensus.as_dict(),
        "labels": None if labels is None else labels.as_dict(),
        "codes": None if read is None else read.as_dict(),
    }
    write_whole(out / FOUND, json.dumps(found, indent=1, allow_nan=False) + "\n")
    # last: what was found is whole whatever becomes of its pictures
    if n_gallery:
        titles = [
            f"{name}: {100 * each.occupancy:.1f} %, {each.verdict}"
            for name, each in zip(names, consensus.classes, strict=True)
        ]
        shown = Shown(sample.index, consensus.shares, codes, titles, n_gallery, search.seed)
        write_galleries(out / "gallery", shown, StampDataModule(**data, progress=False))
    lines = class_lines(consensus, names, n_stamps, len(checkpoints), search.method, curve,
                        search.criterion, search.unsure_below)  # fmt: skip
    if labels is not None:
        lines += label_lines(labels, read, names)
    gallery, look = ("gallery/, ", f"look at {out}/gallery, ") if n_gallery else ("", "")
    lines += ["", f"written: {out}/ ({CATALOGUE}, {gallery}{FOUND})"]
    lines.append(f"next: {look}write names into {out / NAMES}, then "
                 f"python scripts/classify.py names={out / NAMES}")  # fmt: skip
    return "\n".join(lines)


def _rename(settings: Mapping[str, Any], overwrite: bool) -> str:
    names_file = Path(check_text("names", settings["names"])).expanduser()
    folder = names_file.parent
    if settings["classes"] is not None:
        folder = Path(check_text("classes", settings["classes"])).expanduser()
    found = read_found(folder / FOUND)
    n_classes = found["found"]["n_classes"]
    names = read_names(names_file, found["clustering"], n_classes)
    catalogue = folder / CATALOGUE
    if not catalogue.is_file():
        raise InputError(f"{catalogue} is gone; find the classes again with out=")
    if provenance_of(catalogue).get("classes", {}).get("clustering") != found["clustering"]:
        raise InputError(f"{catalogue} is not of the clustering in {folder / FOUND}")
    extra = None
    if settings["catalogue"] is not None:
        extra = _free_catalogue(settings["catalogue"], overwrite)
    # nothing is lost: the class of a row stays where its probabilities are
    n_stamps = write_catalogue(catalogue, *renamed(catalogue, names), overwrite=True)
    lines = [f"{default_name(k)}: {name}" for k, name in enumerate(names)]
    lines.append(f"written: column class of {n_stamps} rows in {catalogue}")
    if extra is not None:
        _copied(catalogue, extra, overwrite)
        lines.append(f"written: {extra}")
    return "\n".join(lines)


def _assign(settings: Mapping[str, Any], overrides: Sequence[str], overwrite: bool) -> str | None:
    folder = Path(check_text("classes", settings["classes"])).expanduser()
    found = read_found(folder / FOUND)
    out = _free_catalogue(settings["catalogue"] or NEW_CATALOGUE, overwrite)
    if settings["checkpoint"] is not None:
        checkpoints = _checkpoints(settings["checkpoint"])
    else:
        checkpoints = _checkpoints([each["path"] for each in found["checkpoints"]])
    told = [each["digest"] for each in found["checkpoints"]]
    if [_identified(path)["digest"] for path in checkpoints] != told:
        raise InputError(
            f"checkpoint={', '.join(map(str, checkpoints))}: these are not the networks that the "
            f"classes of {folder} were made from; give those, or find the classes again"
        )
    networks = [_network(_loaded(path), "all") for path in checkpoints]
    model = ClassModel.load(folder / CLUSTERS, networks)
    names_file = folder / NAMES
    if settings["names"] is not None:
        names_file = Path(check_text("names", settings["names"])).expanduser()
    names = [default_name(k) for k in range(model.n_classes)]
    if names_file.exists() or settings["names"] is not None:
        names = read_names(names_file, found["clustering"], model.n_classes)
    made_by = {
        "classes": {
            "clustering": found["clustering"],
            "search": found["search"],
            "checkpoints": [_identified(path) for path in checkpoints],
            "names": names,
        }
    }
    with _work_folder(out) as work:
        files = _embedded(settings, overrides, checkpoints, work)
        if files is None:
            return None
        stability = [each["stability"] for each in found["found"]["classes"]]
        unsure_below = found["search"]["unsure_below"]
        catalogue = CatalogueOfClasses(files, model, stability, names, unsure_below, made_by)
        n_stamps = write_catalogue(out, catalogue.schema, catalogue, overwrite=overwrite)
    lines = [f"{n_stamps} stamps given the classes of {folder}"]
    lines += [
        f"{name}: {100 * count / n_stamps:.1f} %"
        for name, count in zip([*names, "none"], catalogue.counts, strict=True)
        if name != "none" or count
    ]
    lines.append(f"unsure: {100 * catalogue.n_unsure / n_stamps:.1f} %")
    return "\n".join([*lines, f"written: {out}"])


@contextmanager
def _work_folder(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` under the same name in all processes; the first one removes it."""
    folder = out.absolute().parent / f".{out.name}.codes"
    folder.mkdir(exist_ok=True)
    try:
        yield folder
    finally:
        if is_first_process():
            shutil.rmtree(folder, ignore_errors=True)


def _embedded(
    settings: Mapping[str, Any], overrides: Sequence[str], checkpoints: Sequence[Path], folder: Path
) -> list[Path] | None:
    """Codes of the stamps by every network; None on all processes but the first."""
    files, is_first = [], True
    for k, path in enumerate(checkpoints):
        files.append(folder / f"codes-{k}.parquet")
        asked = {"checkpoint": str(path), "out": str(files[-1]), "overwrite": True, "scores": False}
        is_first &= embed({**settings, **asked}, overrides) is not None
    return files if is_first else None


def _refuse_collapsed_codes(vae: VAE, mean: np.ndarray, std: np.ndarray, force: bool) -> None:
    """Raise `InputError` if the code says nothing about these very stamps."""
    posterior = DiagonalGaussian(torch.from_numpy(mean), 2 * torch.from_numpy(std).log())
    with torch.inference_mode():
        kl = vae.prior.kl_per_unit(posterior).numpy()
    if np.ptp(mean, axis=0).max() > 0:  # one code for all stamps is told apart from a collapse
        refuse_collapsed(judge(mean, kl, vae.prior.unit_std().numpy()), force)


def _loaded(path: Path) -> VAE:
    return VAE.load_from_checkpoint(path, map_location="cpu", weights_only=True).eval()


def _network(vae: VAE, units: str | Sequence[int]) -> Network:
    chosen = units_named(units, vae.clustered_units, vae.latent_dim)
    return Network(chosen, _responsibilities(vae))


def _responsibilities(vae: VAE) -> Callable[[np.ndarray], np.ndarray] | None:
    """Shares of the components of a mixture prior that has been fitted; None for others."""
    if not isinstance(vae.prior, MixturePrior) or not vae.prior.started:
        return None
    asked = vae.prior.responsibilities

    @torch.inference_mode()
    def responsibilities(z: np.ndarray) -> np.ndarray:
        return asked(torch.from_numpy(z.astype(np.float32))).double().numpy()

    return responsibilities


def _prior_name(vae: VAE) -> str:
    return (vae.hparams["prior"] or {"name": "standard"})["name"]


def _checkpoints(given: object) -> list[Path]:
    if given is None:
        raise InputError("checkpoint is not set; give a run folder or a file: checkpoint=runs/NAME")
    wanted = list(given) if isinstance(given, list | tuple) else [given]
    if not wanted:
        raise InputError("checkpoint is an empty list; give one run folder or several")
    paths = [find_checkpoint("checkpoint", str(each)) for each in wanted]
    if len({path.resolve() for path in paths}) < len(paths):
        raise InputError("checkpoint names a network twice; give each once")
    return paths


def _identified(path: Path) -> dict[str, str]:
    with path.open("rb") as file:
        return {
            "path": str(path.resolve()),
            "digest": hashlib.file_digest(file, "sha256").hexdigest()[:16],
        }


def _free_folder(given: object, overwrite: bool) -> Path:
    out = Path(check_text("out", given)).expanduser()
    if out.exists() and not out.is_dir():
        raise InputError(f"out={out} is a file; give a folder for the classes")
    if not out.absolute().parent.is_dir():
        raise InputError(
            f"out={out} lies in {out.parent}, which is no folder; give one that exists"
        )
    if not os.access(out.absolute().parent, os.W_OK):
        raise InputError(f"out={out}: {out.parent} cannot be written to; choose another folder")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise InputError(f"out={out} holds something already; choose another, or overwrite=true")
    return out


def _free_catalogue(given: object, overwrite: bool) -> Path:
    try:
        return free_path(given, overwrite)
    except InputError as error:
        raise InputError(str(error).replace("out=", "catalogue=", 1)) from error


def _make_room(out: Path) -> None:
    """The folder for what is found; names that a person wrote into an earlier one are kept."""
    out.mkdir(exist_ok=True)
    if (out / NAMES).exists():
        earlier = (out / f"{NAMES}.before{k or ''}" for k in count())
        os.replace(out / NAMES, next(path for path in earlier if not path.exists()))
    for stale in (FOUND, CLUSTERS, "n_classes.png"):
        (out / stale).unlink(missing_ok=True)
    for picture in (out / "gallery").glob("*.png"):
        picture.unlink()


def _copied(catalogue: Path, extra: Path, overwrite: bool) -> None:
    schema = pq.read_schema(catalogue)
    with pq.ParquetFile(catalogue) as file:
        groups = (file.read_row_group(k) for k in range(file.num_row_groups))
        write_catalogue(extra, schema, groups, overwrite=overwrite)
