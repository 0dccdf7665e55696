"""Say before training whether the latent code will collapse, and what would keep it alive.

python scripts/forecast.py data=fits data.root=FOLDER likelihood=gaussian beta.end=4 \\
    [out=FILE.json] [figure=FILE.png]
"""

from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from vae_astro.command.endings import past_hydra, run
from vae_astro.command.files import figure_to_write, file_to_write, whole, write_whole
from vae_astro.command.help import register_help
from vae_astro.folders import register_resolvers

CONF = Path(__file__).parents[1] / "conf"
register_resolvers()
register_help(CONF)


@hydra.main(config_path="../conf", config_name="forecast", version_base="1.3")
@past_hydra
def main(cfg: DictConfig) -> None:
    """Forecast one run from its stamps and settings."""
    import json
    import time

    from vae_astro.api import forecast
    from vae_astro.data.datamodule import StampDataModule
    from vae_astro.model.focus import build_likelihood
    from vae_astro.model.networks import MOST_UNITS
    from vae_astro.objective.beta import SCHEDULES
    from vae_astro.report.figures import spectrum
    from vae_astro.report.tables import forecast_table
    from vae_astro.settings import build, check_int

    settings = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(settings, dict)
    latent_dim = check_int(
        "model.latent_dim", settings["model"]["latent_dim"], minimum=1, maximum=MOST_UNITS
    )
    n_stamps = check_int("n_stamps", settings["n_stamps"], minimum=2)
    steps = check_int("steps", settings["steps"], minimum=1)
    out = file_to_write("out", settings["out"])
    figure = figure_to_write("figure", settings["figure"])
    datamodule = StampDataModule(
        **settings["data"], seed=settings["seed"], progress=settings["progress"]
    )
    # all that is asked for is checked before anything is packed
    build("beta", SCHEDULES, settings["beta"], total_steps=steps)
    build_likelihood(settings["likelihood"], n_bands=1, size=64, normalizer=datamodule.normalizer)
    datamodule.prepare_data()
    datamodule.setup()
    began = time.perf_counter()
    foreseen = forecast(
        datamodule,
        likelihood=settings["likelihood"],
        beta=settings["beta"],
        latent_dim=latent_dim,
        n_stamps=n_stamps,
        steps=steps,
    )
    print(f"read and measured in {time.perf_counter() - began:.1f} s")
    print(forecast_table(foreseen, model=settings["model"]["name"]))
    if out is not None:
        write_whole(out, json.dumps(foreseen.as_dict(), indent=2) + "\n")
        print(f"written: {out}")
    if figure is not None:
        end, passed = foreseen.end, foreseen.passed_threshold
        with whole(figure) as partial:
            spectrum(end.eigenvalues, end.threshold, end.latent_dim, passed).savefig(
                partial, dpi=150
            )
        print(f"drawn: {cfg.figure}")


if __name__ == "__main__":
    run(main, "forecast", CONF)
