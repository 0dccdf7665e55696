"""Files of one object become one stamp, in the order of the bands."""

import gzip
import pickle
from pathlib import Path

import fsspec
import numpy as np
import pytest
import yaml
from astropy.io import fits

from vae_astro.data.sources.fits.bands import BandReader
from vae_astro.data.sources.root import open_root
from vae_astro.data.stamp import Reject
from vae_astro.errors import InputError

CONFIG = Path(__file__).parents[4] / "conf" / "data" / "bands.yaml"


def write(path, value, shape=(20, 24), **keywords):
    """A FITS file whose pixels are all ``value``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    hdu = fits.PrimaryHDU(np.full(shape, value, ">f4"))
    hdu.header.update(keywords)
    hdu.writeto(path)


def first_values(stamp):
    return stamp.pixels[:, 0, 0].tolist()


@pytest.fixture
def sky(tmp_path):
    """Objects ``a`` with g, r and i, and ``b_2`` without r; a file of another band, a text."""
    for k, band in enumerate("gri"):
        write(tmp_path / f"a_{band}.fits", k)
    write(tmp_path / "b_2_g.fits", 5)
    write(tmp_path / "b_2_i.fits", 7)
    write(tmp_path / "a_z.fits", 9)
    (tmp_path / "notes.txt").write_text("x")
    return tmp_path


def test_the_bands_of_an_object_are_one_stamp_in_the_order_asked_for(sky, read_all):
    stamp, reject = read_all(BandReader(("r", "g", "i")), sky)
    assert (stamp.id, stamp.object_id, stamp.source) == ("a", "a", "a_r.fits")
    assert stamp.pixels.shape == (3, 20, 24)
    assert stamp.pixels.dtype == np.float32
    assert first_values(stamp) == [1, 0, 2]
    assert (reject.source, reject.reason) == ("b_2_g.fits", "missing band")
    for word in ("no file of r", "b_2_g.fits, b_2_i.fits", "data.missing=pad"):
        assert word in reject.detail


def test_a_missing_band_is_padded_if_asked_for(sky, read_all):
    whole, padded = read_all(BandReader(("g", "r", "i"), missing="pad"), sky)
    assert first_values(whole) == [0, 1, 2]
    assert padded.id == "b_2"
    np.testing.assert_array_equal(first_values(padded), [5, np.nan, 7])
    assert np.isnan(padded.pixels[1]).all()


def test_a_source_holds_the_files_of_its_bands_in_order(sky):
    root = open_root(str(sky))
    first, second = BandReader(["i", "g", "r"], missing="pad").find(root)
    assert [file.name for file in first.files] == ["a_i.fits", "a_g.fits", "a_r.fits"]
    assert [file.name for file in second.files] == ["b_2_i.fits", "b_2_g.fits"]
    assert first.n_bytes == sum((sky / file.name).stat().st_size for file in first.files)


@pytest.mark.parametrize(
    ("pattern", "names", "ids"),
    [
        ("{band}/{id}.fits", ["g/x.fits", "r/x.fits", "g/y.fits", "r/y.fits"], ["x", "y"]),
        ("{id}/{band}.fits", ["x/g.fits", "x/r.fits"], ["x"]),
        ("{band}/{id}_{band}.fits", ["g/x_g.fits", "r/x_r.fits", "r/y_g.fits"], ["x"]),
        ("im[{band}]+{id}.fits", ["im[g]+x.fits", "im[r]+x.fits"], ["x"]),
        ("{band}{id}.fits", ["n1/gx.fits", "n1/rx.fits", "n2/gx.fits", "n2/rx.fits"], ["x", "x"]),
    ],
)
def test_a_pattern_tells_object_and_band_anywhere_in_the_path(
    tmp_path, read_all, pattern, names, ids
):
    for k, name in enumerate(names):
        write(tmp_path / name, k)
    stamps = read_all(BandReader(("g", "r"), pattern=pattern), tmp_path)
    assert [stamp.id for stamp in stamps] == ids
    assert len({stamp.source for stamp in stamps}) == len(ids)


def test_the_longest_band_that_fits_is_meant(tmp_path, read_all):
    for k, band in enumerate(("F1", "F115W")):
        write(tmp_path / f"{band}x.fits", k)
    (stamp,) = read_all(BandReader(("F115W", "F1"), pattern="{band}{id}.fits"), tmp_path)
    assert first_values(stamp) == [1, 0]


def test_bands_may_be_numbers(tmp_path, read_all):
    write(tmp_path / "x_1.fits", 1)
    write(tmp_path / "x_2.fits", 2)
    reader = BandReader([2, 1])
    assert reader.band_names == ("2", "1")
    assert first_values(read_all(reader, tmp_path)[0]) == [2, 1]


def test_position_label_and_seeing_are_those_of_the_first_band_that_is_there(tmp_path, read_all):
    write(tmp_path / "x_r.fits", 1, RA=12.5, DEC=-3.0, CLASS="galaxy", PIXSCALE=0.5, SEEING=1.5)
    write(tmp_path / "x_i.fits", 1, RA=99.0, DEC=1.0, CLASS="star", KIND="odd")
    (stamp,) = read_all(BandReader(("g", "r", "i"), missing="pad"), tmp_path)
    assert (stamp.ra, stamp.dec, stamp.label) == (12.5, -3.0, "galaxy")
    assert stamp.seeing == pytest.approx(3.0)
    (stamp,) = read_all(BandReader(("i", "r"), label_keyword="KIND"), tmp_path)
    assert (stamp.ra, stamp.label) == (99.0, "odd")


def test_the_fast_way_and_the_careful_one_give_the_same(tmp_path, read_all, monkeypatch):
    rng = np.random.default_rng(0)
    for k in range(24):
        for band in "gri"[: 3 - (k % 6 == 0)]:
            data = rng.normal(100, 9, (20, 24)).astype(rng.choice([">f4", ">i2", "u1", ">f8"]))
            hdus = fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(data), fits.ImageHDU(data[:9])])
            hdus = fits.HDUList([fits.PrimaryHDU(data)]) if k % 2 else hdus
            hdus[k % 2 - 1].header.update({"RA": rng.uniform(0, 360), "DEC": 1.5})
            hdus[0].header.update({"CLASS": f"class {k % 3}", "SEEING": (2.5, "[pix]")})
            hdus.writeto(tmp_path / f"{k}_{band}.fits")
    whole = (tmp_path / "5_r.fits").read_bytes()
    (tmp_path / "5_r.fits").write_bytes(whole[:3000])
    reader = BandReader(("g", "r", "i"), missing="pad")
    fast = read_all(reader, tmp_path)
    monkeypatch.setattr(BandReader, "_join_plain", lambda *args: None)
    careful = read_all(reader, tmp_path)
    assert list(map(repr, fast)) == list(map(repr, careful))
    for one, other in zip(fast, careful, strict=True):
        if not isinstance(one, Reject):
            np.testing.assert_array_equal(one.pixels, other.pixels)
    assert sum(isinstance(stamp, Reject) for stamp in fast) == 1


def test_packed_files_and_images_in_extensions_are_read(tmp_path, read_all):
    write(tmp_path / "plain.fits", 4)
    packed = gzip.compress((tmp_path / "plain.fits").read_bytes())
    (tmp_path / "x_g.fits").write_bytes(packed)
    image = fits.ImageHDU(np.full((20, 24), 6, "i2"), header=fits.Header([("CLASS", "star")]))
    fits.HDUList([fits.PrimaryHDU(), image]).writeto(tmp_path / "x_r.fits")
    (stamp,) = read_all(BandReader(("r", "g")), tmp_path)
    assert first_values(stamp) == [6, 4]
    assert stamp.label == "star"


def test_bands_of_different_shapes_are_a_reject_that_names_them(tmp_path, read_all):
    write(tmp_path / "x_g.fits", 1, shape=(20, 24))
    write(tmp_path / "x_r.fits", 1, shape=(24, 20))
    (reject,) = read_all(BandReader(("g", "r")), tmp_path)
    assert reject.reason == "bands of different shapes"
    assert "g (20, 24), r (24, 20)" in reject.detail


def test_a_band_that_cannot_be_read_costs_only_its_own_object(tmp_path, read_all):
    for k, id in enumerate("abcdef"):
        write(tmp_path / f"{id}_g.fits", k)
        write(tmp_path / f"{id}_r.fits", k)
    whole = (tmp_path / "b_r.fits").read_bytes()
    (tmp_path / "b_r.fits").write_bytes(whole[:3000])
    (tmp_path / "c_g.fits").write_bytes(b"\xff\xd8\xff no FITS")
    (tmp_path / "d_r.fits").write_bytes(b"")
    claims = fits.PrimaryHDU().header
    claims.update({"BITPIX": -32, "NAXIS": 2, "NAXIS1": 10**6, "NAXIS2": 10**6})
    (tmp_path / "e_r.fits").write_bytes(claims.tostring().encode())
    reader, root = BandReader(("g", "r")), open_root(str(tmp_path))
    sources = reader.find(root)
    (tmp_path / "f_g.fits").unlink()
    good, *rejects = reader.read(sources, root)
    assert (good.id, first_values(good)) == ("a", [0, 0])
    assert all(isinstance(reject, Reject) for reject in rejects)
    assert [(reject.source, reject.reason) for reject in rejects] == [
        ("b_g.fits", "truncated file"),
        ("c_g.fits", "not a FITS file"),
        ("d_g.fits", "empty file"),
        ("e_g.fits", "too large"),
        ("f_g.fits", "vanished"),
    ]
    assert [name for name in ("b_r", "d_r", "e_r") if name in " ".join(r.detail for r in rejects)]


def test_stamps_without_a_finite_pixel_are_rejects(tmp_path, read_all):
    write(tmp_path / "x_g.fits", np.nan)
    (reject,) = read_all(BandReader(("g", "r"), missing="pad"), tmp_path)
    assert reject.reason == "all pixels bad"


def test_bands_are_read_from_a_remote_root_as_from_a_folder(sky, read_all):
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    for path in sky.glob("*.fits"):
        memory.pipe(f"/bands/{path.name}", path.read_bytes())
    reader = BandReader(("g", "r", "i"), missing="pad")
    for here, there in zip(read_all(reader, sky), read_all(reader, "memory://bands"), strict=True):
        np.testing.assert_array_equal(here.pixels, there.pixels)
        assert repr(here) == repr(there)
    memory.store.clear()


def test_a_root_without_such_files_is_an_error_that_says_what_is_there(sky, tmp_path):
    with pytest.raises(InputError) as error:
        BandReader(("u",)).find(open_root(str(sky)))
    for word in (f"data.root={sky} holds 7 files", "data.bands=['u']", "first is a_g.fits"):
        assert word in str(error.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds 0 files"):
        BandReader(("u",)).find(open_root(str(tmp_path / "empty")))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bands": []}, "data.bands must be one or more names"),
        ({"bands": "gri"}, "data.bands must be a list"),
        ({"bands": ["g", "g"]}, "each once"),
        ({"bands": ["g/r"]}, "without a slash"),
        ({"bands": ["g"], "pattern": "{id}.fits"}, "data.pattern must have the fields"),
        ({"bands": ["g"], "pattern": "{id}_{band}_{ccd}.fits"}, "data.pattern must have"),
        ({"bands": ["g"], "pattern": "{id}_{band}.fits}"}, "data.pattern must have"),
        ({"bands": ["g"], "pattern": ""}, "data.pattern must be text"),
        ({"bands": ["g"], "missing": "zero"}, "data.missing must be one of reject, pad"),
        ({"bands": ["g"], "label_keyword": " "}, "data.label_keyword must be text"),
        ({"bands": ["g"], "max_pixels": 0}, "data.max_pixels must be at least 1"),
    ],
)
def test_settings_are_checked_and_named(given, message):
    with pytest.raises(InputError) as error:
        BandReader(**given)
    assert message in str(error.value)


def test_a_reader_travels_and_has_one_repr():
    reader = BandReader(["g", "r"])
    reader._named("a_g.fits")
    assert pickle.loads(pickle.dumps(reader)) == reader == BandReader(("g", "r"))
    assert repr(reader) == repr(BandReader(("g", "r")))


def test_the_config_has_the_defaults_of_the_reader():
    settings = yaml.safe_load(CONFIG.read_text())
    own = {key: settings[key] for key in ("pattern", "missing", "label_keyword")}
    assert BandReader(settings["bands"], **own) == BandReader(("g", "r", "i"))
