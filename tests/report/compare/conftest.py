"""Run folders as training leaves them, written by hand."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.utils.tensorboard import SummaryWriter

WriteRun = Callable[..., Path]


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """``write_run(name, elbo=..., **settings)``: a run folder; ``elbo=None`` is not over yet."""

    def write(
        name: str,
        elbo: float | None = -100.0,
        curves: Mapping[str, Mapping[int, float]] | None = None,
        kl: float = 5.0,
        nmi: float | None = 0.5,
        **settings: Any,
    ) -> Path:
        folder = tmp_path / name
        (folder / ".hydra").mkdir(parents=True)
        config: dict[str, Any] = {
            "seed": 0,
            "run_dir": "${run_folder:${resume}}",
            "resume": None,
            "data": {"root": "stamps", "size": 32, "batch_size": None},
            "model": {"name": "conv", "latent_dim": 4},
            "likelihood": {"name": "sigma", "learn": "closed_form"},
            "beta": {"name": "linear", "end": 1.0},
            "trainer": {"max_epochs": 4},
        }
        for key, value in settings.items():
            group, _, leaf = key.partition("__")
            if leaf:
                config[group][leaf] = value
            else:
                config[group] = value
        (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
        if elbo is not None:
            metrics = {
                "val": {
                    "elbo_nats": elbo,
                    "reconstruction_nats": elbo + kl,
                    "kl_nats": kl,
                    "chi2_per_pixel": 1.02,
                },
                "collapse": {
                    "verdict": "none" if kl else "full",
                    "active_units": 3 if kl else 0,
                    "latent_dim": 4,
                    "forecast": {"kl_nats": 6.0},
                },
                "classes": {"nmi": nmi, "ari": nmi, "nmi_pca": 0.3, "ari_pca": 0.2},
                "data": {"n_val": 30},
                "timing": {
                    "seconds_total": 125.0,
                    "seconds_fit": 60.0,
                    "train_stamps_per_second": 500.0,
                },
            }
            (folder / "metrics.json").write_text(json.dumps(metrics))
        if curves:
            with SummaryWriter(folder, filename_suffix=f".{time.time_ns()}") as writer:
                for tag, points in curves.items():
                    for step, value in points.items():
                        writer.add_scalar(tag, value, step)
        return folder

    return write
