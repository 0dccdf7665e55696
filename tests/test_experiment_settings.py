"""What the files of conf/experiment/ compose to, without a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from vae_astro.checked import check, run_settings
from vae_astro.command.help import register_help
from vae_astro.folders import register_resolvers

CONF = Path(__file__).parents[1] / "conf"
EXPERIMENTS = CONF / "experiment"
OF_ONE_READER = {"faint", "ztf"}
"""Experiments that choose their reader themselves."""


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


@pytest.mark.parametrize("reader", ["fits", "alerts", "alert_table", "mosaics", "simulated"])
@pytest.mark.parametrize(
    "experiment", sorted({file.stem for file in EXPERIMENTS.glob("*.yaml")} - OF_ONE_READER)
)
def test_an_experiment_sets_nothing_that_its_reader_does_not_have(
    experiment: str, reader: str
) -> None:
    of_reader = composed(f"data={reader}").data
    data = composed(f"experiment={experiment}", f"data={reader}").data
    assert set(data) == set(of_reader)
    assert set(data.normalize) == set(of_reader.normalize)
    if reader != "simulated":
        assert data.root is None


def test_experiments_may_be_several_or_none() -> None:
    assert composed("experiment=[quick,classes]").model.name == "rings"
    assert composed("experiment=[quick,classes]", "data=fits").data.root is None
    assert composed("~experiment").data.n_stamps == composed().data.n_stamps


@pytest.mark.parametrize("experiment", ["question", "question_repaired"])
def test_the_question_is_asked_of_few_simulated_stamps_and_of_any_others(
    experiment: str, tmp_path: Path
) -> None:
    asked = f"experiment={experiment}"
    assert composed(asked).data.n_stamps == 2000
    assert composed(asked, "data=simulated").data.n_stamps == 2000
    assert composed(asked, "data.n_stamps=30").data.n_stamps == 30
    fits.writeto(tmp_path / "stamp.fits", np.zeros((24, 24), np.float32))
    overrides = [asked, "data=fits", f"data.root={tmp_path}", "trainer=cpu"]
    cfg = composed(*overrides)
    del cfg.hydra
    checked = check(run_settings(cfg, overrides), tmp_path / "run")
    assert checked.datamodule.n_stamps is None
    assert checked.datamodule.batch_size == 32
