"""From a checkpoint to named classes of old and new stamps, as a user goes."""

from __future__ import annotations

import json
import re
from pathlib import Path
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
from vae_astro.classify import classify
from vae_astro.errors import InputError
from vae_astro.folders import register_resolvers
from vae_astro.model.priors import StandardNormal

ROOT = Path(__file__).parents[1]
N, SIZE, Z = 90, 20, 3
UNKNOWN = ("ra", "dec")
"""Columns of NaN, which is equal to nothing."""
PLACES = np.array([[5, 5], [5, 14], [14, 9]])


def run(*overrides: str) -> str | None:
    """``python scripts/classify.py`` with these overrides, in this process."""
    register_resolvers()
    typed = ["progress=false", "trainer=cpu", "n_seeds=2", *overrides]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("classify", typed)
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    return classify(settings, typed)


def write_stamps(path: Path, n: int = N, seed: int = 0) -> None:
    """A cube of sources in three places, one after the other."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE]
    where = PLACES[np.arange(n) % 3]
    offset = where[:, :, None, None] + rng.normal(0, 0.2, (n, 2, 1, 1))
    source = 80 * np.exp(-((x - offset[:, 0]) ** 2 + (y - offset[:, 1]) ** 2) / 8)
    fits.writeto(path, (rng.normal(size=(n, SIZE, SIZE)) + source).astype("f4"))


def save_checkpoint(path: Path, data: dict[str, Any], gain: float = 0.1, turn: int = 0) -> None:
    """A linear model whose units see one place each; a small ``gain`` is a collapse."""
    torch.manual_seed(turn)
    vae = VAE([1, SIZE, SIZE], model={"name": "linear", "latent_dim": Z})
    y, x = np.mgrid[:SIZE, :SIZE]
    seen = [np.exp(-((x - a) ** 2 + (y - b) ** 2) / 8) for a, b in np.roll(PLACES, turn, axis=0)]
    weight = gain * torch.tensor(np.stack(seen).reshape(Z, -1), dtype=torch.float32)
    vae.network.encoder.mean.weight.data.copy_(weight)
    torch.nn.init.zeros_(vae.network.encoder.mean.bias)
    vae.run_settings = {"data": data}
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(vae)
    trainer.save_checkpoint(path)


@pytest.fixture(scope="module")
def sky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stamps, labels of some, two checkpoints, and the classes of the first."""
    folder = tmp_path_factory.mktemp("sky")
    write_stamps(folder / "stamps.fits")
    write_stamps(folder / "new.fits", 30, seed=5)
    register_resolvers()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        asked = [
            "data=fits",
            f"data.root={folder / 'stamps.fits'}",
            f"data.store_dir={folder / 'stores'}",
            "data.cube=stamps",
        ]
        data: Any = OmegaConf.to_container(compose("classify", asked).data, resolve=True)
    for turn, name in enumerate(("a.ckpt", "b.ckpt")):
        save_checkpoint(folder / name, data, turn=turn)
    save_checkpoint(folder / "collapsed.ckpt", data, gain=1e-5)
    run(f"checkpoint={folder / 'a.ckpt'}", f"out={folder / 'found'}", "n_classes=3")
    ids = pq.read_table(folder / "found" / "catalogue.parquet")["id"].to_pylist()
    rows = [f"{name},place {k % 3}" for k, name in enumerate(ids) if k < 30]
    (folder / "labels.csv").write_text("\n".join(["id,label", *rows]) + "\n")
    return folder


def classes_of(catalogue: Path) -> np.ndarray:
    return np.array(pq.read_table(catalogue)["class"].to_pylist())


def assert_are_the_places(classes: np.ndarray) -> None:
    pairs = set(zip(np.arange(len(classes)) % 3, classes, strict=True))
    assert len(pairs) == 3


def test_classes_found_are_the_places_of_the_sources(sky: Path) -> None:
    found = sky / "found"
    table = pq.read_table(found / "catalogue.parquet")
    assert table["index"].to_pylist() == list(range(N))
    assert_are_the_places(classes_of(found / "catalogue.parquet"))
    shares = np.stack(table["class_probabilities"].to_numpy())
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-5)
    assert (np.array(table["class_stability"]) > 0.9).all()
    assert not any(table["unsure"].to_pylist())
    told = json.loads((found / "classes.json").read_text())
    assert told["n_stamps"] == N
    assert sum(told["occupancy"]) == pytest.approx(1)
    assert (told["labels"], told["codes"]) == (None, None)
    assert {path.name for path in (found / "gallery").iterdir()} == {
        "overview.png", "class_0.png", "class_1.png", "class_2.png",
    }  # fmt: skip
    assert not list(sky.glob(".*"))  # codes on the way are gone


