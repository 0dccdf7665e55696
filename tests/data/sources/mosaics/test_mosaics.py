"""Stamps from mosaics: the right pixels of the right mosaic, or a reject that says why not."""

import os
import pickle

import numpy as np
import pytest
from astropy.io import fits as pyfits
from astropy.nddata import Cutout2D
from astropy.wcs import WCS

from vae_astro.data.sources.fits.headers import quiet_astropy
from vae_astro.data.sources.mosaics import cuts as mosaic_cuts
from vae_astro.data.sources.mosaics import reader as mosaics
from vae_astro.data.sources.mosaics.catalogue import read_catalogue
from vae_astro.data.sources.mosaics.reader import MosaicReader
from vae_astro.data.sources.root import open_root
from vae_astro.data.stamp import Reject, Stamp, StampBlock
from vae_astro.errors import InputError

RNG = np.random.default_rng(11)
SHAPE = (200, 240)
PIXELS = RNG.normal(100, 10, SHAPE).astype(np.float32)


def header(ra=150.0, dec=2.0, **cards) -> pyfits.Header:
    """A tangential WCS with pixels of 0.36 arcsec, its centre on the middle of the mosaic."""
    wcs = {
        "CTYPE1": "RA---TAN",
        "CTYPE2": "DEC--TAN",
        "CRVAL1": ra,
        "CRVAL2": dec,
        "CRPIX1": 120.5,
        "CRPIX2": 100.5,
        "CDELT1": -1e-4,
        "CDELT2": 1e-4,
    }
    return pyfits.Header(wcs | cards)


def write(path, pixels=PIXELS, *extensions, **cards) -> None:
    path.parent.mkdir(exist_ok=True)
    primary = pyfits.PrimaryHDU(pixels, header(**cards))
    pyfits.HDUList([primary, *extensions]).writeto(path)


def write_rows(path, names: str, rows) -> None:
    lines = (",".join(str(value) for value in row) for row in rows)
    path.write_text(names + "\n" + "\n".join(lines) + "\n")


def window(pixels, x, y, size=31):
    """What Cutout2D makes of it."""
    cut = Cutout2D(pixels, (x, y), size, mode="partial", fill_value=np.nan)
    return cut.data


@pytest.fixture
def stamps(read_all, tmp_path):
    """Everything that a reader makes of the test's folder; stamps of 31 pixels."""

    def stamps(catalogue="cat.csv", size=31, **settings) -> list[Stamp | Reject]:
        return read_all(MosaicReader(catalogue=catalogue, size=size, **settings), tmp_path)

    return stamps


def test_stamps_equal_cutout2d_at_pixel_positions_and_at_edges(tmp_path, stamps):
    write(tmp_path / "m.fits")
    # odd fractions: Cutout2D rounds halves to even
    places = np.concatenate([RNG.uniform(0, 199, (200, 2)), [[0, 0], [239.4, 199.4], [-0.4, 50.3]]])
    write_rows(tmp_path / "cat.csv", "id,x,y", [(f"s{k}", *xy) for k, xy in enumerate(places)])
    found = stamps()
    assert [stamp.id for stamp in found] == [f"s{k}" for k in range(203)]
    for k, (stamp, xy) in enumerate(zip(found, places, strict=True)):
        np.testing.assert_array_equal(stamp.pixels, window(PIXELS, *xy)[None])
        assert stamp.source == f"m.fits[{k}]"
    expected = WCS(header()).all_pix2world(places, 0)
    np.testing.assert_allclose([s.ra for s in found], expected[:, 0], atol=1e-9)
    np.testing.assert_allclose([s.dec for s in found], expected[:, 1], atol=1e-9)


