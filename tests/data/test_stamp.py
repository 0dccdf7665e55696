"""Cropping and padding keep every pixel's value and the central pixel's place."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vae_astro.data.stamp import Reject, Stamp, fit_to_size, plausible_seeing


def numbered(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def test_a_stamp_of_the_right_size_is_returned_as_it_is():
    pixels = numbered(3, 63, 63)
    assert fit_to_size(pixels, 63) is pixels


def test_an_odd_crop_keeps_the_middle():
    np.testing.assert_array_equal(fit_to_size(numbered(7, 7), 3), numbered(7, 7)[2:5, 2:5])


def test_an_even_crop_keeps_the_pixel_right_of_the_middle():
    # Central pixels: 8 // 2 = 4 lands on 4 // 2 = 2, so rows 2 to 5 stay.
    np.testing.assert_array_equal(fit_to_size(numbered(8, 8), 4), numbered(8, 8)[2:6, 2:6])


def test_an_odd_pad_is_nan_on_both_sides():
    fitted = fit_to_size(numbered(3, 3), 5)
    np.testing.assert_array_equal(fitted[1:4, 1:4], numbered(3, 3))
    assert np.isnan(fitted).sum() == 25 - 9


def test_an_even_pad_of_an_odd_stamp_keeps_its_centre():
    fitted = fit_to_size(numbered(3, 3), 4)
    assert fitted[2, 2] == numbered(3, 3)[1, 1]
    np.testing.assert_array_equal(fitted[1:4, 1:4], numbered(3, 3))


def test_one_axis_is_cropped_while_the_other_is_padded():
    fitted = fit_to_size(numbered(2, 7, 3), 5)
    assert fitted.shape == (2, 5, 5)
    np.testing.assert_array_equal(fitted[:, :, 1:4], numbered(2, 7, 3)[:, 1:6])
    assert np.isnan(fitted[:, :, [0, 4]]).all()


@given(height=st.integers(1, 12), width=st.integers(1, 12), size=st.integers(1, 12))
def test_the_central_pixel_lands_on_the_centre_and_no_value_is_invented(height, width, size):
    pixels = numbered(height, width)
    fitted = fit_to_size(pixels, size)
    assert fitted.shape == (size, size)
    assert fitted.dtype == np.float32
    assert fitted[size // 2, size // 2] == pixels[height // 2, width // 2]
    kept = fitted[np.isfinite(fitted)]
    assert len(kept) == min(height, size) * min(width, size)
    assert set(kept) <= set(pixels.flat)


def test_a_stamp_without_a_catalogue_has_no_position_no_label_and_no_seeing():
    stamp = Stamp(numbered(1, 2, 2), "a", "a", "a.fits")
    assert np.isnan([stamp.ra, stamp.dec, stamp.seeing]).all()
    assert stamp.label == ""
    assert "pixels" not in repr(stamp)


@pytest.mark.parametrize("fwhm", [np.nan, np.inf, -999.0, 0.0, 0.4, 65.0])
def test_a_seeing_that_no_telescope_has_is_unknown(fwhm):
    assert np.isnan(plausible_seeing(fwhm))
    assert plausible_seeing(2.5) == 2.5


def test_records_cannot_be_changed_by_accident():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Reject("a.fits", "no image", "").reason = "other"
