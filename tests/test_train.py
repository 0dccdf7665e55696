"""The command as a user types it: composed, run, interrupted, resumed, reused."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.io import fits
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from vae_astro import VAE
from vae_astro.checked import _refuse_taken
from vae_astro.checkpoint import AtomicCheckpoints, find_checkpoint, load_checkpoint
from vae_astro.data.simulate import simulate
from vae_astro.errors import InputError
from vae_astro.folders import register_resolvers
from vae_astro.model.likelihoods import LIKELIHOODS
from vae_astro.model.networks import NETWORKS
from vae_astro.objective.beta import SCHEDULES
from vae_astro.run import train

ROOT = Path(__file__).parents[1]
GROUPS = ("data", "model", "prior", "likelihood", "beta", "optim", "trainer", "collapse",
          "callbacks", "experiment", "debug")  # fmt: skip
CHOICES = [
    (group, file.stem)
    for group in GROUPS
    for file in sorted((ROOT / "conf" / group).glob("*.yaml"))
]
SMALL = (
    "data=fits",
    "data.batch_size=16",
    "model.width=8",
    "model.latent_dim=4",
    "log_every_n_steps=1",
    "trainer=cpu",
    "trainer.precision=32-true",
    "trainer.check_val_every_n_epoch=1",
    "callbacks.progress=false",
    "callbacks.page=false",
)


@pytest.fixture(scope="module")
def stamps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 120 small simulated FITS files."""
    root = tmp_path_factory.mktemp("sky") / "stamps"
    return simulate(root, n_stamps=120, seed=3, size=24, n_processes=1, progress=False)


def run_train(
    tmp_path: Path, *overrides: str, expect: int = 0, timeout: float = 240
) -> subprocess.CompletedProcess[str]:
    """``python train.py`` in a folder of its own."""
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "train.py"),
            f"data.store_dir={tmp_path / 'stores'}",
            *overrides,
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def composed(*overrides: str) -> dict:
    register_resolvers()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", list(overrides), return_hydra_config=False)
    return OmegaConf.to_container(cfg, resolve=True)


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes_and_builds_its_model(group: str, choice: str) -> None:
    settings = composed(f"{group}={choice}")
    vae = VAE(
        [3, 32, 32],
        **{part: settings[part] for part in ("model", "likelihood", "prior", "beta", "optim")},
        normalize=settings["data"]["normalize"] | {"gain": None},
    )
    assert vae.latent_dim == settings["model"]["latent_dim"]


def test_every_registered_part_has_a_choice_and_the_other_way_round() -> None:
    for group, registry in (("model", NETWORKS), ("likelihood", LIKELIHOODS), ("beta", SCHEDULES)):
        assert {choice for found, choice in CHOICES if found == group} == set(registry)


def test_help_is_quick_and_names_the_groups(tmp_path: Path) -> None:
    shown = run_train(tmp_path, "--help").stdout
    for word in ("data.root", "beta= ", "likelihood= ", "resume=", "[simulated]"):
        assert word in shown


