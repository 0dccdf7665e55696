"""The command that packs finds the store that training looks for."""

from __future__ import annotations

import inspect
from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

from vae_astro.data.datamodule import StampDataModule
from vae_astro.data.store.settings import FOR_TRAINING, packer_from
from vae_astro.errors import InputError
from vae_astro.folders import register_resolvers

CONF = Path(__file__).parents[3] / "conf"


def settings_of(*overrides: str) -> dict:
    register_resolvers()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_container(hydra.compose("pack", list(overrides)), resolve=True)


@pytest.mark.parametrize(
    "overrides",
    [
        *[(f"data={shape}", "data.root=sky") for shape in ("fits", "alerts", "simulated")],
        ("data.root=sky", "data.size=30", "data.normalize.saturation=50000"),
        ("data.root=sky", "data.normalize.saturation=[1e4,2]", "data.store_dir=elsewhere"),
        ("data.root=sky", "+data.stored_as=float16", "+data.allow_outside=true"),
        ("data.root=sky", "pack.n_processes=3", "pack.cluster=local", "data.hdu=2"),
    ],
    ids=" ".join,
)
def test_the_root_and_the_packer_are_those_of_the_data_module(overrides):
    overrides = [each.replace("+data", "++data") for each in overrides]
    settings = settings_of(*overrides)
    module = StampDataModule(**settings["data"], pack=settings["pack"])
    root, packer = packer_from(settings["data"], settings["pack"])
    assert packer == module.packer
    assert packer.path(root) == module.packer.path(module.root)


def test_every_key_of_the_data_module_is_for_packing_for_training_or_the_readers():
    keys = set(inspect.signature(StampDataModule).parameters) - {"sources"}
    packing = {"root", "format", "normalize", "pack", "progress", "size"}
    assert keys == packing | set(FOR_TRAINING)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((), r"data\.root is not set"),
        (("data.root=sky", "++data.sizes=3"), r"has no setting data\.sizes"),
        (("data.root=sky", "data.format=jpeg"), r"data\.format must be one of"),
        (("data.root=sky", "++pack.processes=3"), r"pack has no setting pack\.processes"),
        (("data.root=sky", "data.normalize.saturation=high"), r"data\.normalize\.saturation"),
    ],
)
def test_a_setting_that_is_wrong_is_named(overrides, message):
    settings = settings_of(*overrides)
    with pytest.raises(InputError, match=message):
        packer_from(settings["data"], settings["pack"])


@pytest.mark.parametrize(
    "overrides",
    [
        ("data=arrays", "data.columns={label: ans}"),
        ("data=mosaics", "data.columns={ra: RA_GAIA, dec: DE_GAIA}", "data.catalogue=c.csv"),
        ("data=mosaics", "data.bands={green: _g_, red: _r_}", "data.catalogue=c.csv"),
    ],
)
def test_mappings_can_be_typed_as_the_configuration_shows_them(overrides):
    settings = settings_of(*overrides, "data.root=sky")
    packer_from(settings["data"], settings["pack"])
