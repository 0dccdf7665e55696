"""Sky statistics equal numpy's, with sources clipped away and no bad pixel counted."""

import math
import statistics
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vae_astro.data import sky
from vae_astro.data.sky import good_pixels, measure_sky

EPSILON = float(np.finfo(np.float32).eps)
FILL = float(np.finfo(np.float32).min)  # -3.4e38, of masked pixels in ZTF templates
MAD_TO_STD = np.float32(1.4826022185056018)
SKY_LEVEL, SKY_NOISE = 120.0, 5.0

relaxed = settings(deadline=None, max_examples=60)  # two busy cores keep no deadline


def sky_stamps(*shape: int, seed: int = 63) -> np.ndarray:
    """Bare sky, (N, C, H, W)."""
    return np.random.default_rng(seed).normal(SKY_LEVEL, SKY_NOISE, shape).astype(np.float32)


def stamps_with_source(*shape: int, peak: float = 3000.0) -> np.ndarray:
    """Sky and a Gaussian source of about a tenth of the stamp's width, (N, C, H, W)."""
    rows, columns = np.indices(shape[-2:]) - np.array(shape[-2:]).reshape(2, 1, 1) // 2
    profile = np.exp(-0.5 * (rows**2 + columns**2) / (0.08 * shape[-1]) ** 2)
    return sky_stamps(*shape) + (peak * profile).astype(np.float32)


def everything(raw: np.ndarray) -> np.ndarray:
    return np.ones(raw.shape, dtype=bool)


def by_definition(pixels: np.ndarray, n_clips: int) -> tuple[float, float]:
    """Level and noise of one stamp, each step with `numpy.median`."""

    def median_and_noise(values: np.ndarray) -> tuple[np.float32, np.float32]:
        median = np.median(values)
        return median, MAD_TO_STD * np.median(np.abs(values - median))

    level, noise = median_and_noise(pixels)
    for _ in range(n_clips):
        if noise > 0:
            reach = np.float32(3) * noise
            kept = pixels[(pixels >= level - reach) & (pixels <= level + reach)]
            level, noise = median_and_noise(kept)
    return float(level), float(noise)


@st.composite
def masked_pixels(draw):
    """Good and bad pixels of a few stamps, (N, 1, 1, W), with ties and with every count."""
    shape = draw(st.tuples(st.integers(1, 3), st.just(1), st.just(1), st.integers(1, 40)))
    values = st.one_of(
        st.integers(-5, 5).map(float), st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
    )
    return draw(hnp.arrays(np.float32, shape, elements=values)), draw(hnp.arrays(bool, shape))


@pytest.mark.parametrize("n_clips", [0, 3])
@given(case=masked_pixels())
@relaxed
def test_the_sky_is_the_clipped_median_and_the_scaled_mad_of_numpy(n_clips, case):
    raw, good = case
    level, noise = measure_sky(raw, good, n_clips=n_clips)
    assert level.shape == noise.shape == raw.shape[:2]
    assert level.dtype == noise.dtype == np.float32
    for k in range(len(raw)):
        pixels = raw[k][good[k]]
        assume(len(pixels))
        expected_level, expected_noise = by_definition(pixels, n_clips)
        assert level[k, 0] == expected_level
        # a MAD of nothing against the range of the pixels is lifted: see the noise-free simulation
        if expected_noise > 1e-17 * np.ptp(pixels.astype(np.float64)):
            assert noise[k, 0] == expected_noise


def test_stamps_of_any_brightness_have_the_sky_of_the_definition():
    raw = np.concatenate([stamps_with_source(3, 2, 33, 33, peak=peak) for peak in (0, 30, 1e5)])
    good = np.random.default_rng(1).random(raw.shape) < 0.9
    level, noise = measure_sky(raw, good)
    for k, c in np.ndindex(*raw.shape[:2]):
        assert (level[k, c], noise[k, c]) == by_definition(raw[k, c][good[k, c]], 3)


def test_the_mad_is_scaled_to_the_standard_deviation_of_a_gaussian():
    # Half of a Gaussian lies within the 75th percentile of its mean: MAD = 0.6745 std.
    pixels = np.array([-3.0, -1.0, 0.0, 1.0, 3.0], dtype=np.float32).reshape(1, 1, 1, 5)
    _, noise = measure_sky(pixels, everything(pixels), n_clips=0)
    assert noise.item() == pytest.approx(1 / statistics.NormalDist().inv_cdf(0.75), rel=EPSILON)


