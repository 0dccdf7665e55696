"""Train a VAE: ``python train.py [GROUP=CHOICE] [key=value] ...``; see ``--help``."""

import signal
import sys

from vae_astro.stopping import SIGNALS, leave

if __name__ == "__main__":
    for number in SIGNALS:  # what follows takes a second to import
        signal.signal(number, leave)

from pathlib import Path

import hydra
from omegaconf import DictConfig

from vae_astro.command.endings import run
from vae_astro.command.help import register_help
from vae_astro.folders import (
    overrides_of_other_processes,
    overrides_of_resumed_run,
    register_resolvers,
)

CONF = Path(__file__).parent / "conf"
register_resolvers()
register_help(CONF)


@hydra.main(config_path="conf", config_name="config", version_base="1.3")
def main(cfg: DictConfig) -> float:
    """Compose the configuration and run it; the ELBO comes back for hyper-parameter searches."""
    from vae_astro.run import train_command  # imports torch: not before it is needed

    return train_command(cfg)


if __name__ == "__main__":
    sys.argv[1:] = overrides_of_resumed_run(sys.argv[1:])
    sys.argv += overrides_of_other_processes()
    try:
        run(main, "config", CONF)
    finally:
        for number in SIGNALS:  # all is said: the end of Python would let them kill once more
            signal.signal(number, signal.SIG_IGN)