@pytest.mark.parametrize(
    "cards",
    [
        {},
        {"RADESYS": "FK5", "EQUINOX": 1975.0},
        {"CTYPE1": "GLON-TAN", "CTYPE2": "GLAT-TAN"},
        {
            "CTYPE1": "RA---TAN-SIP",
            "CTYPE2": "DEC--TAN-SIP",
            "A_ORDER": 2,
            "B_ORDER": 2,
            "A_2_0": 1e-5,
            "B_0_2": -2e-5,
        },
    ],
)
def test_sky_positions_find_their_pixel_in_any_frame_and_with_distortions(tmp_path, stamps, cards):
    with quiet_astropy():
        write(tmp_path / "m.fits", **cards)
        wcs = WCS(header(**cards))
        x, y = RNG.uniform(20, 180, (2, 50))
        sky = wcs.pixel_to_world(x, y).icrs
    write_rows(tmp_path / "cat.csv", "RA,DEC", zip(sky.ra.deg, sky.dec.deg, strict=True))
    found = stamps()
    assert len(found) == 50
    for stamp, column, row, ra in zip(found, x, y, sky.ra.deg, strict=True):
        np.testing.assert_array_equal(stamp.pixels[0], window(PIXELS, column, row))
        assert stamp.ra == ra


def test_a_catalogue_of_the_whole_sky_yields_what_lies_inside(tmp_path, stamps):
    write(tmp_path / "m.fits")
    sky = [(150.0, 2.0), (330.0, -2.0), (150.0, 2.5), (10.0, 89.0), ("", 1.0)]
    write_rows(tmp_path / "cat.csv", "ra,dec", sky)
    first, *rest = stamps()
    assert isinstance(first, Stamp)
    assert [(item.reason, item.source) for item in rest] == [
        ("outside the mosaic", f"cat.csv[{row}]") for row in (1, 2, 3, 4)
    ]
    assert len(stamps(outside="skip")) == 1


def test_positions_off_the_image_are_rejects_that_say_where(tmp_path, stamps):
    write(tmp_path / "m.fits")
    write_rows(tmp_path / "cat.csv", "x,y", [(10, 10), (240, 5), ("", 5), (-0.6, 5), (1e300, 5)])
    found = stamps()
    rejects = [item for item in found if isinstance(item, Reject)]
    assert [reject.source for reject in rejects] == [f"m.fits[{row}]" for row in (1, 2, 3, 4)]
    assert {reject.reason for reject in rejects} == {"outside the mosaic"}
    assert "240 x 200 pixels" in rejects[0].detail
    assert len(found) == 5


def test_a_stamp_without_a_finite_pixel_is_a_reject_and_its_neighbours_are_not(tmp_path, stamps):
    pixels = PIXELS.copy()
    pixels[:120, :120] = np.nan
    write(tmp_path / "m.fits", pixels)
    write_rows(tmp_path / "cat.csv", "x,y", [(200, 150), (50, 50), (115, 115), (210, 150)])
    bad, *good = stamps()
    assert (bad.reason, bad.source) == ("all pixels bad", "m.fits[1]")
    assert [stamp.source for stamp in good] == ["m.fits[0]", "m.fits[2]", "m.fits[3]"]
    np.testing.assert_array_equal(good[1].pixels[0], window(pixels, 115, 115))


def test_the_file_column_chooses_the_mosaic(tmp_path, stamps):
    other = PIXELS + 1000
    write(tmp_path / "a" / "one.fits")
    write(tmp_path / "b" / "two.fits", other)
    rows = [("two.fits", 50, 60), ("a/one.fits", 50, 60), ("./b/two.fits", 70, 80), ("", 1, 1)]
    write_rows(tmp_path / "cat.csv", "filename,x,y", rows)
    one, two, three, nowhere = stamps()
    np.testing.assert_array_equal(one.pixels[0], window(PIXELS, 50, 60))
    np.testing.assert_array_equal(two.pixels[0], window(other, 50, 60))
    np.testing.assert_array_equal(three.pixels[0], window(other, 70, 80))
    assert [item.source for item in (one, two, three)] == [
        "a/one.fits[1]",
        "b/two.fits[0]",
        "b/two.fits[2]",
    ]
    assert nowhere.reason == "outside the mosaic"


