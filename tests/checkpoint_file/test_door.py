"""What is given as a checkpoint and is none: one sentence that says what it is."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_checkpoints import save, tiny_vae

from vae_astro import VAE
from vae_astro.checkpoint_file import CHECKPOINT_FORMAT, find_checkpoint, load_checkpoint
from vae_astro.errors import InputError


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny_vae(), tmp_path_factory.mktemp("run") / "good.ckpt")


def changed(good: Path, path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The good checkpoint with something else in it."""
    checkpoint = torch.load(good, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, path)
    return path


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return buffer.getvalue()


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    return buffer.getvalue()


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file"),
        (b"weights of my network\n", "text that begins with 'weights'"),
        (b"<!DOCTYPE html><title>404</title>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "weights of Keras"),
        (b"SIMPLE  =                    T", "a FITS file"),
        (npy(), "a NumPy array"),
        (gzip.compress(b"x", mtime=0), "compressed with gzip"),
        (pickle.dumps({"a": 1}), "a bare pickle"),
        (tarred(), "a tar archive"),
        ((40).to_bytes(8, "little") + b'{"__metadata__":{}}' + bytes(21), "safetensors"),
        (zipped("docs/read.me"), "a zip archive without weights"),
        (zipped("a/data.pkl", "a/constants.pkl"), "a TorchScript archive"),
        (zipped("a/data.pkl"), "damaged or something else"),
        (bytes(range(200, 240)), "something that begins with the bytes c8 c9 ca cb"),
    ],
)
def test_another_file_is_called_what_it_is(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "given.ckpt"
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as a checkpoint") as caught:
        load_checkpoint(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "give a run folder or a .ckpt file" in str(caught.value)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_file_that_breaks_off_is_refused(good: Path, tmp_path: Path, share: float) -> None:
    whole = good.read_bytes()
    (tmp_path / "half.ckpt").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match="cannot be read as a checkpoint, it is a damaged zip"):
        load_checkpoint(tmp_path / "half.ckpt")


def test_bytes_that_are_wrong_are_an_error_of_one_sentence_or_no_matter(
    good: Path, tmp_path: Path
) -> None:
    whole, refused = good.read_bytes(), 0
    rng = np.random.default_rng(0)
    start = whole.index(b"data.pkl") + 8
    for place in rng.integers(start, start + 1500, 60):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        (tmp_path / "damaged.ckpt").write_bytes(damaged)
        try:
            load_checkpoint(tmp_path / "damaged.ckpt")
        except InputError:
            refused += 1
    assert refused > 30


class OtherModule(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (OtherModule().state_dict(), r"bare weights \(2 tensors, the first layer.weight\)"),
        ({"model_state_dict": OtherModule().state_dict()}, "weights of pythae"),
        (torch.zeros(3), "a saved Tensor"),
        ([1, 2], "a saved list"),
        ({}, "something else"),
        (
            {"pytorch-lightning_version": "2.6.0", "state_dict": {}, "hyper_parameters": {"lr": 1}},
            "one of another Lightning module .its settings: lr",
        ),
    ],
)
def test_a_checkpoint_of_another_project_is_called_what_it_is(
    tmp_path: Path, content: object, words: str
) -> None:
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(InputError, match=f"is not a checkpoint of vae_astro but {words}"):
        load_checkpoint(tmp_path / "other.ckpt")


def test_a_saved_module_is_refused_by_the_name_of_its_class(tmp_path: Path) -> None:
    torch.save(OtherModule(), tmp_path / "module.pt")
    with pytest.raises(InputError, match=r"made by running code \(.*OtherModule"):
        load_checkpoint(tmp_path / "module.pt")


def pop(*keys: str) -> Callable[[dict[str, Any]], object]:
    def change(checkpoint: dict[str, Any]) -> None:
        for key in keys[:-1]:
            checkpoint = checkpoint[key]
        del checkpoint[keys[-1]]

    return change


