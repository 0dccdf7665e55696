"""Where a run lives. Light: imported before anything heavy, while Hydra composes."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from omegaconf import OmegaConf

__all__ = [
    "is_first_process",
    "overrides_of_other_processes",
    "overrides_of_resumed_run",
    "register_resolvers",
    "run_folder_of",
]

RANKS = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK")
"""Where launchers say which process this is; the first has 0 in all of them."""
OF_A_CHOICE = ("data", "model", "prior", "likelihood", "beta")
"""Groups in which each choice has keys of its own."""


def run_folder_of(checkpoint: str | Path) -> Path | None:
    """The run folder that a run folder, its ``checkpoints`` or a checkpoint in it belongs to."""
    path = Path(checkpoint)
    if path.suffix == ".ckpt":
        path = path.parent
    if path.name == "checkpoints":
        path = path.parent
    return path if (path / "checkpoints").is_dir() else None


def is_first_process() -> bool:
    """Whether this is the first, or the only one, of the processes that train together."""
    return all(os.environ.get(name, "0") == "0" for name in RANKS)


def overrides_of_other_processes() -> list[str]:
    """What keeps Hydra from giving every process of a run a folder; nothing for the first."""
    if is_first_process():
        return []
    return ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=stdout"]


def overrides_of_resumed_run(typed: Sequence[str]) -> list[str]:
    """What was typed, fit for a run that goes on with settings of its own.

    With ``resume=`` a key such as ``beta.gamma`` is one of the run's own choices, while Hydra
    composes the choices of a new run, which may not have it. It is let through (``++``), and looked
    at among the run's own settings. Beside a choice that is typed too, Hydra knows best.
    """
    if not any(re.match(r"resume=(?!null$|$)", word) for word in typed):
        return list(typed)
    chosen = {word.partition("=")[0].lstrip("+") for word in typed}
    keys = (re.match(rf"({'|'.join(OF_A_CHOICE)})(\.\w+)+=", word) for word in typed)
    return [
        f"++{word}" if key is not None and key[1] not in chosen else word
        for word, key in zip(typed, keys, strict=True)
    ]


def register_resolvers() -> None:
    """Make ``${run_folder:...}`` and ``${hydra_folder:...}`` known to the configuration."""
    # two runs may start in the same second
    started = datetime.now().strftime("%Y-%m-%d_%H-%M-%S_") + secrets.token_hex(2)

    def run_folder(resume: object) -> str:
        resumed = run_folder_of(str(resume)) if resume else None
        return f"runs/{started}" if resumed is None else str(resumed)

    def hydra_folder(resume: object) -> str:
        # the record of the first start stays as it was
        resumed = run_folder_of(str(resume)) if resume else None
        return ".hydra" if resumed is None else f".hydra/resumed_{started}"

    OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)
    OmegaConf.register_new_resolver("hydra_folder", hydra_folder, replace=True)
