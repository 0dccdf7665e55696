"""What labels say of classes that were found without them: baselines, pythae's VAE, and ours.

python scripts/benchmark_classes.py data=alerts data.root=FOLDER data.labels=FILE.csv
    [data.classes=[asteroid,star,bogus]] ['ours=["model=rings"]'] [out=FILE.json]
python scripts/benchmark_classes.py size=small

Clusters are given the number of classes; nothing sees a label before it is scored. Folds keep the
stamps of one object together. The goal of our row is the best of the others, less 0.03.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from benchmarks.turns import SideError
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from vae_astro.command import endings
from vae_astro.command.help import register_help
from vae_astro.folders import register_resolvers

if TYPE_CHECKING:
    from benchmarks.class_scores import Scores
    from benchmarks.table import Row

    from vae_astro.data.datamodule import StampDataModule

CONF = Path(__file__).parents[1] / "conf"
register_resolvers()
register_help(CONF)

LEEWAY = 0.03
"""By how much the best of the others may be better: less than that is noise."""
OURS, PEER = "this project", "pythae VAE, same network"
WHO = ("baselines", "pythae", "ours")
MOST_STAMPS = 2000
"""Stamps that say how far out to look."""


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    data: tuple[str, ...]
    training: tuple[str, ...]
    n_trainings: int
    n_seeds: int
    n_draws: int


SCALES = {
    "full": Scale((), (), 5, 5, 200),
    "small": Scale(
        ("data.n_stamps=160", "data.size=16"),
        ("trainer.max_epochs=2", "collapse.forecast_stamps=0"),
        1,
        2,
        20,
    ),
}


def plain_settings(overrides: Sequence[str]) -> dict[str, Any]:
    """What ``train.py`` would compose, as plain Python."""
    composed = OmegaConf.to_container(hydra.compose("config", list(overrides)), resolve=True)
    assert isinstance(composed, dict)
    return composed  # type: ignore[return-value]


def read_stamps(datamodule: StampDataModule, rows: Any) -> Any:
    """The stamps of some rows of the store, as the baselines look at them."""
    import numpy as np
    import torch
    from benchmarks.representations import Stamps

    batches = [(batch["image"], batch["mask"]) for batch in datamodule.in_order(rows)]
    image, mask = (torch.cat(parts) for parts in zip(*batches, strict=True))
    few = np.sort(np.random.default_rng(0).permutation(rows)[:MOST_STAMPS])
    store = datamodule.store
    level, noise = store.sky_level[few][:, :, None, None], store.sky_noise[few][:, :, None, None]
    with np.errstate(all="ignore"):  # fill values, and a band without noise: not finite, not good
        light = torch.from_numpy((store.gather(few)[:, : level.shape[1]] - level) / noise)
    seen = light.isfinite()
    return Stamps(image, mask, light.where(seen, 0.0).float(), seen)


def measured(
    cfg: DictConfig, scale: Scale, data: Sequence[str], folder: Path
) -> Iterator[tuple[str, Scores | str, str]]:
    """Name, scores or why there are none, and a note, of one representation after the other."""
    from benchmarks.class_scores import Judge, labels_to_score
    from benchmarks.representations import codes_of_baselines
    from benchmarks.trained import codes_of_peer, our_codes

    from vae_astro.data.datamodule import StampDataModule
    from vae_astro.errors import InputError

    settings = plain_settings([*data, *scale.training, *cfg.plain])
    datamodule = StampDataModule(**settings["data"], progress=False)
    datamodule.prepare_data()
    datamodule.setup("predict")
    objects = datamodule.store.catalogue["object_id"].to_numpy().astype(str)
    rows, rare = labels_to_score(datamodule.labels, objects)
    judge = Judge(datamodule.labels[rows], objects[rows], scale.n_seeds, scale.n_draws)
    print(f"{len(rows)} of {len(objects)} stamps have one of {judge.n_classes} labels; too rare: "
          f"{', '.join(rare) or 'none'}", flush=True)  # fmt: skip
    chosen = cfg.only or WHO
    seeds = range(cfg.n_trainings or scale.n_trainings)
    if "baselines" in chosen:
        stamps = read_stamps(datamodule, rows)
        note = f"radius by the data: {stamps.radius:.1f} px"
        for name, codes in codes_of_baselines(stamps).items():
            yield name, judge([codes]), note
    trained = f"{len(seeds)} trainings"
    if "pythae" in chosen:
        import numpy as np

        try:
            every = np.arange(len(objects))
            image = np.concatenate([each["image"].numpy() for each in datamodule.in_order(every)])
            found = codes_of_peer(image, settings, cfg.peers, folder / "pythae", seeds)
            yield PEER, judge([codes[rows] for codes in found]), trained
        except SideError as error:
            yield PEER, str(error), ""
    if "ours" in chosen:
        try:
            found, described, told = zip(
                *our_codes([*data, *scale.training, *cfg.ours], folder, seeds), strict=True
            )
            note = f"{trained}; {', '.join(cfg.ours) or 'default recipe'}; {'; '.join(told)}"
            in_rows = ([codes[rows] for codes in each] for each in (found, described))
            yield OURS, judge(*in_rows), note
        except (SideError, InputError) as error:
            yield OURS, str(error), ""


def rows_of(found: dict[str, tuple[Scores | str, str]]) -> list[Row]:
    """A row for every score of every representation; ours has its goal from the others."""
    from benchmarks.class_scores import SCORES
    from benchmarks.table import Row, not_measured

    scored = {name: scores for name, (scores, _) in found.items() if not isinstance(scores, str)}
    rows = []
    for name, (scores, note) in found.items():
        if isinstance(scores, str):
            rows.append(not_measured(name, (None, None), "", scores))
            continue
        for score in SCORES:
            unit = "NMI" if score in SCORES[:2] else "balanced accuracy"
            value, spread = scores.mean[score], float(scores.drawn[score].std())
            goal, against = None, "labels"
            told = f"{note}; over trainings {scores.over_seeds[score]:.3f}"
            others = {other: each for other, each in scored.items() if other != OURS}
            if name == OURS and others:
                best = max(others, key=lambda other: others[other].mean[score])
                goal, against = others[best].mean[score] - LEEWAY, best
                apart = scores.drawn[score] - others[best].drawn[score]
                told += f"; {value - goal - LEEWAY:+.3f} ± {apart.std():.3f} beside it"
            rows.append(Row(f"{name}: {score}", value, spread, unit, goal, None, against, told))
    return rows


def table_of(found: dict[str, tuple[Scores | str, str]]) -> str:
    """Representations by scores, in Markdown."""
    from benchmarks.class_scores import SCORES

    lines = [f"| representation | {' | '.join(SCORES)} |", "| --- " * (1 + len(SCORES)) + "|"]
    for name, (scores, _) in found.items():
        lines.append(f"| {name} | {_figures(scores)} |")
    return "\n".join(lines)


def _figures(scores: Scores | str) -> str:
    if isinstance(scores, str):
        return f"not measured: {scores} | | |"
    return " | ".join(
        f"{mean:.3f} ± {scores.drawn[score].std():.3f}" for score, mean in scores.mean.items()
    )


@hydra.main(config_path="../conf", config_name="benchmark_classes", version_base="1.3")
@endings.past_hydra
def main(cfg: DictConfig) -> None:
    """Measure who is asked for, print the table, write it."""
    from benchmarks.table import write_json, write_section

    from vae_astro.settings import check_choice, check_int

    scale = SCALES[check_choice("size", cfg.size, tuple(SCALES))]
    for name in cfg.only or ():
        check_choice("only", name, WHO)
    if cfg.n_trainings is not None:
        check_int("n_trainings", cfg.n_trainings, minimum=1)
    typed = [
        each for each in HydraConfig.get().overrides.task if each.lstrip("+~").startswith("data")
    ]
    own = any(each.startswith("data=") for each in typed)
    data = [*(() if own else scale.data), *typed]
    found: dict[str, tuple[Scores | str, str]] = {}

    with tempfile.TemporaryDirectory(dir=cfg.scratch) as folder:
        for name, scores, note in measured(cfg, scale, data, Path(folder)):
            found[name] = scores, note
            print(f"{name}: {_figures(scores)}  {note}", flush=True)
    print(table_of(found))
    if cfg.out:
        write_json(Path(cfg.out), rows_of(found))
    if cfg.docs:
        write_section(Path(cfg.docs), "classes", table_of(found))


if __name__ == "__main__":
    endings.run(main, "benchmark_classes", CONF)
