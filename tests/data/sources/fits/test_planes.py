"""Weights, errors and masks become noise and bad pixels, and each finds its image."""

import pickle

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_astro.data.sky import measure_sky
from vae_astro.data.sources.files import RefusedError
from vae_astro.data.sources.fits.planes import Planes, check_shape, plane_values
from vae_astro.data.sources.root import FileVersion
from vae_astro.errors import InputError

SKY = np.random.default_rng(0).normal(100, 5, (2, 20, 24)).astype("f4")
NOISE = np.random.default_rng(1).uniform(1, 9, SKY.shape).astype("f4")


def file(name):
    return FileVersion(name, 7, "1")


# What the values mean


@pytest.mark.parametrize(
    ("kind", "plane"),
    [
        ("std", NOISE),
        ("variance", NOISE.astype("f8") ** 2),
        ("inverse_variance", 1 / NOISE.astype("f8") ** 2),
    ],
)
def test_every_kind_of_plane_becomes_the_same_standard_deviation(kind, plane):
    pixels, noise = Planes(noise_hdu="WHT", noise_kind=kind).apply(SKY, plane.astype(">f8"), None)
    assert pixels is SKY
    assert noise.dtype == np.float32
    np.testing.assert_allclose(noise, NOISE, rtol=1e-6)


def test_relative_weights_are_scaled_to_the_noise_of_each_band():
    true_noise = np.array([3.0, 40.0])[:, None, None] * np.linspace(0.5, 2, 60)
    rng = np.random.default_rng(2)
    pixels = rng.normal(10, np.broadcast_to(true_noise, (2, 60, 60))).astype("f4")
    weight = np.broadcast_to(1 / true_noise**2, pixels.shape) * np.array([7e5, 1e-3])[:, None, None]
    before = pixels.copy()
    _, noise = Planes(noise_hdu=1, noise_kind="weight").apply(pixels, weight, None)
    _, sky_noise = measure_sky(pixels[None], np.ones((1, *pixels.shape), bool))
    np.testing.assert_allclose(np.median(noise, axis=(1, 2)), sky_noise[0], rtol=1e-5)
    ratio = noise / true_noise  # the shape of the noise is that of the weights
    np.testing.assert_allclose(ratio, ratio[:, :1, :1] * np.ones_like(ratio), rtol=1e-5)
    np.testing.assert_array_equal(pixels, before)
    cube, cube_noise = Planes(noise_hdu=1, noise_kind="weight").apply(
        np.stack([pixels, pixels]), np.stack([weight, weight * 9]), None
    )
    assert cube.shape == (2, 2, 60, 60)
    np.testing.assert_allclose(cube_noise, np.stack([noise, noise]), rtol=1e-6)


def test_a_band_without_a_good_pixel_has_no_noise_and_the_other_keeps_its_own():
    weight = np.ones_like(SKY)
    weight[1] = 0
    pixels, noise = Planes(noise_hdu=1, noise_kind="weight").apply(SKY, weight, None)
    assert np.isnan(pixels[1]).all()
    assert np.isnan(noise[1]).all()
    np.testing.assert_array_equal(pixels[0], SKY[0])
    assert np.ptp(noise[0]) == 0


@pytest.mark.parametrize("kind", ["std", "variance", "inverse_variance", "weight"])
@pytest.mark.parametrize("value", [0, -1, np.nan, np.inf, -np.inf, 1e300, 1e-300])
def test_a_pixel_without_positive_finite_noise_is_bad(kind, value):
    plane = np.ones(SKY.shape)
    plane[0, 3, 4] = value
    before = SKY.copy()
    pixels, noise = Planes(noise_hdu=1, noise_kind=kind).apply(SKY, plane, None)
    bad = np.zeros(SKY.shape, bool)
    bad[0, 3, 4] = True  # what has no float32 is as good as infinite or zero
    np.testing.assert_array_equal(np.isnan(pixels), bad)
    np.testing.assert_array_equal(np.isnan(noise), bad)
    np.testing.assert_array_equal(SKY, before)


def test_a_variance_too_small_for_float32_still_gives_its_noise():
    flux = SKY * np.float32(1e-30)
    _, noise = Planes(noise_hdu=1, noise_kind="variance").apply(
        flux, np.full(SKY.shape, 1e-58), None
    )
    np.testing.assert_allclose(noise, 1e-29, rtol=1e-6)