def test_a_catalogue_does_not_lead_outside_the_root(tmp_path, read_all):
    root = tmp_path / "root"
    write(tmp_path / "secret.fits")
    write(root / "m.fits")
    rows = [("../secret.fits", 50, 50), ("m.fits", 50, 50), (f"{tmp_path}/secret.fits", 9, 9)]
    write_rows(root / "cat.csv", "file,x,y", rows)
    reader = MosaicReader(catalogue="cat.csv", size=31)
    found = read_all(reader, root)
    assert [item.reason for item in found if isinstance(item, Reject)] == ["outside the root"] * 2
    assert [item.source for item in found if isinstance(item, Stamp)] == ["m.fits[1]"]
    assert all(isinstance(item, Stamp) for item in read_all(reader, root, allow_outside=True))


def test_mosaics_that_the_catalogue_names_and_nobody_has_are_rejects(tmp_path, stamps):
    write(tmp_path / "m.fits")
    write_rows(tmp_path / "cat.csv", "file,x,y", [("gone.fits", 50, 50), ("m.fits", 50, 50)])
    reject, stamp = stamps()
    assert (reject.source, reject.reason) == ("gone.fits[0]", "vanished")
    assert stamp.source == "m.fits[1]"


def test_a_name_that_two_mosaics_share_must_be_a_path(tmp_path, stamps):
    write(tmp_path / "a" / "m.fits")
    write(tmp_path / "b" / "m.fits")
    write_rows(tmp_path / "cat.csv", "file,x,y", [("m.fits", 50, 50)])
    with pytest.raises(InputError, match=r"a/m\.fits or b/m\.fits"):
        stamps()


def two_that_overlap(tmp_path):
    """Mosaics b and a: a lies 100 pixels beside b, and its lowest rows were never observed."""
    beside = PIXELS + 1000
    beside[:60] = np.nan
    write(tmp_path / "b.fits")
    write(tmp_path / "a.fits", beside, CRPIX1=20.5)
    x, y = np.array([10.0, 150.0, 150.0, 239.0, 300.0]), np.array([100.0, 120.0, 30.0, 90.0, 90.0])
    sky = WCS(header()).all_pix2world(np.stack([x, y], 1), 0)
    write_rows(tmp_path / "cat.csv", "id,ra,dec", [(k, *sky[k]) for k in range(5)])
    return beside, x, y


def test_overlapping_mosaics_give_one_stamp_from_the_first_that_has_light(tmp_path, stamps):
    beside, x, y = two_that_overlap(tmp_path)
    found = {stamp.id: stamp for stamp in stamps()}
    assert [found[id].source for id in "01234"] == [
        "b.fits[0]",
        "a.fits[1]",
        "b.fits[2]",
        "a.fits[3]",
        "a.fits[4]",
    ]
    np.testing.assert_array_equal(found["1"].pixels[0], window(beside, x[1] - 100, y[1]))
    np.testing.assert_array_equal(found["2"].pixels[0], window(PIXELS, x[2], y[2]))


def test_overlapping_mosaics_give_all_their_stamps_where_that_is_asked_for(tmp_path, stamps):
    two_that_overlap(tmp_path)
    found = stamps(overlap="all")
    good = sorted(item.source for item in found if isinstance(item, Stamp))
    assert good == [f"a.fits[{k}]" for k in (1, 3, 4)] + [f"b.fits[{k}]" for k in range(4)]
    assert [item.source for item in found if isinstance(item, Reject)] == ["a.fits[2]"]


def test_no_row_is_lost_or_doubled_among_many_mosaics(tmp_path, stamps, monkeypatch):
    monkeypatch.setattr(mosaics, "PART_ROWS", 7)
    for k in range(4):
        write(tmp_path / f"m{k}.fits", CRPIX1=120.5 - 70 * k, CRPIX2=100.5 - 50 * (k % 2))
    (tmp_path / "m4.fits").write_bytes(b"SIMPLE")
    x, y = RNG.uniform(-50, 500, 150), RNG.uniform(-50, 300, 150)
    sky = WCS(header()).all_pix2world(np.stack([x, y], 1), 0)
    write_rows(tmp_path / "cat.csv", "id,ra,dec", [(k, *sky[k]) for k in range(150)])
    found = stamps()
    rows = [item.source.partition("[")[2] for item in found]
    assert sorted(rows) == sorted(["", *(f"{k}]" for k in range(150))])
    inside = {
        row
        for k in range(4)
        for row in range(150)
        if -0.5 <= x[row] - 70 * k < 239.5 and -0.5 <= y[row] - 50 * (k % 2) < 199.5
    }
    assert {int(item.id) for item in found if isinstance(item, Stamp)} == inside
    assert next(item for item in found if item.source == "m4.fits").reason == "truncated file"


