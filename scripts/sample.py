"""Draw stamps that a trained model imagines: codes from its prior, decoded.

python scripts/sample.py checkpoint=runs/NAME n=64 out=samples.png
python scripts/sample.py checkpoint=runs/NAME n=1000 seed=1 out=samples.fits
"""

from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from vae_astro.command.endings import past_hydra, run
from vae_astro.command.help import register_help

CONF = Path(__file__).parents[1] / "conf"
register_help(CONF)


@hydra.main(config_path="../conf", config_name="sample", version_base="1.3")
@past_hydra
def main(cfg: DictConfig) -> None:
    """Sample the prior of a checkpoint."""
    from vae_astro.sample import sample

    settings = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(settings, dict)
    print(sample(settings))


if __name__ == "__main__":
    run(main, "sample", CONF)
