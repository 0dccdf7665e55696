"""Train a VAE: ``python train.py [GROUP=CHOICE] [key=value] ...``; see ``--help``."""

import sys

import hydra
from omegaconf import DictConfig

from vae_astro.folders import overrides_of_other_processes, register_resolvers

register_resolvers()


@hydra.main(config_path="conf", config_name="config", version_base="1.3")
def main(cfg: DictConfig) -> float:
    """Compose the configuration and run it; the ELBO comes back for hyper-parameter searches."""
    from vae_astro.run import train_command  # imports torch: not before it is needed

    return train_command(cfg)


if __name__ == "__main__":
    sys.argv += overrides_of_other_processes()
    try:
        main()
    except KeyboardInterrupt:  # before the training, which has its own way to stop
        sys.exit("stopped")