def test_bands_are_joined_by_the_names_of_their_files(tmp_path, stamps):
    for band, level in (("g", 0), ("r", 1000), ("z", 5)):
        write(tmp_path / f"field1_{band}.fits", PIXELS + level)
    write(tmp_path / "field2_g.fits", PIXELS)
    rows = [("field1_r.fits", 50, 60), ("field2_g.fits", 50, 60)]
    write_rows(tmp_path / "cat.csv", "file,x,y", rows)
    stamp, reject = stamps(bands=["r", "g"])
    np.testing.assert_array_equal(stamp.pixels[0], window(PIXELS + 1000, 50, 60))
    np.testing.assert_array_equal(stamp.pixels[1], window(PIXELS, 50, 60))
    assert reject.reason == "vanished"
    assert "field2_r.fits" in reject.detail
    assert MosaicReader(bands={"red": "r", "green": "g"}).band_names == ("red", "green")


def test_bands_that_are_not_aligned_are_refused(tmp_path, stamps):
    write(tmp_path / "f_g.fits")
    write(tmp_path / "f_r.fits", CRPIX1=120.52)
    write_rows(tmp_path / "cat.csv", "x,y", [(50, 60)])
    (reject,) = stamps(bands=["g", "r"])
    assert reject.reason == "bands not aligned"
    assert "0.02 pixels" in reject.detail


def test_noise_and_masks_come_from_extensions_and_from_files(tmp_path, stamps):
    variance = RNG.uniform(1, 4, SHAPE).astype(np.float32)
    mask = np.zeros(SHAPE, np.int16)
    mask[60, 50], mask[61, 50] = 4, 1
    planes = pyfits.ImageHDU(variance, name="VAR"), pyfits.ImageHDU(mask, name="DQ")
    write(tmp_path / "in" / "f_sci.fits", PIXELS, *planes)
    write_rows(tmp_path / "in" / "cat.csv", "x,y", [(50, 60), (0, 0)])
    inner = {"noise_hdu": "VAR", "noise_kind": "variance", "mask_hdu": "DQ", "mask_bits": [2]}
    stamp, corner = stamps(catalogue=str(tmp_path / "in" / "cat.csv"), **inner)
    expected = window(PIXELS, 50, 60).copy()
    expected[15, 15] = np.nan
    np.testing.assert_array_equal(stamp.pixels[0], expected)
    noise = np.sqrt(window(variance, 50, 60))
    np.testing.assert_array_equal(stamp.noise[0][:15], noise[:15])
    assert np.isnan(stamp.noise[0, 15, 15])
    assert np.isfinite(corner.noise).sum() == np.isfinite(corner.pixels).sum() == 256

    (tmp_path / "in" / "f_sci.fits").unlink()
    write(tmp_path / "out" / "f_sci.fits")
    write(tmp_path / "out" / "f_var.fits", variance)
    outer = {"noise_files": "_sci:_var", "noise_kind": "variance"}
    stamp, _ = stamps(catalogue=str(tmp_path / "in" / "cat.csv"), **outer)
    np.testing.assert_array_equal(stamp.noise[0], noise)
    assert MosaicReader(**outer).has_noise
    assert not MosaicReader().has_noise


def test_large_catalogues_are_cut_in_parts_and_blocks_of_bounded_size(tmp_path, monkeypatch):
    monkeypatch.setattr(mosaics, "PART_ROWS", 40)
    monkeypatch.setattr(mosaic_cuts, "BLOCK_BYTES", 16 * 31 * 31 * 4)
    write(tmp_path / "m.fits")
    write_rows(tmp_path / "cat.csv", "id,x,y", [(k, 20 + k, 50) for k in range(100)])
    root, reader = open_root(str(tmp_path)), MosaicReader(catalogue="cat.csv", size=31)
    sources = reader.find(root)
    assert [source.part for source in sources] == [(0, 40), (40, 80), (80, 100)]
    assert [source.n_bytes for source in sources] == [n * 31 * 31 * 4 for n in (40, 40, 20)]
    blocks = list(pickle.loads(pickle.dumps(reader)).read(sources, root))
    assert all(isinstance(block, StampBlock) for block in blocks)
    assert [len(block) for block in blocks] == [16, 16, 8, 16, 16, 8, 16, 4]
    assert [id for block in blocks for id in block.id] == [str(k) for k in range(100)]


