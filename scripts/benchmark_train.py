"""How fast training, embedding and a whole job are, each beside what others use.

python scripts/benchmark_train.py [docs=docs/benchmarks.md] [out=FILE.json] [size=small]
python scripts/benchmark_train.py scaling=true figure=docs/images/scaling.png [docs=...]
python scripts/benchmark_train.py profile=true

A row is a rate over another one: the same stamps, network, optimiser and batch, in processes of
their own that take turns. Peers are installed by pip into a folder of their own (``peers=``) the
first time. ``only=[training,start]`` measures some of the rows.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from benchmarks.turns import SideError
from omegaconf import DictConfig, OmegaConf

from vae_astro.command import endings
from vae_astro.command.help import register_help
from vae_astro.folders import register_resolvers

CONF = Path(__file__).parents[1] / "conf"
register_resolvers()
register_help(CONF)

BATCH = "data.batch_size=64"


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    overrides: tuple[str, ...]
    n_rounds: int
    n_files: int
    n_epochs: int
    job_rounds: int


SCALES = {
    "full": Scale((BATCH,), 5, 20_000, 5, 1),
    "small": Scale(("data.n_stamps=160", "data.size=16", "data.batch_size=16"), 1, 100, 1, 1),
}


def all_rows(plan: Any, scale: Scale) -> dict[str, Callable[[], Iterator[Any]]]:
    """What ``only=`` can name, and what it measures."""
    from benchmarks import cuda, jobs, rates

    return {
        "start": lambda: jobs.start_rows(plan),
        "training": lambda: rates.training_rows(plan),
        "question": lambda: rates.question_rows(plan),
        "ddp": lambda: rates.ddp_rows(plan),
        "embedding": lambda: jobs.embedding_rows(plan),
        "job": lambda: jobs.whole_job_rows(plan, scale.n_files, scale.n_epochs, scale.job_rounds),
        "cuda": lambda: cuda.cuda_rows(plan),
    }


def plain_settings(overrides: Sequence[str]) -> dict[str, Any]:
    """What ``train.py`` would compose, as plain Python."""
    composed = hydra.compose("config", list(overrides))
    settings = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(settings, dict)
    return settings  # type: ignore[return-value]


@hydra.main(config_path="../conf", config_name="benchmark_train", version_base="1.3")
@endings.past_hydra
def main(cfg: DictConfig) -> None:
    """Measure what is asked for, print it, write it."""
    from benchmarks.rates import Plan

    from vae_astro.settings import check_choice

    scale = SCALES[check_choice("size", cfg.size, tuple(SCALES))]
    stores = (f"data.store_dir={Path(cfg.store_dir).absolute()}",)
    settings = plain_settings(scale.overrides)
    root = Path(cfg.stamps_dir).absolute() / Path(settings["data"]["root"]).name
    overrides = (*scale.overrides, *stores, f"data.root={root}")
    print(f"{os.cpu_count()} cores")
    with tempfile.TemporaryDirectory(dir=cfg.scratch) as folder:
        plan = Plan(plain_settings, overrides, Path(folder), scale.n_rounds, cfg.peers)
        try:
            if cfg.profile:
                _profile(plan)
            elif cfg.scaling:
                _scaling(plan, cfg)
            else:
                _rows(plan, scale, cfg)
        except SideError as error:
            sys.exit(f"error: {error}")


def _rows(plan: Any, scale: Scale, cfg: DictConfig) -> None:
    from benchmarks.table import table, write_json, write_section

    from vae_astro.settings import check_choice

    measures = all_rows(plan, scale)
    chosen = list(measures) if cfg.only is None else list(cfg.only)
    for name in chosen:
        check_choice("only", name, tuple(measures))
    rows = []
    for name in chosen:
        for row in measures[name]():
            rows.append(row)
            print(table([row]).splitlines()[-1], flush=True)
    print(table(rows))
    if cfg.out:
        write_json(Path(cfg.out), rows)
    if cfg.docs:
        write_section(Path(cfg.docs), "training", table(rows))


def _profile(plan: Any) -> None:
    import torch
    from benchmarks.profile import profile_table

    print(profile_table(plan, on_gpu=torch.cuda.is_available()))


def _scaling(plan: Any, cfg: DictConfig) -> None:
    from benchmarks.scaling import draw, measure_scaling, scaling_table
    from benchmarks.table import write_section

    measured = []
    for series in measure_scaling(plan, cfg.size):
        measured.append(series)
        print(scaling_table([series]), flush=True)
    text = scaling_table(measured)
    print(text)
    if cfg.figure:
        draw(measured, Path(cfg.figure))
    if cfg.docs:
        write_section(Path(cfg.docs), "scaling", text)


if __name__ == "__main__":
    endings.run(main, "benchmark_train", CONF)
