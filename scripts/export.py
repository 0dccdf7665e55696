"""Export a checkpoint for others: torch.export, ONNX, safetensors, with a model card.

python scripts/export.py checkpoint=runs/NAME out=FOLDER [formats=[torch_export,onnx,safetensors]]
python scripts/export.py checkpoint=runs/NAME out=FOLDER prune=true formats=[checkpoint,safetensors]
"""

import sys
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


@hydra.main(config_path="../conf", config_name="export", version_base="1.3")
@past_hydra
def main(cfg: DictConfig) -> None:
    """Write the formats; those that cannot be written are said, and the exit status is then 2."""
    from vae_astro.export import export_model

    settings = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(settings, dict)
    done = export_model(settings, list(HydraConfig.get().overrides.task))
    print(done)
    for reason in done.failures.values():
        print(f"error: {reason}", file=sys.stderr)
    if done.failures:
        sys.exit(2)


if __name__ == "__main__":
    run(main, "export", CONF)
