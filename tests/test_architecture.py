"""Imports point one way, and the doors that should be single are."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "vae_astro"
DOORSTEP = f"{PACKAGE}.__init__"

STOREYS = [
    {"errors"},
    {"settings", "folders", "stopping", "ranks", "late", "progress"},
    {"hardware", "command", "checkpoint_file"},
    {"data", "model", "objective"},
    {"parts", "guarded_steps", "prior_epochs", "bound"},
    {"array_calls", "training_log"},
    {"vae"},
    {"collapse", "evaluate", "checkpoint", "acceleration", "faults"},
    {"catalogue", "processes", "length"},
    {"report"},
    {"training"},
    {"checked", "rescuing"},
    {"run", "embed", "class_passes", "api", "sample", "hyrax"},
    {"classify", "outliers", "export", "plan"},
    {"before"},
]
"""Rooms from the ground up. A room sees itself and the storeys below, not its neighbours."""

ACROSS = {
    ("model", f"{PACKAGE}.objective.kl"),
    ("model", f"{PACKAGE}.data.augment"),
    ("model", f"{PACKAGE}.data.focus"),
    ("model", f"{PACKAGE}.data.normalize"),
    ("model", f"{PACKAGE}.data.rings"),
}
"""Arrows between neighbours: a posterior knows its divergence, and rings how stamps are made."""

LAZY = {
    "VAE": "vae",
    "StampDataModule": "data",
    "audit": "api",
    "forecast": "api",
    "__version__": "",
}
"""Rooms of the names that the package itself hands out."""

OUTSIDE = {
    "pytorch_lightning": set(),  # the same classes under another name do not know each other
    "lightning": {"data.datamodule", "checkpoint_file.trainers"}.union(*STOREYS[4:]),
    "hydra": {"run", "before", "command"},
    "omegaconf": {"run", "checked", "before", "folders", "command", "report.history"},
}
"""Who may import what only some should."""


def modules() -> dict[str, str]:
    """Source of every module of the package by its dotted name."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name] = path.read_text("utf-8")
    return found


def commands() -> dict[str, str]:
    """Source of the commands, which stand on top of everything."""
    paths = [ROOT / "train.py", *sorted((ROOT / "scripts").rglob("*.py"))]
    return {path.name: path.read_text("utf-8") for path in paths}


MODULES = modules()