def test_masked_pixels_are_bad_in_pixels_and_noise():
    mask = np.zeros(SKY.shape, ">i4")
    mask[0, 1, 2], mask[1, 5, 6] = 1, 2**31 - 1
    planes = Planes(noise_hdu="ERR", mask_hdu="DQ")
    pixels, noise = planes.apply(SKY, NOISE, mask)
    np.testing.assert_array_equal(np.isnan(pixels), mask != 0)
    np.testing.assert_array_equal(np.isnan(noise), mask != 0)
    pixels, noise = planes.apply(SKY, None, mask)
    assert noise is None
    np.testing.assert_array_equal(np.isnan(pixels), mask != 0)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 63), min_size=1, max_size=4),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=4, max_size=4),
)
def test_only_the_chosen_bits_are_bad(bits, values):
    mask = np.array(values).reshape(1, 2, 2)
    pixels, _ = Planes(mask_hdu=1, mask_bits=bits).apply(np.zeros((1, 2, 2), "f4"), None, mask)
    expected = [any((value >> bit) & 1 for bit in bits) for value in values]
    assert np.isnan(pixels).ravel().tolist() == expected


@pytest.mark.parametrize("dtype", ["u1", ">i2", "?", "f4", ">u8"])
def test_a_mask_of_ones_may_call_them_good(dtype):
    mask = np.ones(SKY.shape).astype(dtype)
    mask[0, 0, 0] = 0
    pixels, _ = Planes(mask_hdu=1, mask_good=True).apply(SKY, None, mask)
    np.testing.assert_array_equal(np.argwhere(np.isnan(pixels)), [[0, 0, 0]])
    pixels, _ = Planes(mask_hdu=1).apply(SKY, None, mask)
    np.testing.assert_array_equal(np.argwhere(~np.isnan(pixels)), [[0, 0, 0]])


def test_a_mask_with_blanks_is_bad_there_and_one_with_fractions_is_refused():
    mask = np.zeros(SKY.shape, "f4")
    mask[0, 0, 0] = np.nan
    pixels, _ = Planes(mask_hdu=1, mask_bits=[3]).apply(SKY, None, mask)
    np.testing.assert_array_equal(np.argwhere(np.isnan(pixels)), [[0, 0, 0]])
    for wrong in (0.5, 1e30):
        mask[1, 1, 1] = wrong
        with pytest.raises(RefusedError, match=r"not a mask: .*data\.mask_hdu"):
            Planes(mask_hdu=1).apply(SKY, None, mask)


def test_a_plane_of_another_shape_is_refused_with_both_shapes():
    with pytest.raises(RefusedError, match=r"noise plane has shape \(20, 24\), the image \(2, 20"):
        Planes(noise_hdu=1).apply(SKY, NOISE[0], None)
    with pytest.raises(RefusedError, match=r"mask plane has shape \(2, 24, 20\).*data\.mask_hdu"):
        Planes(mask_hdu=1).apply(SKY, None, np.zeros((2, 24, 20), "u1"))
    _, noise = Planes(noise_hdu=1).apply(SKY[:1], NOISE[0], None)  # an image is one band
    np.testing.assert_array_equal(noise, NOISE[:1])
    check_shape((1, 20, 24), (20, 24), "noise")


# Where they are


@pytest.mark.parametrize(
    ("pattern", "image", "plane"),
    [
        ("{stem}.weight.fits", "n1/a.fits.gz", "n1/a.weight.fits"),
        ("weights/{stem}.fits", "n1/a.fit", "n1/weights/a.fits"),
        ("../weights/{stem}.fits", "images/a.fits", "weights/a.fits"),
        ("_sci:_wht", "n_sci/a_sci_1_sci.fits", "n_sci/a_sci_1_wht.fits"),
        ("images/:weights/", "n1/images/a.fits", "n1/weights/a.fits"),
    ],
)
def test_the_file_of_a_plane_is_found_by_its_name(pattern, image, plane):
    files = sorted([file(image), file(plane), file("other.fits")])
    groups = Planes(noise_files=pattern).group(files)
    assert (file(image), file(plane)) in groups
    assert len(groups) == 2  # the plane is no image
    ((_, missing),) = [planes for planes in groups if planes[0] == file("other.fits")]
    assert (missing.n_bytes, missing.version) == (0, "")