def test_a_change_of_the_catalogue_or_of_the_mosaic_is_a_change_of_the_source(tmp_path):
    write(tmp_path / "m.fits")
    write_rows(tmp_path / "cat.csv", "x,y", [(50, 50)])
    root, reader = open_root(str(tmp_path)), MosaicReader(catalogue="cat.csv")
    (before,) = reader.find(root)
    os.utime(tmp_path / "cat.csv", ns=(1, 1))
    (after,) = reader.find(root)
    assert before != after
    assert {file.name for file in after.files} == {"m.fits", "cat.csv"}
    read_catalogue.cache_clear()  # as in another process
    (stale,) = reader.read([before], root)
    assert stale.reason == "changed"
    os.utime(tmp_path / "m.fits", ns=(1, 1))
    (changed,) = reader.read([after], root)
    assert (changed.source, changed.reason) == ("m.fits[0]", "changed")
    (tmp_path / "m.fits").unlink()
    (gone,) = reader.read([after], root)
    assert gone.reason == "vanished"


def test_a_mosaic_written_to_while_it_is_read_ends_in_rejects(tmp_path, monkeypatch):
    monkeypatch.setattr(mosaic_cuts, "BLOCK_BYTES", 1)
    write(tmp_path / "m.fits")
    write_rows(tmp_path / "cat.csv", "x,y", [(50, 50), (60, 60), (70, 70)])
    root, reader = open_root(str(tmp_path)), MosaicReader(catalogue="cat.csv")
    items = reader.read(reader.find(root), root)
    assert len(next(items)) == 1
    os.truncate(tmp_path / "m.fits", 2880)
    assert [item.reason for item in items] == ["changed", "changed"]


def test_every_truncation_of_a_mosaic_is_a_reject_for_each_row(tmp_path, stamps):
    write(tmp_path / "m.fits", PIXELS[:40, :40])
    raw = (tmp_path / "m.fits").read_bytes()
    write_rows(tmp_path / "cat.csv", "x,y", [(20, 20), (30, 30)])
    n_held = 2880 + 40 * 40 * 4
    for n in range(1, n_held, 97):
        (tmp_path / "m.fits").write_bytes(raw[:n])
        found = stamps()
        assert [item.source for item in found] == ["m.fits[0]", "m.fits[1]"]
        assert all(isinstance(item, Reject) for item in found), n
    (tmp_path / "m.fits").write_bytes(raw[:n_held])
    assert all(isinstance(item, Stamp) for item in stamps())


def test_sky_positions_need_a_mosaic_with_a_wcs(tmp_path, stamps):
    pyfits.writeto(tmp_path / "m.fits", PIXELS)
    write_rows(tmp_path / "cat.csv", "ra,dec", [(150, 2)])
    (reject,) = stamps()
    assert reject.reason == "no sky coordinates"
    write_rows(tmp_path / "both.csv", "ra,dec,x,y", [(150, 2, 50, 60)])
    (stamp,) = stamps(catalogue="both.csv")
    np.testing.assert_array_equal(stamp.pixels[0], window(PIXELS, 50, 60))
    assert stamp.ra == 150


def test_pixel_positions_do_not_tell_which_of_several_mosaics_is_meant(tmp_path, stamps):
    write(tmp_path / "a.fits")
    write(tmp_path / "b.fits")
    write_rows(tmp_path / "cat.csv", "x,y", [(50, 60)])
    with pytest.raises(InputError, match=r"2 mosaics.*file: COLUMN"):
        stamps()


