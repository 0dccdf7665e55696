"""Find classes that nobody labelled, name them, and give them to other stamps.

python scripts/classify.py checkpoint=runs/NAME out=classes [n_classes=8] [data.labels=FILE.csv]
python scripts/classify.py checkpoint=[runs/A,runs/B,runs/C] out=classes
python scripts/classify.py names=classes/classes.yaml
python scripts/classify.py classes=classes data=fits data.root=FOLDER catalogue=new.fits
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


@hydra.main(config_path="../conf", config_name="classify", version_base="1.3")
@past_hydra
def main(cfg: DictConfig) -> None:
    """Find, name or assign classes."""
    from vae_astro.classify import classify

    settings = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(settings, dict)
    said = classify(settings, list(HydraConfig.get().overrides.task))
    if said is not None:
        print(said)


if __name__ == "__main__":
    run(main, "classify", CONF)
