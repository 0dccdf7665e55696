"""From a folder of stamps to training, validation and test batches."""

import csv
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fastavro
import numpy as np
import pytest
import torch
from astropy.io import fits as pyfits

from vae_astro.data.augment import apply_symmetry
from vae_astro.data.datamodule import StampDataModule, split_rows
from vae_astro.data.store.shard import object_hash
from vae_astro.errors import InputError

SIZE = 16
N_OBJECTS = 30
CLASSES = ["agn", "star", "sn"]


def write_image(path: Path, pixels: np.ndarray, **cards: str) -> None:
    pyfits.PrimaryHDU(pixels, pyfits.Header(cards)).writeto(path)


@pytest.fixture(scope="module")
def sky(tmp_path_factory) -> Path:
    """Thirty objects of three classes, each seen twice, as FITS files with header labels."""
    root = tmp_path_factory.mktemp("sky")
    rng = np.random.default_rng(63)
    for k in range(N_OBJECTS):
        for visit in range(2):
            pixels = rng.normal(100, 5, (SIZE, SIZE)).astype(np.float32)
            pixels[4:7, 9:12] += 300  # off the diagonals, so that no symmetry looks like another
            name = f"obj{k:02}"
            cards = {"OBJID": name, "TARGET": f"target {k}", "CLASS": CLASSES[k % 3]}
            write_image(root / f"{name}_{visit}.fits", pixels, **cards)
    return root


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> Path:
    """One folder of stores for all tests: the stamps are packed once."""
    return tmp_path_factory.mktemp("stores")


@pytest.fixture
def stamps(sky, stores):
    """A data module over `sky`, set up."""

    def stamps(root: Path = sky, **settings: Any) -> StampDataModule:
        defaults = {"store_dir": str(stores), "progress": False, "batch_size": 8}
        settings = defaults | {"val_fraction": 0.2, "test_fraction": 0.2} | settings
        module = StampDataModule(str(root), **settings)
        module.prepare_data()
        module.setup()
        return module

    return stamps


def images(batches) -> dict[int, torch.Tensor]:
    """Image of each row of the catalogue."""
    return {
        index: image
        for batch in batches
        for index, image in zip(batch["index"].tolist(), batch["image"], strict=True)
    }


def column(module: StampDataModule, name: str, rows=slice(None)) -> list[str]:
    return np.array(module.store.catalogue[name].to_pylist(), dtype=object)[rows].tolist()


# The split


def split(object_ids, *fractions) -> tuple[np.ndarray, ...]:
    hashes = np.array([object_hash(each) for each in object_ids], np.uint64)
    return split_rows(hashes, *fractions)


def test_every_row_is_on_one_side():
    parts = split([f"obj{k}" for k in range(500)], 0.2, 0.1)
    assert all(part.dtype == np.int64 for part in parts)
    assert all((np.diff(part) > 0).all() for part in parts)
    assert sorted(np.concatenate(parts)) == list(range(500))


def test_all_stamps_of_an_object_are_on_the_same_side():
    ids = [f"obj{k}" for k in np.random.default_rng(63).integers(0, 60, 500)]
    sides = [{ids[row] for row in part} for part in split(ids, 0.3, 0.3)]
    assert all(sides)
    assert sum(map(len, sides)) == len(set().union(*sides)) == len(set(ids))


def test_the_sides_hold_the_fractions_that_were_asked_for():
    train, val, test = split([f"obj{k}" for k in range(20_000)], 0.2, 0.05)
    # A fraction f of N objects scatters by sqrt(f (1 - f) / N), 0.003 at most: four of those.
    for part, fraction in ((train, 0.75), (val, 0.2), (test, 0.05)):
        assert len(part) / 20_000 == pytest.approx(fraction, abs=0.012)


def test_an_object_stays_on_its_side_when_stamps_are_added_or_reordered():
    ids = [f"obj{k}" for k in range(300)]
    more = ["new0", *reversed(ids), "new1", "obj7"]
    before, after = split(ids, 0.2, 0.2), split(more, 0.2, 0.2)
    for rows, rows_of_more in zip(before, after, strict=True):
        names = {ids[row] for row in rows}
        assert names
        assert {more[row] for row in rows_of_more} - {"new0", "new1"} == names


def test_the_split_is_the_same_in_every_version_and_process():
    # Recorded: a change here puts objects that a saved model was trained on into its test set.
    train, val, test = split([f"ZTF18a{letter}" for letter in "abcdefghijkl"], 0.3, 0.3)
    assert train.tolist() == [5, 6, 8, 10]
    assert val.tolist() == [0, 1, 2, 3]
    assert test.tolist() == [4, 7, 9, 11]


