"""A checkpoint from an untrusted place runs no code and is told nothing of this computer."""

from __future__ import annotations

import ast
import io
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning import Trainer
from omegaconf import OmegaConf
from tiny_checkpoints import save, tiny_vae

from vae_astro import VAE
from vae_astro.checkpoint import load_checkpoint, refuse_without_state, warm_start
from vae_astro.checkpoint.keeping import BestCheckpoint
from vae_astro.classify import classify
from vae_astro.embed import embed
from vae_astro.errors import InputError
from vae_astro.evaluate.class_model import ClassModel
from vae_astro.evaluate.class_names import read_names
from vae_astro.folders import register_resolvers
from vae_astro.outliers import outliers

ROOT = Path(__file__).parents[2]
quiet = pytest.mark.filterwarnings("ignore:.*validation_step.* but have no.*")


class Harm:
    """Pickled, it is a call of ``os.system`` that leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.mark}'",)


def at_top(checkpoint: dict[str, Any], harm: Harm) -> object:
    return harm


def in_weights(checkpoint: dict[str, Any], harm: Harm) -> object:
    return checkpoint | {"state_dict": harm}


def in_settings(checkpoint: dict[str, Any], harm: Harm) -> object:
    checkpoint["hyper_parameters"]["model"]["name"] = [{"deep": (harm,)}]
    return checkpoint


def in_callbacks(checkpoint: dict[str, Any], harm: Harm) -> object:
    return checkpoint | {"callbacks": {"BestCheckpoint{}": {"best_model_path": harm}}}


def in_loops(checkpoint: dict[str, Any], harm: Harm) -> object:
    return checkpoint | {"loops": {"fit_loop": {"state_dict": {"combined_loader": harm}}}}


PLACES = [at_top, in_weights, in_settings, in_callbacks, in_loops]


def zipped(content: object, path: Path) -> None:
    torch.save(content, path)


def with_more_members(content: object, path: Path) -> None:
    zipped(content, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{path.stem}/code/__torch__.py", "raise SystemExit")


def bare(content: object, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def pickled(content: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


def scripted(content: object, path: Path) -> None:
    class Plain(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it will be gone one day
        torch.jit.script(Plain()).save(path)
    buffer = io.BytesIO()
    pickle.dump(content, buffer, 2)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{path.stem}/extra.pkl", buffer.getvalue())


FORMS = [zipped, with_more_members, bare, pickled, scripted]


def composed(command: str, path: Path, out: Path) -> tuple[dict[str, Any], list[str]]:
    register_resolvers()
    typed = ["progress=false", "trainer=cpu", f"checkpoint={path}", f"out={out}"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose(command, typed)
    return OmegaConf.to_container(cfg, resolve=True), typed  # type: ignore[return-value]


def by_trainer(path: Path) -> object:
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        max_epochs=1,
    )  # fmt: skip
    data = torch.utils.data.DataLoader([{"image": torch.zeros(1, 16, 16)}])
    return trainer.fit(tiny_vae(), data, ckpt_path=path)


DOORS: dict[str, Callable[[Path], object]] = {
    "load_checkpoint": load_checkpoint,
    "load_from_checkpoint": VAE.load_from_checkpoint,
    "None": lambda path: VAE.load_from_checkpoint(path, weights_only=None),
    "init_from": lambda path: warm_start(tiny_vae(), path),
    "resume": lambda path: refuse_without_state(load_checkpoint(path), path),
    "embed": lambda path: embed(*composed("embed", path, path.parent / "z.parquet")),
    "classify": lambda path: classify(*composed("classify", path, path.parent / "classes")),
    "outliers": lambda path: outliers(*composed("outliers", path, path.parent / "o.parquet")),
    "trainer": by_trainer,
}


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "harm was done"


def made(folder: Path, place: Callable[..., object], form: Callable[..., None], mark: Path) -> Path:
    checkpoint = torch.load(save(tiny_vae(), folder / "good.ckpt"), weights_only=True)
    form(place(checkpoint, Harm(mark)), folder / "given.ckpt")
    return folder / "given.ckpt"


def test_the_payload_does_harm_where_it_is_unpickled(tmp_path: Path, mark: Path) -> None:
    torch.load(made(tmp_path, in_loops, zipped, mark), weights_only=False)
    assert mark.exists()


@quiet
@pytest.mark.parametrize("door", DOORS)
def test_no_door_runs_what_a_file_holds(tmp_path: Path, mark: Path, door: str) -> None:
    path = made(tmp_path, in_callbacks, zipped, mark)
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        DOORS[door](path)
    assert not mark.exists()


@pytest.mark.parametrize("form", FORMS)
def test_no_form_of_a_file_runs_what_it_holds(
    tmp_path: Path, mark: Path, form: Callable[..., None]
) -> None:
    path = made(tmp_path, in_callbacks, form, mark)
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        load_checkpoint(path)
    assert not mark.exists()


@pytest.mark.parametrize("place", PLACES)
def test_nothing_runs_wherever_it_lies(
    tmp_path: Path, mark: Path, place: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = made(tmp_path, place, zipped, mark)
    with pytest.raises(InputError, match=r"made by running code \(.*system\), and was not opened"):
        VAE.load_from_checkpoint(path)
    assert not mark.exists()


def test_code_is_not_run_on_request_either(tmp_path: Path) -> None:
    path = save(tiny_vae(), tmp_path / "good.ckpt")
    with pytest.raises(InputError, match="weights_only=False would run code"):
        VAE.load_from_checkpoint(path, weights_only=False)


def test_more_members_in_the_archive_go_nowhere(tmp_path: Path, mark: Path) -> None:
    (tmp_path / "inner").mkdir()
    path = made(tmp_path / "inner", lambda checkpoint, _: checkpoint, with_more_members, mark)
    VAE.load_from_checkpoint(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../escaped.py", "raise SystemExit")
    with pytest.raises(InputError, match="not in a subdirectory"):
        VAE.load_from_checkpoint(path)
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["given.ckpt", "good.ckpt", "inner"]


@pytest.mark.parametrize("text", ["${oc.env:HOME}", "x/${now:%Y}", "${run_folder:null}"])
@pytest.mark.parametrize("where", ["settings", "hyper_parameters"])
def test_settings_ask_the_configuration_for_nothing(tmp_path: Path, text: str, where: str) -> None:
    vae = tiny_vae()
    vae.run_settings = {"data": {"root": text if where == "settings" else "stamps"}}
    path = save(vae, tmp_path / "asks.ckpt")
    if where == "hyper_parameters":
        checkpoint = torch.load(path, weights_only=True)
        checkpoint["hyper_parameters"]["band_names"] = [text]
        torch.save(checkpoint, path)
    with pytest.raises(InputError, match="asks for something to be filled in"):
        load_checkpoint(path)


def test_settings_build_nothing_that_is_not_registered(tmp_path: Path, mark: Path) -> None:
    checkpoint = torch.load(save(tiny_vae(), tmp_path / "good.ckpt"), weights_only=True)
    settings = checkpoint["hyper_parameters"]
    for more in (
        {"_instantiator": "os.system", "_class_path": "os"},
        {"model": {"name": "linear", "_target_": "os.system", "command": f"touch '{mark}'"}},
        {"model": {"name": "os.system"}},
    ):
        torch.save(checkpoint | {"hyper_parameters": settings | more}, tmp_path / "given.ckpt")
        with pytest.raises(InputError, match="makes no model of its settings"):
            VAE.load_from_checkpoint(tmp_path / "given.ckpt")
    assert not mark.exists()


@pytest.mark.parametrize("named", ["..", "../../notes.txt", "last.ckpt", "/"])
def test_a_better_checkpoint_removes_no_file_that_another_names(tmp_path: Path, named: str) -> None:
    keeper = BestCheckpoint(tmp_path / "checkpoints")
    state = {
        "dirpath": "/somewhere", "best_model_path": named, "kth_best_model_path": named,
        "best_k_models": {named: torch.tensor(1.0)}, "best_model_score": torch.tensor(1.0),
        "monitor": "val/elbo_nats", "current_score": None, "kth_value": torch.tensor(1.0),
        "last_model_path": "",
    }  # fmt: skip
    keeper.load_state_dict(state)
    best = str(tmp_path / "checkpoints" / "best.ckpt")
    assert {keeper.best_model_path, keeper.kth_best_model_path, *keeper.best_k_models} == {best}


# What else is read that others may have made


def test_clusters_are_read_without_pickles(tmp_path: Path, mark: Path) -> None:
    np.savez(tmp_path / "clusters.npz", header=np.array([Harm(mark)], dtype=object))
    with pytest.raises(InputError):
        ClassModel.load(tmp_path / "clusters.npz", [])
    assert not mark.exists()


def test_names_of_classes_are_plain_yaml(tmp_path: Path, mark: Path) -> None:
    text = f"names: !!python/object/apply:os.system [\"touch '{mark}'\"]\n"
    (tmp_path / "classes.yaml").write_text(text)
    with pytest.raises(InputError, match="cannot be read as YAML"):
        read_names(tmp_path / "classes.yaml", "", 2)
    assert not mark.exists()


ALLOWED = {
    ("vae_astro.checkpoint_file.door", "torch.load"),  # with weights_only=True, as is tested
    ("vae_astro.__init__", "import_module"),  # of two names that stand there
    ("scripts.audit", "importlib.import_module"),  # of what the user types
    ("vae_astro.evaluate.class_names", "yaml.load"),  # with a SafeLoader, as is tested above
}
RUNS_CODE = {
    "torch.load", "torch.jit.load", "torch.hub.load", "pickle.load", "pickle.loads",
    "pickle.Unpickler", "joblib.load", "cloudpickle.load", "cloudpickle.loads", "dill.load",
    "marshal.loads", "shelve.open", "yaml.load", "yaml.full_load", "yaml.unsafe_load", "eval",
    "exec", "compile", "os.system", "instantiate", "hydra.utils.instantiate", "get_class",
    "import_module", "importlib.import_module", "__import__", "pd.read_pickle",
    "torch.serialization.add_safe_globals", "add_safe_globals",
}  # fmt: skip


def suspicious(source: str) -> set[str]:
    """Calls that run, or unpickle, what they are given."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        if not isinstance(node.func, ast.Name | ast.Attribute):
            continue
        name = ast.unparse(node.func)
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name in RUNS_CODE:
            found.add(name)
        if options.get("allow_pickle", "False") != "False":
            found.add(f"{name}(allow_pickle)")
        if options.get("shell", "False") != "False":
            found.add(f"{name}(shell)")
    return found


def test_nothing_else_in_the_project_runs_what_it_reads() -> None:
    calls = set()
    for path in [*ROOT.glob("vae_astro/**/*.py"), *ROOT.glob("scripts/**/*.py")]:
        if path.is_relative_to(ROOT / "scripts" / "peers"):
            continue  # each is run beside us, with files that we wrote
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        calls |= {(module, name) for name in suspicious(path.read_text("utf-8"))}
    assert calls <= ALLOWED, calls - ALLOWED


@pytest.mark.parametrize(
    "source",
    ["np.load(a, allow_pickle=True)", "yaml.load(a)", "eval(a)", "subprocess.run(a, shell=True)"],
)
def test_what_runs_code_is_found(source: str) -> None:
    assert suspicious(source)
