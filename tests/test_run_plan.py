"""A plan says what a run would come to, and leaves nothing behind."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from vae_astro import plan as plan_module
from vae_astro.checked import check, run_settings
from vae_astro.command.help import register_help
from vae_astro.data.simulate import simulate
from vae_astro.errors import InputError
from vae_astro.folders import register_resolvers
from vae_astro.plan import plan
from vae_astro.training import new_vae

CONF = Path(__file__).parents[1] / "conf"


@pytest.fixture(autouse=True)
def one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "FEWEST_STEPS", 1)
    monkeypatch.setattr(plan_module, "MOST_STEPS", 1)


@pytest.fixture(scope="module")
def stamps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sky") / "stamps"
    return simulate(root, n_stamps=80, seed=3, size=24, n_processes=1, progress=False)


def planned(folder: Path, *overrides: str) -> dict[str, str]:
    """The plan, each part under its name."""
    register_resolvers()
    register_help(CONF)
    given = [f"data.store_dir={folder / 'stores'}", "trainer=cpu", "model.latent_dim=4", *overrides]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        settings = run_settings(compose("config", [*given, "debug=plan"]), given)
    text = plan(settings, check(settings, folder / "run"), folder / "run", 4.0)
    assert "nothing was written" in text
    parts: dict[str, str] = {}
    name = ""
    for line in text.splitlines()[:-1]:
        name = line[:10].strip() or name
        parts[name] = f"{parts.get(name, '')} {line[10:]}".strip()
    return parts


def test_stamps_that_are_not_packed_are_counted_and_stay_so(stamps: Path, tmp_path: Path) -> None:
    said = planned(tmp_path, "data=fits", f"data.root={stamps}", "trainer.max_epochs=3",
                   "data.batch_size=16")  # fmt: skip
    assert ": 81 files" in said["read"] or ": 80 files" in said["read"]
    assert "80 stamps of 24x24, 1 band, to be packed" in said["read"]
    assert said["train on"] == "64 stamps, 8 for validation, 8 for test"
    assert "3 epochs of 4 steps: 12 steps of 16 stamps" in said["train"]
    assert "when the stamps are packed" in said["forecast"]
    assert "an estimate" in said["time"]
    # ten seconds around it, and a look at 80 stamps: more than a second of it on a busy machine
    step, rest = re.search(r"\((\d+) ms a step.* verdict (\d+) s$", said["time"]).groups()
    assert 10 <= int(rest) <= 11 + 5 * int(step) / 1000
    assert list(tmp_path.iterdir()) == []


def test_steps_are_those_that_the_limits_let_through(stamps: Path, tmp_path: Path) -> None:
    words = ("data=fits", f"data.root={stamps}", "model=linear", "data.batch_size=16",
             "trainer.max_epochs=3")  # fmt: skip
    said = planned(tmp_path, *words, "trainer.limit_train_batches=3")
    assert "3 epochs of 3 steps: 9 steps of 16 stamps" in said["train"]
    said = planned(tmp_path, *words, "trainer.limit_train_batches=0.5")
    assert "3 epochs of 2 steps: 6 steps of 16 stamps" in said["train"]
    with pytest.raises(InputError, match=r"trainer\.limit_val_batches=0\.5 of 1 batches"):
        planned(tmp_path, *words, "trainer.limit_val_batches=0.5")


def test_a_packed_store_gives_exact_numbers_and_a_forecast(stamps: Path, tmp_path: Path) -> None:
    words = ("data=fits", f"data.root={stamps}", "model=linear")
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", [*words, f"data.store_dir={tmp_path / 'stores'}"])
    settings = run_settings(cfg, words)
    module = check(settings, tmp_path / "run").datamodule
    module.packer.open(module.root)
    before = sorted(file.stat().st_mtime_ns for file in tmp_path.rglob("*"))
    said = planned(tmp_path, *words)
    assert "packed already" in said["read"]
    module.setup()
    assert said["train on"].startswith(f"{len(module.train_rows)} stamps, {len(module.val_rows)} ")
    assert "KL about" in said["forecast"]
    n = sum(each.numel() for each in new_vae({**settings, "model": {**settings["model"],
            "latent_dim": 4}}, (1, 24, 24)).parameters())  # fmt: skip
    assert f"{n:,} parameters" in said["build"]
    assert sorted(file.stat().st_mtime_ns for file in tmp_path.rglob("*")) == before


def test_simulated_stamps_are_not_drawn(tmp_path: Path) -> None:
    said = planned(tmp_path, "data.n_stamps=300", "data.size=24", f"data.root={tmp_path / 'sky'}",
                   "collapse.action=rescue")  # fmt: skip
    assert "300 stamps of 24x24, to be drawn" in said["read"]
    assert "3 checkpoints of" in said["disk"]
    assert list(tmp_path.iterdir()) == []


def test_arrays_are_counted_without_packing(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(50, 2, 20, 20)).astype(np.float32)
    np.save(tmp_path / "many.npy", array)
    said = planned(tmp_path, "data=arrays", f"data.root={tmp_path / 'many.npy'}")
    assert "50 stamps of 20x20, 2 bands" in said["read"]
    assert [file.name for file in tmp_path.iterdir()] == ["many.npy"]


@pytest.mark.real_data
def test_alerts_are_estimated_from_the_first(real_data: Path, tmp_path: Path) -> None:
    said = planned(tmp_path, "data=alerts", f"data.root={real_data / 'ztf_alerts'}", "model=linear")
    assert ": 498 files" in said["read"]
    n = int(said["read"].partition("about ")[2].partition(" stamps")[0])
    assert abs(n - 498) < 25
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("mib", "words"),
    [(0, "0.1 MiB"), (0.352, "0.352 MiB"), (39.74, "39.7 MiB"), (99.96, "100 MiB"),
     (352.4, "352 MiB"), (1004, "1004 MiB"), (1023.7, "1.0 GiB"), (1536, "1.5 GiB")],
)  # fmt: skip
def test_sizes_are_written_without_powers_of_ten(mib: float, words: str) -> None:
    assert plan_module._bytes(mib * 2**20) == words
