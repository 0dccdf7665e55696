"""A warm start into other sizes is nearer to the goal than a fresh one at the first validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from vae_astro.folders import register_resolvers
from vae_astro.run import train

ROOT = Path(__file__).parents[2]
MODELS = {
    "conv": ["model=conv", "model.width=16", "model.latent_dim=6"],
    "mlp": ["model=mlp", "model.hidden=[64,32]", "model.latent_dim=6"],
    "linear": ["model=linear", "model.latent_dim=6"],
    "rings": ["model=rings", "model.width=8", "model.latent_dim=10", "model.shape_units=3"],
}
OTHER_SIZES = {
    "more units": "model.latent_dim=14",
    "larger stamps": "data.size=48",
    "smaller stamps": "data.size=24",
}


def elbo(folder: Path, name: str, *overrides: str) -> float:
    """Validation ELBO of a run in nats per stamp."""
    register_resolvers()
    asked = [
        "data=simulated", "data.n_stamps=600", "data.size=32", "data.batch_size=32", "trainer=cpu",
        f"data.store_dir={folder / 'stores'}", f"data.root={folder}/stamps-${{data.size}}",
        "trainer.check_val_every_n_epoch=1", "callbacks.progress=false", "callbacks.time_share=0",
        "collapse.forecast_stamps=0", *overrides,
    ]  # fmt: skip
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", [*asked, f"run_dir={folder / name}"])
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    return train(settings, folder / name).metrics["val"]["elbo_nats"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", MODELS)
def test_a_warm_start_is_nearer_than_a_fresh_one(tmp_path: Path, model: str) -> None:
    chosen = MODELS[model]
    elbo(tmp_path, "given", *chosen, "trainer.max_epochs=15")
    for what, override in OTHER_SIZES.items():
        asked = [*chosen, override, "trainer.max_epochs=1"]
        fresh = elbo(tmp_path, f"fresh {what}", *asked)
        warm = elbo(tmp_path, f"warm {what}", *asked, f"init_from={tmp_path / 'given'}")
        print(f"{model}, {what}: fresh {fresh:.1f}, warm {warm:.1f} nats per stamp")
        assert warm > fresh
