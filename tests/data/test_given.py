"""Stamps in every form that a person holds them in, and what is no stamp."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from astropy import units
from astropy.io import fits
from astropy.nddata import (
    CCDData,
    Cutout2D,
    InverseVariance,
    NDData,
    StdDevUncertainty,
    VarianceUncertainty,
)
from astropy.utils.masked import Masked

from vae_astro.data.given import given_stamps
from vae_astro.data.raw import RawStamps, in_batches
from vae_astro.errors import InputError

SKY = np.random.default_rng(0).normal(100, 5, size=(4, 20, 20)).astype(np.float32)
ONE, THREE = ["g"], ["g", "r", "i"]


def whole(stamps: Any, bands: list[str] | None = ONE, size: int | None = 20) -> RawStamps:
    """All that was given, in one piece."""
    pieces = list(given_stamps(stamps, bands, size))
    noise = [piece.noise for piece in pieces if piece.noise is not None]
    pixels = np.concatenate([piece.pixels for piece in pieces])
    return RawStamps(pixels, np.concatenate(noise) if noise else None)


@pytest.mark.parametrize(
    ("shape", "bands", "becomes"),
    [
        ((20, 20), ONE, (1, 1, 20, 20)),
        ((4, 20, 20), ONE, (4, 1, 20, 20)),
        ((4, 1, 20, 20), ONE, (4, 1, 20, 20)),
        ((3, 20, 20), THREE, (1, 3, 20, 20)),
        ((4, 3, 20, 20), THREE, (4, 3, 20, 20)),
        ((4, 20, 20), None, (4, 1, 20, 20)),
        ((4, 2, 20, 20), None, (4, 2, 20, 20)),
    ],
)
def test_axes_are_understood_by_the_bands_of_the_model(
    shape: tuple[int, ...], bands: list[str] | None, becomes: tuple[int, ...]
) -> None:
    assert whole(np.zeros(shape), bands).pixels.shape == becomes


@pytest.mark.parametrize("dtype", [">f4", ">i2", "<u2", "f2", "f8", "bool", "longdouble", "i8"])
def test_any_real_type_and_byte_order_comes_out_as_float32(dtype: str) -> None:
    given = (SKY > 100 if dtype == "bool" else np.round(SKY)).astype(dtype)
    given.flags.writeable = False
    ((pixels, noise),) = in_batches(given_stamps(given[:, ::-1, ::-1], ONE), 20, 9)
    assert noise is None
    assert pixels.dtype == torch.float32
    np.testing.assert_array_equal(pixels[:, 0], given[:, ::-1, ::-1].astype("f4"))


def test_lists_tensors_and_quantities_are_the_array_that_they_hold() -> None:
    for given in (list(SKY), SKY.tolist(), tuple(SKY), torch.tensor(SKY), SKY * units.adu,
                  [stamp * units.adu for stamp in SKY],
                  torch.tensor(SKY, requires_grad=True)):  # fmt: skip
        assert np.array_equal(whole(given).pixels[:, 0], SKY)
    assert whole(torch.tensor(SKY, dtype=torch.bfloat16)).pixels.shape == (4, 1, 20, 20)
    assert np.array_equal(whole([list(SKY[:3]), list(SKY[1:])], THREE).pixels[1], SKY[1:])


def test_masks_of_arrays_and_of_nddata_become_nan() -> None:
    mask = SKY > 105
    expected = np.where(mask, np.nan, SKY)
    masked = np.ma.masked_array(SKY, mask)
    for given in (
        masked,
        list(masked),
        NDData(SKY, mask=mask),
        [CCDData(stamp, unit="adu", mask=bad) for stamp, bad in zip(SKY, mask, strict=True)],
    ):
        np.testing.assert_array_equal(whole(given).pixels[:, 0], expected)
    whole_numbers = NDData(np.round(SKY).astype("i2"), mask=mask)
    assert np.isnan(whole(whole_numbers).pixels[:, 0][mask]).all()


@pytest.mark.parametrize(
    "uncertainty",
    [
        StdDevUncertainty(np.full((20, 20), 2.0)),
        VarianceUncertainty(np.full((20, 20), 4.0)),
        InverseVariance(np.full((20, 20), 0.25)),
        StdDevUncertainty(np.full((20, 20), 2000.0), unit="mJy"),
    ],
)
def test_uncertainties_of_every_kind_become_standard_deviations(uncertainty: Any) -> None:
    found = whole(CCDData(SKY[0], unit="Jy", uncertainty=uncertainty))
    assert found.noise is not None
    assert found.noise.shape == found.pixels.shape == (1, 1, 20, 20)
    np.testing.assert_allclose(found.noise, 2.0)


def test_an_inverse_variance_of_zero_is_a_pixel_that_says_nothing() -> None:
    weight = np.full((20, 20), 0.25)
    weight[0] = 0
    found = whole(NDData(SKY[0], uncertainty=InverseVariance(weight)))
    assert found.noise is not None
    assert np.isinf(found.noise[0, 0, 0]).all()
    assert np.isfinite(found.noise[0, 0, 1:]).all()


def test_stamps_of_a_list_may_differ_in_size_but_not_in_bands() -> None:
    found = whole([SKY[0], SKY[1][:18, :16], np.pad(SKY[2], 2)]).pixels[:, 0]
    assert np.array_equal(found[0], SKY[0])
    assert np.isnan(found[1]).sum() == 400 - 18 * 16
    assert np.array_equal(found[2], SKY[2])
    with pytest.raises(InputError, match=r"shapes \(20, 20\) and \(3, 20, 20\)"):
        whole([SKY[0], SKY[:3]])
    with pytest.raises(InputError, match=r"the same bands and the same size"):
        whole([SKY[0], SKY[1][:18]], None, None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fits.writeto(tmp_path / "b.fits", SKY[0].astype(">i2"))
    fits.writeto(tmp_path / "a.fits.gz", SKY[1])
    images = [fits.PrimaryHDU(), fits.ImageHDU(SKY[2]), fits.ImageHDU(SKY[3])]
    fits.HDUList(images).writeto(tmp_path / "two.fits")
    fits.writeto(tmp_path / "cube.fits", np.stack(2 * [SKY]).reshape(8, 20, 20))
    fits.writeto(tmp_path / "bands.fits", SKY[:3])
    return tmp_path


def test_files_come_in_the_order_of_their_names_and_folders_in_that_of_the_alphabet(
    folder: Path,
) -> None:
    listed = whole([str(folder / "b.fits"), str(folder / "a.fits.gz"), str(folder / "two.fits")])
    expected = np.concatenate([SKY[:1].astype("i2"), SKY[1:]])
    assert np.array_equal(listed.pixels[:, 0], expected)
    assert whole(folder / "cube.fits").pixels.shape == (8, 1, 20, 20)
    assert whole(folder / "bands.fits", THREE).pixels.shape == (1, 3, 20, 20)
    for name in ("bands.fits", "cube.fits", "two.fits"):
        (folder / name).unlink()
    assert np.array_equal(whole(folder).pixels[:, 0], expected[[1, 0]])


def test_pieces_are_put_together_to_whole_batches(folder: Path) -> None:
    names = [folder / "cube.fits", folder / "b.fits", folder / "a.fits.gz"]
    sizes = [len(pixels) for pixels, _ in in_batches(given_stamps(names, ONE), 20, 6)]
    assert sizes == [6, 4]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (np.array([["a"]]), "real numbers, got an array of <U1"),
        (SKY + 1j, "of complex64"),
        (SKY.astype(object), "of object"),
        (np.zeros((2, 20), "M8[s]"), "of datetime64"),
        ([], "the list is empty"),
        ([[1, 2], [3]], r"shapes \(2,\) and \(1,\)"),
        (np.zeros(20), r"stamps have shape \(20,\)"),
        (np.zeros((0, 20, 20)), r"there are no stamps: the array has shape \(0, 20, 20\)"),
        (np.zeros((2, 3, 20, 20)), r"takes \(N, 1, H, W\) with the bands g"),
        (np.zeros((2, 20, 20, 1)), r"np\.moveaxis\(stamps, -1, -3\)"),
        (np.zeros((20, 20, 1)), "20x1 pixels each; they must be 16 to 4096"),
        (np.zeros((2, 8, 8)), "8x8 pixels"),
        (None, "stamps are a NoneType"),
        ({"image": SKY}, "stamps are a dict"),
        (fits.ImageHDU(SKY[0]), "stamps are a ImageHDU; .*: its .data"),
        (Cutout2D(SKY[0], (10, 10), 18), "stamps are a Cutout2D; .*: its .data"),
        ([SKY[0], "a.fits"], "names of files and a ndarray"),
        ([CCDData(SKY[0], unit="adu"), CCDData(SKY[1], unit="Jy")], "units, adu and Jy"),
        ([CCDData(SKY[0], unit="adu"), SKY[1]], "units, adu and none"),
        ([NDData(SKY[0], uncertainty=StdDevUncertainty(SKY[0])), NDData(SKY[1])],
         "1 of 2 stamps come with an uncertainty"),
        (NDData(SKY[0], uncertainty=StdDevUncertainty(SKY[0][:3])), r"has shape \(3, 20\)"),
        (NDData(SKY[0], mask=np.zeros((3, 3), bool)), r"the mask of a NDData has shape \(3, 3\)"),
        (SKY * units.mag, "the stamps are in mag, a logarithm"),
        (CCDData(SKY[0], unit=units.mag(units.ct)), r"in mag\(ct\), a logarithm"),
        ([NDData(SKY[0], unit="km / s")], "in km / s, a unit of speed"),
        (Masked(SKY * units.arcsec), "in arcsec, a unit of angle"),
        (NDData(np.full((20, 20), "a")), "stamps are <U1 in a NDData"),
        ("nowhere.fits", "nowhere.fits does not exist"),
    ],
)  # fmt: skip
def test_what_is_no_stamp_is_refused_with_what_was_found(given: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        whole(given)


def test_an_uncertainty_without_a_kind_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # astropy says so too, in its log
        stamps = NDData(SKY[0], uncertainty=np.ones((20, 20)))
    with pytest.raises(InputError, match=r"kind unknown is not a standard deviation"):
        whole(stamps)


def test_files_that_cannot_be_used_are_named(folder: Path) -> None:
    with pytest.raises(InputError, match=r"bands\.fits holds stamps of 3 bands, .* takes 1: g"):
        whole(folder / "bands.fits")
    broken = folder / "broken.fits"
    broken.write_bytes((folder / "b.fits").read_bytes()[:3000])
    with pytest.raises(InputError, match=r"broken\.fits: truncated"):
        whole([folder / "a.fits.gz", broken])
    (folder / "text.txt").write_text("no image")
    with pytest.raises(InputError, match=r"^[^=]*text\.txt holds 1 file, none ending in \.fits"):
        whole(folder / "text.txt")


def test_masked_arrays_and_quantities_of_astropy_lose_no_mask() -> None:
    pixels = np.full((2, 20, 20), 7.0)
    is_bad = np.zeros(pixels.shape, bool)
    is_bad[0, 3, 4] = True
    for given in (Masked(pixels, mask=is_bad), Masked(pixels * units.adu, mask=is_bad)):
        assert np.isnan(whole(given).pixels[:, 0]).tolist() == is_bad.tolist()


@pytest.mark.parametrize("size", [5, 5000])
def test_a_size_that_no_model_takes_is_refused_in_a_list_too(size: int) -> None:
    with pytest.raises(InputError, match=f"so {size}x{size} pixels each; they must be 16 to"):
        whole([np.ones((20, 20)), np.ones((size, size))])


def test_a_name_that_is_too_long_is_refused_as_others_are() -> None:
    with pytest.raises(InputError, match="does not exist"):
        whole("x" * 5000)


@pytest.mark.parametrize(
    ("stamps", "message"),
    [
        (torch.zeros(2, 20, 20).to_sparse(), "sparse_coo tensor, .*to_dense"),
        (torch.zeros(2, 20, 20, device="meta"), "a meta tensor"),
        (torch.zeros(2, 20, 20, dtype=torch.complex64), "real numbers, got an array of complex64"),
        (np.zeros((2, 20, 20), complex), "real numbers, got an array of complex128; np.abs"),
        (np.full((2, 20, 20), None), "real numbers, got an array of object; lists of different"),
        (np.full((2, 20, 20), "x"), "real numbers, got an array of <U1"),
        (scipy.sparse.csr_matrix(np.eye(20)), r"stamps are a csr_matrix.*: its \.toarray\(\)"),
    ],
)
def test_numbers_that_are_not_there_pixel_by_pixel_are_refused(stamps, message) -> None:
    with pytest.raises(InputError, match=message):
        list(given_stamps(stamps, ONE))
