"""Convert a loss and its weights to beta * s2, the number that decides over collapse.

python scripts/convert.py loss=mse reduction=pixel_mean kl_reduction=unit_mean latent_dim=256 \\
    weight=0.1 shape=3x64x64 [eigenvalue=76] [wanted_beta_s2=1]
"""

import sys
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

KEYS = """\
  loss=mse                     mse, sse, half_mse, half_sse, gaussian, bce, l1
  weight=1                     factor on the KL
  reduction=                   pixel_sum, pixel_mean, band_mean; by default that of its name
  kl_reduction=unit_sum        unit_sum, unit_mean, pixel_mean
  shape=                       63x63 or 3x64x64, where a mean over pixels or bands needs it
  latent_dim=                  latent units, where a mean over units needs it
  reconstruction_weight=1      factor on the reconstruction
  batch_reduction=batch_mean   batch_mean, batch_sum: of the reconstruction over the batch
  kl_batch_reduction=batch_mean
  batch_size=                  stamps in a batch, where these two differ
  sigma=                       of loss=gaussian; elsewhere the sigma at which beta is told
  mean_pixel=                  of loss=bce, between 0 and 1
  scale=                       of loss=l1: mean absolute residual of a pixel
  eigenvalue=                  largest of the covariance of your pixels: is collapse certain?
  wanted_beta_s2=              which weight gives this one?"""

ConfigStore.instance().store(
    "convert",
    {
        "defaults": [
            "_self_",
            {"override hydra/job_logging": "none"},
            {"override hydra/hydra_logging": "none"},
        ],
        "loss": "mse",
        "weight": 1.0,
        "reduction": None,
        "kl_reduction": "unit_sum",
        "shape": None,
        "latent_dim": None,
        "reconstruction_weight": 1.0,
        "batch_reduction": "batch_mean",
        "kl_batch_reduction": "batch_mean",
        "batch_size": None,
        "sigma": None,
        "mean_pixel": None,
        "scale": None,
        "eigenvalue": None,
        "wanted_beta_s2": None,
        "hydra": {
            "run": {"dir": "."},
            "output_subdir": None,
            "help": {"template": f"{__doc__}\n{KEYS}\n"},
        },
    },
)


@hydra.main(config_path=None, config_name="convert", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Print what the loss comes to."""
    from vae_astro.collapse.convert import convert_loss
    from vae_astro.errors import InputError

    settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    wanted = settings.pop("wanted_beta_s2")
    try:
        found = convert_loss(**settings)
        answer = None if wanted is None else found.weight_for(wanted)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    unit = "" if found.slope == 1 else f" in logits, {found.threshold:.4g} in pixel values"
    print(f"beta * s2   {found.beta_s2:.4g}{unit}: weight of the KL beside half the summed square")
    print(f"the same as {found.equivalent}")
    print(f"collapse    {found.outlook}")
    if answer is not None:
        print(f"wanted      weight = {answer:.4g} gives beta * s2 = {wanted:.4g}")
    print("lever       scaling one term moves beta * s2 in proportion; scaling both moves nothing")


if __name__ == "__main__":
    main()