def imports(module: str, source: str) -> Iterator[str]:
    """Dotted names that a module imports, wherever in it; ``from a import b`` gives ``a.b``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            folder = module.split(".")[: -node.level] if node.level else []
            origin = ".".join([*folder, *([node.module] if node.module else [])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def room_of(dotted: str) -> str:
    """``data`` for ``vae_astro.data.store``; empty for the package itself."""
    _, room, *_ = *dotted.split("."), ""
    return LAZY.get(room, room)


def storey_of(room: str) -> int:
    return next(height for height, rooms in enumerate(STOREYS) if room in rooms)


def wrong_arrows(module: str, source: str) -> list[str]:
    """Imports of rooms that a module must not know."""
    here = room_of(module)
    return [
        target
        for target in imports(module, source)
        if target.split(".")[0] == PACKAGE
        and (there := room_of(target)) not in ("", here)
        and storey_of(there) >= storey_of(here)
        and not any(here == room and f"{target}.".startswith(f"{to}.") for room, to in ACROSS)
    ]


def wrong_guests(module: str, source: str) -> list[str]:
    """Imports from outside that a module is not among those to have."""
    own = module.removeprefix(f"{PACKAGE}.")
    return [
        target
        for target in imports(module, source)
        if (package := target.split(".")[0]) in OUTSIDE
        and not any(f"{own}.".startswith(f"{allowed}.") for allowed in OUTSIDE[package])
    ]


def loads_pickles(source: str) -> bool:
    """Whether ``torch.load`` is called or imported, under whatever name torch goes by."""
    tree = ast.parse(source)
    names = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == "torch"
    }
    return "torch.load" in set(imports("", source)) or any(
        isinstance(node, ast.Attribute)
        and node.attr == "load"
        and isinstance(node.value, ast.Name)
        and node.value.id in names
        for node in ast.walk(tree)
    )


# The house


@pytest.mark.parametrize("module", [name for name in MODULES if name != DOORSTEP])
def test_every_module_has_a_room_and_sees_only_the_storeys_below(module):
    rooms = set().union(*STOREYS)
    assert room_of(module) in rooms, f"give {module} a place in STOREYS"
    assert wrong_arrows(module, MODULES[module]) == []


@pytest.mark.parametrize("module", MODULES)
def test_lightning_hydra_and_omegaconf_stay_where_they_belong(module):
    assert wrong_guests(module, MODULES[module]) == []


def test_the_package_itself_imports_nothing_of_its_own_but_for_type_checkers():
    tree = ast.parse(MODULES[DOORSTEP])
    tree.body = [node for node in tree.body if not ast.unparse(node).startswith("if TYPE_CHECKING")]
    inside = [name for name in imports(DOORSTEP, ast.unparse(tree)) if name.startswith(PACKAGE)]
    assert inside == []


def test_checkpoint_is_the_one_door_to_torch_load():
    doors = [name for name, source in (MODULES | commands()).items() if loads_pickles(source)]
    assert doors == [f"{PACKAGE}.checkpoint_file.door"]


def test_the_one_door_runs_no_code_that_a_checkpoint_may_hold():
    tree = ast.parse(MODULES[f"{PACKAGE}.checkpoint_file.door"])
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    assert calls
    for call in calls:
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert options.get("weights_only") == "True"


def test_commands_use_lightning_by_its_one_name():
    for name, source in commands().items():
        assert not [guest for guest in imports(name, source) if "pytorch_lightning" in guest], name


@pytest.mark.parametrize("light", ["vae_astro", "vae_astro.folders"])
def test_what_help_needs_does_not_wait_for_torch(light):
    slow = {"torch", "lightning", "astropy", "galsim"}
    code = f"import sys, {light}; print(sorted({slow} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


# The tests above find what they look for


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vae_astro.data.store.store", "from vae_astro.model.encoders import ConvEncoder"),
        ("vae_astro.data.store.store", "import vae_astro.vae"),
        ("vae_astro.data.store.store", "from vae_astro import VAE"),
        ("vae_astro.data.store.store", "from ...vae import VAE"),
        ("vae_astro.model.priors", "from vae_astro.data.stamp import Stamp"),
        ("vae_astro.model.posterior", "from vae_astro.objective.elbo import Elbo"),
        ("vae_astro.model.posterior", "from vae_astro.objective import beta"),
        ("vae_astro.objective.kl", "from vae_astro.model.networks import NETWORKS"),
        ("vae_astro.vae", "def late():\n    from vae_astro.checkpoint import load_checkpoint"),
        ("vae_astro.collapse.verdict", "from vae_astro.report import figures"),
        ("vae_astro.evaluate.scores", "from vae_astro.collapse.verdict import judge"),
        ("vae_astro.report.page", "from vae_astro.run import train"),
        ("vae_astro.settings", "import vae_astro.data.stamp"),
    ],
)
def test_an_arrow_that_points_back_is_found(module, source):
    assert len(wrong_arrows(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vae_astro.model.posterior", "from vae_astro.objective.kl import gaussian_kl_per_unit"),
        ("vae_astro.vae", "import vae_astro\nfrom vae_astro.data.batches import Batch"),
        ("vae_astro.data.store.store", "from vae_astro.data import normalize\nfrom . import shard"),
        ("vae_astro.run", "from vae_astro import VAE\nfrom vae_astro.report import figures"),
        ("vae_astro.report.page", "import torch\nimport vae_astro_extras"),
    ],
)
def test_an_arrow_that_points_forward_is_allowed(module, source):
    assert wrong_arrows(module, source) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vae_astro.vae", "from pytorch_lightning import LightningModule"),
        ("vae_astro.data.batches", "from lightning import LightningDataModule"),
        ("vae_astro.objective.elbo", "import lightning.pytorch as pl"),
        ("vae_astro.model.encoders", "from lightning.fabric import Fabric"),
        ("vae_astro.vae", "from omegaconf import DictConfig"),
        ("vae_astro.folders", "import hydra"),
    ],
)
def test_a_guest_in_the_wrong_room_is_found(module, source):
    assert len(wrong_guests(module, source)) == 1


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch\ntorch.load('a')", True),
        ("import torch as t\nread = t.load", True),
        ("from torch import load", True),
        ("import numpy, json\nnumpy.load('a'); json.load('b')", False),
        ("import torch\ntorch.save(1, 'a')", False),
    ],
)
def test_a_second_door_to_torch_load_is_found(source, found):
    assert loads_pickles(source) == found


def test_the_turns_of_a_square_are_defined_once() -> None:
    """A second definition in another order would turn a picture another way than its stamp."""
    assert [name for name, source in MODULES.items() if "rot90" in source] == [
        f"{PACKAGE}.data.augment"
    ]


def test_the_blocks_of_fits_are_said_once() -> None:
    assert [name for name, source in MODULES.items() if re.search(r"\b2880\b", source)] == [
        f"{PACKAGE}.data.sources.fits.standard"
    ]
