"""Embed stamps: a catalogue of what the encoder of a run makes of each.

python scripts/embed.py checkpoint=runs/NAME out=latents.parquet [split=val] [scores=true]
python scripts/embed.py checkpoint=runs/NAME data=fits data.root=FOLDER [trainer=gpu]
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


@hydra.main(config_path="../conf", config_name="embed", version_base="1.3")
@past_hydra
def main(cfg: DictConfig) -> None:
    """Embed the stamps of the data group, or those that the run was trained on."""
    from vae_astro.embed import embed

    settings = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(settings, dict)
    done = embed(settings, list(HydraConfig.get().overrides.task))
    if done is not None:
        print(done)


if __name__ == "__main__":
    run(main, "embed", CONF)
