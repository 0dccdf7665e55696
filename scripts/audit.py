"""Look for faults in any VAE, by experiments on it.

python scripts/audit.py target=package.module:Class [target_args.key=value ...] [out=FILE.json]
python scripts/audit.py checkpoint=runs/NAME
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from vae_astro.command.endings import past_hydra, run
from vae_astro.command.files import file_to_write, write_whole
from vae_astro.command.help import register_help
from vae_astro.command.typed import is_typed
from vae_astro.folders import register_resolvers

if TYPE_CHECKING:
    from torch import nn

CONF = Path(__file__).parents[1] / "conf"
register_resolvers()
register_help(CONF)


@hydra.main(config_path="../conf", config_name="audit", version_base="1.3")
@past_hydra
def main(cfg: DictConfig) -> None:
    """Audit ``target`` or ``checkpoint`` and print what is found."""
    from vae_astro.api import N_SIMULATED, as_trained, stamps_to_audit, trained_with
    from vae_astro.collapse.audit import audit
    from vae_astro.errors import InputError

    if "n_stamps" in cfg.data and not _typed("data.n_stamps"):
        cfg.data.n_stamps = N_SIMULATED  # before the root that is named after it is resolved
    settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    if (settings["target"] is None) == (settings["checkpoint"] is None):
        raise InputError(
            "give either target=package.module:Class or checkpoint=runs/NAME, and not both"
        )
    out = file_to_write("out", settings["out"])
    loss = None if settings["loss"] is None else _found("loss", settings["loss"])
    model: nn.Module
    shape: tuple[int, ...] | None = None
    data = settings["data"]

    if settings["checkpoint"] is not None:
        model, trained_on = trained_with(settings["checkpoint"])
        shape = model.stamp_shape
        if trained_on is not None and not _typed("data"):
            data = trained_on
        data = as_trained(model, data)
    else:
        model = _made(settings["target"], settings["target_args"], settings["seed"])
    stamps = stamps_to_audit(data, shape, settings["n_audited"])
    report = audit(model, stamps, loss=loss)
    print(report)
    if out is not None:
        write_whole(out, json.dumps(report.as_dict(), indent=2) + "\n")


def _typed(key: str) -> bool:
    """Whether the user gave this key, or one below it."""
    return is_typed(key, HydraConfig.get().overrides.task)


def _found(key: str, name: object) -> Any:
    """What ``package.module:name`` names, looked for in the working directory too."""
    from vae_astro.errors import InputError

    if not isinstance(name, str) or name.count(":") != 1 or not all(name.split(":")):
        raise InputError(f"{key} must look like package.module:Class, got {name!r}")
    module_name, attribute = name.split(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # a module may raise anything while it is imported
        raise InputError(
            f"{key}={name}: cannot import {module_name}: {type(error).__name__}: {error}"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise InputError(f"{key}={name}: {module_name} has no {attribute}")
        found = getattr(found, part)
    return found


def _made(name: str, arguments: dict[str, Any] | None, seed: object) -> nn.Module:
    """The model that a class or function makes, or that stands under the name itself."""
    found = _found("target", name)

    from torch import nn

    from vae_astro.api import made_by
    from vae_astro.errors import InputError

    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise InputError(f"target={name} is a {type(found).__name__}, not a class or function")
    try:
        remedy = f"it is called as {name.split(':')[1]}{inspect.signature(found)}: "
    except (TypeError, ValueError):
        remedy = ""
    remedy += "give target_args.name=value"
    return made_by(lambda: found(**(arguments or {})), seed, f"target={name}", remedy)


if __name__ == "__main__":
    # arguments of a model that is not known here: Hydra wants such keys to be marked as new
    sys.argv[1:] = [f"++{arg}" if arg.startswith("target_args.") else arg for arg in sys.argv[1:]]
    run(main, "audit", CONF)