def test_without_a_test_fraction_nothing_is_held_out_for_it():
    assert len(split([f"obj{k}" for k in range(100)], 0.5, 0)[2]) == 0


# FITS, end to end


def test_batches_of_a_folder_hold_its_stamps_and_no_object_on_two_sides(stamps):
    module = stamps(augment=False)
    sides = [module.train_rows, module.val_rows, module.test_rows]
    loaders = [
        module.train_dataloader(),
        module.val_dataloader(),
        module.in_order(module.test_rows),
    ]
    objects = []
    for rows, loader in zip(sides, loaders, strict=True):
        found = images(loader)
        assert set(found) <= set(rows.tolist())
        objects.append(set(column(module, "object_id", sorted(found))))
    assert all(objects)
    assert sum(map(len, objects)) == len(set().union(*objects))
    for rows, loader in zip(sides[1:], loaders[1:], strict=True):
        assert [k for batch in loader for k in batch["index"].tolist()] == rows.tolist()
    assert len(module.train_rows) + len(module.val_rows) + len(module.test_rows) == 2 * N_OBJECTS


def test_pixels_of_a_batch_are_those_of_the_files(stamps, sky):
    module = stamps()
    (batch, *_) = module.val_dataloader()
    for index, image in zip(batch["index"].tolist(), batch["image"], strict=True):
        raw = pyfits.getdata(sky / column(module, "source")[index]).astype(np.float32)
        expected = module.normalizer(torch.from_numpy(raw)[None, None]).image[0]
        # The store measured the same sky in another batch; the kernel rounds in its own way.
        torch.testing.assert_close(image, expected, rtol=1e-6, atol=1e-6)


def test_training_stamps_are_augmented_and_the_others_never(stamps):
    module, plain_module = stamps(), stamps(augment=False)
    plain = images(module.in_order(np.arange(len(module.store))))
    assert set(plain) == set(range(2 * N_OBJECTS))
    poses = []
    for index, image in images(module.train_dataloader()).items():
        poses += [s for s in range(8) if torch.equal(apply_symmetry(plain[index], s), image)]
    assert len(set(poses)) > 4  # 24 stamps or more, each in one of eight poses
    assert len(poses) == len(images(module.train_dataloader()))
    for loader in (
        module.val_dataloader(),
        module.in_order(module.test_rows),
        module.in_order(module.train_rows),
        plain_module.train_dataloader(),
    ):
        found = images(loader)
        assert found
        assert all(torch.equal(image, plain[index]) for index, image in found.items())


def test_chosen_rows_come_in_the_order_they_were_asked_for(stamps):
    module = stamps()
    rows = np.array([7, 3, 50, 1])
    (batch,) = module.in_order(rows)
    assert batch["index"].tolist() == [7, 3, 50, 1]


def test_the_seed_decides_the_order_of_training(stamps):
    def order(seed: int) -> list[int]:
        return list(images(stamps(seed=seed).train_dataloader()))

    assert order(1) == order(1) != order(2)


def test_processes_share_the_stamps_and_choose_rows_for_all(stamps):
    module = stamps()
    alone = set(images(module.val_dataloader()))
    seen = []
    for rank in range(2):
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        module.trainer = SimpleNamespace(global_rank=rank, world_size=2, strategy=strategy)
        seen.append(set(images(module.val_dataloader())))
        assert set(images(module.in_order(module.val_rows))) == alone
    assert seen[0] | seen[1] == alone
    assert not seen[0] & seen[1]


def test_settings_of_the_reader_and_of_the_normaliser_are_passed_on(stamps, sky):
    module = stamps(
        normalize={"stretch": "linear", "saturation": 250.0}, id_keyword="TARGET", size=20
    )
    assert module.normalizer.stretch == "linear"
    assert module.store.stamp_shape == (1, 20, 20)
    assert set(column(module, "object_id")) == {f"target {k}" for k in range(N_OBJECTS)}
    batch = next(iter(module.in_order(np.arange(len(module.store)))))
    good = batch["mask"].sum((1, 2, 3))
    assert (good <= SIZE * SIZE - 9).all()  # 9 saturated pixels and the padding


# Labels


def test_labels_come_from_the_headers(stamps):
    module = stamps()
    expected = [CLASSES[int(name[3:]) % 3] for name in column(module, "object_id")]
    assert module.labels.tolist() == expected