def test_an_image_without_its_plane_is_refused_by_the_name_it_should_have():
    planes = Planes(noise_files="_sci:_wht", mask_files="{stem}_flag.fits")
    files = [file("a_sci.fits"), file("a_wht.fits"), file("b.fits"), file("b_flag.fits")]
    first, second = planes.group(files)
    assert first == (file("a_sci.fits"), file("a_wht.fits"), FileVersion("a_sci_flag.fits", 0, ""))
    with pytest.raises(RefusedError, match=r"no plane: no file a_sci_flag\.fits; see data\.mask_f"):
        planes.require(first)
    with pytest.raises(
        RefusedError, match=r"nothing to replace in its name; see data\.noise_files"
    ):
        planes.require(second)
    planes.require((file("a"), file("b"), file("c")))
    assert Planes(noise_files="{stem}.fits").group([file("a.fits")])[0][1].name == ""


def test_without_patterns_every_file_is_an_image():
    files = [file("a.fits"), file("b.fits")]
    assert Planes(noise_hdu="WHT").group(files) == [(files[0],), (files[1],)]


def hdus(*named, shape=(4, 5)):
    """A primary HDU without data, then images by (EXTNAME, EXTVER or None)."""
    made = [fits.PrimaryHDU()]
    for name, version in named:
        made.append(fits.ImageHDU(np.zeros(shape, "f4"), name=name))
        if version is not None:
            made[-1].header["EXTVER"] = version
    return made


def locate(planes, file_hdus, chosen=None):
    """Numbers of the planes of each image that is read: by default all."""
    images = planes.without_planes(file_hdus, range(1, len(file_hdus)))
    chosen = images if chosen is None else chosen
    return {image: planes.locate(file_hdus, images, chosen, image) for image in chosen}


def test_a_single_image_finds_its_planes_by_name_or_number():
    made = hdus(("SCI", 3), ("wht ", None), ("DQ", None))
    for noise_hdu, mask_hdu in (("WHT", "dq"), (2, 3), (2, "DQ")):
        assert locate(Planes(noise_hdu=noise_hdu, mask_hdu=mask_hdu), made) == {
            1: {"noise": 2, "mask": 3}
        }
    assert locate(Planes(), made[:2]) == {1: {}}


def test_many_images_find_theirs_by_extver_whatever_the_order():
    made = hdus(("SCI", 1), ("SCI", 2), ("ERR", 2), ("ERR", 1))
    assert locate(Planes(noise_hdu="ERR"), made) == {1: {"noise": 4}, 2: {"noise": 3}}


def test_without_extver_they_are_found_by_their_order():
    made = hdus(*[(name, None) for _ in range(3) for name in ("SCI", "ERR")])
    assert locate(Planes(noise_hdu="ERR"), made) == {
        1: {"noise": 2},
        3: {"noise": 4},
        5: {"noise": 6},
    }


def test_one_image_of_many_finds_its_own():
    by_version = hdus(("SCI", 1), ("SCI", 2), ("ERR", 2), ("ERR", 1), ("DQ", 1), ("DQ", 2))
    assert locate(Planes(noise_hdu="ERR"), by_version, [2]) == {2: {"noise": 3}}
    by_order = hdus(*[(name, None) for _ in range(2) for name in ("SCI", "ERR", "DQ")])
    assert locate(Planes(noise_hdu="ERR"), by_order, [4]) == {4: {"noise": 5}}
    single = hdus(("SCI", None), ("ERR", None), ("DQ", None))
    for noise_hdu in ("ERR", 2):
        assert locate(Planes(noise_hdu=noise_hdu), single, [1]) == {1: {"noise": 2}}
        with pytest.raises(RefusedError, match=r"ambiguous plane: .*data\.hdu"):
            locate(Planes(noise_hdu=noise_hdu), single)  # is DQ an image?


@pytest.mark.parametrize(
    ("planes", "named", "reason"),
    [
        (Planes(noise_hdu="ERR"), [("SCI", None)], "no plane: data.noise_hdu=ERR"),
        (Planes(mask_hdu=7), [("SCI", None)], "no plane: data.mask_hdu=7"),
        (Planes(noise_hdu=3), [("A", None), ("B", None), ("C", None)], "ambiguous plane"),
        (Planes(noise_hdu="ERR"), [("A", None), ("B", None), ("ERR", None)], "ambiguous plane"),
    ],
)
def test_a_plane_that_is_not_there_or_could_be_anyones_is_refused(planes, named, reason):
    with pytest.raises(RefusedError, match=reason):
        locate(planes, hdus(*named))


