"""Download nights of the public ZTF alert archive, or the files of a list.

python scripts/download.py nights=20240101-20240107 out=FOLDER [unpack=true]
python scripts/download.py urls=FILE.txt out=FOLDER
"""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from vae_astro.command.endings import past_hydra, run
from vae_astro.command.help import register_help

CONF = Path(__file__).parents[1] / "conf"
register_help(CONF)


@hydra.main(config_path="../conf", config_name="download", version_base="1.3")
@past_hydra
def main(cfg: DictConfig) -> None:
    """Fetch what is not there yet, and list what could not be had."""

    from vae_astro.data.download import download, read_urls, ztf_nights
    from vae_astro.data.transfer import Manners
    from vae_astro.errors import InputError
    from vae_astro.settings import check_bool, check_text

    if (cfg.nights is None) == (cfg.urls is None):
        raise InputError("give nights=20240101-20240107 or urls=FILE.txt, one of them")
    folder = Path(check_text("out", cfg.out)).expanduser()
    manners = Manners(cfg.max_mib_per_s, cfg.pause_s, cfg.timeout_s, cfg.n_attempts)
    archive = None
    if cfg.nights is None:
        wanted = read_urls(Path(check_text("urls", cfg.urls)).expanduser())
    else:
        archive = check_text("archive", cfg.archive)
        wanted = ztf_nights(cfg.nights, archive)
    outcome = download(
        wanted,
        folder,
        manners,
        archive=archive,
        unpack=check_bool("unpack", cfg.unpack),
        keep_tarballs=check_bool("keep_tarballs", cfg.keep_tarballs),
    )
    for note in outcome.notes:
        print(note)
    for address, why in outcome.failed.items():
        print(f"failed: {address}: {why}", file=sys.stderr)
    packets = f", {outcome.n_packets} alert packets unpacked" if outcome.n_packets else ""
    print(
        f"{outcome.n_downloaded} of {len(wanted)} files downloaded to {folder}, "
        f"{outcome.n_there} there already, {len(outcome.failed)} failed{packets}"
    )
    if outcome.failed:
        print("run the same command again: what is there is not asked for twice")
        sys.exit(1)


if __name__ == "__main__":
    run(main, "download", CONF, "stopped; run the same command again to go on")
