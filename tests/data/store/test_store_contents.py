"""The store holds what the reader gave, and what is measured of it."""

from __future__ import annotations

import csv
import json
import os

import numpy as np
import pyarrow as pa
import pytest
from array_reader import (
    FILL,
    NAMES,
    SIZE,
    ArrayReader,
    assert_same_pixels,
    draw,
    write_bad,
    write_stamps,
)

from vae_astro.data.sky import measure_sky
from vae_astro.data.stamp import fit_to_size
from vae_astro.data.store import shard as shard_module
from vae_astro.data.store.layout import FORMAT_VERSION
from vae_astro.data.store.pack import open_or_pack
from vae_astro.errors import InputError


def everything(store):
    return store.gather(np.arange(len(store)))


def test_pixels_are_those_of_the_reader_bit_for_bit(root, pack):
    odd = np.load(root / "b1.npy")
    odd[0, 0, :8] = [np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-42, FILL, 3e38]
    np.save(root / "b1.npy", odd)
    store = pack()
    assert len(store) == 5
    assert store.stamp_shape == (1, SIZE, SIZE)
    assert_same_pixels(everything(store), np.stack([np.load(root / f"{n}.npy") for n in NAMES]))


def test_the_catalogue_has_one_row_a_stamp_in_the_order_of_the_pixels(root, pack):
    store = pack(ArrayReader(names=("g",)))
    table = store.catalogue
    assert table.column_names == [
        "id",
        "object_id",
        "source",
        "label",
        "ra",
        "dec",
        "seeing",
        "object_hash",
        "sky_level_g",
        "sky_noise_g",
        "good_fraction_g",
    ]
    assert isinstance(table, pa.Table)
    assert table["id"].to_pylist() == NAMES
    assert table["object_id"].to_pylist() == ["a", "a", "b", "b", "b"]
    assert table["source"].to_pylist() == [f"{name}.npy" for name in NAMES]
    assert table["label"].to_pylist() == ["é", "é", "", "", ""]
    assert table["ra"].to_pylist() == [2.0] * 5
    assert np.isnan(table["dec"].to_numpy()).all()
    np.testing.assert_array_equal(table["seeing"], [np.nan, 2.5, np.nan, np.nan, np.nan])
    hashes = table["object_hash"].to_pylist()
    assert hashes[0] == hashes[1] != hashes[2] == hashes[3]
    assert store.band_names == ("g",)


def test_sky_and_good_fraction_are_those_of_the_good_pixels_of_each_band(root, pack):
    write_stamps(root, *NAMES, shape=(2, SIZE, SIZE))
    stamp = np.load(root / "a2.npy")
    stamp[0, :4] = np.nan
    stamp[1, 0, 0] = FILL
    stamp[1, 1] = 5e4
    np.save(root / "a2.npy", stamp)
    store = pack(ArrayReader(), saturation=(5e4,))
    np.testing.assert_array_equal(store.good_fraction[1], np.float32([192 / 256, 239 / 256]))
    np.testing.assert_array_equal(store.good_fraction[[0, 2, 3, 4]], 1)
    raw = everything(store)
    level, noise = measure_sky(raw, np.isfinite(raw) & (np.abs(raw) < 5e4))
    np.testing.assert_array_equal(store.sky_level, level)
    np.testing.assert_array_equal(store.sky_noise, noise)
    assert np.abs(store.sky_level - 100).max() < 3  # 5 / sqrt(192) is the error of a mean


def test_bands_without_names_are_numbered(root, pack):
    write_stamps(root, *NAMES, shape=(2, SIZE, SIZE))
    store = pack(ArrayReader())
    assert store.band_names == ("band0", "band1")
    assert store.catalogue.column_names[-6:] == [
        f"{name}_band{k}" for name in ("sky_level", "sky_noise", "good_fraction") for k in (0, 1)
    ]