def put(value: object, *keys: str) -> Callable[[dict[str, Any]], object]:
    def change(checkpoint: dict[str, Any]) -> None:
        for key in keys[:-1]:
            checkpoint = checkpoint[key]
        checkpoint[keys[-1]] = value

    return change


ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (pop("state_dict"), "state_dict is missing"),
        (pop("hyper_parameters"), "hyper_parameters is missing"),
        (put([1], "hyper_parameters"), "hyper_parameters is missing"),
        (put("x", "global_step"), "global_step is a str"),
        (put(3, "state_dict", "a"), r"state_dict\['a'\] is no tensor"),
        (pop("vae_astro", "total_steps"), "total_steps is missing"),
        (put(torch.eye(2).to_sparse(), "state_dict", "a"), "has no real numbers, one for each"),
        (put(torch.zeros(2, dtype=torch.complex64), "state_dict", "a"), "has no real numbers"),
        (put(torch.ones(1), "hyper_parameters", "band_names"), "is a Tensor, not plain Python"),
        (put({1: 2}, "hyper_parameters", "model"), "the key 1, which is no text"),
        (put(ENDLESS, "hyper_parameters", "band_names"), "without end"),
        (put("x", "vae_astro", "settings"), "settings is no mapping"),
        (pop("vae_astro", "state"), "not there"),
    ],
)
def test_what_is_missing_in_a_checkpoint_is_named(
    good: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    path = changed(good, tmp_path / "lacking.ckpt", change)
    with pytest.raises(InputError, match=f"is no whole checkpoint of vae_astro.*{words}"):
        load_checkpoint(path)


@pytest.mark.parametrize("found", [CHECKPOINT_FORMAT + 1, 99])
def test_a_newer_format_names_the_version_that_reads_it(
    good: Path, tmp_path: Path, found: int
) -> None:
    def change(checkpoint: dict[str, Any]) -> None:
        checkpoint["vae_astro"] |= {"format": found, "version": "7.0.0"}

    path = changed(good, tmp_path / "newer.ckpt", change)
    words = rf"has checkpoint format {found} \(written by vae_astro 7.0.0\)"
    with pytest.raises(InputError, match=words):
        VAE.load_from_checkpoint(path)


@pytest.mark.parametrize("found", [None, 0, "2", True])
def test_a_format_that_is_no_number_is_refused(good: Path, tmp_path: Path, found: object) -> None:
    path = changed(good, tmp_path / "odd.ckpt", put(found, "vae_astro", "format"))
    with pytest.raises(InputError, match="damaged or was changed by hand"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put("transformer", "hyper_parameters", "model", "name"), "model.name is 'transformer'"),
        (put(7, "hyper_parameters", "model", "heads"), "no setting model.heads"),
        (put(7, "hyper_parameters", "heads"), "unexpected keyword argument 'heads'"),
        (pop("hyper_parameters", "stamp_shape"), "missing 1 required positional argument"),
        (put("wide", "hyper_parameters", "stamp_shape"), "got 'wide'"),
        (put({"name": "cauchy"}, "hyper_parameters", "likelihood"), "likelihood.name is 'cauchy'"),
    ],
)
def test_settings_that_make_no_model_are_told_with_the_version_that_had_them(
    good: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    path = changed(good, tmp_path / "settings.ckpt", change)
    with pytest.raises(InputError, match="makes no model of its settings") as caught:
        VAE.load_from_checkpoint(path)
    assert words in str(caught.value)
    assert "load it with the vae_astro that wrote it (" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (pop("state_dict", "network.encoder.log_var"), r"log_var: \(2,\) here|absent there"),
        (put(torch.ones(1), "state_dict", "network.gate"), r"network.gate: \(1,\) there, absent"),
        (put(torch.ones(5), "state_dict", "network.encoder.log_var"), r"\(5,\) there, \(2,\) here"),
    ],
)
def test_weights_of_a_network_that_has_changed_are_named(
    good: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    path = changed(good, tmp_path / "network.ckpt", change)
    with pytest.raises(InputError, match="1 weights differ") as caught:
        VAE.load_from_checkpoint(path)
    assert caught.match(words)
    assert caught.match(f"init_from={path}")


def test_a_folder_without_checkpoints_and_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no checkpoint"):
        VAE.load_from_checkpoint(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        VAE.load_from_checkpoint(tmp_path / "gone.ckpt")
    with pytest.raises(InputError, match="does not exist"):  # nothing is fetched by a name
        VAE.load_from_checkpoint("https://example.org/model.ckpt")
    with pytest.raises(InputError, match="not by a BytesIO"):
        VAE.load_from_checkpoint(io.BytesIO(b""))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="cannot be read as a checkpoint: No such file"):
        load_checkpoint(tmp_path / "gone.ckpt")


def test_a_run_folder_stands_for_its_best_checkpoint(good: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.ckpt").write_bytes(good.read_bytes())
    vae = VAE.load_from_checkpoint(tmp_path, log_every_n_steps=7)
    assert vae.log_every_n_steps == 7
    assert find_checkpoint("checkpoint", str(tmp_path)).name == "best.ckpt"
