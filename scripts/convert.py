"""Convert a loss and its weights to beta * s2, the number that decides over collapse.

python scripts/convert.py loss=mse reduction=pixel_mean kl_reduction=unit_mean latent_dim=256 \\
    weight=0.1 shape=3x64x64 [eigenvalue=76] [wanted_beta_s2=1]
"""

from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from vae_astro.command.endings import past_hydra, run
from vae_astro.command.help import register_help

CONF = Path(__file__).parents[1] / "conf"
register_help(CONF)


@hydra.main(config_path="../conf", config_name="convert", version_base="1.3")
@past_hydra
def main(cfg: DictConfig) -> None:
    """Print what the loss comes to."""
    from vae_astro.collapse.convert import convert_loss

    settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    wanted = settings.pop("wanted_beta_s2")
    found = convert_loss(**settings)
    answer = None if wanted is None else found.weight_for(wanted)
    unit = "" if found.slope == 1 else f" in logits, {found.threshold:.4g} in pixel values"
    print(f"beta * s2   {found.beta_s2:.4g}{unit}: weight of the KL beside half the summed square")
    print(f"the same as {found.equivalent}")
    print(f"collapse    {found.outlook}")
    if answer is not None:
        print(f"wanted      weight = {answer:.4g} gives beta * s2 = {wanted:.4g}")
    print("lever       scaling one term moves beta * s2 in proportion; scaling both moves nothing")


if __name__ == "__main__":
    run(main, "convert", CONF)