@pytest.mark.parametrize("block", [0, 1, 4, 100])
def test_blocks_and_single_stamps_make_the_same_store(root, pack, monkeypatch, tmp_path, block):
    write_stamps(root, *(f"c{k}" for k in range(8)))
    np.save(root / "b2.npy", np.full((1, SIZE, SIZE), np.nan, np.float32))
    write_bad(root, "bad")
    singly = pack(ArrayReader(names=("r",)))
    monkeypatch.setattr(shard_module, "BLOCK_BYTES", 3 * 4 * SIZE**2)
    monkeypatch.setattr(shard_module, "BLOCK_STAMPS", 2)
    reader = ArrayReader(names=("r",), block=block)
    other = open_or_pack(root, reader, tmp_path / "others", progress=False)
    assert other.manifest.form == singly.manifest.form
    assert_same_pixels(everything(other), everything(singly))
    assert other.catalogue.drop_columns(["dec", "seeing"]).equals(
        singly.catalogue.drop_columns(["dec", "seeing"])
    )
    assert other.rejects.read_bytes() != b""
    assert sorted(other.rejects.read_text()) == sorted(singly.rejects.read_text())


def test_pixels_of_another_type_are_stored_as_float32(root, pack):
    for name in NAMES:
        np.save(root / f"{name}.npy", draw(name).astype(">f8"))
    store = pack(ArrayReader(block=5))
    assert_same_pixels(everything(store), np.stack([draw(name) for name in NAMES]))
    assert store.sky_level.dtype == np.float32


def test_a_larger_stamp_is_cropped_and_a_smaller_one_padded_but_none_is_stretched(root, pack):
    write_stamps(root, "b1", shape=(1, 24, 21))
    write_stamps(root, "b2", shape=(1, 9, 40))
    store = pack(size=18)
    assert store.stamp_shape == (1, 18, 18)
    expected = [fit_to_size(np.load(root / f"{name}.npy"), 18) for name in NAMES]
    assert_same_pixels(everything(store), np.stack(expected))


def test_without_a_size_the_most_common_longer_side_is_taken(root, pack):
    write_stamps(root, "a1", shape=(1, 30, 30))
    write_stamps(root, "a2", "b1", shape=(1, 20, 17))
    write_stamps(root, "b2", "b3", shape=(1, 16, 20))
    assert pack().stamp_shape == (1, 20, 20)


def test_stamps_too_small_to_train_on_are_padded_to_the_smallest_size(root, pack):
    write_stamps(root, *NAMES, shape=(1, 5, 5))
    assert pack().stamp_shape == (1, 16, 16)


def test_rejects_are_counted_and_listed_and_the_rest_is_stored(root, pack, caplog):
    write_bad(root, "bad1", "bad2")
    write_stamps(root, "b2", shape=(3, SIZE, SIZE))
    np.save(root / "b3.npy", np.full((1, SIZE, SIZE), FILL, np.float32))
    store = pack()
    assert store.catalogue["id"].to_pylist() == ["a1", "a2", "b1"]
    assert store.n_rejected == 4
    with store.rejects.open(newline="", encoding="utf-8") as file:
        rows = {row["source"]: row for row in csv.DictReader(file)}
    assert {source: row["reason"] for source, row in rows.items()} == {
        "bad1.npy": "not an array",
        "bad2.npy": "not an array",
        "b2.npy": "other number of bands",
        "b3.npy": "all pixels bad",
    }
    assert rows["bad1.npy"]["detail"] == "bad1.npy: begins with 'x'"
    assert "b2.npy has 3 bands, this store has 1 (r)" in rows["b2.npy"]["detail"]
    assert f"4 stamps set aside; reasons in {store.path / 'rejects.csv'}" in caplog.text


def test_the_bands_of_the_reader_count_and_not_those_of_the_first_stamp(root, pack):
    write_stamps(root, "a1", shape=(2, SIZE, SIZE))
    store = pack(ArrayReader(names=("science",)))
    assert store.catalogue["id"].to_pylist() == ["a2", "b1", "b2", "b3"]


def write_with_noise(root, noise_of=lambda noise: noise):
    """Stamps of two bands and the noise of each."""
    for name in NAMES:
        pixels = draw(name, (2, SIZE, SIZE))
        noise = np.abs(draw(f"{name} noise", (2, SIZE, SIZE))) / 20
        np.save(root / f"{name}.npy", np.concatenate([pixels, noise_of(noise)]))


def test_noise_planes_follow_the_pixels(root, pack):
    write_with_noise(root)
    store = pack(ArrayReader(has_noise=True, names=("g", "r")))
    assert store.has_noise
    assert store.stamp_shape == (2, SIZE, SIZE)
    expected = np.stack([np.load(root / f"{name}.npy") for name in NAMES])
    assert_same_pixels(everything(store), expected)
    assert store.sky_level.shape == (5, 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, -1.0])
