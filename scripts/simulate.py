"""Draw labelled stamps and write them as FITS.

python scripts/simulate.py data.n_stamps=2000 data.root=stamps/mine [n_processes=1]
python scripts/simulate.py data=simulated --help            what can be set of the stamps
"""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from vae_astro.command.endings import past_hydra, run
from vae_astro.command.help import register_help
from vae_astro.folders import register_resolvers

CONF = Path(__file__).parents[1] / "conf"
register_resolvers()
register_help(CONF)


@hydra.main(config_path="../conf", config_name="simulate", version_base="1.3")
@past_hydra
def main(cfg: DictConfig) -> None:
    """Simulate ``data.n_stamps`` stamps below ``data.root``."""
    import time

    from vae_astro.data.simulate import GAIN_E_PER_ADU, SATURATION_ADU, simulate
    from vae_astro.errors import InputError
    from vae_astro.settings import check_bool

    if "n_stamps" not in cfg.data:
        raise InputError("only data=simulated can be drawn; leave data= away")
    began = time.perf_counter()
    root = simulate(
        Path(cfg.data.root),
        n_stamps=cfg.data.n_stamps,
        seed=cfg.data.simulation_seed,
        size=cfg.data.size,
        n_processes=cfg.n_processes,
        progress=check_bool("progress", cfg.progress),
    )
    seconds = time.perf_counter() - began
    print(f"{cfg.data.n_stamps} stamps below {root} in {seconds:.1f} s; train on them with:")
    print(
        f"python train.py data=fits data.root={root} data.normalize.gain={GAIN_E_PER_ADU} "
        f"data.normalize.saturation={SATURATION_ADU:g}"
    )


if __name__ == "__main__":
    run(main, "simulate", CONF)
