"""Make the page of a run: one HTML file that explains it and needs nothing else.

python scripts/report.py run=runs/NAME [umap=true] [out=FILE.html]
python scripts/report.py run=runs/NAME classes=FOLDER outliers=FILE.parquet
"""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from vae_astro.command.endings import run
from vae_astro.command.help import register_help

CONF = Path(__file__).parents[1] / "conf"
register_help(CONF)


@hydra.main(config_path="../conf", config_name="report", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Make ``report.html`` in the run folder, or where ``out`` says."""
    from vae_astro.errors import InputError
    from vae_astro.report.page import options_from, write_page

    try:
        run_dir, options = options_from(dict(cfg))
        print(f"written: {write_page(run_dir, options)}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run(main, "report", CONF)
