"""Put runs side by side: a table, and a picture of what they came to.

python scripts/compare.py runs/*                         the shell's own pattern
python scripts/compare.py runs/sweep_NAME [out=FOLDER]   all jobs of a sweep
python scripts/compare.py runs='runs/*'                  a pattern for the script to look up

Hydra takes nothing but key=value: what is a folder is gathered into runs=[...] before it sees it.
"""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from vae_astro.command.endings import past_hydra, run
from vae_astro.command.help import register_help

CONF = Path(__file__).parents[1] / "conf"
register_help(CONF)


@hydra.main(config_path="../conf", config_name="compare", version_base="1.3")
@past_hydra
def main(cfg: DictConfig) -> None:
    """Find the runs, compare, write, and say what came of it."""
    from vae_astro.report.compare.command import compare

    settings = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(settings, dict)
    print(compare(settings))


def with_paths_as_a_key(arguments: list[str]) -> list[str]:
    """The arguments, those that are paths gathered into one ``runs=[...]``."""
    is_path = [
        not text.startswith("-") and ("=" not in text or Path(text).exists()) for text in arguments
    ]
    paths = [text for text, is_one in zip(arguments, is_path, strict=True) if is_one]
    others = [text for text, is_one in zip(arguments, is_path, strict=True) if not is_one]
    if not paths:
        return others
    quoted = ("'" + text.replace("'", "\\'") + "'" for text in paths)
    return [*others, f"runs=[{','.join(quoted)}]"]


if __name__ == "__main__":
    sys.argv[1:] = with_paths_as_a_key(sys.argv[1:])
    run(main, "compare", CONF)