def test_a_missing_extension_names_what_is_there(tmp_path, stamps):
    write(tmp_path / "m.fits")
    write_rows(tmp_path / "cat.csv", "x,y", [(50, 60)])
    (reject,) = stamps(hdu="SCI")
    assert reject.reason == "no such HDU"
    assert "PRIMARY" in reject.detail
    assert "data.hdu" in reject.detail


def test_find_says_what_is_missing(tmp_path):
    root = open_root(str(tmp_path))
    with pytest.raises(InputError, match=r"data\.catalogue is not set"):
        MosaicReader().find(root)
    write_rows(tmp_path / "cat.csv", "lon,lat", [(1, 2)])
    write(tmp_path / "m.fits")
    with pytest.raises(InputError, match=r"lon, lat"):
        MosaicReader(catalogue="cat.csv").find(root)
    write_rows(tmp_path / "far.csv", "ra,dec", [(1, 2)])
    with pytest.raises(InputError, match="none of its 1 rows"):
        MosaicReader(catalogue="far.csv", outside="skip").find(root)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"catalogue": 5}, "data.catalogue"),
        ({"columns": {"rho": "a"}}, "data.columns"),
        ({"pixel_origin": 2}, "data.pixel_origin"),
        ({"size": 8}, "data.size"),
        ({"hdu": -1}, "data.hdu"),
        ({"bands": ["g", "g"]}, "data.bands"),
        ({"bands": 5}, "data.bands"),
        ({"bands": " "}, "data.bands"),
        ({"bands": ["g", " "]}, "data.bands"),
        ({"bands": {" ": "g"}}, "data.bands"),
        ({"overlap": "last"}, "data.overlap"),
        ({"outside": "drop"}, "data.outside"),
        ({"detect_sigma": 0}, "data.detect_sigma"),
        ({"detect_pixels": 0}, "data.detect_pixels"),
        ({"deblend": "no"}, "data.deblend"),
        ({"noise_kind": "rms"}, "data.noise_kind"),
        ({"mask_bits": 3}, "data.mask_bits"),
    ],
)
def test_a_setting_out_of_range_is_named(settings, key):
    with pytest.raises(InputError, match=key.replace(".", r"\.")):
        MosaicReader(**settings)


def test_the_repr_of_a_reader_does_not_depend_on_how_settings_were_spelled():
    one = MosaicReader(catalogue="c", columns={"y": "b", "x": "a"}, bands=["g"], mask_bits=[3, 1])
    other = MosaicReader(
        catalogue="c", columns={"x": "a", "y": "b"}, bands={"g": "g"}, mask_bits=(1, 3)
    )
    assert repr(one) == repr(other)
    assert one == other
    assert MosaicReader(bands="g") == MosaicReader(bands=["g"])


@pytest.mark.real_data
def test_a_real_plate_yields_its_pixels(real_data, tmp_path, read_all):
    plate = real_data / "sky_images" / "M6707HH.fits"
    with quiet_astropy():
        pixels = pyfits.getdata(plate).astype(np.float32)
        x, y = RNG.uniform(0, 1058, (2, 100))
        sky = WCS(pyfits.getheader(plate)).pixel_to_world(x, y).icrs
    write_rows(tmp_path / "cat.csv", "ra,dec", zip(sky.ra.deg, sky.dec.deg, strict=True))
    found = read_all(MosaicReader(catalogue=str(tmp_path / "cat.csv")), plate)
    for stamp, column, row in zip(found, x, y, strict=True):
        np.testing.assert_array_equal(stamp.pixels[0], window(pixels, column, row, 63))


@pytest.mark.real_data
def test_a_real_scaled_image_yields_what_astropy_reads(real_data, tmp_path, read_all):
    image = real_data / "sky_images" / "sep_image.fits"
    with quiet_astropy():
        pixels = pyfits.getdata(image).astype(np.float32)
    write_rows(tmp_path / "cat.csv", "X_IMAGE,Y_IMAGE", [(101, 121), (1, 1)])
    found = read_all(MosaicReader(catalogue=str(tmp_path / "cat.csv")), image)
    for stamp, (x, y) in zip(found, [(100, 120), (0, 0)], strict=True):
        np.testing.assert_array_equal(stamp.pixels[0], window(pixels, x, y, 63))
