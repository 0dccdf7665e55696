"""From a checkpoint to a catalogue: the right stamps, the right numbers, and nothing half-done."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from astropy.io import fits
from astropy.table import Table
from hydra import compose, initialize_config_dir
from lightning import Trainer
from omegaconf import OmegaConf

from vae_astro import VAE
from vae_astro.catalogue import PROVENANCE
from vae_astro.data.datamodule import StampDataModule
from vae_astro.embed import data_settings, embed, quick_batch, refuse_other_stamps
from vae_astro.errors import InputError
from vae_astro.evaluate.scores import score_stamps
from vae_astro.folders import register_resolvers
from vae_astro.stopping import Stopped, exit_status, forget, heeded
from vae_astro.training import Pace, fit, new_attempt

ROOT = Path(__file__).parents[1]
N_STAMPS, SIZE, Z = 60, 20, 3


def run_embed(
    folder: Path, *overrides: str, expect: int | None = 0
) -> subprocess.CompletedProcess[str]:
    """``python scripts/embed.py`` in a folder; ``expect=None`` for any failure."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "embed.py"), "progress=false", *overrides],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )
    said = done.stdout + done.stderr
    assert done.returncode == expect if expect is not None else done.returncode != 0, said
    return done


def composed(*overrides: str) -> dict[str, Any]:
    register_resolvers()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("embed", ["progress=false", "trainer=cpu", *overrides])
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


def save_checkpoint(path: Path, data: dict[str, Any] | None, size: int = SIZE) -> VAE:
    """An untrained model whose codes differ from stamp to stamp."""
    torch.manual_seed(0)
    linear = {"name": "linear", "latent_dim": Z}
    vae = VAE([1, size, size], model=linear, normalize={"softening": 2.0})
    torch.nn.init.normal_(vae.network.encoder.mean.weight, std=0.02)
    vae.run_settings = None if data is None else {"data": data}
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(vae)
    trainer.save_checkpoint(path)
    return vae


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Raw stamps of a source that moves."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIZE, :SIZE] - 9.5
    moved = rng.normal(size=(2, N_STAMPS, 1, 1))
    source = 60 * np.exp(-((x - moved[0]) ** 2 + (y - moved[1]) ** 2) / 6)
    return (rng.normal(size=(N_STAMPS, SIZE, SIZE)) + source).astype(np.float32)


@pytest.fixture(scope="module")
def sky(tmp_path_factory: pytest.TempPathFactory, pixels: np.ndarray) -> Path:
    """A folder with the stamps, packed, and ``run/checkpoints/best.ckpt`` of a run on them."""
    folder = tmp_path_factory.mktemp("sky")
    (folder / "stamps").mkdir()
    fits.writeto(folder / "stamps" / "cube.fits", pixels)
    (folder / "run" / "checkpoints").mkdir(parents=True)
    settings = composed("data=fits", f"data.root={folder}/stamps", "data.cube=stamps",
                        f"data.store_dir={folder}/stores")  # fmt: skip
    save_checkpoint(folder / "run" / "checkpoints" / "best.ckpt", settings["data"])
    StampDataModule(**settings["data"], progress=False).open()
    return folder


Embed = Callable[..., Path]


@pytest.fixture
def run(sky: Path, tmp_path: Path) -> Embed:
    """Embed in this process; the file that came of it."""

    def run(*overrides: str) -> Path:
        typed = [f"checkpoint={sky / 'run'}", f"out={tmp_path / 'a.parquet'}", *overrides]
        embed(composed(*typed), typed)
        return tmp_path / "a.parquet"

    return run


def vae_of(sky: Path) -> VAE:
    path = sky / "run" / "checkpoints" / "best.ckpt"
    return VAE.load_from_checkpoint(path, weights_only=True)


def column(path: Path, name: str) -> np.ndarray:
    return np.array(pq.read_table(path)[name].to_pylist())


# What is in a catalogue


def test_the_stamps_of_the_run_as_embed_has_them(run: Embed, sky: Path, pixels: np.ndarray) -> None:
    path = run("batch_size=7")
    np.testing.assert_allclose(column(path, "latent_mean"), vae_of(sky).embed(pixels), atol=1e-5)
    assert column(path, "index").tolist() == list(range(N_STAMPS))
    assert column(path, "source")[3] == "cube.fits[0][3]"
    assert set(column(path, "label")) == {None}
    table = pq.read_table(path)
    assert table["latent_std"].type.list_size == Z
    about = json.loads(table.schema.metadata[PROVENANCE])
    assert about["checkpoint"].endswith("best.ckpt")
    assert about["data"]["normalize"] == {"softening": 2.0}
    assert not list(path.parent.glob("*part*"))


