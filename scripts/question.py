"""Take the question's network apart, fault by fault, and write docs/the-question.md.

python scripts/question.py                                    a quarter of an hour on two cores
python scripts/question.py alerts=FOLDER [labels=FILE.csv]    on ZTF science cutouts as well
python scripts/question.py size=small                         two minutes, to see that it works
python scripts/question.py redraw=true                        the page again, from its own figures
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig, OmegaConf

from vae_astro.command import endings
from vae_astro.command.files import whole, write_whole
from vae_astro.command.help import register_help
from vae_astro.folders import register_resolvers

if TYPE_CHECKING:
    from vae_astro.report.question.measure import Answer, ClassMap, Outcome
    from vae_astro.report.question.plan import Run, Size
    from vae_astro.vae import VAE

CONF = Path(__file__).parents[1] / "conf"
register_resolvers()
register_help(CONF)


@hydra.main(config_path="../conf", config_name="question", version_base="1.3")
@endings.past_hydra
def main(cfg: DictConfig) -> None:
    """Train everything the page needs, then write it."""
    write(cfg)


def write(cfg: DictConfig) -> None:
    """Everything in order: runs, forecasts, classes, page."""
    from vae_astro.report.question.measure import Answer, needed_weights
    from vae_astro.report.question.plan import COMMON, LATENT_DIM, SCALINGS, SIZES, plan
    from vae_astro.settings import check_bool, check_choice, check_int

    name = check_choice("size", cfg.size, tuple(SIZES))
    out = Path(cfg.out or {"full": "docs", "small": cfg.runs}[name])
    if check_bool("redraw", cfg.redraw):
        save(Answer.from_dict(read_figures(out / "the-question.json")), out)
        return
    quiet()
    began = time.perf_counter()
    size, roots, folder = SIZES[name], roots_of(cfg), Path(cfg.runs)
    n_processes = check_int("n_processes", cfg.n_processes or os.cpu_count() or 1, minimum=1)
    runs = [run for data in roots for run in plan(size, data)]
    settings = {run.name: composed(*run.overrides, *roots[run.data]) for run in runs}
    prepare(settings.values())
    outcomes = carry_out(runs, settings, folder, n_processes)
    maps = {data: class_map(data, size, roots[data], folder) for data in roots}
    needed = []
    for data, root in roots.items():
        scaled = {scaling: scaled_stamps(scaling, data, size, root) for scaling in SCALINGS}
        needed += needed_weights(scaled, LATENT_DIM, data=data, size=size.wide)
    answer = Answer(
        size=name,
        common=" ".join(COMMON),
        outcomes=outcomes,
        needed=needed,
        classes={data: found.composition for data, found in maps.items()},
    )
    save(answer, out, maps)
    print(f"{len(runs) + len(maps)} runs in {(time.perf_counter() - began) / 60:.1f} min")


def roots_of(cfg: DictConfig) -> dict[str, tuple[str, ...]]:
    """What has to be typed to find the stamps of each data set; those that are there."""
    from vae_astro.errors import InputError

    roots: dict[str, tuple[str, ...]] = {"simulated": ()}
    if cfg.alerts is None:
        print("ZTF science cutouts are left out; with alerts=FOLDER they are looked at as well")
        return roots
    if not Path(cfg.alerts).is_dir():
        raise InputError(f"alerts={cfg.alerts} is no folder; give the one of the alert packets")
    given = [f"data.root='{cfg.alerts}'"]
    if cfg.labels is not None:
        given.append(f"data.labels='{cfg.labels}'")
    return roots | {"ztf": tuple(given)}


# -- stamps and settings -------------------------------------------------------------------------


def composed(*overrides: str) -> dict[str, Any]:
    """Settings as ``train.py`` would have them; of one group, the last choice counts."""
    chosen = {text.split("=")[0]: text for text in overrides}
    # nobody looks at the pages of a hundred runs
    cfg = hydra.compose("config", [*chosen.values(), "callbacks.page=false"])
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


def prepare(settings: Iterable[dict[str, Any]]) -> None:
    """Draw and pack the stamps once, before several processes want them."""
    seen = []
    for each in settings:
        data = {key: each["data"].get(key) for key in ("root", "size", "n_stamps")}
        if data not in seen:
            seen.append(data)
            stamps(each)


def stamps(settings: dict[str, Any]) -> Any:
    """The data module of a run, ready."""
    from vae_astro.data.datamodule import StampDataModule

    datamodule = StampDataModule(**settings["data"], seed=settings["seed"], progress=False)
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


# -- the runs ------------------------------------------------------------------------------------


def carry_out(
    runs: list[Run], settings: dict[str, dict[str, Any]], folder: Path, n_processes: int
) -> dict[str, Outcome]:
    """Outcome of each run by its name, in their order; what ``folder`` holds is not run again."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(run, settings[run.name], folder) for run in runs]
    # one thread a run: these networks are too small to share out
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(n_processes, context, initializer=quiet) as pool:
        futures = {job[0].name: pool.submit(finished, *job) for job in jobs}
        return {name: future.result() for name, future in futures.items()}