def test_a_named_class_is_found_in_the_catalogue_of_old_and_of_new_stamps(
    sky: Path, tmp_path: Path
) -> None:
    run(f"checkpoint={sky / 'a.ckpt'}", f"out={tmp_path / 'c'}", "n_classes=3", "n_gallery=0")
    catalogue, names = tmp_path / "c" / "catalogue.parquet", tmp_path / "c" / "classes.yaml"
    before = pq.read_table(catalogue)
    edited = names.read_text().replace("name: null", 'name: "left: \\"odd\\" ü"', 1)
    names.write_text(edited)
    said = run(f"names={names}", f"catalogue={tmp_path / 'named.fits'}")
    assert 'class_0: left: "odd" ü' in (said or "")
    named = classes_of(catalogue)
    assert set(named) == {'left: "odd" ü', "class_1", "class_2"}
    assert_are_the_places(named)
    after = pq.read_table(catalogue)
    assert after.drop_columns(["class", *UNKNOWN]).equals(before.drop_columns(["class", *UNKNOWN]))
    assert len(Table.read(tmp_path / "named.fits")) == N
    new = tmp_path / "new.parquet"
    run(f"classes={tmp_path / 'c'}", f"data.root={sky / 'new.fits'}", f"catalogue={new}")
    assigned = classes_of(new)
    assert len(assigned) == 30
    np.testing.assert_array_equal(assigned, named[:30])


def test_a_few_labels_give_mapping_and_scores_and_change_no_class(
    sky: Path, tmp_path: Path
) -> None:
    said = run(
        f"checkpoint={sky / 'a.ckpt'}",
        f"out={tmp_path / 'c'}",
        "n_classes=3",
        "n_gallery=0",
        f"data.labels={sky / 'labels.csv'}",
    )
    np.testing.assert_array_equal(
        classes_of(tmp_path / "c" / "catalogue.parquet"),
        classes_of(sky / "found" / "catalogue.parquet"),
    )
    told = json.loads((tmp_path / "c" / "classes.json").read_text())
    assert told["labels"]["n_labelled"] == 30
    assert told["labels"]["nmi"] == pytest.approx(1)
    assert sorted(told["labels"]["mapping"]) == ["place 0", "place 1", "place 2"]
    assert told["codes"]["neighbours_balanced_accuracy"] == 1
    assert "100 % place 0" in (said or "")
    assert "NMI 1.000" in (said or "")


def test_several_networks_are_put_together(sky: Path, tmp_path: Path) -> None:
    said = run(
        f"checkpoint=[{sky / 'a.ckpt'},{sky / 'b.ckpt'}]",
        f"out={tmp_path / 'c'}",
        "n_classes=auto",
        "max_classes=4",
        "n_gallery=3",
    )
    told = json.loads((tmp_path / "c" / "classes.json").read_text())
    assert told["found"]["n_clusterings"] == 4
    assert told["found"]["ari_between_networks"] > 0.9
    assert told["n_classes_curve"]["n_classes"] == [1, 2, 3, 4]
    assert (tmp_path / "c" / "n_classes.png").stat().st_size > 5000
    assert "between networks" in (said or "")
    assert_are_the_places(classes_of(tmp_path / "c" / "catalogue.parquet"))


