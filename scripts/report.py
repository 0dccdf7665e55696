"""Make the page of a run: one HTML file that explains it and needs nothing else.

python scripts/report.py run=runs/NAME [umap=true] [out=FILE.html]
python scripts/report.py run=runs/NAME classes=FOLDER outliers=FILE.parquet
"""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from vae_astro.command.endings import past_hydra, run
from vae_astro.command.help import register_help

CONF = Path(__file__).parents[1] / "conf"
register_help(CONF)


@hydra.main(config_path="../conf", config_name="report", version_base="1.3")
@past_hydra
def main(cfg: DictConfig) -> None:
    """Make ``report.html`` in the run folder, or where ``out`` says."""
    from vae_astro.report.page import options_from, write_page

    run_dir, options = options_from(dict(cfg))
    print(f"written: {write_page(run_dir, options)}")


if __name__ == "__main__":
    run(main, "report", CONF)