def test_clipping_keeps_a_bright_source_out_of_the_sky():
    raw = stamps_with_source(40, 2, 63, 63)
    level, noise = measure_sky(raw, everything(raw))
    # What stays is the wing of the source that is fainter than three noises: 6 % here.
    assert 1 < noise.mean() / SKY_NOISE < 1.08
    assert np.abs(noise / SKY_NOISE - 1).max() < 0.15
    assert 0 < (level.mean() - SKY_LEVEL) / SKY_NOISE < 0.15
    _, unclipped = measure_sky(raw, everything(raw), n_clips=0)
    assert unclipped.mean() > 1.5 * SKY_NOISE


def test_clipping_leaves_the_noise_of_bare_sky_as_it_is():
    raw = sky_stamps(40, 2, 63, 63)
    _, noise = measure_sky(raw, everything(raw))
    # 80 skies of 3969 pixels, each uncertain by 1.17 / sqrt(3969) = 1.9 %; 0.3 % of a Gaussian
    # lies beyond three standard deviations, and without it the MAD is 0.4 % smaller.
    assert noise.mean() == pytest.approx(SKY_NOISE, rel=0.01)
    assert np.abs(noise / SKY_NOISE - 1).max() < 0.08


def test_the_sky_of_a_masked_pixel_is_not_measured():
    raw = sky_stamps(1, 1, 20, 20)
    good = everything(raw)
    good[..., :5, :] = False
    spoiled = raw.copy()
    spoiled[..., :5, :] = np.nan
    assert measure_sky(spoiled, good) == measure_sky(raw, good)
    assert measure_sky(raw, good) == measure_sky(raw[..., 5:, :], good[..., 5:, :])


def test_a_constant_stamp_has_its_value_for_the_sky_and_one_raw_unit_of_noise():
    raw = np.full((1, 1, 16, 16), 7, dtype=np.float32)
    assert measure_sky(raw, everything(raw)) == (7, 1)


def test_a_stamp_with_a_mad_of_zero_takes_its_standard_deviation_for_the_noise():
    raw = np.zeros((1, 1, 16, 16), dtype=np.float32)
    raw[..., :4] = sky_stamps(1, 1, 16, 4)  # a quarter of the pixels
    level, noise = measure_sky(raw, everything(raw))
    assert level.item() == 0
    # Computed in float64 on both sides, then rounded once.
    assert noise.item() == pytest.approx(raw.astype(np.float64).std(), rel=2 * EPSILON)


def test_a_band_without_a_good_pixel_has_level_zero_and_noise_one_and_spoils_no_other():
    raw = sky_stamps(1, 2, 16, 16)
    alone = measure_sky(raw[:, 1:], everything(raw[:, 1:]))
    raw[:, 0] = math.nan
    level, noise = measure_sky(raw, np.isfinite(raw))
    assert (level[0, 0], noise[0, 0]) == (0, 1)
    assert (level[:, 1], noise[:, 1]) == alone


def test_a_noise_free_star_has_a_noise_that_float32_can_square():
    rows, columns = np.indices((63, 63)) - 31
    star = np.exp(-(rows**2 + columns**2) / (2 * 3.0**2)).astype(np.float32)[None, None]
    level, noise = measure_sky(star, everything(star))
    assert np.isfinite(np.square((star - level) / noise)).all()


def test_many_stamps_are_measured_as_each_alone(monkeypatch):
    raw = stamps_with_source(13, 1, 17, 17)
    good = np.random.default_rng(2).random(raw.shape) < 0.8
    together = np.stack(measure_sky(raw, good))
    monkeypatch.setattr(sky, "BLOCK_BYTES", 5 * raw[0].nbytes)
    np.testing.assert_array_equal(np.stack(measure_sky(raw, good)), together)
    alone = [np.stack(measure_sky(raw[k : k + 1], good[k : k + 1])) for k in range(13)]
    np.testing.assert_array_equal(np.concatenate(alone, axis=1), together)


def test_measuring_changes_no_pixel():
    raw = stamps_with_source(2, 1, 16, 16)
    raw[..., 0, 0] = np.nan
    before = raw.copy()
    measure_sky(raw, np.isfinite(raw))
    np.testing.assert_array_equal(raw, before)


def test_light_below_saturation_is_good_and_defects_are_not():
    values = [49_999.0, 50_000.0, 9e17, -9e17, 1e18, FILL, math.nan, math.inf, -math.inf]
    raw = np.array(values, dtype=np.float32).reshape(1, 1, 1, 9)
    assert good_pixels(raw).ravel().tolist() == [True] * 4 + [False] * 5
    found = good_pixels(raw, saturation=[50_000.0]).ravel().tolist()
    assert found == [True, False, False, True] + [False] * 5


def test_each_band_has_its_own_saturation():
    raw = np.full((2, 2, 1, 1), 100, dtype=np.float32)
    assert good_pixels(raw, saturation=[50.0, 200.0])[:, :, 0, 0].tolist() == [[False, True]] * 2


def test_the_sky_is_measured_without_torch():
    code = "import sys, vae_astro.data.sky; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