def test_labels_of_a_csv_replace_those_of_the_headers(stamps, tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_text("file,label_weak\nobj00_0.fits,quasar\nobj01_1.fits,binary\n")
    module = stamps(labels=str(labels))
    found = dict(zip(column(module, "source"), module.labels, strict=True))
    assert found.pop("obj00_0.fits") == "quasar"
    assert found.pop("obj01_1.fits") == "binary"
    assert set(found.values()) == {""}


def test_the_column_of_labels_can_be_named(stamps, tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_text("id,kind,label\nobj00,x,y\n")
    module = stamps(labels=str(labels), label_column="kind")
    assert set(module.labels) == {"x", ""}


def test_stamps_of_other_classes_count_as_unlabelled(stamps):
    everything, some = stamps().labels, stamps(classes=["agn", "sn"]).labels
    expected = [label if label in ("agn", "sn") else "" for label in everything]
    assert some.tolist() == expected
    assert "" in expected


def test_a_class_that_no_stamp_has_is_refused_with_those_that_are_there(stamps):
    module = stamps(classes=["agn", "galaxy"])
    with pytest.raises(InputError, match=r"data\.classes names galaxy, .* are agn, sn, star"):
        _ = module.labels


def test_classes_that_are_numbers_are_found(stamps, tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_text("id,label\nobj00,1\nobj01,2\nobj02,3\n")
    # data.classes=[1,2] on the command line is a list of numbers; labels are text.
    module = stamps(labels=str(labels), classes=[1, 2])
    assert set(module.labels) == {"1", "2", ""}


def test_one_class_is_a_list_of_one(stamps):
    assert set(stamps(classes="agn").labels) == {"agn", ""}


# Settings


@pytest.mark.parametrize(
    ("key", "settings"),
    [
        ("data.root", {"root": ""}),
        ("data.root", {"root": None}),
        ("data.format", {"format": "png"}),
        ("data.size", {"size": 15}),
        ("data.size", {"size": 63.0}),
        ("data.batch_size", {"batch_size": 0}),
        ("data.batch_size", {"batch_size": "256"}),
        ("data.val_fraction", {"val_fraction": 0}),
        ("data.val_fraction", {"val_fraction": 0.95}),
        ("data.test_fraction", {"test_fraction": -0.1}),
        ("data.test_fraction", {"val_fraction": 0.5, "test_fraction": 0.5}),
        ("data.n_workers", {"n_workers": -1}),
        ("seed", {"seed": -1}),
        ("data.normalize.softening", {"normalize": {"softening": 0}}),
        ("data.cube", {"cube": "planes"}),
        ("data.cutouts", {"cutouts": ["science"]}),  # a setting of the other reader
        ("data.cutouts", {"format": "alerts", "cutouts": ["sky"]}),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(key, settings, tmp_path):
    with pytest.raises(InputError, match=key.replace(".", r"\.") + r"\b"):
        StampDataModule(**{"root": str(tmp_path)} | settings)


@pytest.mark.parametrize(
    ("key", "value"), [("n_stamps", 0), ("n_stamps", 2.5), ("simulation_seed", -1)]
)
def test_a_setting_of_the_simulation_out_of_range_is_refused_by_name(key, value, tmp_path):
    settings = {"n_stamps": 3, "progress": False, "store_dir": str(tmp_path / "s")} | {key: value}
    with pytest.raises(InputError, match=rf"data\.{key} must be "):
        StampDataModule(str(tmp_path / "sky"), **settings).prepare_data()


def test_an_unknown_setting_of_the_normaliser_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"data\.normalize\.scaling"):
        StampDataModule(str(tmp_path), normalize={"scaling": "asinh"})


def test_a_folder_that_is_not_there_is_named(tmp_path):
    module = StampDataModule(str(tmp_path / "none"), store_dir=str(tmp_path / "stores"))
    with pytest.raises(InputError, match=r"data\.root=.*none does not exist"):
        module.prepare_data()
    assert not (tmp_path / "stores").exists()


def test_too_few_stamps_to_validate_on_are_refused_with_the_key(tmp_path):
    write_image(tmp_path / "a.fits", np.eye(SIZE, dtype=np.float32))
    module = StampDataModule(str(tmp_path), store_dir=str(tmp_path / "stores"), progress=False)
    with pytest.raises(InputError, match=r"1 stamps split into .* data\.val_fraction"):
        module.setup()


# Simulated stamps and alerts, end to end


def test_simulated_stamps_are_drawn_once_packed_and_labelled(stamps, tmp_path):
    root = tmp_path / "simulated"
    settings = {"n_stamps": 60, "size": 24, "normalize": {"gain": 6.2, "saturation": 50_000.0}}
    module = stamps(root, **settings)
    drawn = {path: path.stat().st_mtime_ns for path in root.rglob("*.fits")}
    assert len(drawn) == len(module.store) == 60
    assert module.store.n_rejected == 0
    with (root / "catalogue.csv").open(newline="") as file:
        truth = {row["id"]: row["label"] for row in csv.DictReader(file)}
    assert dict(zip(column(module, "id"), module.labels, strict=True)) == truth
    batch = next(iter(module.train_dataloader()))
    assert batch["image"].shape == (8, 1, 24, 24)
    sky_pixels = batch["image"][batch["mask"]]
    # Sky noise is 1; the sources are in the tail, which the median does not see.
    assert sky_pixels.isfinite().all()
    assert sky_pixels.abs().median() < 1.5
    again = stamps(root, **settings)
    assert again.store.path == module.store.path
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.fits")} == drawn


def test_simulated_stamps_without_a_size_are_those_of_ztf(tmp_path):
    module = StampDataModule(
        str(tmp_path / "sky"), n_stamps=2, store_dir=str(tmp_path / "stores"), progress=False
    )
    module.prepare_data()
    assert module.open().stamp_shape == (1, 63, 63)


def packet(object_id: str, candid: int, cutouts: dict[str, np.ndarray]) -> bytes:
    """An alert packet with what the reader looks at."""
    text, number = {"type": "string"}, {"type": "double"}
    part = [{"name": "fileName", "type": text}, {"name": "stampData", "type": "bytes"}]
    position = [{"name": key, "type": number} for key in ("ra", "dec")]
    schema = {
        "type": "record",
        "name": "alert",
        "fields": [
            {"name": "objectId", "type": text},
            {"name": "candid", "type": "long"},
            {
                "name": "candidate",
                "type": {"type": "record", "name": "candidate", "fields": position},
            },
            *(
                {"name": f"cutout{name}", "type": {"type": "record", "name": name, "fields": part}}
                for name in cutouts
            ),
        ],
    }
    record: dict[str, Any] = {
        "objectId": object_id,
        "candid": candid,
        "candidate": {"ra": 10.0, "dec": -3.0},
    }
    for name, pixels in cutouts.items():
        image = BytesIO()
        pyfits.PrimaryHDU(pixels).writeto(image)
        record[f"cutout{name}"] = {"fileName": "a.fits", "stampData": image.getvalue()}
    stream = BytesIO()
    fastavro.writer(stream, fastavro.parse_schema(schema), [record])
    return stream.getvalue()


@pytest.fixture
def alerts(tmp_path) -> Path:
    """Twelve objects, each with two alerts of three 63 x 63 cutouts."""
    root = tmp_path / "alerts"
    root.mkdir()
    rng = np.random.default_rng(63)
    for k in range(24):
        names = ("Science", "Template", "Difference")
        cutouts = {name: rng.normal(100, 5, (63, 63)).astype(np.float32) for name in names}
        cutouts["Template"][:3] = np.finfo(np.float32).min  # as ZTF fills it
        cutouts["Difference"] -= 100
        (root / f"{k}.avro").write_bytes(packet(f"ZTF18a{k // 2}", 1000 + k, cutouts))
    return root


def test_alerts_become_batches_of_three_bands_split_by_object(stamps, alerts, tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_text("id,label\n" + "".join(f"ZTF18a{k},c{k % 2}\n" for k in range(12)))
    module = stamps(alerts, format="alerts", labels=str(labels), val_fraction=0.4)
    assert module.store.band_names == ("science", "template", "difference")
    assert module.store.stamp_shape == (3, 63, 63)
    assert len(module.store) == 24
    batch = next(iter(module.in_order(np.arange(len(module.store)))))
    assert not batch["mask"][:, 1, :3].any()
    assert batch["mask"][:, 1, 3:].all()
    assert batch["mask"][:, [0, 2]].all()
    # Each band is measured against its own sky: 100 counts of it or none.
    assert batch["image"].mean((0, 2, 3)).abs().max() < 0.1
    sides = [
        set(column(module, "object_id", rows)) for rows in (module.train_rows, module.val_rows)
    ]
    assert not sides[0] & sides[1]
    expected = [f"c{int(name[6:]) % 2}" for name in column(module, "object_id")]
    assert module.labels.tolist() == expected


def test_cutouts_and_size_of_alerts_can_be_chosen(stamps, alerts):
    module = stamps(
        alerts, format="alerts", cutouts=["difference", "science"], size=21, val_fraction=0.4
    )
    assert module.store.band_names == ("difference", "science")
    assert module.store.stamp_shape == (2, 21, 21)
