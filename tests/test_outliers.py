"""From a checkpoint to a ranking of odd stamps: the planted one is found, mistakes are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from astropy.io import fits
from hydra import compose, initialize_config_dir
from lightning import Trainer
from omegaconf import OmegaConf

from vae_astro import VAE
from vae_astro.errors import InputError
from vae_astro.folders import register_resolvers
from vae_astro.model.priors import StandardNormal
from vae_astro.outliers import outliers

ROOT = Path(__file__).parents[1]
SIZE, N_STAMPS = 20, 60


def composed(*overrides: str) -> dict[str, Any]:
    register_resolvers()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("outliers", ["progress=false", "trainer=cpu", "n_samples=2", *overrides])
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


def write_stamps(folder: Path, n: int, seed: int = 0, value: float | None = None) -> Path:
    """Stars of various brightness as FITS files; or stamps that are all the same."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    axis = np.arange(SIZE) - SIZE // 2
    star = np.exp(-0.5 * (axis[None, :] ** 2 + axis[:, None] ** 2) / 2)
    same = rng.normal(size=(SIZE, SIZE))
    for k in range(n):
        pixels = 100 + rng.normal(size=(SIZE, SIZE)) + rng.uniform(5, 50) * star
        if value is not None:
            pixels = value + same
        fits.writeto(folder / f"{k:04d}.fits", pixels.astype(np.float32))
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A model whose code says something: its units spread, though nothing was learned."""
    torch.manual_seed(0)
    vae = VAE((1, SIZE, SIZE), model={"name": "linear", "latent_dim": 3}).eval()
    with torch.no_grad():
        vae.network.encoder.mean.weight.mul_(2)
    path = tmp_path_factory.mktemp("run") / "model.ckpt"
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.strategy.connect(vae)
    trainer.save_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def stamps(tmp_path_factory) -> Path:
    folder = write_stamps(tmp_path_factory.mktemp("sky") / "stamps", N_STAMPS)
    with fits.open(folder / "0007.fits", mode="update") as file:
        file[0].data[3, :] += 40  # a satellite
    return folder


def settings_of(checkpoint: Path, stamps: Path, tmp_path: Path, *more: str) -> list[str]:
    return [
        "data=fits",
        f"data.root={stamps}",
        f"checkpoint={checkpoint}",
        f"data.store_dir={tmp_path / 'stores'}",
        f"out={tmp_path / 'odd.parquet'}",
        f"figure={tmp_path / 'odd.png'}",
        *more,
    ]


def rank(*overrides: str):
    return outliers(composed(*overrides), list(overrides))


def test_a_planted_trail_stands_first_in_ranking_and_gallery(checkpoint, stamps, tmp_path):
    typed = settings_of(checkpoint, stamps, tmp_path, "data.val_fraction=0.4", "n_shown=5")
    ranked = rank(*typed)
    table = pq.read_table(ranked.out)
    assert table.num_rows == ranked.n_stamps == N_STAMPS
    assert sorted(table["index"].to_pylist()) == list(range(N_STAMPS))
    assert "0007" in table["id"][0].as_py()
    p = table["p_value"].to_numpy()
    assert (np.diff(p) >= 0).all()
    assert p[0] == pytest.approx(ranked.smallest_p_value)
    for name in ("log_likelihood_nats", "latent_log_density", "neighbour_distance"):
        assert np.isfinite(table[name].to_numpy()).all()
    assert (tmp_path / "odd.png").stat().st_size > 10_000
    assert "for p < 0.01 it takes 100 calibration stamps" in str(ranked)
    assert "of as many stamps like the normal ones it would be 0 on average" in str(ranked)


def test_normal_stamps_can_be_given_and_few_stamps_ranked(checkpoint, stamps, tmp_path):
    two = write_stamps(tmp_path / "two", 2, seed=3)
    typed = settings_of(checkpoint, two, tmp_path, f"calibrate_on={stamps}", "figure=null")
    ranked = rank(*typed)
    assert (ranked.n_stamps, ranked.n_calibration) == (2, N_STAMPS)


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_to_calibrate_with_are_refused(checkpoint, tmp_path, n):
    few = write_stamps(tmp_path / "few", n)
    with pytest.raises(InputError, match=r"normal stamps to calibrate with"):
        rank(*settings_of(checkpoint, few, tmp_path))
    assert not (tmp_path / "odd.parquet").exists()


def test_stamps_that_are_all_the_same_say_nothing_and_are_refused_unless_forced(
    checkpoint, tmp_path
):
    same = write_stamps(tmp_path / "same", 80, value=100.0)
    typed = settings_of(checkpoint, same, tmp_path, "data.val_fraction=0.5", "figure=null")
    with pytest.raises(InputError, match=r"full collapse.*force=true"):
        rank(*typed)
    # each has noise of its own for its likelihood, so that they do not all tie
    assert rank(*typed, "force=true").n_stamps == 80


def test_units_are_judged_beside_their_prior(checkpoint, stamps, tmp_path, monkeypatch):
    # as wide a prior as only a learned one is: the same codes are next to nothing in it
    wide = torch.full((3,), 1e6)
    monkeypatch.setattr(StandardNormal, "unit_std", lambda prior: wide)
    with pytest.raises(InputError, match=r"full collapse: 0 of \d+ latent units"):
        rank(*settings_of(checkpoint, stamps, tmp_path, "figure=null"))


def test_a_ranking_that_is_there_is_not_lost(checkpoint, stamps, tmp_path):
    (tmp_path / "odd.parquet").write_text("precious")
    with pytest.raises(InputError, match="overwrite=true"):
        rank(*settings_of(checkpoint, stamps, tmp_path))
    assert (tmp_path / "odd.parquet").read_text() == "precious"
    (tmp_path / "odd.parquet").unlink()
    (tmp_path / "odd.png").write_text("precious")
    with pytest.raises(InputError, match=r"odd.png exists.*overwrite=true"):
        rank(*settings_of(checkpoint, stamps, tmp_path))
    assert (tmp_path / "odd.png").read_text() == "precious"


def test_given_labels_come_into_the_ranking(checkpoint, stamps, tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_text("id,label\n0007,satellite\n")
    typed = settings_of(checkpoint, stamps, tmp_path, "figure=null", "data.val_fraction=0.4")
    table = pq.read_table(rank(*typed, f"data.labels={labels}").out)
    told = dict(zip(table["id"].to_pylist(), table["label"].to_pylist(), strict=True))
    assert {name: label for name, label in told.items() if label} == {"0007": "satellite"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("n_samples=0", "n_samples"),
        ("figure=picture.txt", "figure"),
        ("split=none", "split"),
        ("checkpoint=null", "checkpoint is not set"),
        ("n_shown=0", "n_shown"),
    ],
)
def test_a_setting_that_cannot_be_is_named(checkpoint, stamps, tmp_path, override, message):
    with pytest.raises(InputError, match=message):
        rank(*settings_of(checkpoint, stamps, tmp_path, override))
