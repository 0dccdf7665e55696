"""Codes of networks that are trained for it: pythae's VAE and this project's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.jobs import command
from benchmarks.peers import peers_folder
from benchmarks.turns import with_peers

__all__ = ["codes_of_peer", "our_codes"]

USUAL_BATCH = 64


def codes_of_peer(
    image: np.ndarray, settings: dict[str, Any], peers: str | None, folder: Path, seeds: range
) -> list[np.ndarray]:
    """Posterior means (N, Z) of pythae's VAE around the network of ``settings``, for each seed.

    As many epochs as ``train.py`` would make of the same stamps.

    Raises
    ------
    SideError
        It cannot be installed, or fails.
    """
    from vae_astro.hardware import EPOCHS, USUAL_STEPS

    environment = with_peers(peers_folder(peers))
    settings["data"]["batch_size"] = settings["data"]["batch_size"] or USUAL_BATCH
    n_epochs = settings["trainer"]["max_epochs"]
    if n_epochs is None:
        steps = -(-len(image) // settings["data"]["batch_size"])
        n_epochs = int(np.clip(-(-USUAL_STEPS // steps), *EPOCHS))
    folder.mkdir()
    np.savez(folder / "stamps.npz", image=image)
    (folder / "settings.json").write_text(json.dumps(settings))
    given = [folder / "stamps.npz", folder / "settings.json", folder, n_epochs, *seeds]
    command("scripts/peers/pythae_codes.py", list(map(str, given)), environment)
    return [np.load(folder / f"codes-{seed}.npy") for seed in seeds]


def our_codes(
    overrides: Sequence[str], folder: Path, seeds: range
) -> Iterator[tuple[np.ndarray, np.ndarray, str]]:
    """Codes of all stamps of the store by a run for each seed, and its verdict.

    First the units that the network has for classes, (N, D), then those for the object, (N, E),
    as ``scripts/classify.py`` has them: it looks for classes in the first and asks neighbours in
    the second.

    Raises
    ------
    SideError
        A training or embedding fails.
    """
    import pyarrow.parquet as pq

    from vae_astro import VAE
    from vae_astro.collapse.units import ACTIVE_VARIANCE
    from vae_astro.evaluate.clusters import frame_of

    for seed in seeds:
        run_dir, out = folder / f"run-{seed}", folder / f"codes-{seed}.parquet"
        command("train.py", [*overrides, f"seed={seed}", f"run_dir={run_dir}"], {})
        given = [f"checkpoint={run_dir}", f"out={out}", "split=all", "progress=false"]
        command("scripts/embed.py", given, {})
        table = pq.read_table(out, columns=["latent_mean", "latent_std"])
        mean, std = (np.stack(column.to_numpy()) for column in table.columns)
        path = run_dir / "checkpoints" / "best.ckpt"
        vae = VAE.load_from_checkpoint(path, map_location="cpu", weights_only=True)
        clustered, described = (
            frame_of(mean, std, units, ACTIVE_VARIANCE)(mean, std)[0]
            for units in (vae.clustered_units, vae.object_units)
        )
        found = json.loads((run_dir / "metrics.json").read_text())["collapse"]
        told = f"{found['active_units']} of {found['latent_dim']} units active"
        yield clustered, described, told
