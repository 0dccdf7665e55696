"""To a model hub and back, against a stand-in for the hub: no network here."""

from __future__ import annotations

import fnmatch
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from exported_models import raw_stamps, tiny_vae

from vae_astro.errors import InputError
from vae_astro.export import load_from_hub, push_to_hub, save_safetensors


class Hub:
    """Folders in place of repositories, with the calls of huggingface_hub that are made here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: list[dict[str, Any]] = []
        self.fetched: list[str] = []
        self.tokens: list[str | None] = []

    def HfApi(self, token: str | None = None) -> Hub:  # noqa: N802
        self.tokens.append(token)
        return self

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        if "/" not in repo_id:
            raise ValueError(f"no such owner: {repo_id}")
        self.made.append({"repo": repo_id, "private": private, "exist_ok": exist_ok})
        (self.folder / repo_id / "main").mkdir(parents=True, exist_ok=True)

    def create_branch(self, repo_id: str, *, branch: str, exist_ok: bool) -> None:
        (self.folder / repo_id / branch).mkdir(exist_ok=exist_ok)

    def upload_folder(
        self,
        *,
        repo_id: str,
        folder_path: Path,
        allow_patterns: list[str],
        revision: str | None,
        commit_message: str,
    ) -> SimpleNamespace:
        assert commit_message
        there = self.folder / repo_id / (revision or "main")
        copy_matching(Path(folder_path), there, allow_patterns)
        return SimpleNamespace(commit_url=f"hub:{repo_id}/commit/1")

    def snapshot_download(
        self,
        repo_id: str,
        *,
        revision: str | None,
        allow_patterns: list[str],
        token: str | None,
    ) -> str:
        source = self.folder / repo_id / (revision or "main")
        if not source.is_dir():
            raise OSError(f"404: {repo_id}")
        target = self.folder / "cache" / (revision or "main")
        self.fetched += copy_matching(source, target, allow_patterns)
        return str(target)


def copy_matching(source: Path, target: Path, patterns: list[str]) -> list[str]:
    copied = []
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source).as_posix()
        if path.is_file() and any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / name)
            copied.append(name)
    return copied


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    stand_in = Hub(tmp_path / "hub")
    monkeypatch.setattr("vae_astro.export.hub._hub", lambda: stand_in)
    return stand_in


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "figures").mkdir(parents=True)
    save_safetensors(tiny_vae("conv", "mixture"), folder)
    for name in ("README.md", "model.ckpt", "encoder.pt2", "encoder.onnx", "figures/a.png"):
        (folder / name).write_bytes(b"content")
    return folder


def test_latents_are_the_same_bits_after_a_hub(hub: Hub, exported: Path) -> None:
    url = push_to_hub(exported, "me/model", token="secret")
    assert url == "hub:me/model/commit/1"
    assert hub.made == [{"repo": "me/model", "private": True, "exist_ok": True}]
    assert hub.tokens == ["secret"]
    there = {path.relative_to(hub.folder / "me/model/main").as_posix()
             for path in (hub.folder / "me/model/main").rglob("*") if path.is_file()}  # fmt: skip
    # no pickle, and nothing that may hold one
    assert there == {
        "README.md",
        "config.json",
        "encoder.onnx",
        "figures/a.png",
        "model.safetensors",
    }
    stamps = raw_stamps()
    expected = tiny_vae("conv", "mixture").embed(stamps)
    np.testing.assert_array_equal(load_from_hub("me/model").embed(stamps), expected)
    assert hub.fetched == ["config.json", "model.safetensors"]


def test_a_revision_is_pushed_and_loaded_by_its_name(hub: Hub, exported: Path) -> None:
    push_to_hub(exported, "me/model", revision="v2", private=False)
    assert hub.made[0]["private"] is False
    assert load_from_hub("me/model", "v2").latent_dim == 4
    with pytest.raises(InputError, match=r"config\.json cannot be read"):
        load_from_hub("me/model")  # nothing is on the first branch


class Hostile:
    """A pickle that leaves a mark where it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return (Path.write_text, (self.mark, "run"))


def test_code_in_a_repository_is_neither_fetched_nor_run(
    hub: Hub, exported: Path, tmp_path: Path
) -> None:
    push_to_hub(exported, "me/model")
    mark = tmp_path / "mark"
    there = hub.folder / "me/model/main"
    content = pickle.dumps(Hostile(mark))
    for name in ("model.ckpt", "pytorch_model.bin"):
        (there / name).write_bytes(content)
    load_from_hub("me/model")
    assert hub.fetched == ["config.json", "model.safetensors"]
    (there / "model.safetensors").write_bytes(content)  # a pickle by another name
    with pytest.raises(InputError, match=r"is not what config\.json"):
        load_from_hub("me/model")
    assert not mark.exists()
    pickle.loads(content)
    assert mark.read_text() == "run"  # it would have


def test_what_the_hub_refuses_is_one_clear_error(hub: Hub, exported: Path) -> None:
    with pytest.raises(InputError, match=r"upload of .* to model failed: no such owner"):
        push_to_hub(exported, "model")
    with pytest.raises(InputError, match="download of you/none at v1 failed: 404"):
        load_from_hub("you/none", "v1")


def test_a_folder_that_would_not_load_is_not_uploaded(hub: Hub, exported: Path) -> None:
    (exported / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors cannot be read"):
        push_to_hub(exported, "me/model")
    assert hub.made == []


def test_the_calls_are_those_of_the_library(tmp_path: Path) -> None:
    """The stand-in takes what the real functions take; whether a hub answers is not tried."""
    hub = pytest.importorskip("huggingface_hub")
    import inspect

    for real, ours in (
        (hub.HfApi.create_repo, Hub.create_repo),
        (hub.HfApi.create_branch, Hub.create_branch),
        (hub.HfApi.upload_folder, Hub.upload_folder),
        (hub.snapshot_download, Hub.snapshot_download),
    ):
        names = set(inspect.signature(ours).parameters) - {"self"}
        assert names <= set(inspect.signature(real).parameters)
