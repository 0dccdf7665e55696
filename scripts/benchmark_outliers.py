"""Planted oddities: how many are found at 1 % false alarms, beside an isolation forest.

python scripts/benchmark_outliers.py checkpoint=runs/NAME out=FILE.json [size=small]

Normal stamps and those that something is planted on are drawn anew, with seeds of their own; a
model of the simulated sky judges them. Every method is calibrated on the same normal stamps: the
isolation forest learns from the principal components of all of them, the other signs need nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import hydra
import numpy as np
from benchmarks.table import Row, write_json
from omegaconf import DictConfig

from vae_astro.command import endings
from vae_astro.command.help import register_help

CONF = Path(__file__).parents[1] / "conf"
register_help(CONF)

N = {"full": (2000, 4000, 500), "small": (300, 300, 25)}
"""Normal stamps to calibrate with, fresh ones to count false alarms on, stamps of each oddity."""
SEEDS = {"calibration": 1001, "fresh": 1002, "odd": 1003}
ALARMS = 0.01
BATCH = 128
N_SAMPLES = 16


def stamps(drawn: Iterable) -> np.ndarray:
    return np.stack([stamp.pixels for stamp in drawn])


def look_at(vae, pixels: np.ndarray):
    """Signs of raw stamps (N, H, W), and their normalised pixels (N, H * W)."""
    import torch

    from vae_astro.evaluate.anomalies import Signs
    from vae_astro.outliers import signs_of

    signs, images = [], []
    for first in range(0, len(pixels), BATCH):
        chunk = vae.normalizer(torch.from_numpy(pixels[first : first + BATCH])[:, None])
        index = torch.arange(first, first + len(chunk.image))
        batch = {"image": chunk.image, "mask": chunk.mask, "noise": chunk.noise, "index": index}
        signs.append(signs_of(vae, batch, N_SAMPLES)[0])
        images.append(chunk.image.flatten(1).numpy())
    return Signs.joined(signs), np.concatenate(images)


def methods(signs, images: np.ndarray) -> dict[str, Callable]:
    """Oddness by each method, of (signs, images); fitted to normal stamps."""
    from sklearn.decomposition import PCA
    from sklearn.ensemble import IsolationForest

    from vae_astro.evaluate.anomalies import calibrate

    calibration = calibrate(signs)
    pca = PCA(16, svd_solver="randomized", random_state=0).fit(images)
    forest = IsolationForest(n_estimators=500, random_state=0).fit(pca.transform(images))
    codes = IsolationForest(n_estimators=500, random_state=0).fit(signs.mean)
    return {
        "all signs": lambda s, x: calibration.oddness(s),
        "p-value": lambda s, x: -calibration.p_values(s),
        "log-likelihood": lambda s, x: -s.log_likelihood_nats / s.n_good,
        "chi-squared": lambda s, x: s.chi2_per_pixel,
        "latent density": lambda s, x: -calibration.latent_log_density(s),
        "isolation forest, PCA(16)": lambda s, x: -forest.score_samples(pca.transform(x)),
        "isolation forest, code": lambda s, x: -codes.score_samples(s.mean),
    }


def measure(cfg: DictConfig) -> list[Row]:
    import torch
    from benchmarks.oddities import ODDITIES, plant_on

    from vae_astro.checkpoint import find_checkpoint
    from vae_astro.data.sky_model import draw_stamp
    from vae_astro.errors import InputError
    from vae_astro.vae import VAE

    if cfg.checkpoint is None:
        raise InputError("checkpoint is not set; give a run of simulated stamps, runs/NAME")
    path = find_checkpoint("checkpoint", cfg.checkpoint)
    vae = VAE.load_from_checkpoint(path, map_location="cpu", weights_only=True).eval()
    torch.set_num_threads(cfg.threads)
    width = vae.stamp_shape[1]
    n_calibration, n_fresh, n_odd = N[cfg.size]

    def drawn(what: str, n: int):
        return look_at(vae, stamps(draw_stamp(k, seed=SEEDS[what], size=width) for k in range(n)))

    normal, fresh = drawn("calibration", n_calibration), drawn("fresh", n_fresh)
    odd = {
        kind: look_at(
            vae, stamps(plant_on(k, kind, seed=SEEDS["odd"], size=width) for k in range(n_odd))
        )
        for kind in ODDITIES
    }
    found = methods(*normal)
    by_p = found.pop("p-value")
    alarms = float(np.mean(-by_p(*fresh) < ALARMS))
    rows = [
        Row(
            name="false alarms at p < 0.01",
            value=alarms,
            spread=float(np.sqrt(ALARMS * (1 - ALARMS) * (1 / n_fresh + 1 / n_calibration))),
            unit="share of normal stamps",
            base=ALARMS,
            hard="0.005 to 0.02",
            against="the p-value's own promise, on average over calibrations",
            note=f"{n_fresh} fresh stamps, {n_calibration} to calibrate",
        )
    ]
    recalls = {}
    for name, oddness in found.items():
        line = np.quantile(oddness(*fresh), 1 - ALARMS)
        recalls[name] = {kind: float(np.mean(oddness(*seen) > line)) for kind, seen in odd.items()}
    recalls["p < 0.01"] = {
        kind: float(np.mean(-by_p(*seen) < ALARMS)) for kind, seen in odd.items()
    }
    base = np.mean(list(recalls["isolation forest, PCA(16)"].values()))
    for name, recall in recalls.items():
        mean = float(np.mean(list(recall.values())))
        rows.append(
            Row(
                name=f"recall, {name}",
                value=mean,
                spread=float(np.sqrt(mean * (1 - mean) / (n_odd * len(odd)))),
                unit="share of planted stamps",
                base=float(2 * base),
                hard=None,
                against="twice the isolation forest on PCA(16)",
                note=", ".join(f"{kind} {value:.3f}" for kind, value in recall.items()),
            )
        )
    return rows


def table(rows: list[Row]) -> str:
    return "\n".join(
        f"{row.name:36s} {row.value:7.4f} +- {row.spread:.4f}   {row.note}" for row in rows
    )


@hydra.main(config_path="../conf", config_name="benchmark_outliers", version_base="1.3")
@endings.past_hydra
def main(cfg: DictConfig) -> None:
    """Draw, judge, print the table, write the figures."""
    from vae_astro.settings import check_choice

    check_choice("size", cfg.size, tuple(N))
    rows = measure(cfg)
    print(table(rows))
    if cfg.out:
        write_json(Path(cfg.out), rows)


if __name__ == "__main__":
    endings.run(main, "benchmark_outliers", CONF)