def test_chunks_of_a_catalogue_do_not_change_it(
    sky: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vae_astro.class_passes.AT_ONCE", 7)
    run(f"checkpoint={sky / 'a.ckpt'}", f"out={tmp_path / 'c'}", "n_classes=3", "n_gallery=0")
    one, other = (
        pq.read_table(folder / "catalogue.parquet") for folder in (sky / "found", tmp_path / "c")
    )
    told = "class_probabilities"
    assert one.drop_columns([told, *UNKNOWN]).equals(other.drop_columns([told, *UNKNOWN]))
    shares = [np.stack(table[told].to_numpy()) for table in (one, other)]
    np.testing.assert_allclose(*shares, rtol=1e-5)


def test_classes_are_looked_for_in_a_sample_and_given_to_all(sky: Path, tmp_path: Path) -> None:
    run(
        f"checkpoint={sky / 'a.ckpt'}", f"out={tmp_path / 'c'}", "n_classes=3", "n_fit=40",
        "n_gallery=2",
    )  # fmt: skip
    assert json.loads((tmp_path / "c" / "classes.json").read_text())["n_fitted"] == 40
    assert_are_the_places(classes_of(tmp_path / "c" / "catalogue.parquet"))


def test_units_are_judged_beside_their_prior(
    sky: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as wide a prior as only a learned one is: the same codes are next to nothing in it
    wide = torch.full((Z,), 1e6)
    monkeypatch.setattr(StandardNormal, "unit_std", lambda prior: wide)
    with pytest.raises(InputError, match="full collapse: 0 of 3 latent units"):
        run(f"checkpoint={sky / 'a.ckpt'}", f"out={tmp_path / 'c'}", "n_classes=3")


def test_a_collapsed_checkpoint_is_refused_with_its_verdict_unless_forced(
    sky: Path, tmp_path: Path
) -> None:
    asked = [f"checkpoint={sky / 'collapsed.ckpt'}", f"out={tmp_path / 'c'}", "n_classes=2"]
    with pytest.raises(InputError, match=r"full collapse: 0 of 3 latent units.*force=true"):
        run(*asked)
    assert not (tmp_path / "c").exists()
    assert "in 90 stamps" in (run(*asked, "force=true", "n_gallery=0") or "")


def test_nothing_that_is_there_is_lost(sky: Path, tmp_path: Path) -> None:
    asked = [f"checkpoint={sky / 'a.ckpt'}", f"out={tmp_path / 'c'}", "n_classes=3", "n_gallery=0"]
    run(*asked)
    names = tmp_path / "c" / "classes.yaml"
    names.write_text(names.read_text().replace("name: null", "name: mine", 1))
    with pytest.raises(InputError, match="holds something already"):
        run(*asked)
    run(*asked, "overwrite=true", "seed=4")
    assert "name: mine" in (tmp_path / "c" / "classes.yaml.before").read_text()
    assert "name: mine" not in names.read_text()
    run(*asked, "overwrite=true", "seed=5")  # and once more
    assert "name: mine" in (tmp_path / "c" / "classes.yaml.before").read_text()
    (tmp_path / "taken.parquet").write_text("precious")
    with pytest.raises(InputError, match=r"catalogue=.*taken.parquet exists"):
        run(
            f"classes={tmp_path / 'c'}",
            f"data.root={sky / 'new.fits'}",
            f"catalogue={tmp_path / 'taken.parquet'}",
        )
    assert (tmp_path / "taken.parquet").read_text() == "precious"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["checkpoint=null"], "checkpoint is not set"),
        (["checkpoint=[]"], "empty list"),
        (["checkpoint=nowhere"], "checkpoint=nowhere does not exist"),
        (["checkpoint=[{sky}/a.ckpt,{sky}/a.ckpt]"], "names a network twice"),
        (["method=prior"], "prior=standard"),
        (["n_classes=91"], "n_classes=91 is more than the 90 stamps"),
        (["units=[7]"], "units must be at most 2"),
        (["out={sky}/stamps.fits"], "is a file"),
        (["out={sky}/none/c"], "no folder"),
        (["catalogue={sky}/c.txt"], "catalogue="),
        (["data.labels={sky}/other.csv"], "names none of the 90 stamps"),
        (["classes={sky}"], "is no folder of classes"),
        (["names={sky}/nothing.yaml"], "is no folder of classes"),
        (["classes={sky}/found", "checkpoint={sky}/b.ckpt", "data.root={sky}/new.fits"],
         "not the networks"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_with_its_key(
    sky: Path, tmp_path: Path, overrides: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (sky / "other.csv").write_text("id,label\nunknown-7,star\n")
    given = [override.format(sky=sky) for override in overrides]
    with pytest.raises(InputError, match=re.escape(message)) as refused:
        run(f"checkpoint={sky / 'a.ckpt'}", f"out={tmp_path / 'c'}", *given)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "c").exists()
