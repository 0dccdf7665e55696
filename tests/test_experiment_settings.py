"""What the files of conf/experiment/ compose to, without a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from vae_astro.command.help import register_help
from vae_astro.folders import register_resolvers

CONF = Path(__file__).parents[1] / "conf"


def composed(*overrides: str) -> DictConfig:
    """Settings with those of Hydra."""
    register_resolvers()
    register_help(CONF)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(overrides), return_hydra_config=True)


@pytest.mark.parametrize(
    ("overrides", "folder"),
    [
        (["experiment=beta_sweep", "beta.end=0.1"], "3_beta_0.1"),
        (["experiment=beta_sweep", "beta.end=1000"], "3_beta_1000"),
        (["experiment=latent_sweep", "model.latent_dim=4"], "3_units_4"),
        (["experiment=latent_sweep", "model.latent_dim=4", "data=fits", "data.root=a/b"],
         "3_units_4"),
        (["experiment=classes_consensus", "seed=1"], "3"),
        (["beta.end=0.1"], "3"),
    ],
)  # fmt: skip
def test_folders_of_a_sweep_say_what_was_set(overrides: list[str], folder: str) -> None:
    cfg = composed(*overrides)
    cfg.hydra.job.num = 3
    assert str(cfg.hydra.sweep.subdir) == folder
