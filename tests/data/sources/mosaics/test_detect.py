"""Sources found in a mosaic are where light is, each once, and the same in every run."""

import importlib.util
import sys

import numpy as np
import pytest
from astropy.io import fits as pyfits

from vae_astro.data.sources.mosaics import detect
from vae_astro.data.sources.mosaics.reader import MosaicReader
from vae_astro.data.sources.root import open_root
from vae_astro.data.stamp import Stamp
from vae_astro.errors import InputError

needs_photutils = pytest.mark.skipif(
    importlib.util.find_spec("photutils") is None, reason="photutils is not installed"
)
STEP = 40
CENTRES = np.array([(x, y) for y in range(50, 270, STEP) for x in range(50, 310, STEP)], float)


def sky_with_stars() -> np.ndarray:
    """Stars of 4 pixels FWHM on a grid, each moved by a fraction of a pixel."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:300, :340]
    pixels = rng.normal(100 + 0.05 * x, 2.0)
    for cx, cy in CENTRES + fractions():
        pixels += 300 * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * 1.7**2))
    return pixels.astype(np.float32)


def fractions() -> np.ndarray:
    return np.random.default_rng(4).uniform(-0.4, 0.4, CENTRES.shape)


@needs_photutils
@pytest.mark.parametrize("tile", [2048, 97])
def test_every_star_is_found_once_whether_or_not_the_mosaic_is_tiled(
    tmp_path, read_all, monkeypatch, tile
):
    monkeypatch.setattr(detect, "TILE", tile)
    monkeypatch.setattr(detect, "MARGIN", 40)
    pixels = sky_with_stars()
    pixels[140:160, 140:160] = np.nan  # not observed, and no source
    pyfits.writeto(tmp_path / "field.fits", pixels)
    reader = MosaicReader(catalogue="detect", size=21, detect_sigma=5)
    stamps = read_all(reader, tmp_path)
    assert all(isinstance(stamp, Stamp) for stamp in stamps)
    assert [stamp.id for stamp in stamps] == [f"field.fits:{k}" for k in range(len(stamps))]
    assert [stamp.source for stamp in stamps] == [f"field.fits[{k}]" for k in range(len(stamps))]
    # the central pixel of a stamp is the one that its star lies in
    rows, columns = np.round(CENTRES + fractions()).astype(int).T[::-1]
    expected = {float(pixels[at]) for at in zip(rows, columns, strict=True)}
    found = [float(stamp.pixels[0, 10, 10]) for stamp in stamps]
    observed = {value for value in expected if np.isfinite(value)}
    assert len(found) == len(set(found))
    assert len(observed & set(found)) >= len(observed) - 1  # one lies on the hole's rim
    assert len(found) <= len(observed) + 1
    again = read_all(reader, tmp_path)
    np.testing.assert_array_equal([s.pixels for s in stamps], [s.pixels for s in again])


@needs_photutils
def test_a_mosaic_without_sources_or_without_light_yields_nothing(tmp_path, read_all):
    flat = np.random.default_rng(0).normal(0, 1, (100, 100)).astype(np.float32)
    pyfits.writeto(tmp_path / "noise.fits", flat)
    pyfits.writeto(tmp_path / "dark.fits", np.full((100, 100), np.nan, np.float32))
    reader = MosaicReader(catalogue="detect", detect_sigma=8)
    assert read_all(reader, tmp_path) == []


@needs_photutils
def test_a_broken_mosaic_is_a_reject(tmp_path, read_all):
    (tmp_path / "broken.fits").write_bytes(b"SIMPLE  =                    T")
    (reject,) = read_all(MosaicReader(catalogue="detect"), tmp_path)
    assert (reject.source, reject.reason) == ("broken.fits", "truncated file")


def test_without_photutils_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "photutils.segmentation", None)
    with pytest.raises(InputError, match=r"pip install 'vae-astro\[photutils\]'"):
        MosaicReader(catalogue="detect").find(open_root(str(tmp_path)))


@needs_photutils
def test_deblending_without_its_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(detect, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="scikit-image"):
        MosaicReader(catalogue="detect", deblend=True).find(open_root(str(tmp_path)))


@needs_photutils
@pytest.mark.real_data
def test_a_real_plate_is_full_of_sources(real_data, read_all):
    plate = real_data / "sky_images" / "M6707HH.fits"
    stamps = read_all(MosaicReader(catalogue="detect"), plate)
    whole = [stamp for stamp in stamps if np.isfinite(stamp.pixels).all()]
    assert len(whole) > 1000
    # a source is brighter than its surroundings
    centres = [stamp.pixels[0, 31, 31] - np.median(stamp.pixels[0]) for stamp in whole]
    assert np.mean(np.array(centres) > 0) > 0.95
    assert np.isfinite([stamp.ra for stamp in stamps]).all()