def test_scores_are_those_of_the_evaluation(run: Embed, sky: Path) -> None:
    path = run("scores=true")
    vae = vae_of(sky)
    datamodule = StampDataModule(**vae_settings(sky), progress=False)
    datamodule.setup("predict")
    scores = score_stamps(vae, datamodule.in_order(np.arange(N_STAMPS)))
    kl = scores.kl_per_unit.sum(axis=1)
    expected = {
        "kl_nats": kl,
        "reconstruction_nats": scores.reconstruction_nats,
        "elbo_nats": scores.reconstruction_nats - kl,
        "chi2_per_pixel": scores.chi2_per_pixel,
    }
    for name, values in expected.items():
        np.testing.assert_allclose(column(path, name), values, rtol=1e-5)


def vae_settings(sky: Path) -> dict[str, Any]:
    checkpoint = torch.load(sky / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    data: dict[str, Any] = checkpoint["vae_astro"]["settings"]["data"]
    return {**data, "normalize": {"softening": 2.0}, "size": SIZE}


def test_a_fits_table_holds_what_a_parquet_file_holds(run: Embed, tmp_path: Path) -> None:
    out = tmp_path / "a.fits"
    run(f"out={out}", "scores=true")
    rows = Table.read(out)
    parquet = run("scores=true")
    assert rows.colnames == pq.read_schema(parquet).names
    for name in ("index", "latent_mean", "kl_nats"):
        np.testing.assert_array_equal(np.array(rows[name]), column(parquet, name))
    assert json.loads(fits.getheader(out, 1)["VAEASTRO"])["split"] == "all"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.fits", "a.parquet"]


def test_splits_are_those_of_the_training(run: Embed) -> None:
    parts = [
        column(run(f"split={split}", "overwrite=true"), "index").tolist()
        for split in ("train", "val", "test")
    ]
    assert all(parts)
    assert sorted(chain(*parts)) == list(range(N_STAMPS))
    assert all(rows == sorted(rows) for rows in parts)


def test_one_stamp_is_enough(run: Embed, pixels: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    fits.writeto(tmp_path / "one" / "a.fits", pixels[0])
    path = run("data=fits", f"data.root={tmp_path}/one", f"data.store_dir={tmp_path}/stores")
    assert column(path, "id").tolist() == ["a"]


def test_stamps_of_another_size_are_brought_to_that_of_the_checkpoint(
    sky: Path, pixels: np.ndarray, tmp_path: Path
) -> None:
    vae = save_checkpoint(tmp_path / "small.ckpt", vae_settings(sky), size=16)
    typed = [f"checkpoint={tmp_path}/small.ckpt", f"out={tmp_path}/a.parquet",
             f"data.store_dir={tmp_path}/stores"]  # fmt: skip
    embed(composed(*typed), typed)
    made = column(tmp_path / "a.parquet", "latent_mean")
    np.testing.assert_allclose(made, vae.embed(pixels), atol=1e-5)


def test_labels_of_a_file_are_taken_over(run: Embed, tmp_path: Path) -> None:
    names = column(run(), "id")
    (tmp_path / "labels.csv").write_text(f"id,label\n{names[3]},star\n")
    labels = column(run(f"data.labels={tmp_path}/labels.csv", "overwrite=true"), "label")
    assert labels[3] == "star"
    assert (labels != None).sum() == 1  # noqa: E711  # element by element


def test_codes_are_float32_in_mixed_precision_too(run: Embed, sky: Path) -> None:
    exact = column(run(), "latent_mean")
    path = run("trainer.precision=bf16-mixed", "overwrite=true")
    np.testing.assert_allclose(column(path, "latent_mean"), exact, atol=0.02 * np.abs(exact).max())
    assert not np.array_equal(column(path, "latent_mean"), exact)
    assert str(pq.read_schema(path).field("latent_mean").type.value_type) == "float"


def test_batches_are_no_larger_than_they_have_to_be() -> None:
    cpu, other = torch.device("cpu"), torch.device("cuda")
    assert quick_batch((1, 63, 63), cpu) == 132
    assert quick_batch((6, 512, 512), cpu) == 16
    assert quick_batch((1, 63, 63), other) == 4227
    assert quick_batch((1, 16, 16), other) == 8192


# Which data settings


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ((), {"root": "a", "cube": "stamps", "val_fraction": 0.3}),
        (("data.root=b",), {"root": "b", "cube": "stamps", "val_fraction": 0.3}),
        (("data=fits", "data.root=b"), {"root": "b", "cube": "auto", "val_fraction": 0.1}),
        (("data.size=20", "data.normalize.softening=2.0"), {"root": "a"}),
    ],
)
def test_typed_settings_replace_those_of_the_run(typed, expected) -> None:
    run = composed("data=fits", "data.root=a", "data.cube=stamps", "data.val_fraction=0.3")
    checkpoint = {"vae_astro": {"settings": {"data": run["data"]}}}
    vae = VAE([1, SIZE, SIZE], normalize={"softening": 2.0})
    data = data_settings(composed(*typed)["data"], typed, checkpoint, vae)
    assert expected.items() <= data.items()
    of_the_run = not any("root" in override for override in typed)
    assert data["size"] == (None if of_the_run else SIZE), "the store of the run is found again"
    assert data["normalize"] == {"softening": 2.0}