def test_a_pixel_whose_noise_says_nothing_is_nan(root, pack, bad):
    def spoil(noise):
        noise[1, 3, 4] = bad
        return noise

    write_with_noise(root, spoil)
    store = pack(ArrayReader(has_noise=True, names=("g", "r")))
    planes = everything(store)
    assert np.isnan(planes[:, 1, 3, 4]).all()
    assert np.isfinite(planes[:, 0]).all()
    np.testing.assert_array_equal(store.good_fraction[:, 1], np.float32(255 / 256))
    np.testing.assert_array_equal(planes[:, 3, 3, 4], np.float32(bad))


def test_a_stamp_without_its_noise_is_set_aside_where_the_others_have_it(root, pack):
    class Forgetful(ArrayReader):
        def _read_one(self, source, root):
            stamp = super()._read_one(source, root)
            return stamp if stamp.id != "a2" else type(stamp)(stamp.pixels, "a2", "a", "a2.npy")

    write_with_noise(root)
    store = pack(Forgetful(has_noise=True, names=("g", "r")))
    assert store.catalogue["id"].to_pylist() == ["a1", "b1", "b2", "b3"]
    assert "a2.npy,no noise,a2.npy comes without its noise" in store.rejects.read_text()


def test_large_stamps_of_which_little_is_kept_do_not_wait_in_full(root, pack, monkeypatch):
    write_stamps(root, "a1", shape=(1, 400, 400))
    waiting = []
    original = shard_module._as_block

    def watch(stamps, form):
        waiting.extend(stamp.pixels.nbytes for stamp in stamps)
        return original(stamps, form)

    monkeypatch.setattr(shard_module, "_as_block", watch)
    pack(size=SIZE)
    assert waiting == [4 * SIZE**2] * 5


def test_a_file_name_that_is_not_unicode_costs_nothing_but_its_spelling(tmp_path, caplog):
    sky = tmp_path / "sky"
    sky.mkdir()
    for name in (b"b.npy", b"caf\xe9.npy"):  # Latin-1, from an old disk
        try:
            with open(os.path.join(os.fsencode(sky), name), "wb") as file:
                np.save(file, draw("b"))
        except OSError:
            pytest.skip("this file system takes only Unicode names")
    first = open_or_pack(sky, ArrayReader(), tmp_path / "stores", progress=False)
    assert first.catalogue["source"].to_pylist() == ["b.npy", "caf\\udce9.npy"]
    assert open_or_pack(sky, ArrayReader(), tmp_path / "stores", progress=False).path == first.path
    os.remove(os.path.join(os.fsencode(sky), b"caf\xe9.npy"))
    after = open_or_pack(sky, ArrayReader(), tmp_path / "stores", progress=False)
    assert after.catalogue["source"].to_pylist() == ["b.npy"]
    assert "1 stamps are no longer below" in caplog.text


def test_the_manifest_says_what_the_store_holds(root, pack):
    store = pack()
    manifest = json.loads((store.path / "manifest.json").read_text())
    assert manifest["format_version"] == FORMAT_VERSION
    assert manifest["n_stamps"] == 5
    assert manifest["form"] == {
        "size": SIZE,
        "band_names": ["r"],
        "has_noise": False,
        "stored_as": "float32",
    }
    assert manifest["packed_from"]["root"] == str(root)


def test_without_a_usable_stamp_the_reasons_are_counted_and_nothing_is_left_behind(tmp_path):
    root = tmp_path / "none"
    root.mkdir()
    write_bad(root, "bad1", "bad2")
    np.save(root / "c.npy", np.full((1, SIZE, SIZE), np.nan, np.float32))
    with pytest.raises(InputError) as error:
        open_or_pack(root, ArrayReader(), tmp_path / "stores", progress=False)
    assert f"data.root={root}" in str(error.value)
    assert "2 x not an array, 1 x all pixels bad" in str(error.value)
    assert "begins with 'x'" in str(error.value)
    assert [path.suffix for path in (tmp_path / "stores").iterdir()] in ([".lock"], [])


def test_an_empty_folder_is_refused_and_makes_no_store(tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="holds no files"):
        open_or_pack(tmp_path / "none", ArrayReader(), tmp_path / "stores", progress=False)
    assert not (tmp_path / "stores").exists()
