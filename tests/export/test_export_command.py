"""From a checkpoint to a folder: what is written, what is refused, and what is never lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from exported_models import SIZE, raw_stamps, save_checkpoint, tiny_vae
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor

from vae_astro import VAE
from vae_astro.checkpoint import load_checkpoint
from vae_astro.errors import InputError
from vae_astro.export import export_model, load_safetensors, model_card
from vae_astro.folders import register_resolvers
from vae_astro.model.decoders import LinearDecoder

ROOT = Path(__file__).parents[2]
METRICS = {
    "val": {"elbo_nats": -10.5, "reconstruction_nats": -8.0, "kl_nats": 2.5, "chi2_per_pixel": 1.1},
    "test": {},
    "collapse": {"verdict": "partial", "active_units": 1, "latent_dim": 4},
    "data": {"n_train": 40, "n_val": 5, "n_test": 5, "n_rejected": 0},
}


def composed(*overrides: str) -> dict[str, Any]:
    register_resolvers()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("export", list(overrides))
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


def export(*overrides: str) -> Any:
    return export_model(composed(*overrides), overrides)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with the best checkpoint, metrics and a picture; its data lie elsewhere."""
    folder = tmp_path_factory.mktemp("runs") / "faint"
    vae = tiny_vae("linear")
    with torch.no_grad():
        vae.network.encoder.mean.weight[2] = 0  # type: ignore[union-attr,operator,index]
    folder.mkdir()
    np.save(folder / "stamps.npy", raw_stamps(60)[12:])
    data = composed("data=arrays", f"data.root={folder / 'stamps.npy'}")["data"]
    vae.run_settings = {"data": data, "seed": 3, "model": dict(vae.hparams["model"])}
    save_checkpoint(vae, folder / "checkpoints" / "best.ckpt")
    (folder / "figures").mkdir()
    (folder / "figures" / "traversals.png").write_bytes(b"picture")
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    return folder


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_safetensors_and_a_lean_checkpoint_give_the_latents_of_the_run(
    run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "model"
    done = export(f"checkpoint={run}", f"out={out}", "formats=[safetensors,checkpoint]")
    assert files(out) == {
        "README.md",
        "config.json",
        "model.safetensors",
        "model.ckpt",
        "figures/traversals.png",
    }
    assert set(done.files) == files(out)
    assert not done.failures
    assert sorted(path.name for path in out.parent.iterdir()) == ["model"]  # nothing left beside
    stamps = raw_stamps()
    expected = VAE.load_from_checkpoint(run / "checkpoints" / "best.ckpt").embed(stamps)
    np.testing.assert_array_equal(load_safetensors(out).embed(stamps), expected)
    lean = load_checkpoint(out / "model.ckpt")
    assert "optimizer_states" not in lean
    assert lean["vae_astro"]["settings"]["seed"] == 3
    loaded = VAE.load_from_checkpoint(out / "model.ckpt", weights_only=True)
    np.testing.assert_array_equal(loaded.embed(stamps), expected)


def test_a_pruned_checkpoint_is_an_ordinary_one_with_fewer_units(run: Path, tmp_path: Path) -> None:
    os.chdir(tmp_path)  # the store goes there
    done = export(f"checkpoint={run}", "out=small", "formats=[checkpoint,safetensors]",
                  "prune=true")  # fmt: skip
    assert done.pruning is not None
    assert done.pruning.kept == [0, 1, 3]
    assert "1 of 4 units pruned" in str(done)
    stamps = raw_stamps()
    expected = VAE.load_from_checkpoint(run / "checkpoints" / "best.ckpt").embed(stamps)
    small = VAE.load_from_checkpoint(tmp_path / "small" / "model.ckpt", weights_only=True)
    np.testing.assert_allclose(small.embed(stamps), expected[:, [0, 1, 3]], rtol=1e-5, atol=1e-5)
    saved = load_checkpoint(tmp_path / "small" / "model.ckpt")["vae_astro"]["settings"]
    assert saved["model"]["latent_dim"] == 3
    assert saved["data"]["root"].endswith("stamps.npy")
    card = (tmp_path / "small" / "README.md").read_text()
    assert "1 of 4 units pruned" in card
    assert "of the model before, and number its units as `unit`" in card


@pytest.fixture
def other_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs that cost no time: what they hold is tested elsewhere."""
    module = "vae_astro.export.command"

    def write(programs: Any, folder: Path) -> list[str]:
        (folder / "encoder.pt2").write_bytes(b"program")
        return ["encoder.pt2"]

    monkeypatch.setattr(f"{module}.write_torch_export", write)


def test_stamps_that_an_export_is_tried_on_are_not_spoken_of(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    export(f"checkpoint={run}", f"out={tmp_path / 'out'}", "formats=[safetensors,checkpoint]")
    assert "no good pixel" not in caplog.text
    vae = load_safetensors(tmp_path / "out")
    vae.embed(np.full((1, *vae.stamp_shape), np.nan, np.float32))
    assert "no good pixel" in caplog.text  # of a user's own they are


def test_a_folder_that_is_taken_is_left_as_it_is(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "papers"
    out.mkdir()
    (out / "README.md").write_text("mine")
    with pytest.raises(InputError, match="is not empty; choose another folder"):
        export(f"checkpoint={run}", f"out={out}", "formats=[safetensors]")
    with pytest.raises(InputError, match="holds something else than an export"):
        export(f"checkpoint={run}", f"out={out}", "formats=[safetensors]", "overwrite=true")
    assert (out / "README.md").read_text() == "mine"
    with pytest.raises(InputError, match="is a file; give a folder"):
        export(f"checkpoint={run}", f"out={out / 'README.md'}", "formats=[safetensors]")


@pytest.mark.usefixtures("other_formats")
def test_an_earlier_export_is_replaced_whole_and_what_else_is_there_stays(
    run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model"
    export(f"checkpoint={run}", f"out={out}", "formats=[torch_export,checkpoint]")
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="overwrite=true"):
        export(f"checkpoint={run}", f"out={out}", "formats=[safetensors]")
    assert (out / "encoder.pt2").exists()
    export(f"checkpoint={run}", f"out={out}", "formats=[safetensors]", "overwrite=true")
    assert (out / "notes.txt").read_text() == "mine"
    assert {"encoder.pt2", "model.ckpt"}.isdisjoint(files(out))  # they were of an older model
    assert load_safetensors(out).latent_dim == 4


def test_pictures_of_an_earlier_model_do_not_stay_beside_another(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    export(f"checkpoint={run}", f"out={out}", "formats=[safetensors]")
    for name in ("kl_per_unit.png", "mine.png"):
        (out / "figures" / name).write_bytes(b"older")
    lone = save_checkpoint(tiny_vae("mlp"), tmp_path / "lone.ckpt")
    export(f"checkpoint={lone}", f"out={out}", "formats=[safetensors]", "overwrite=true")
    assert [path.name for path in (out / "figures").iterdir()] == ["mine.png"]


@pytest.mark.parametrize("name", ["last", "healthy"])
def test_weights_that_were_not_judged_have_no_figures_of_others(
    run: Path, tmp_path: Path, name: str
) -> None:
    own = tmp_path / "run"
    shutil.copytree(run, own)
    other = own / "checkpoints" / f"{name}.ckpt"
    shutil.copyfile(own / "checkpoints" / "best.ckpt", other)
    out = tmp_path / "model"
    export(f"checkpoint={other}", f"out={out}", "formats=[safetensors]")
    cards = (out / "README.md").read_text(), model_card(other, own)
    for card in cards:
        assert "Not known: these are weights of another checkpoint than the one" in card
        assert "-10.5" not in card
    assert not (out / "figures").exists()
    best = export(f"checkpoint={own / 'checkpoints' / 'best.ckpt'}", f"out={tmp_path / 'best'}",
                  "formats=[safetensors]")  # fmt: skip
    assert "figures/traversals.png" in best.files
    (own / "checkpoints" / "best.ckpt").unlink()
    assert ("-10.5" in model_card(other, own)) is (name == "last")  # all there was to judge


def test_what_a_target_cannot_express_is_named_and_the_other_formats_are_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")

    def bessel(self: LinearDecoder, z: Tensor) -> Tensor:
        return torch.special.bessel_j0(self.location(z)).unflatten(1, self.shape)

    monkeypatch.setattr(LinearDecoder, "forward", bessel)
    out = tmp_path / "model"
    done = export(f"checkpoint={run}", f"out={out}", "formats=[onnx,safetensors]")
    assert set(done.failures) == {"onnx"}
    said = done.failures["onnx"]
    assert "bessel_j0, which onnx cannot express" in said
    assert "formats=[torch_export] or formats=[safetensors]" in said
    assert "encoder.onnx" not in files(out)  # half of a format is none
    assert load_safetensors(out).latent_dim == 4


def test_a_decision_on_a_value_cannot_be_traced_and_nothing_is_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decides(self: LinearDecoder, z: Tensor) -> Tensor:
        drawn = self.location(z).unflatten(1, self.shape)
        return drawn if z.sum() > 0 else -drawn

    monkeypatch.setattr(LinearDecoder, "forward", decides)
    out = tmp_path / "model"
    with pytest.raises(InputError, match=r"formats=\[torch_export\]: the decoder of this model"):
        export(f"checkpoint={run}", f"out={out}", "formats=[torch_export]")
    assert not out.exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("formats=[keras]", r"formats must be a list out of torch_export, onnx"),
        ("formats=[]", r"formats must be a list"),
        ("overwrite=maybe", "overwrite must be true or false"),
        ("prune=1", "prune must be true or false"),
        ("out=null", "out must be text"),
        ("checkpoint=null", "checkpoint is not set"),
        ("checkpoint=nowhere", "checkpoint=nowhere does not exist"),
        ("hub_repo=me/model", r"hub_repo needs formats=\[safetensors\]"),
        ("licence=' '", "licence must be text"),
    ],
)
def test_settings_are_checked_before_anything_is_written(
    run: Path, tmp_path: Path, override: str, said: str
) -> None:
    given = {"checkpoint": str(run), "out": str(tmp_path / "model"), "formats": "[checkpoint]"}
    overrides = [f"{key}={value}" for key, value in given.items()]
    key = override.split("=")[0]
    overrides = [text for text in overrides if not text.startswith(f"{key}=")] + [override]
    with pytest.raises(InputError, match=said):
        export(*overrides)
    assert list(tmp_path.iterdir()) == []


# The model card


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---")[1])


def test_the_card_tells_verdict_figures_data_limits_and_licence(run: Path) -> None:
    card = model_card(run / "checkpoints" / "best.ckpt", run, licence="cc-by-4.0")
    about = front_matter(card)
    assert about["license"] == "cc-by-4.0"
    assert about["library_name"] == "vae_astro"
    assert "astronomy" in about["tags"]
    assert card.count("\n# ") == 1
    assert "Partial collapse: 1 of 4 latent units were active" in card
    assert "| ELBO (nats) | -10.5 | not measured |" in card
    assert "Trained on 40 stamps only." in card
    assert "| root | stamps.npy |" in card
    assert str(run.parent) not in card  # where it lies on somebody's disk is nobody's business
    assert f"{SIZE}x{SIZE} pixels in 2 bands (g, r)" in card
    assert "The weights: cc-by-4.0." in card


def test_the_card_says_what_is_not_known(run: Path) -> None:
    card = model_card(run / "checkpoints" / "best.ckpt")
    assert "license" not in front_matter(card)
    assert "Not known: there is no `metrics.json`" in card
    assert "None was given for the weights" in card


@pytest.mark.parametrize(
    "metrics",
    [
        {"val": 3},
        METRICS | {"collapse": {"verdict": "partial", "latent_dim": 4}},
        METRICS | {"collapse": METRICS["collapse"] | {"verdict": []}},
        METRICS | {"collapse": METRICS["collapse"] | {"forecast": "none"}},
        METRICS | {"test": 3},
        METRICS | {"data": [[40, 5]]},
    ],
)
def test_metrics_that_no_run_wrote_are_refused(
    run: Path, tmp_path: Path, metrics: dict[str, Any]
) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(InputError, match=r"metrics\.json is not what a finished run writes"):
        model_card(run / "checkpoints" / "best.ckpt", tmp_path)


def test_metrics_may_leave_out_what_was_not_measured(run: Path, tmp_path: Path) -> None:
    metrics = METRICS | {"test": None, "data": {"n_train": None}, "classes": None}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    card = model_card(run / "checkpoints" / "best.ckpt", tmp_path)
    assert "| ELBO (nats) | -10.5 | not measured |" in card


@pytest.mark.slow
def test_the_command_writes_what_it_can_says_the_rest_and_fails(run: Path, tmp_path: Path) -> None:
    def command(*overrides: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / "scripts" / "export.py"), f"checkpoint={run}", *overrides],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        )

    done = command("out=model")
    assert done.returncode == 0, done.stderr
    assert "model/encoder.onnx" in done.stdout
    assert files(tmp_path / "model") >= {"encoder.pt2", "decoder.onnx", "model.safetensors"}
    again = command("out=model")
    assert again.returncode == 2
    assert again.stderr.startswith("error: out=model is not empty")
