"""Draw stamps that a trained model imagines: codes from its prior, decoded.

python scripts/sample.py checkpoint=runs/NAME n=64 out=samples.png
python scripts/sample.py checkpoint=runs/NAME n=1000 seed=1 out=samples.fits
"""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from vae_astro.command.endings import run
from vae_astro.command.help import register_help

CONF = Path(__file__).parents[1] / "conf"
register_help(CONF)


@hydra.main(config_path="../conf", config_name="sample", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Sample the prior of a checkpoint."""
    from vae_astro.errors import InputError
    from vae_astro.sample import sample

    settings = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(settings, dict)
    try:
        print(sample(settings))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run(main, "sample", CONF)
