"""What ``train.py`` does before Hydra makes a run folder: look at all settings, or only plan."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vae_astro.checked import check, run_settings
from vae_astro.command.endings import wants_traceback
from vae_astro.errors import InputError
from vae_astro.folders import is_first_process
from vae_astro.run import quieten

__all__ = ["LookFirst"]

MOST_LOOKED_AT = 64
"""Runs of a sweep whose settings are looked at before the first begins."""


class LookFirst(Callback):
    """Ends a command with one line and status 2 for a mistake in its settings.

    Hydra calls it before anything is written: no run folder is left behind. With ``plan`` the plan
    is printed and the command is done.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """See Hydra."""
        start_s = logging.makeLogRecord({}).relativeCreated / 1000  # Hydra imports it first
        with _in_one_line():
            settings, run_dir = _of(config), Path(str(config.hydra.run.dir))
            checked = check(settings, run_dir)
            if not settings["plan"]:
                return
            if is_first_process():
                from vae_astro.plan import plan  # not before it is wanted

                print(plan(settings, checked, Path(settings["run_dir"]), start_s))
        sys.exit(0)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """See Hydra. Every run of the sweep is looked at, up to `MOST_LOOKED_AT`."""
        with _in_one_line():
            if config.plan:
                raise InputError("debug=plan looks at one run; leave -m and the sweep away")
            if not str(config.hydra.sweeper._target_).endswith("BasicSweeper"):
                return  # the values of others are not known before
            typed = [str(word) for word in config.hydra.overrides.task]
            overrides = OverridesParser.create().parse_overrides(typed)
            runs = [run for part in BasicSweeper.split_arguments(overrides, None) for run in part]
            for run in runs[:MOST_LOOKED_AT]:
                words = [str(word) for word in run]
                cfg = compose("config", words, return_hydra_config=False)
                check(run_settings(cfg, words), Path(str(config.hydra.sweep.dir)))


class _in_one_line:  # noqa: N801  # a context manager reads as a verb
    """A mistake ends the process with one line; what anything else is, the run will say."""

    def __enter__(self) -> None:
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        quieten()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._warnings.__exit__(kind, error, trace)
        if isinstance(error, (InputError, OmegaConfBaseException)) and not wants_traceback():
            if is_first_process():
                print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            sys.stderr.flush()
            sys.exit(2)


def _of(config: DictConfig) -> dict[str, Any]:
    """Settings of the run that ``config``, Hydra's part included, is of."""
    task = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    return run_settings(task, [str(word) for word in config.hydra.overrides.task])