# What is refused


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["checkpoint=null"], "checkpoint is not set"),
        (["checkpoint=nowhere"], "checkpoint=nowhere does not exist"),
        (["out=a.csv"], "must be a name that ends in .parquet or .fits"),
        (["out=nowhere/a.parquet"], "lies in nowhere, which is no folder"),
        (["out=3"], "out must be text, got 3"),
        (["split=some"], "split must be one of all, train, val, test"),
        (["batch_size=0"], "batch_size must be at least 1"),
        (["scores=1"], "scores must be true or false"),
        (["data.size=32"], "data.size=32, but the checkpoint was trained with 20"),
        (["data.normalize.stretch=log"], "data.normalize.stretch=log, but the checkpoint"),
        (["data.root=nowhere"], "nowhere"),
        (["trainer.precision=8"], "trainer.precision must be one of"),
        (["+data.nonsense=3"], "nonsense"),
        (["+trainer.limit_predict_batches=1", "batch_size=7"], "7 of 60 stamps went by"),
    ],
)
def test_a_mistake_is_refused_and_names_its_key(
    overrides: list[str], words: str, run: Embed, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        run(*overrides)
    assert not list(tmp_path.glob("*.parquet"))


def test_an_earlier_catalogue_is_replaced_only_if_that_is_wanted(
    run: Embed, tmp_path: Path
) -> None:
    (tmp_path / "a.parquet").write_text("of value")
    with pytest.raises(InputError, match=r"exists.*overwrite=true"):
        run()
    assert (tmp_path / "a.parquet").read_text() == "of value"
    assert len(column(run("overwrite=true"), "index")) == N_STAMPS


@pytest.mark.parametrize(
    ("stored", "trained", "fit"),
    [
        (("g", "r"), ["g", "r"], True),
        (("g", "r"), ["r", "g"], False),
        (("g", "r"), ["g"], False),
        (("band0", "band1"), ["g", "r"], True),  # of stamps whose bands have no names
        (("g", "r"), ["band0", "band1"], True),
    ],
)
def test_other_bands_are_refused(stored: tuple[str, ...], trained: list[str], fit: bool) -> None:
    vae = VAE([len(trained), SIZE, SIZE], model={"name": "linear"}, band_names=trained)
    store = SimpleNamespace(stamp_shape=(len(stored), SIZE, SIZE), band_names=stored)
    datamodule: Any = SimpleNamespace(store=store, root=SimpleNamespace(address="sky"))
    if fit:
        refuse_other_stamps(datamodule, vae)
        return
    with pytest.raises(InputError, match=f"bands g, r, the checkpoint takes {', '.join(trained)}"):
        refuse_other_stamps(datamodule, vae)


def test_a_store_of_another_size_is_refused(sky: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "small.ckpt", None, size=16)
    store = min(sky.glob("stores/*/manifest.json")).parent
    typed = [f"checkpoint={tmp_path}/small.ckpt", f"out={tmp_path}/a.parquet", "data=fits",
             f"data.root={store}"]  # fmt: skip
    with pytest.raises(InputError, match="are packed as 20x20, the checkpoint takes 16x16"):
        embed(composed(*typed), typed)


# What is left when it is stopped


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"]
)
@pytest.mark.parametrize("by_command", [False, True], ids=["library", "command"])
def test_a_stopped_pass_leaves_the_earlier_catalogue_and_nothing_else(
    number: int,
    status: int,
    by_command: bool,
    run: Embed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "a.parquet").write_text("of value")
    step = VAE.predict_step

    def stopped_in_the_third(self: VAE, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 2:
            os.kill(os.getpid(), number)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(VAE, "predict_step", stopped_in_the_third)
    before = signal.getsignal(signal.SIGINT)
    forget()
    try:
        with heeded(str) if by_command else nullcontext(), pytest.raises(Stopped):
            run("batch_size=7", "overwrite=true")
    finally:
        signal.signal(signal.SIGINT, before)
    assert exit_status() == status
    forget()
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]
    assert (tmp_path / "a.parquet").read_text() == "of value"


