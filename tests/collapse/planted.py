"""The planted faults and the healthy models: one file each, loaded by name."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import plain_vae
from torch import Tensor

from vae_astro.collapse.audit import AuditReport

HERE = Path(__file__).parent
FAULTS = sorted(path.stem for path in (HERE / "faults").glob("*.py"))
HEALTHY = sorted(path.stem for path in (HERE / "healthy").glob("*.py"))


def load(folder: str, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{folder}_{name}", HERE / folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a dataclass looks for its module there
    spec.loader.exec_module(module)
    return module


def stamps_of(module: ModuleType) -> Tensor:
    stamps: Tensor = getattr(plain_vae, f"{getattr(module, 'STAMPS', 'sky')}_stamps")()
    return stamps


def raised(report: AuditReport) -> list[str]:
    return [each.reason for each in report.untested if "raised" in each.reason]
