"""FITS images with their noise and their mask: from other extensions, and from other files."""

import gzip

import numpy as np
from astropy.io import fits as pyfits

from vae_astro.data.sources.fits.reader import FitsReader
from vae_astro.data.stamp import Reject

RNG = np.random.default_rng(0)
SHAPE = (20, 24)


def test_planes_of_the_same_file_are_found_by_name_and_version(tmp_path, read_all):
    images = [RNG.normal(100, 5, SHAPE).astype(np.float32) for _ in range(3)]
    errors = [RNG.uniform(1, 2, SHAPE).astype(np.float32) for _ in range(3)]
    flags = [RNG.integers(0, 8, SHAPE).astype(np.int32) for _ in range(3)]
    hdus = [pyfits.PrimaryHDU()]
    hdus += [pyfits.ImageHDU(image, name="SCI", ver=k) for k, image in enumerate(images, 1)]
    for k in (2, 0, 1):
        hdus.append(pyfits.ImageHDU(errors[k], name="ERR", ver=k + 1))
        hdus.append(pyfits.ImageHDU(flags[k], name="DQ", ver=k + 1))
    pyfits.HDUList(hdus).writeto(tmp_path / "a.fits")
    reader = FitsReader(noise_hdu="err", mask_hdu="DQ", mask_bits=[2])
    assert reader.has_noise
    found = read_all(reader, tmp_path)
    assert [stamp.source for stamp in found] == ["a.fits[1]", "a.fits[2]", "a.fits[3]"]
    for k, stamp in enumerate(found):
        bad = (flags[k] & 4) != 0
        np.testing.assert_array_equal(stamp.pixels[0], np.where(bad, np.nan, images[k]))
        np.testing.assert_array_equal(stamp.noise[0], np.where(bad, np.nan, errors[k]))
    (second,) = read_all(FitsReader(hdu=2, noise_hdu="err"), tmp_path)
    np.testing.assert_array_equal(second.noise[0], errors[1])


def test_planes_of_other_files_may_be_packed_and_a_missing_or_broken_one_is_a_reject(
    tmp_path, read_all
):
    cube = RNG.normal(100, 5, (30, *SHAPE)).astype(np.float32)
    weight = RNG.uniform(1, 4, cube.shape).astype(np.float32)
    weight[3] = 0
    for name in "abcd":
        if name == "c":
            pyfits.CompImageHDU(cube).writeto(tmp_path / "c.fits")
        else:
            pyfits.writeto(tmp_path / f"{name}.fits", cube)
    pyfits.writeto(tmp_path / "a.weight.fits.gz", weight)
    pyfits.CompImageHDU(weight, quantize_level=0).writeto(tmp_path / "c.weight.fits.gz")
    pyfits.writeto(tmp_path / "whole.fits", weight)
    half = gzip.compress((tmp_path / "whole.fits").read_bytes()[:20_000])
    (tmp_path / "whole.fits").unlink()
    (tmp_path / "d.weight.fits.gz").write_bytes(half)
    reader = FitsReader(noise_files="{stem}.weight.fits.gz", noise_kind="inverse_variance")
    found = read_all(reader, tmp_path)
    rejects = [(item.source, item.reason) for item in found if isinstance(item, Reject)]
    assert rejects == [
        ("a.fits[0][3]", "all pixels bad"),
        ("b.fits", "no plane"),
        ("c.fits[1][3]", "all pixels bad"),
        ("d.fits", "truncated file"),
    ]
    first = next(item for item in found if not isinstance(item, Reject))
    np.testing.assert_allclose(first.noise[0], 1 / np.sqrt(weight[0]), rtol=1e-6)


def test_a_plane_of_another_shape_is_a_reject_that_names_both(tmp_path, read_all):
    image = RNG.normal(100, 5, SHAPE).astype(np.float32)
    hdus = [pyfits.PrimaryHDU(image), pyfits.ImageHDU(image[:-1], name="ERR")]
    pyfits.HDUList(hdus).writeto(tmp_path / "a.fits")
    (reject,) = read_all(FitsReader(noise_hdu="ERR"), tmp_path)
    assert isinstance(reject, Reject)
    assert "(20, 24)" in reject.detail
    assert "(19, 24)" in reject.detail
