"""Rank stamps by how odd they are, with p-values that are calibrated on normal ones.

python scripts/outliers.py checkpoint=runs/NAME out=outliers.parquet [figure=outliers.png]
python scripts/outliers.py checkpoint=runs/NAME data=fits data.root=FOLDER [calibrate_on=NORMAL]
"""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from vae_astro.command.endings import past_hydra, run
from vae_astro.command.help import register_help
from vae_astro.folders import register_resolvers

CONF = Path(__file__).parents[1] / "conf"
register_resolvers()
register_help(CONF)


@hydra.main(config_path="../conf", config_name="outliers", version_base="1.3")
@past_hydra
def main(cfg: DictConfig) -> None:
    """Rank the stamps of the data group, or those that the run was trained on."""
    from vae_astro.outliers import outliers

    settings = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(settings, dict)
    print(outliers(settings, list(HydraConfig.get().overrides.task)))


if __name__ == "__main__":
    run(main, "outliers", CONF)
