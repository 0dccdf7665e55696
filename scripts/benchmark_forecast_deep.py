"""Deep VAEs in settings drawn by chance, against their forecast: collapse or not, and the KL.

python scripts/benchmark_forecast_deep.py real_data=FOLDER out=FILE.json [size=small]

Each setting is drawn once, by a fixed seed: data set, normalisation, likelihood, network and how
far its largest eigenvalue lies from the threshold. Nothing about the forecast was chosen by them.
"""

from __future__ import annotations

import gzip
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import numpy as np
from benchmarks.table import Row, write_json
from omegaconf import DictConfig

from vae_astro.command import endings
from vae_astro.command.help import register_help

CONF = Path(__file__).parents[1] / "conf"
register_help(CONF)

SEED = 2025
N_SETTINGS = {"full": 40, "small": 4}
N_STEPS = {"full": 1500, "small": 60}
LATENT_DIM = 8
SIZE = 32
MARGIN = 1.3
"""Distance from the threshold from which a call counts, as a ratio."""
FARTHEST = {"above": 300.0, "below": 10.0}
NEEDED = {"calls": 38, "kl_off": 0.35}
DATA = (
    ("simulated", "asinh"),
    ("simulated", "minmax"),
    ("ZTF science", "asinh"),
    ("ZTF science", "minmax"),
    ("MNIST", "minmax"),
)
LIKELIHOODS = ("gaussian", "pixel_mean_mse", "sigma", "student_t", "bernoulli")
NETWORKS: dict[str, dict[str, Any]] = {
    "conv": {"name": "conv", "width": 16, "latent_dim": LATENT_DIM},
    "mlp": {"name": "mlp", "latent_dim": LATENT_DIM},
}


@dataclass(frozen=True)
class Setting:
    """One run: what it sees, how it is judged, and how far above the threshold it starts."""

    data: str
    stretch: str
    likelihood: str
    network: str
    ratio: float  # largest eigenvalue over threshold


def draw_settings(n: int, names: set[str]) -> list[Setting]:
    """``n`` settings among the data sets that are here, every second one below the threshold."""
    rng = np.random.default_rng(SEED)
    data = [pair for pair in DATA if pair[0] in names]
    drawn = []
    for k in range(n):
        source, stretch = data[rng.integers(len(data))]
        possible = LIKELIHOODS if stretch == "minmax" else LIKELIHOODS[:-1]
        side = "above" if k % 2 else "below"
        far = float(np.exp(rng.uniform(np.log(MARGIN), np.log(FARTHEST[side]))))
        drawn.append(
            Setting(
                source,
                stretch,
                possible[rng.integers(len(possible))],
                list(NETWORKS)[rng.integers(len(NETWORKS))],
                far if side == "above" else 1 / far,
            )
        )
    return drawn


def sources(cfg: DictConfig) -> dict[str, dict[str, Any]]:
    """Settings of the data module for each data set that is here."""
    found: dict[str, dict[str, Any]] = {
        "simulated": {
            "root": f"{cfg.stamps_dir}/simulated-2000x{SIZE}-seed0",
            "n_stamps": 2000,
            "size": SIZE,
        }
    }
    if cfg.real_data:
        real = Path(cfg.real_data)
        found["ZTF science"] = {
            "root": str(real / "ztf_alerts"),
            "format": "alerts",
            "cutouts": ["science"],
            "size": SIZE,
        }
        cube = Path(cfg.stamps_dir) / "mnist-2000.fits"
        write_digits(real / "MNIST" / "raw" / "train-images-idx3-ubyte.gz", cube)
        found["MNIST"] = {"root": str(cube), "cube": "stamps", "size": 28, "augment": False}
    return found


def write_digits(idx: Path, cube: Path) -> None:
    """The first 2000 digits as one FITS cube."""
    from astropy.io import fits

    if not cube.exists():
        with gzip.open(idx) as file:
            pixels = np.frombuffer(file.read(16 + 2000 * 784)[16:], np.uint8)
        cube.parent.mkdir(parents=True, exist_ok=True)
        fits.writeto(cube, pixels.reshape(2000, 28, 28).astype(np.float32))


def open_data(cfg: DictConfig, settings: dict[str, Any], stretch: str):
    from vae_astro.data.datamodule import StampDataModule

    datamodule = StampDataModule(
        **settings,
        normalize={"stretch": stretch},
        batch_size=64,
        val_fraction=0.2,
        test_fraction=0.0,
        store_dir=cfg.store_dir,
        progress=False,
    )
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


def weighted(setting: Setting, datamodule) -> tuple[dict[str, Any], float]:
    """Likelihood settings and final beta that put the threshold where the setting wants it."""
    from vae_astro.collapse.spectrum import measure_spectrum
    from vae_astro.model.likelihoods import LIKELIHOODS as REGISTRY
    from vae_astro.settings import build

    plain: dict[str, Any] = {"name": setting.likelihood}
    if setting.likelihood == "bernoulli" and setting.data == "MNIST":
        plain["kind"] = "continuous"
    likelihood = build("likelihood", REGISTRY, plain, n_bands=len(datamodule.store.band_names))
    spectrum = measure_spectrum(datamodule.training_sample(8192), likelihood)
    room = float(spectrum.eigenvalues[0]) / setting.ratio
    if setting.likelihood == "gaussian":
        return plain | {"std": room**0.5}, 1.0
    if setting.likelihood == "pixel_mean_mse":
        return plain | {"kl_weight": room}, 1.0
    return plain, room