def test_a_plane_that_claims_another_shape_is_refused_before_it_is_read():
    made = [*hdus(("SCI", None)), *hdus(("ERR", None), shape=(400, 500))[1:]]
    with pytest.raises(RefusedError, match=r"shape \(400, 500\), the image \(4, 5\)"):
        locate(Planes(noise_hdu="ERR"), made)
    table = fits.BinTableHDU.from_columns([fits.Column("x", "J", array=[1])], name="ERR")
    with pytest.raises(RefusedError, match="plane of another shape"):
        locate(Planes(noise_hdu="ERR"), [*made[:2], table])


def test_in_a_file_of_its_own_a_plane_has_the_number_of_its_image_or_is_alone():
    planes = Planes(noise_files="{stem}.w.fits", mask_hdu="DQ")
    image = hdus(("SCI", None), ("SCI", None), ("DQ", None), ("DQ", None))
    alone = [fits.PrimaryHDU(np.zeros((4, 5)))]
    same = hdus(("A", None), ("B", None), ("C", None))
    for file_hdus, expected in ((alone, alone[0]), (same, same[2])):
        found = planes.of_image(image, [1, 2], [1, 2], 2, [file_hdus])
        assert found == {"mask": image[4], "noise": expected}
    with pytest.raises(RefusedError, match="ambiguous plane: the plane's file has 2 images"):
        planes.of_image(image[:2] + image[3:4], [1], [1], 1, [[same[0], same[0], *same[1:3]]])
    other = [fits.PrimaryHDU(np.zeros((5, 4)))]
    with pytest.raises(RefusedError, match=r"shape \(5, 4\), the image \(4, 5\)"):
        planes.of_image(image, [1, 2], [1, 2], 2, [other])
    with pytest.raises(RefusedError, match="the plane's file has 0 images"):
        planes.of_image(image, [1, 2], [1, 2], 2, [[fits.PrimaryHDU()]])


def test_a_mask_keeps_all_its_bits_on_the_way_from_the_file(tmp_path):
    mask = np.array([[2**24 + 1, 2**24], [0, 2**31 - 1]], "i4")
    fits.writeto(tmp_path / "mask.fits", mask)
    with fits.open(tmp_path / "mask.fits") as opened:
        values = plane_values(opened[0])
    np.testing.assert_array_equal(values, mask)
    pixels, _ = Planes(mask_hdu=1, mask_bits=[0]).apply(np.zeros((1, 2, 2), "f4"), None, values)
    assert np.isnan(pixels[0]).tolist() == [[True, False], [False, True]]


# Settings


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"noise_kind": "sigma"}, "data.noise_kind must be one of std, variance"),
        ({"noise_hdu": 1, "noise_files": "{stem}.w.fits"}, "data.noise_hdu and data.noise_files"),
        ({"noise_hdu": -1}, "data.noise_hdu must be at least 0"),
        ({"noise_hdu": True}, "data.noise_hdu must be a whole number"),
        ({"mask_hdu": " "}, "data.mask_hdu must be text"),
        ({"noise_files": "weight.fits"}, "data.noise_files must be a name with {stem}"),
        ({"mask_files": "_sci:"}, None),
        ({"mask_files": ":_wht"}, "data.mask_files must be"),
        ({"mask_files": "a:a"}, "data.mask_files must be"),
        ({"mask_bits": 4}, "data.mask_bits must be a list of bit numbers"),
        ({"mask_bits": [64]}, "data.mask_bits must be at most 63"),
        ({"mask_bits": []}, "chooses no bits"),
        ({"mask_bits": [1], "mask_good": True}, "contradicts data.mask_good"),
        ({"mask_good": 1}, "data.mask_good must be true or false"),
    ],
)
def test_settings_are_checked_and_named(given, message):
    if message is None:
        Planes(**given)
        return
    with pytest.raises(InputError) as error:
        Planes(**given)
    assert message in str(error.value)


def test_settings_that_mean_the_same_have_one_repr_and_travel():
    planes = Planes(noise_hdu="WHT", mask_hdu="DQ", mask_bits=[4, 0, 4])
    assert repr(planes) == repr(Planes(noise_hdu="WHT", mask_hdu="DQ", mask_bits=(0, 4)))
    assert pickle.loads(pickle.dumps(planes)) == planes
    assert (planes.has_noise, planes.has_mask) == (True, True)
    assert (Planes().has_noise, Planes().has_mask) == (False, False)
