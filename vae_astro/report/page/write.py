"""From a run folder to one HTML file."""

from __future__ import annotations

import base64
import hashlib
import logging
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vae_astro.command.files import write_whole
from vae_astro.data.datamodule import StampDataModule
from vae_astro.errors import InputError
from vae_astro.report.history import Run, read_run
from vae_astro.report.page import commands, facts
from vae_astro.report.page.galleries import (
    RANKING,
    Classes,
    Outliers,
    read_classes,
    read_outliers,
)
from vae_astro.report.page.map_section import map_of
from vae_astro.report.page.panels import draw, kl_factor
from vae_astro.report.page.stamps import Model, open_model, open_stamps
from vae_astro.report.projector import add_to_projector
from vae_astro.report.words import number
from vae_astro.settings import check_bool, check_int, check_text

__all__ = ["PageOptions", "options_from", "page_after_run", "write_page"]

NAME = "report.html"
GENERATOR = '<meta name="generator" content="vae_astro">'
"""By which a page is known to be one of ours, and may be made again."""

MOST_ON_MAP = 5000
"""More stamps would not fit into a file that can be sent."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PageOptions:
    """What a page is to show beside the run.

    Attributes
    ----------
    out : Path, optional
        Where it goes; ``report.html`` in the run folder without it.
    overwrite : bool
        Whether it may replace a file that is no page of this run.
    classes : Path, optional
        Folder that scripts/classify.py made; that of the run folder without it.
    outliers : Path, optional
        Ranking that scripts/outliers.py made; that of the run folder without it.
    umap : bool
        Whether the map has a UMAP layout as well, which takes longer.
    n_map : int
        Stamps on the map, at most.
    """

    out: Path | None = None
    overwrite: bool = False
    classes: Path | None = None
    outliers: Path | None = None
    umap: bool = False
    n_map: int = 2000


def options_from(settings: Mapping[str, Any]) -> tuple[Path, PageOptions]:
    """The run and the options that ``conf/report.yaml`` has, checked.

    Raises
    ------
    InputError
        A setting is missing or out of range.
    """
    if settings["run"] is None:
        raise InputError("run is not set; give the folder of a run: run=runs/NAME")
    paths = {
        key: Path(check_text(key, settings[key])).expanduser()
        for key in ("out", "classes", "outliers")
        if settings[key] is not None
    }
    return Path(check_text("run", settings["run"])).expanduser(), PageOptions(
        overwrite=check_bool("overwrite", settings["overwrite"]),
        umap=check_bool("umap", settings["umap"]),
        n_map=check_int("n_map", settings["n_map"], minimum=2, maximum=MOST_ON_MAP),
        **paths,
    )


def page_after_run(run_dir: Path, datamodule: StampDataModule, device: torch.device) -> Path | None:
    """The page of a run that has just been judged; a warning where it cannot be made.

    Parameters
    ----------
    run_dir : Path
    datamodule : StampDataModule
        Of the run, open.
    device : torch.device
        Where it trained.
    """
    try:
        return write_page(run_dir, datamodule=datamodule, device=device)
    except Exception as error:
        log.warning(
            "the page could not be made (%s: %s); the run is whole, try again with "
            "python scripts/report.py run=%s",
            type(error).__name__,
            " ".join(str(error).split()),
            run_dir,
        )
        return None


def write_page(
    run_dir: Path,
    options: PageOptions | None = None,
    *,
    datamodule: StampDataModule | None = None,
    device: torch.device | str = "cpu",
) -> Path:
    """Make the page of a run.

    Parameters
    ----------
    run_dir : Path
        Run folder; of a run that was stopped, what is there is shown.
    options : PageOptions, optional
    datamodule : StampDataModule, optional
        Of the run, where it is open already; otherwise the packed stamps are looked for.
    device : torch.device or str
        Where the checkpoint encodes.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    InputError
        No run there; ``classes`` or ``outliers`` that are asked for cannot be read; UMAP is asked
        for and not installed; the file is in the way or cannot be written.
    """
    options = options or PageOptions()
    run = read_run(Path(run_dir))
    out = _free(run, options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of figures without a single finite pixel
        html = _rendered(run, options, datamodule, device)
    try:
        write_whole(out, html)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error}; choose another place with out=") from error
    return out


def _tell_projector(run: Run, classes: Classes | None, outliers: Outliers | None) -> None:
    """Let TensorBoard colour the codes by what was found since the run."""
    found: dict[str, dict[int, str]] = {}
    if classes is not None and len(classes.index):
        names = (str(name or "") for name in classes.of_row)
        found["class"] = dict(zip(classes.index.tolist(), names, strict=True))
    if outliers is not None and len(outliers.index):
        p_values = dict(zip(outliers.index.tolist(), outliers.p_value.tolist(), strict=True))
        found["outlier_p_value"] = {row: f"{p:.3g}" for row, p in p_values.items()}
        # colours are linear there, and the odd ones are all near 0
        found["outlier_minus_log10_p"] = {
            row: f"{-math.log10(p):.3f}" for row, p in p_values.items() if p > 0
        }
    if found:
        add_to_projector(run.dir, found)


def _free(run: Run, options: PageOptions) -> Path:
    """Where the page goes; what is no page of ours is not replaced unasked."""
    out = run.dir / NAME if options.out is None else options.out
    if not out.parent.is_dir():
        raise InputError(f"out={out} lies in {out.parent}, which is no folder")
    if out.is_dir():
        raise InputError(f"out={out} is a folder; give the name of a file, {out / NAME}")
    if out.exists() and not options.overwrite:
        with out.open(encoding="utf-8", errors="replace") as file:
            ours = GENERATOR in file.read(2000)
        if not ours or options.out is not None:
            raise InputError(f"out={out} exists already; choose another, or overwrite=true")
    return out


def _rendered(
    run: Run,
    options: PageOptions,
    datamodule: StampDataModule | None,
    device: torch.device | str,
) -> str:
    data = run.config.get("data")
    model, why_no_model = _model(run, device)
    datamodule, why_no_stamps = _stamps(data, model, datamodule, why_no_model)
    classes = _classes(run, options, data)
    outliers = _outliers(run, options, data)
    _tell_projector(run, classes, outliers)
    panels = draw(run, model, datamodule, outliers)
    return _template(
        run=run,
        made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        finished=_finished(run),
        verdict=facts.verdict(run),
        useless=facts.why_useless(run),
        is_collapsed=facts.why_useless(run) == "collapsed",
        kl_factor=kl_factor(run, model),
        checkpoint=None if model is None else _checkpoint(model),
        figures=facts.key_figures(run),
        forecast=facts.forecast_table(run),
        largest_betas=facts.largest_betas(run),
        rescues=facts.rescues(run),
        units=facts.units_table(run),
        readable=facts.readable_table(run),
        panels=panels,
        why_no_model=why_no_model,
        why_no_stamps=why_no_stamps,
        map=map_of(
            model,
            datamodule,
            classes,
            outliers,
            options,
            why_no_stamps,
            None if model is None else facts.kl_per_unit(run, model.vae.latent_dim),
        ),
        classes=classes,
        outliers=outliers,
        data=facts.data_rows(run, datamodule),
        labels=None if datamodule is None else facts.labels_table(datamodule),
        rejects=None if datamodule is None else facts.rejects(datamodule),
        settings=commands.settings_text(run),
        typed=commands.command("train.py", *run.overrides),
        versions=commands.versions(None if model is None else model.trained_with),
        commands=commands.commands(run),
        classes_command=commands.classes_command(run),
        outliers_command=commands.outliers_command(run),
    )


def _finished(run: Run) -> str | None:
    """When its last value was logged; a copied file has the time of the copy."""
    if run.metrics is None or not run.history:
        return None
    last = max(float(curve.wall_times[-1]) for curve in run.history.values())
    return datetime.fromtimestamp(last).astimezone().strftime("%Y-%m-%d %H:%M")


def _checkpoint(model: Model) -> str:
    """Which checkpoint the pictures are of, in words."""
    name = {"best": "best checkpoint", "last": "last checkpoint"}.get(model.path.stem)
    return f"{name or model.path.name}, step {model.checkpoint['global_step']}"


def _model(run: Run, device: torch.device | str) -> tuple[Model | None, str | None]:
    try:
        model = open_model(run)
    except InputError as error:
        return None, str(error)
    model.vae.to(device)
    return model, None


def _stamps(
    data: dict[str, Any] | None,
    model: Model | None,
    datamodule: StampDataModule | None,
    why_no_model: str | None,
) -> tuple[StampDataModule | None, str | None]:
    if model is None:
        return None, why_no_model
    if datamodule is not None:
        return datamodule, None
    if not data:
        return None, "the run folder does not say which stamps it was trained on"
    try:
        return open_stamps(data, model.vae), None
    except InputError as error:
        return None, str(error)


def _classes(run: Run, options: PageOptions, data: dict[str, Any] | None) -> Classes | None:
    if options.classes is not None:
        return read_classes(options.classes, data)
    folder = run.dir / "classes"
    try:
        return read_classes(folder, data) if folder.is_dir() else None
    except InputError as error:  # not asked for: the page is made without
        log.warning("%s", error)
        return None


def _outliers(run: Run, options: PageOptions, data: dict[str, Any] | None) -> Outliers | None:
    if options.outliers is not None:
        return read_outliers(options.outliers, data)
    path = run.dir / RANKING
    try:
        return read_outliers(path, data) if path.is_file() else None
    except InputError as error:
        log.warning("%s", error)
        return None


def _template(**context: Any) -> str:
    loader = PackageLoader("vae_astro.report.page", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["number"] = number

    def source(name: str) -> str:
        return loader.get_source(environment, name)[0].strip()

    script = source("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html.j2").render(
        **context,
        generator=Markup(GENERATOR),  # our own words
        style=Markup(source("page.css")),
        script=Markup(script),
        script_digest=digest,
    )