# What it costs


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec", "ignore:.*does not have many workers")
def test_embedding_is_at_least_three_times_as_fast_as_training(tmp_path: Path) -> None:
    """Both by the trainer, on the same stamps and network, in turn; the median of three rounds."""
    rng = np.random.default_rng(0)
    (tmp_path / "stamps").mkdir()
    np.save(tmp_path / "stamps" / "s.npy", rng.normal(size=(1024, 63, 63)).astype(np.float32))
    typed = ["data=arrays", f"data.root={tmp_path}/stamps", f"data.store_dir={tmp_path}/stores"]
    data = composed(*typed)["data"]
    datamodule = StampDataModule(**data, progress=False)
    datamodule.prepare_data()
    datamodule.setup()
    vae = VAE([1, 63, 63], normalize=data["normalize"])
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(vae)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    typed += [f"checkpoint={tmp_path}/a.ckpt", f"out={tmp_path}/a.parquet", "overwrite=true"]

    def stamps_per_second_of_training() -> float:
        pace = Pace()
        register_resolvers()
        words = ["trainer=cpu", "trainer.max_epochs=1", "trainer.check_val_every_n_epoch=2",
                 "callbacks.progress=false"]  # fmt: skip
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            cfg = compose("config", words)
        settings: Any = OmegaConf.to_container(cfg, resolve=True)
        attempt = new_attempt(settings, Path(tempfile.mkdtemp(dir=tmp_path)))
        fit(attempt, vae, datamodule, None, pace)
        return pace.as_dict()["train_stamps_per_second"]

    def stamps_per_second_of_embedding() -> float:
        done = embed(composed(*typed), typed)
        assert done is not None
        return done.n_stamps / done.seconds

    stamps_per_second_of_training()  # the first of each compiles and fills caches
    stamps_per_second_of_embedding()
    rounds = [(stamps_per_second_of_training(), stamps_per_second_of_embedding()) for _ in range(3)]
    assert np.median([embedding / training for training, embedding in rounds]) > 3, rounds


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="Linux knows the peak")
def test_memory_does_not_grow_with_the_number_of_stamps(sky: Path, tmp_path: Path) -> None:
    """Of 5,000 and of 50,000 stamps, 80 MB of pixels apart."""
    peaks = []
    for n_stamps in (5_000, 50_000):
        folder = tmp_path / str(n_stamps)
        folder.mkdir()
        pixels = np.random.default_rng(0).normal(size=(n_stamps, SIZE, SIZE)).astype(np.float32)
        np.save(folder / "s.npy", pixels)
        typed = [f"checkpoint={sky}/run", f"out={folder}.parquet", "data=arrays",
                 f"data.root={folder}", f"data.store_dir={tmp_path}/stores"]  # fmt: skip
        StampDataModule(**composed(*typed)["data"] | {"size": SIZE, "normalize": {}},
                        progress=False).open()  # fmt: skip
        code = (
            "import runpy, sys; sys.argv = sys.argv[1:]\n"
            "runpy.run_path(sys.argv[0], run_name='__main__')\n"
            # getrusage would give the peak of the parent, if that was larger
            "print([line for line in open('/proc/self/status') if 'VmHWM' in line])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(ROOT / "scripts" / "embed.py"), "progress=false",
             "trainer=cpu", *typed],
            capture_output=True, text=True, timeout=240, cwd=tmp_path, check=True,
        )  # fmt: skip
        assert f"{n_stamps} stamps embedded" in done.stdout
        (peak_kb,) = re.findall(r"VmHWM:\D*(\d+)", done.stdout)
        peaks.append(int(peak_kb) // 1024)
    assert peaks[1] - peaks[0] < 45, peaks


# The command, and two processes


@pytest.mark.slow
def test_two_processes_make_the_same_catalogue_as_one(sky: Path, run: Embed) -> None:
    alone = pq.read_table(run("batch_size=7"))
    done = run_embed(sky, "checkpoint=run", "trainer=ddp", "trainer.accelerator=cpu",
                     "batch_size=7", "out=two.parquet")  # fmt: skip
    together = pq.read_table(sky / "two.parquet")
    codes = ["latent_mean", "latent_std", "kl_nats"]
    for name in alone.column_names:
        one, two = (np.array(table[name].to_pylist()) for table in (alone, together))
        if name in codes:  # the sums of a batch are rounded in another order
            np.testing.assert_allclose(one, two, atol=1e-5)
        else:
            np.testing.assert_array_equal(one, two)
    assert done.stdout.count("60 stamps embedded") == 1, "only the first process reports"
    assert not list(sky.glob("*part*"))


@pytest.mark.slow
def test_a_process_that_fails_leaves_no_half_catalogue(sky: Path) -> None:
    (sky / "broken.part-1.parquet").mkdir()  # where the second process cannot write
    done = run_embed(sky, "checkpoint=run", "trainer=ddp", "trainer.accelerator=cpu",
                     "out=broken.parquet", expect=None)  # fmt: skip
    assert "error: cannot write broken.part-1.parquet" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in sky.glob("broken*")] == ["broken.part-1.parquet"]