def finished(run: Run, settings: dict[str, Any], folder: Path) -> Outcome:
    """Outcome of one run, from ``folder`` where it holds that of the same command."""
    from vae_astro.report.question.measure import Outcome

    kept = folder / f"{run.name}.json"
    if kept.is_file():
        known = json.loads(kept.read_text("utf-8"))
        if known["overrides"] == list(run.overrides):
            return Outcome(**known)
    outcome = trained(run, settings)
    write_whole(kept, json.dumps(asdict(outcome), indent=1) + "\n")
    print(
        f"{run.name}: {outcome.verdict}, KL {outcome.kl_nats:.3g}, {outcome.seconds:.0f} s",
        flush=True,
    )
    return outcome


def quiet() -> None:
    """No advice from the trainer, once for each run."""
    import logging
    import warnings

    warnings.simplefilter("ignore")
    logging.getLogger("vae_astro").setLevel(logging.ERROR)
    for name in ("pytorch", "pytorch.utilities.rank_zero", "fabric.utilities.rank_zero"):
        logging.getLogger(f"lightning.{name}").setLevel(logging.ERROR)


def fitted(settings: dict[str, Any]) -> tuple[VAE, dict[str, Any]]:
    """A trained model and its ``metrics.json``; of its run folder nothing stays."""
    from vae_astro.run import train

    with tempfile.TemporaryDirectory() as run_dir:
        result = train(settings, Path(run_dir) / "run")
    return result.vae.eval(), result.metrics


def trained(run: Run, settings: dict[str, Any]) -> Outcome:
    """Train one model and measure what it ends with."""
    from vae_astro.report.question.measure import outcome_of

    vae, metrics = fitted(settings)
    datamodule = stamps(settings)
    return outcome_of(
        vae,
        metrics,
        list(datamodule.in_order(datamodule.val_rows)),
        data=run.data,
        faults=list(run.faults),
        stretch=run.stretch,
        weight=run.weight,
        seed=run.seed,
        size=settings["data"]["size"],
        overrides=list(run.overrides),
    )


# -- forecasts and classes -----------------------------------------------------------------------


def scaled_stamps(scaling: str, data: str, size: Size, root: tuple[str, ...]) -> list[Any]:
    """Training stamps at the question's size as a network would see them, in batches."""
    import torch

    from vae_astro.report.question.plan import run_of

    stretch = "minmax" if scaling == "L2" else scaling
    run = run_of(f"{data}-{scaling}", size, data, (), stretch=stretch, wide=True)
    datamodule = stamps(composed(*run.overrides, *root, "data.augment=false"))
    batches = list(datamodule.training_sample(len(datamodule.train_rows)))
    if scaling == "L2":
        for batch in batches:
            raw = torch.from_numpy(datamodule.store.gather(batch["index"].numpy()))
            raw = raw.where(batch["mask"], 0)
            length = raw.square().sum((1, 2, 3), keepdim=True).sqrt().clamp(min=1e-30)
            batch["image"] = raw / length
    return batches


def class_map(data: str, size: Size, root: tuple[str, ...], folder: Path) -> ClassMap:
    """Train the repaired network with two units, and find classes in its plane."""
    import numpy as np

    from vae_astro.evaluate.scores import score_stamps
    from vae_astro.report.question.measure import ClassMap, find_classes
    from vae_astro.report.question.plan import run_of

    run = run_of(f"{data}-classes", size, data, (), stretch="asinh", wide=True)
    overrides = [*run.overrides, "model.latent_dim=2"]
    kept = folder / f"{run.name}.npz"
    if not kept.is_file() or np.load(kept)["overrides"].tolist() != overrides:
        settings = composed(*overrides, *root)
        vae, _ = fitted(settings)
        datamodule = stamps(settings)
        batches = list(datamodule.in_order(np.arange(len(datamodule.store))))
        with whole(kept) as partial:
            np.savez(
                partial,
                overrides=overrides,
                codes=score_stamps(vae, batches).mean.astype(np.float64),
                images=np.concatenate([batch["image"][:, 0].numpy() for batch in batches]),
                labels=datamodule.labels.astype(str),
            )
        print(f"{run.name}: done")
    known = np.load(kept)
    return ClassMap(known["codes"], known["images"], find_classes(known["codes"]), known["labels"])


# -- the page ------------------------------------------------------------------------------------


def save(answer: Answer, out: Path, maps: dict[str, ClassMap] | None = None) -> None:
    """Write the page, its figures and its numbers; without ``maps`` that picture stays."""
    from vae_astro.report.question import figures
    from vae_astro.report.question.page import page

    images = out / "images"
    images.mkdir(parents=True, exist_ok=True)
    drawn = {
        "question_repairs.png": (figures.draw_paths(answer), 110),
        "question_weights.png": (figures.draw_weights(answer), 110),
    }
    for data, found in (maps or {}).items():
        drawn[f"question_classes_{data}.png"] = (figures.draw_classes(found, data), 75)
    for name, (figure, dpi) in drawn.items():
        with whole(images / name) as partial:
            figure.savefig(partial, dpi=dpi)
    write_whole(out / "the-question.json", json.dumps(asdict(answer), indent=1) + "\n")
    write_whole(out / "the-question.md", page(answer))
    print(out / "the-question.md")


def read_figures(path: Path) -> dict[str, Any]:
    """What a page was written from."""
    from vae_astro.errors import InputError

    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"no figures to draw again in {path}: {error}; run it first") from error


if __name__ == "__main__":
    endings.run(main, "question", CONF)
