"""Sixteen bits a pixel: what comes back is within the stated bound of what went in."""

from __future__ import annotations

import numpy as np
import pytest
from array_reader import SIZE, ArrayReader, draw, write_stamps
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_astro.data.sky import good_pixels, measure_sky
from vae_astro.data.store.check import verify
from vae_astro.data.store.float16 import decode_float16, encode_float16
from vae_astro.data.store.pack import open_or_pack


def bound(raw: np.ndarray, level: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """The error that the module states, in float64."""
    raw, level, unit = (
        np.asarray(each, np.float64) for each in (raw, level[:, :, None, None], unit)
    )
    rounding = 2.0**-22 * np.maximum(np.abs(raw), np.abs(level))
    return 2.0**-11 * np.abs(raw - level) + 2.0**-25 * unit[:, :, None, None] + rounding


def there_and_back(raw):
    good = good_pixels(raw)
    level, sky_noise = measure_sky(raw, good)
    stored, unit = encode_float16(raw, good, level, sky_noise)
    assert stored.dtype == np.float16
    return good, level, unit, decode_float16(stored, level, unit)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    level=st.floats(-1e6, 1e6, width=32),
    log_noise=st.floats(-8, 8),
    log_star=st.floats(-10, 17),
)
def test_what_comes_back_is_within_the_bound(seed, level, log_noise, log_star):
    rng = np.random.default_rng(seed)
    raw = rng.normal(level, 10**log_noise, (3, 2, 8, 8)).astype(np.float32)
    raw[0, 0, 4, 4] += 10**log_star
    raw[1, 1, 2, 2] -= 10**log_star
    raw[2, 0, :2] = np.nan
    raw[2, 1, 0, :3] = [np.inf, -np.inf, np.finfo(np.float32).min]
    good, sky_level, unit, back = there_and_back(raw)
    np.testing.assert_array_equal(np.isnan(back), ~good)
    error = np.abs(back.astype(np.float64) - raw)
    assert (error <= bound(raw, sky_level, unit))[good].all()


@pytest.mark.parametrize("brightness", [1e2, 1e5, 1e9, 9e17])
def test_a_bright_star_neither_overflows_nor_hides_the_sky(brightness):
    raw = np.random.default_rng(0).normal(100, 5, (1, 1, 32, 32)).astype(np.float32)
    raw[0, 0, 16, 16] = brightness
    _, level, unit, back = there_and_back(raw)
    assert back[0, 0, 16, 16] == pytest.approx(brightness, rel=2**-11)
    error = np.abs(back - raw)[0, 0, :16]
    assert (error <= bound(raw, level, unit)[0, 0, :16]).all()
    if brightness <= 1e9:  # 2e8 times the noise of the sky
        assert error.max() < 0.02


def test_noise_comes_back_with_the_same_precision_and_never_as_zero():
    rng = np.random.default_rng(0)
    pixels = rng.normal(100, 5, (4, 1, 16, 16)).astype(np.float32)
    noise = np.abs(rng.normal(5, 1, pixels.shape)).astype(np.float32)
    noise[0, 0, 0, :3] = [1e-30, 1e30, 3e38]
    good = good_pixels(pixels)
    good[1, 0, 5, 5] = False
    level, sky_noise = measure_sky(pixels, good)
    planes = np.concatenate([pixels, noise], axis=1)
    stored, unit = encode_float16(planes, good, level, sky_noise)
    back = decode_float16(stored, level, unit)
    assert np.isnan(back[1, :, 5, 5]).all()
    usual = good & (noise < 1e4) & (noise > 0.1)
    np.testing.assert_allclose(back[:, 1:][usual], noise[usual], rtol=2**-11 + 1e-6)
    assert (back[:, 1:][good] > 0).all()
    assert back[0, 1, 0, 1] == pytest.approx(6e4 * unit[0, 0], rel=1e-3)
    error = np.abs(back[:, :1] - pixels)
    assert (error <= bound(pixels, level, unit))[good].all()


def test_a_store_of_sixteen_bits_is_half_as_large_and_keeps_the_statistics(tmp_path):
    names = [f"a{k}" for k in range(9)]
    root = write_stamps(tmp_path / "sky", *names, shape=(2, SIZE, SIZE))
    spoilt = draw("a4", (2, SIZE, SIZE))
    spoilt[0, :3] = np.nan
    spoilt[1, 8, 8] = 6e4
    np.save(root / "a4.npy", spoilt)
    full, half = (
        open_or_pack(
            root,
            ArrayReader(),
            tmp_path / "stores",
            stored_as=form,
            saturation=(5e4,),
            progress=False,
        )
        for form in ("float32", "float16")
    )
    assert half.n_bytes * 2 == full.n_bytes
    assert list(verify(half.path)) == []
    for name in ("sky_level", "sky_noise", "good_fraction"):
        np.testing.assert_array_equal(getattr(half, name), getattr(full, name))
    rows = np.array([8, 4, 0])
    raw, back = full.gather(rows), half.gather(rows)
    assert back.dtype == np.float32
    good = good_pixels(raw, (5e4,))
    np.testing.assert_array_equal(np.isnan(back), ~good)
    error = np.abs(back - raw)[good]
    unit = half.unit[rows]
    assert (error <= bound(raw, full.sky_level[rows], unit)[good]).all()
    assert half.addresses(rows) is None