@pytest.fixture(scope="module")
def finished(stamps: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs, uninterrupted."""
    folder = tmp_path_factory.mktemp("finished")
    run_train(folder, *SMALL, f"data.root={stamps}", "run_dir=run", "trainer.max_epochs=3")
    return folder / "run"


def test_run_folder_holds_what_the_contract_says(finished: Path) -> None:
    for name in (
        ".hydra/config.yaml",
        "train.log",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "metrics.json",
        "figures/reconstructions.png",
    ):
        assert (finished / name).is_file(), name
    assert list(finished.glob("events.out.tfevents.*"))
    metrics = json.loads((finished / "metrics.json").read_text())
    val, collapse = metrics["val"], metrics["collapse"]
    assert val["elbo_nats"] == pytest.approx(val["reconstruction_nats"] - val["kl_nats"])
    assert sum(collapse["kl_per_unit_nats"]) == pytest.approx(val["kl_nats"])
    assert collapse["latent_dim"] == 4
    assert collapse["verdict"] in ("none", "partial", "full")
    assert metrics["data"]["n_train"] + metrics["data"]["n_val"] + metrics["data"]["n_test"] == 120
    assert metrics["classes"]["n_classes"] == 8
    assert metrics["timing"]["train_stamps_per_second"] > 0


@pytest.mark.slow
def test_a_band_that_no_object_has_leaves_every_figure_finite(stamps: Path, tmp_path: Path) -> None:
    for file in stamps.glob("**/*.fits"):
        for band in "gi":
            (tmp_path / "sky").mkdir(exist_ok=True)
            shutil.copy(file, tmp_path / "sky" / f"{file.stem}_{band}.fits")
    run_train(tmp_path, *SMALL, "data=bands", "data.bands=[g,r,i]", "data.missing=pad",
              f"data.root={tmp_path / 'sky'}", "run_dir=run", "trainer.max_epochs=2")  # fmt: skip
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    json.dumps(metrics, allow_nan=False)  # raises ValueError for any that is not
    assert len(metrics["collapse"]["forecast"]["decoder_variance"]) == 2
    assert metrics["data"]["n_train"] + metrics["data"]["n_val"] + metrics["data"]["n_test"] == 120


def test_checkpoint_embeds_raw_stamps_in_three_lines(finished: Path, stamps: Path) -> None:
    files = sorted(stamps.rglob("*.fits"))[:5]
    raw = np.stack([fits.getdata(file) for file in files])
    vae = VAE.load_from_checkpoint(finished / "checkpoints" / "best.ckpt", weights_only=True)
    latents = vae.embed(raw)
    assert latents.shape == (5, 4)
    assert np.isfinite(latents).all()
    # other batch sizes take other matrix kernels: equal up to float32 rounding
    assert np.allclose(latents[:1], vae.embed(raw[:1]), atol=1e-5)
    made = vae.reconstruct(raw)
    assert made.shape == (5, 1, 24, 24)
    good = np.isfinite(raw[:, None])
    assert np.corrcoef(made[good], raw[:, None][good])[0, 1] > 0.2


# Six steps an epoch, counted from 0: step 11 ends the second epoch, step 8 is within it. SIGKILL
# leaves what was saved before: after step 8, one step earlier.
@pytest.mark.parametrize(
    ("stop", "step", "n_steps_saved"),
    [
        ("SIGINT", 11, 12),
        pytest.param("SIGINT", 8, 9, marks=pytest.mark.slow),
        pytest.param("SIGTERM", 8, 9, marks=pytest.mark.slow),
        pytest.param("SIGKILL", 9, 8, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_goes_on_bit_for_bit(
    stop: str, step: int, n_steps_saved: int, finished: Path, stamps: Path, tmp_path: Path
) -> None:
    settings = (*SMALL, f"data.root={stamps}", "run_dir=run", "trainer.max_epochs=3")
    stopped = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "stopped_train.py"), str(step), stop,
         f"data.store_dir={tmp_path / 'stores'}", "callbacks.save_every_n_steps=4", *settings],
        cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    # a shell gives 128 + signal; Popen gives -signal for a process that the signal itself ended
    number = signal.Signals[stop]
    assert stopped.returncode == (-number if stop == "SIGKILL" else 128 + number), stopped.stderr
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == n_steps_saved, stopped.stderr
    # the first epoch has been validated: its best is on disk, and the last checkpoint knows it
    best = [state for name, state in saved["callbacks"].items() if name.startswith("Best")]
    assert best[0]["best_model_score"] is not None
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").is_file()
    run_train(tmp_path, "resume=run")
    assert_same_run(finished, tmp_path / "run")


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("last", "best"):
        a, b = (weights(run / "checkpoints" / f"{name}.ckpt") for run in (one, other))
        assert a.keys() == b.keys()
        for key, value in a.items():
            assert torch.equal(value, b[key]), key
    figures = [json.loads((run / "metrics.json").read_text())["val"] for run in (one, other)]
    assert figures[0] == figures[1]


@pytest.mark.slow
def test_resume_refuses_another_model_and_a_run_without_checkpoint(
    finished: Path, stamps: Path, tmp_path: Path
) -> None:
    done = run_train(tmp_path, f"resume={finished}", "model.latent_dim=5",
                     f"run_dir={tmp_path / 'other'}", expect=2)  # fmt: skip
    assert "resume=" in done.stderr
    assert "init_from=" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    done = run_train(tmp_path, f"resume={finished}", "beta.gamma=2", expect=2)
    assert "has no setting beta.gamma" in done.stderr  # said of the run's own choice, not by Hydra
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"resume=.*holds no checkpoint"):
        find_checkpoint("resume", str(tmp_path / "empty"))


def test_init_from_takes_the_best_and_resume_the_last(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    with pytest.raises(InputError, match=r"holds no checkpoint: there is no checkpoints/best.ckpt"):
        find_checkpoint("init_from", str(tmp_path / "run"))
    (folder / "last.ckpt").touch()  # stopped before the first validation
    assert find_checkpoint("init_from", str(tmp_path / "run")) == folder / "last.ckpt"
    (folder / "best.ckpt").touch()
    assert find_checkpoint("init_from", str(folder)) == folder / "best.ckpt"
    assert find_checkpoint("resume", str(tmp_path / "run")) == folder / "last.ckpt"


def test_init_from_takes_what_fits_and_says_what_does_not(
    finished: Path, stamps: Path, tmp_path: Path
) -> None:
    done = run_train(
        tmp_path, *SMALL, f"data.root={stamps}", "run_dir=run", "trainer.max_epochs=1",
        f"init_from={finished}", "model.latent_dim=6", "trainer.precision=bf16-mixed",
    )  # fmt: skip
    assert "network.encoder.head.weight: (8, 128) in the checkpoint, (12, 128) here" in done.stdout
    assert "network.encoder.trunk.1.weight" not in done.stdout


def test_two_processes_come_to_what_one_comes_to(
    finished: Path, stamps: Path, tmp_path: Path
) -> None:
    done = run_train(
        tmp_path, *SMALL, f"data.root={stamps}", "run_dir=run", "trainer=ddp",
        "trainer.accelerator=cpu", "trainer.max_epochs=3", "trainer.check_val_every_n_epoch=1",
    )  # fmt: skip
    assert done.stdout.count("verdict") == 1, "only the first process reports"
    assert "Traceback" not in done.stderr
    assert sorted(file.name for file in (tmp_path / "run").glob("*.log")) == ["train.log"]
    assert_close_runs(finished, tmp_path / "run")


def assert_close_runs(one: Path, other: Path) -> None:
    """Weights within what another order of sums makes of them; Adam divides by small numbers."""
    for name in ("last", "best"):
        a, b = (weights(run / "checkpoints" / f"{name}.ckpt") for run in (one, other))
        for key, value in a.items():
            torch.testing.assert_close(value, b[key], atol=1e-4, rtol=1e-3)
    elbo = [json.loads((run / "metrics.json").read_text())["val"]["elbo_nats"]
            for run in (one, other)]  # fmt: skip
    assert elbo[0] == pytest.approx(elbo[1], rel=1e-5)


@pytest.mark.slow
def test_a_sweep_gives_each_job_its_folder(stamps: Path, tmp_path: Path) -> None:
    run_train(
        tmp_path, *SMALL, f"data.root={stamps}", "hydra.sweep.dir=sweep", "trainer.max_epochs=1",
        "beta=constant", "beta.value=0.5,2", "-m",
    )  # fmt: skip
    assert {file.parent.name for file in tmp_path.glob("sweep/*/metrics.json")} == {"0", "1"}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.latent_dim=0"], "model.latent_dim must be at least 1, got 0"),
        (["model.latent_dim=many"], "model.latent_dim must be a whole number, got 'many'"),
        (["beta.warmup_steps=-1"], "beta.warmup_steps must be at least 1, got -1"),
        (["trainer=gpu"], "trainer=cpu always works"),
        (["data.root=nowhere"], "nowhere"),
        (["data.batch_size=0"], "data.batch_size must be at least 1, got 0"),
        (["data.normalize.stretch=cubic"], "data.normalize.stretch must be one of"),
        (["init_from=nothing.ckpt"], "init_from=nothing.ckpt does not exist"),
        (["data.val_fraction=0.001"], "data.val_fraction"),
        (["data.root=null"], "data.root is not set"),
        (["trainer.max_epochs=0"], "trainer.max_epochs must be at least 1, got 0"),
        (["seed=-1"], "seed must be at least 0, got -1"),
        (["data.augment=no way"], "data.augment must be true or false, got 'no way'"),
        (["data.size=40000"], "data.size must be at most 4096, got 40000"),
        (["data.classes=3"], "data.classes must be a list of labels or null, got 3"),
        (["data.store_dir=null"], "data.store_dir must be text, got None"),
        (["init_from=[1]"], "init_from must be text, got [1]"),
        (["trainer.precision=8"], "trainer.precision must be one of auto, 32-true, bf16-mixed"),
        (["trainer.limit_train_batches=0"], "trainer.limit_train_batches must be greater than 0"),
        (["+latent_dim=3"], "latent_dim is no setting; known are"),
        (["+callbacks.nonsense=3"], "callbacks.nonsense is no setting; known are"),
        (["+trainer.nonsense=3"], "nonsense"),
        (["log_every_n_steps=0"], "log_every_n_steps must be at least 1, got 0"),
        (["callbacks.time_share=2"], "callbacks.time_share must be at most 1, got 2"),
    ],
)
def test_a_mistake_is_refused_before_training_and_names_its_key(
    overrides: list[str], words: str, stamps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "trainer=gpu" in overrides and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    monkeypatch.chdir(tmp_path)
    settings = composed(*SMALL, f"data.root={stamps}", *overrides)
    with pytest.raises(InputError, match=re.escape(words)):
        train(settings, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_disk_that_fills_up_spoils_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "run" / "checkpoints" / "last.ckpt"
    AtomicCheckpoints().save_checkpoint({"step": 1}, target)

    def full(checkpoint: dict, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vae_astro.checkpoint.keeping.torch.save", full)
    with pytest.raises(InputError, match=r"cannot write .*No space left on device.*resume="):
        AtomicCheckpoints().save_checkpoint({"step": 2}, target)
    assert torch.load(target, weights_only=True) == {"step": 1}
    assert [file.name for file in target.parent.iterdir()] == ["last.ckpt"]


def test_what_a_kill_left_of_a_checkpoint_is_none_and_goes_with_the_next(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / ".last.partial-123.ckpt").write_bytes(b"half")
    _refuse_taken(tmp_path / "run")
    with pytest.raises(InputError, match=r"no checkpoints/last.ckpt in it$"):
        find_checkpoint("resume", str(tmp_path / "run"))
    AtomicCheckpoints().save_checkpoint({"step": 1}, folder / "last.ckpt")
    assert [file.name for file in folder.iterdir()] == ["last.ckpt"]


def test_another_run_is_not_overwritten(finished: Path, stamps: Path) -> None:
    before = (finished / "checkpoints" / "best.ckpt").read_bytes()
    with pytest.raises(InputError, match=r"holds another run.*resume="):
        train(composed(*SMALL, f"data.root={stamps}"), finished)
    assert (finished / "checkpoints" / "best.ckpt").read_bytes() == before


def test_a_mistake_ends_in_one_line_and_exit_status_2(stamps: Path, tmp_path: Path) -> None:
    done = run_train(
        tmp_path, *SMALL, f"data.root={stamps}", "run_dir=run", "likelihood=bernoulli", expect=2
    )
    assert "likelihood=bernoulli needs pixels between 0 and 1" in done.stderr
    assert "data.normalize.stretch=minmax" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_unknown_key_is_refused_by_name(tmp_path: Path) -> None:
    done = run_train(tmp_path, "model.latnet_dim=3", expect=2)
    assert "did you mean model.latent_dim?" in done.stderr
    assert "Traceback" not in done.stderr


def test_foreign_and_damaged_checkpoints_are_refused(finished: Path, tmp_path: Path) -> None:
    whole = (finished / "checkpoints" / "last.ckpt").read_bytes()
    (tmp_path / "half.ckpt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    (tmp_path / "empty.ckpt").write_bytes(b"")
    for name in ("half", "text", "empty"):
        with pytest.raises(InputError, match="cannot be read as a checkpoint"):
            load_checkpoint(tmp_path / f"{name}.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(InputError, match="not a checkpoint of vae_astro"):
        load_checkpoint(tmp_path / "foreign.ckpt")
    checkpoint = load_checkpoint(finished / "checkpoints" / "last.ckpt")
    checkpoint["vae_astro"]["format"] = 99
    torch.save(checkpoint, tmp_path / "future.ckpt")
    with pytest.raises(InputError, match="has checkpoint format 99"):
        load_checkpoint(tmp_path / "future.ckpt")


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "harm",))

    torch.save({"vae_astro": {"format": 1}, "state_dict": Hostile()}, tmp_path / "hostile.ckpt")
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        load_checkpoint(tmp_path / "hostile.ckpt")
    assert not (tmp_path / "harm").exists()