def run(setting: Setting, datamodule, n_steps: int) -> dict[str, Any]:
    """Forecast, train, judge."""
    from lightning import Trainer, seed_everything

    from vae_astro.collapse.forecast import forecast_run
    from vae_astro.collapse.verdict import judge
    from vae_astro.evaluate.scores import score_stamps
    from vae_astro.vae import VAE

    likelihood, beta = weighted(setting, datamodule)
    seed_everything(0, verbose=False)
    vae = VAE(
        list(datamodule.store.stamp_shape),
        model=NETWORKS[setting.network],
        likelihood=likelihood,
        beta={"name": "linear", "end": beta},
        normalize={"stretch": setting.stretch},
        log_every_n_steps=10**9,
    )
    foreseen = forecast_run(
        datamodule.training_sample(8192),
        vae.likelihood,
        LATENT_DIM,
        vae.schedule,  # made for a run of one step: it ends where any does
        n_steps,
    )
    began = time.perf_counter()
    trainer = Trainer(
        max_steps=n_steps,
        accelerator="cpu",
        gradient_clip_val=200.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        use_distributed_sampler=False,
    )
    trainer.fit(vae, train_dataloaders=datamodule.train_dataloader())
    scores = score_stamps(vae, datamodule.in_order(datamodule.val_rows))
    verdict = judge(scores.mean, scores.kl_per_unit, vae.prior.unit_std().cpu().numpy())
    return {
        **vars(setting),
        "forecast": foreseen.verdict,
        "kl_forecast": foreseen.end.kl_nats,
        "units_forecast": foreseen.end.active_units,
        "trained": verdict.verdict,
        "kl_trained": verdict.kl_nats,
        "units_trained": verdict.active_units,
        "seconds": time.perf_counter() - began,
    }


def right(row: dict[str, Any]) -> bool:
    """Collapse or not, as forecast."""
    return (row["forecast"] == "full") == (row["trained"] == "full")


def line(row: dict[str, Any]) -> str:
    return (
        f"{row['data']:12s} {row['stretch']:7s} {row['likelihood']:15s} {row['network']:5s}"
        f"{row['ratio']:8.3g} {row['forecast']:>8s} {row['trained']:>8s} {row['kl_forecast']:8.2f}"
        f"{row['kl_trained']:8.2f} {row['units_forecast']:4d} {row['units_trained']:4d}"
        f"{row['seconds']:6.0f} s  {'right' if right(row) else 'WRONG'}"
    )


HEADER = (
    "data         stretch likelihood      net     ratio forecast  trained   KL for  KL got "
    "units got"
)


def closing(rows: list[dict[str, Any]]) -> str:
    """The two figures that count."""
    judged = kl_errors(rows)
    told = f"called right: {sum(map(right, rows))} of {len(rows)}"
    if judged:
        within = sum(error <= NEEDED["kl_off"] for error in judged)
        told += (
            f"; forecast above 2 nats: {len(judged)}, of them within 35 %: {within}, median error "
            f"{100 * float(np.median(judged)):.1f} %, largest {100 * max(judged):.1f} %"
        )
    return told


def kl_errors(rows: list[dict[str, Any]]) -> list[float]:
    return [
        abs(row["kl_trained"] / row["kl_forecast"] - 1) for row in rows if row["kl_forecast"] > 2
    ]


def results(rows: list[dict[str, Any]]) -> list[Row]:
    """The rows that the benchmarks share."""
    errors = kl_errors(rows)
    return [
        Row(
            name="collapse or not called right",
            value=sum(map(right, rows)) / len(rows),
            spread=None,
            unit="share",
            base=len(rows),
            hard=f"at least {NEEDED['calls']} of {N_SETTINGS['full']}",
            note="settings more than 30 % from the threshold",
            against="forecast",
        ),
        Row(
            name="KL trained over forecast, median error",
            value=float(np.median(errors)) if errors else None,
            spread=None,
            unit="ratio",
            base=len(errors),
            hard=f"all within {NEEDED['kl_off']}",
            note=f"largest error {max(errors, default=float('nan')):.3f}",
            against="forecast",
        ),
    ]


def selected(cfg: DictConfig) -> Iterator[tuple[Setting, dict[str, Any]]]:
    from vae_astro.settings import check_choice

    n_settings = N_SETTINGS[check_choice("size", cfg.size, tuple(N_SETTINGS))]
    available = sources(cfg)
    for setting in draw_settings(n_settings, set(available)):
        yield setting, available[setting.data]


@hydra.main(config_path="../conf", config_name="benchmark", version_base="1.3")
@endings.past_hydra
def main(cfg: DictConfig) -> None:
    """Run them all, print the table, write the figures."""
    import logging
    import warnings

    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*but have no .val_dataloader.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    rows = []
    print(HEADER)
    for setting, source in selected(cfg):
        datamodule = open_data(cfg, source, setting.stretch)
        rows.append(run(setting, datamodule, N_STEPS[cfg.size]))
        print(line(rows[-1]), flush=True)
    print(closing(rows))
    if cfg.out:
        write_json(Path(cfg.out), results(rows), runs=rows)


if __name__ == "__main__":
    endings.run(main, "benchmark", CONF)
