"""Every stretch can be undone, and noise goes through it honestly."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vae_astro.data.normalize import Normalizer, PixelScale, Sky
from vae_astro.data.sky import measure_sky
from vae_astro.errors import InputError

STRETCHES = ["linear", "asinh", "log", "minmax"]
EPSILON = float(np.finfo(np.float32).eps)
FILL = float(np.finfo(np.float32).min)  # -3.4e38, of masked pixels in ZTF templates

SKY_LEVEL, SKY_NOISE = 120.0, 5.0

relaxed = settings(deadline=None, max_examples=60)  # two busy cores keep no deadline


def sky_stamps(*shape: int, seed: int = 63) -> torch.Tensor:
    """Bare sky, (B, C, H, W)."""
    pixels = np.random.default_rng(seed).normal(SKY_LEVEL, SKY_NOISE, shape)
    return torch.from_numpy(pixels.astype(np.float32))


def stamps_with_source(*shape: int, peak: float = 3000.0, seed: int = 63) -> torch.Tensor:
    """Sky and a Gaussian source of about a tenth of the stamp's width, (B, C, H, W)."""
    rows, columns = np.indices(shape[-2:]) - np.array(shape[-2:]).reshape(2, 1, 1) // 2
    profile = np.exp(-0.5 * (rows**2 + columns**2) / (0.08 * shape[-1]) ** 2)
    return sky_stamps(*shape, seed=seed) + torch.from_numpy(peak * profile).float()


def sky(level: float, noise: float, dtype: torch.dtype = torch.float32) -> Sky:
    return Sky(torch.tensor([[level]], dtype=dtype), torch.tensor([[noise]], dtype=dtype))


# Sky


def test_the_sky_of_a_tensor_is_that_of_its_good_pixels():
    raw = stamps_with_source(3, 2, 21, 21)
    raw[1, 1, 5] = math.nan
    normalizer = Normalizer()
    found = normalizer.sky(raw, normalizer.good_pixels(raw))
    level, noise = measure_sky(raw.numpy(), np.isfinite(raw.numpy()))
    np.testing.assert_array_equal(found.level, level)
    np.testing.assert_array_equal(found.noise, noise)


# Stretches


def test_the_stretches_are_what_the_documentation_says():
    raw = torch.tensor([-60.0, -1.0, 0.0, 2.0, 700.0], dtype=torch.float64).view(1, 1, 1, 5)
    zero, unit, a = 10.0, 4.0, 3.0
    t = (raw - zero) / unit
    closed_forms = {
        "linear": t,
        "asinh": a * torch.log(t / a + ((t / a) ** 2 + 1).sqrt()),
        "log": a * t.sign() * torch.log(1 + t.abs() / a),
        "minmax": (raw + 60) / 760,
    }
    for stretch, expected in closed_forms.items():
        stamps = Normalizer(stretch, softening=a)(raw, sky(zero, unit, torch.float64))
        torch.testing.assert_close(stamps.image, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stretch", STRETCHES)
@given(
    raw=hnp.arrays(np.float32, (1, 1, 3, 5), elements=st.floats(-1e5, 1e7, width=32)),
    softening=st.floats(0.1, 100),
)
@relaxed
def test_every_stretch_is_inverted_exactly(stretch, raw, softening):
    normalizer, background = Normalizer(stretch, softening), sky(SKY_LEVEL, SKY_NOISE)
    stamps = normalizer(torch.from_numpy(raw), background)
    back = normalizer.invert(stamps.image, stamps.scale).numpy()
    # Subtracting and adding the zero point rounds at the size of either. A stretch y rounds at
    # y * epsilon, and its inverse turns that into t ln(1 + |t| / a) epsilon at most.
    zero = stamps.scale.zero.item()
    t = np.abs(raw - np.float32(zero)).astype(np.float64) / SKY_NOISE
    step = np.abs(raw) + abs(zero) + SKY_NOISE * t * (1 + np.log1p(2 * t / softening))
    if stretch == "minmax":  # rounds at the size of the span
        step = np.full(raw.shape, np.abs(raw).max() + abs(zero))
    assert (np.abs(back - raw) <= 8 * EPSILON * step).all()


@pytest.mark.parametrize("stretch", STRETCHES)
def test_a_masked_pixel_is_inverted_to_the_zero_point(stretch):
    raw = stamps_with_source(1, 1, 16, 16)
    raw[..., 3, 4] = math.nan
    normalizer = Normalizer(stretch)
    stamps = normalizer(raw)
    back = normalizer.invert(stamps.image, stamps.scale)
    assert back[..., 3, 4].item() == stamps.scale.zero.item()


@pytest.mark.parametrize("stretch", STRETCHES)
def test_a_band_without_a_good_pixel_is_inverted_to_zero(stretch):
    normalizer = Normalizer(stretch)
    stamps = normalizer(torch.full((1, 1, 16, 16), math.nan))
    assert torch.equal(normalizer.invert(stamps.image, stamps.scale), torch.zeros(1, 1, 16, 16))


@given(hnp.arrays(np.float32, (2, 2, 4, 4), elements=st.floats(-1e6, 1e6, width=32)))
@relaxed
def test_minmax_fills_the_range_from_zero_to_one(raw):
    image = Normalizer("minmax")(torch.from_numpy(raw)).image
    low, high = image.amin((2, 3)), image.amax((2, 3))
    varies = torch.from_numpy(raw.max((2, 3)) > raw.min((2, 3)))
    assert (low == 0).all()
    assert torch.equal(high, varies.float())  # a constant stamp is 0 everywhere


def test_the_range_of_minmax_is_that_of_the_good_pixels():
    raw = torch.tensor([[1.0, 3.0, 5.0, 90.0], [math.nan, FILL, 2.0, 1.0]]).view(1, 1, 2, 4)
    stamps = Normalizer("minmax", saturation=80)(raw)
    assert stamps.image.flatten().tolist() == [0, 0.5, 1, 0, 0, 0, 0.25, 0]


# Noise


@pytest.mark.parametrize("gain", [None, 2.5])
@pytest.mark.parametrize("stretch", ["linear", "asinh", "log"])
def test_noise_is_multiplied_by_the_slope_that_autograd_finds(stretch, gain):
    # float64, away from t = 0 where |t| of the log stretch has no gradient
    t = torch.cat([-torch.logspace(-3, 1, 40), torch.logspace(-3, 3, 40)]).double()
    raw = (SKY_LEVEL + SKY_NOISE * t).view(1, 1, 8, 10).requires_grad_()
    stamps = Normalizer(stretch, gain=gain)(raw, sky(SKY_LEVEL, SKY_NOISE, torch.float64))
    (slope,) = torch.autograd.grad(stamps.image.sum(), raw)
    variance = SKY_NOISE**2 + (0 if gain is None else (raw - SKY_LEVEL).clamp(min=0) / gain)
    torch.testing.assert_close(stamps.noise, slope * variance**0.5, rtol=1e-9, atol=0)


@pytest.mark.parametrize("signal", [0.0, 100 * SKY_NOISE], ids=["sky", "bright"])
@pytest.mark.parametrize("gain", [None, 2.0])
@pytest.mark.parametrize("stretch", STRETCHES)
def test_propagated_noise_is_the_scatter_of_simulated_pixels(stretch, gain, signal):
    rng = np.random.default_rng(63)
    shape = (1, 1, 200, 200)
    electrons = signal if gain is None else rng.poisson(signal * gain, shape) / gain
    pixels = SKY_LEVEL + electrons + rng.normal(0, SKY_NOISE, shape)
    # Compression begins at 30 noises, so that within the noise the stretch is nearly straight.
    normalizer = Normalizer(stretch, softening=30, gain=gain)
    stamps = normalizer(torch.from_numpy(pixels).float(), sky(SKY_LEVEL, SKY_NOISE))
    # 40 000 pixels tell a standard deviation to 0.35 %; the curvature of the stretch and the
    # noise that is read off a noisy pixel are effects of 1 / 30.
    assert stamps.image.std().item() == pytest.approx(stamps.noise.median().item(), rel=0.05)
    if gain and signal:
        without = Normalizer(stretch, softening=30)(
            torch.from_numpy(pixels).float(), sky(SKY_LEVEL, SKY_NOISE)
        )
        assert (stamps.noise.median() / without.noise.median()).item() == pytest.approx(
            math.sqrt(1 + signal / gain / SKY_NOISE**2), rel=0.05
        )


def test_noise_of_the_sky_is_one_without_a_gain():
    raw = stamps_with_source(3, 1, 31, 31)
    assert torch.equal(Normalizer("linear")(raw).noise, torch.ones_like(raw))


@pytest.mark.parametrize("gain", [None, 2.0])
@pytest.mark.parametrize("stretch", STRETCHES)
def test_noise_that_comes_with_the_pixels_takes_the_place_of_sky_and_gain(stretch, gain):
    raw = stamps_with_source(2, 1, 20, 20)
    noise = torch.rand(raw.shape, generator=torch.Generator().manual_seed(1)) + 1
    normalizer = Normalizer(stretch, gain=gain)
    stamps = normalizer(raw, noise=noise)
    of_sky = Normalizer(stretch)(raw)
    assert torch.equal(stamps.image, of_sky.image)
    sky_noise = normalizer.sky(raw, stamps.mask).noise[:, :, None, None]
    torch.testing.assert_close(stamps.noise, of_sky.noise * noise / sky_noise)


@pytest.mark.parametrize("stretch", STRETCHES)
@pytest.mark.parametrize("nothing", [0.0, -1.0, math.nan, math.inf, FILL])
def test_a_pixel_of_unknown_noise_is_masked_like_a_bad_one(stretch, nothing):
    raw = stamps_with_source(2, 1, 20, 20)
    noise = torch.full_like(raw, 4.0)
    noise[0, 0, 9:12, 9] = nothing
    spoiled = raw.clone()
    spoiled[0, 0, 9:12, 9] = math.nan
    expected = Normalizer(stretch)(spoiled, noise=torch.full_like(raw, 4.0))
    for value, other in zip(Normalizer(stretch)(raw, noise=noise)[:3], expected[:3], strict=True):
        assert torch.equal(value, other)
    assert (~expected.mask).sum() == 3


@pytest.mark.parametrize("stretch", STRETCHES)
def test_no_pixel_is_trusted_beyond_float32(stretch):
    raw = sky_stamps(1, 1, 16, 16)
    raw[..., 8, 8] = 1e15
    noise = Normalizer(stretch)(raw).noise
    assert noise.min() >= np.float32(1e-4)


# Residuals


def test_a_residual_is_counted_in_noises_before_the_stretch():
    # t of the stamp less t of the model, over the noise in units of the sky noise
    t_seen = torch.tensor([-4.0, 0.0, 2.0, 50.0, 900.0], dtype=torch.float64).view(1, 1, 1, 5)
    t_model = torch.tensor([-3.0, 1.5, 2.0, 20.0, 1000.0], dtype=torch.float64).view(1, 1, 1, 5)
    noise = torch.tensor([1.0, 2.0, 1.0, 4.0, 5.0], dtype=torch.float64).view(1, 1, 1, 5)
    expected = (t_seen - t_model) / noise
    raw, raw_model = (SKY_LEVEL + SKY_NOISE * t for t in (t_seen, t_model))
    background = sky(SKY_LEVEL, SKY_NOISE, torch.float64)
    for stretch in ("linear", "asinh", "log"):
        normalizer = Normalizer(stretch)
        seen = normalizer(raw, background, SKY_NOISE * noise)
        model = normalizer(raw_model, background)
        found = normalizer.residual(seen.image, model.image, seen.noise)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_residual_of_minmax_is_the_difference_over_the_noise():
    image, model = torch.tensor([0.5, 1.0]), torch.tensor([0.25, 0.0])
    found = Normalizer("minmax").residual(image, model, torch.tensor([0.125, 0.5]))
    assert found.tolist() == [2.0, 2.0]


@pytest.mark.parametrize("stretch", STRETCHES)
def test_a_stretch_and_its_inverse_take_any_shape(stretch):
    t = torch.tensor([[-30.0, -1.0, 0.0, 0.5, 2000.0]], dtype=torch.float64)
    normalizer = Normalizer(stretch, softening=2.0)
    torch.testing.assert_close(normalizer.unstretched(normalizer.stretched(t)), t)
    expected = {
        "linear": t,
        "asinh": 2 * torch.log(t / 2 + ((t / 2) ** 2 + 1).sqrt()),
        "log": 2 * t.sign() * torch.log(1 + t.abs() / 2),
        "minmax": t,
    }
    torch.testing.assert_close(normalizer.stretched(t), expected[stretch])


@pytest.mark.parametrize("stretch", ["asinh", "log"])
def test_the_inverse_of_a_wild_pixel_stays_finite_when_squared(stretch):
    wild = Normalizer(stretch, softening=3.0).unstretched(torch.tensor([-1e6, 1e6]))
    assert wild.square().isfinite().all()
    assert wild[0] == -wild[1]
    assert wild[1] > 1e17


@pytest.mark.parametrize("key", ["gain", "saturation"])
def test_settings_of_each_band_are_given_for_all_of_them(key):
    assert Normalizer(**{key: 2.0}).per_band(key, 3) == [2.0, 2.0, 2.0]
    assert Normalizer(**{key: [1.0, 2.0, 3.0]}).per_band(key, 3) == [1.0, 2.0, 3.0]
    with pytest.raises(InputError) as refused:
        Normalizer(**{key: [1.0, 2.0]}).per_band(key, 3)
    assert str(refused.value) == (
        f"data.normalize.{key} has 2 values but the stamps have 3 bands; give one value, or one "
        "for each band"
    )


# Bad pixels


@pytest.mark.parametrize("stretch", STRETCHES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, FILL, -FILL, 1e18, 50_000.0, 6e4])
def test_a_bad_pixel_is_masked_and_neutral_and_changes_no_other(bad, stretch):
    raw = stamps_with_source(2, 1, 20, 20)
    normalizer = Normalizer(stretch, gain=2.0, saturation=50_000.0)
    spoiled = raw.clone()
    spoiled[0, 0, 0, :7] = bad
    stamps = normalizer(spoiled)
    where = torch.zeros_like(stamps.mask)
    where[0, 0, 0, :7] = True
    assert torch.equal(stamps.mask, ~where)
    assert (stamps.image[where] == 0).all()
    assert (stamps.noise[where] == 1).all()
    spoiled[0, 0, 0, :7] = math.nan
    for value, with_nan in zip(stamps[:3], normalizer(spoiled)[:3], strict=True):
        assert torch.equal(value, with_nan)
        assert value.isfinite().all()


def test_a_pixel_below_saturation_is_good_and_so_is_any_without_one():
    raw = torch.tensor([49_999.0, 50_000.0, 9e17, -9e17]).view(1, 1, 1, 4)
    assert Normalizer(saturation=50_000)(raw).mask.flatten().tolist() == [True, False, False, True]
    assert Normalizer()(raw).mask.all()


@pytest.mark.parametrize("stretch", STRETCHES)
@pytest.mark.parametrize("gain", [None, 3.0])
def test_a_stamp_without_noise_or_without_pixels_stays_finite(stretch, gain):
    raw = torch.zeros(4, 1, 16, 16)
    raw[0] = 1234.5  # constant
    raw[1, 0, 8, 8] = 1e6  # one pixel stands out: the MAD is zero
    raw[2] = math.nan
    raw[3] = math.nan
    raw[3, 0, 8, 8] = 42.0  # a single good pixel
    stamps = Normalizer(stretch, gain=gain)(raw)
    assert stamps.image.isfinite().all()
    assert stamps.noise.isfinite().all()
    assert (stamps.noise > 0).all()
    assert (stamps.image[[0, 2, 3]] == 0).all()
    assert stamps.image[1, 0, 8, 8] > 0.5
    assert stamps.mask.sum((1, 2, 3)).tolist() == [256, 256, 0, 1]


@pytest.mark.parametrize("stretch", STRETCHES)
def test_a_noise_free_simulation_stays_finite(stretch):
    # Between the wings of a Gaussian star of 3 pixels, 1e-32, lies no sky noise to divide by.
    rows, columns = torch.meshgrid(torch.arange(63.0) - 31, torch.arange(63.0) - 31, indexing="ij")
    star = torch.exp(-(rows**2 + columns**2) / (2 * 3.0**2)).view(1, 1, 63, 63)
    stamps = Normalizer(stretch, gain=2.0)(star)
    assert stamps.mask.all()
    assert stamps.noise.isfinite().all()
    assert stamps.image.square().isfinite().all()  # a Gaussian likelihood squares it


@pytest.mark.parametrize("unit", [1e-17, 1e12])
@pytest.mark.parametrize("stretch", STRETCHES)
def test_the_unit_of_the_pixels_does_not_matter(stretch, unit):
    raw = stamps_with_source(2, 1, 31, 31)
    counts = Normalizer(stretch, gain=2.0, saturation=2000.0)(raw)
    flux = Normalizer(stretch, gain=2.0 / unit, saturation=2000.0 * unit)(raw * unit)
    # Other units round at other places: at the brightest pixel, and relative to the sky's level.
    close = {"rtol": 1e-5, "atol": 100 * EPSILON * SKY_LEVEL / SKY_NOISE}
    torch.testing.assert_close(flux.image, counts.image, **close)
    torch.testing.assert_close(flux.noise, counts.noise, **close)
    assert torch.equal(flux.mask, counts.mask)
    assert not flux.mask.all()


# Batches and bands


@pytest.mark.parametrize("stretch", STRETCHES)
def test_a_stamp_is_normalised_the_same_alone_and_in_a_batch(stretch):
    raw = stamps_with_source(5, 3, 21, 21)
    raw[2, 1] = math.nan
    raw[3, 0, :4] = 7.0
    normalizer = Normalizer(stretch, gain=[1.0, 2.0, 3.0])
    together = normalizer(raw)
    for k in range(len(raw)):
        alone = normalizer(raw[k : k + 1])
        for value, of_batch in zip(alone[:3], together[:3], strict=True):
            assert torch.equal(value[0], of_batch[k])


@pytest.mark.parametrize("stretch", STRETCHES)
def test_a_sky_measured_before_gives_the_same_numbers(stretch):
    raw = stamps_with_source(3, 2, 21, 21)
    raw[1, 1, 5] = math.nan
    normalizer = Normalizer(stretch, gain=2.0)
    measured = normalizer(raw, normalizer.sky(raw, normalizer.good_pixels(raw)))
    for value, expected in zip(measured[:3], normalizer(raw)[:3], strict=True):
        assert torch.equal(value, expected)


def test_a_given_sky_is_the_one_that_is_used():
    raw = torch.tensor([10.0, 14.0]).view(1, 1, 1, 2)
    stamps = Normalizer("linear")(raw, sky(10.0, 2.0))
    assert stamps.image.flatten().tolist() == [0, 2]
    assert stamps.scale == PixelScale(torch.tensor([[[[10.0]]]]), torch.tensor([[[[2.0]]]]))


def test_each_band_has_its_own_gain_and_saturation():
    raw = torch.tensor([0.0, 100.0]).view(1, 1, 1, 2).expand(1, 2, 1, 2)
    background = Sky(torch.zeros(1, 2), torch.ones(1, 2))
    stamps = Normalizer("linear", gain=[1.0, 4.0])(raw, background)
    expected = torch.tensor([[1.0, math.sqrt(101)], [1.0, math.sqrt(26)]]).view(1, 2, 1, 2)
    torch.testing.assert_close(stamps.noise, expected)
    mask = Normalizer(saturation=(50.0, 200.0))(raw, background).mask
    assert mask.flatten().tolist() == [True, False, True, True]


@pytest.mark.parametrize("key", ["gain", "saturation"])
def test_a_list_that_is_not_one_value_a_band_is_refused_by_name(key):
    raw = sky_stamps(1, 3, 16, 16)
    for values in ([1.0], 1.0, [1.0, 2.0, 3.0]):
        Normalizer(**{key: values})(raw)
    with pytest.raises(InputError, match=rf"data\.normalize\.{key} has 2 values .* 3 bands"):
        Normalizer(**{key: [1.0, 2.0]})(raw)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("stretch", "sqrt"),
        ("stretch", None),
        ("softening", 0),
        ("softening", -1.0),
        ("softening", math.nan),
        ("softening", "3"),
        ("gain", 0.0),
        ("gain", -2),
        ("gain", [1.0, 0.0]),
        ("gain", "2"),
        ("gain", True),
        ("saturation", 0),
        ("saturation", math.inf),
        ("saturation", [1.0, None]),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(key, value):
    with pytest.raises(InputError, match=rf"^data\.normalize\.{key} must be "):
        Normalizer(**{key: value})


def test_normalising_changes_neither_the_pixels_nor_their_precision():
    raw = stamps_with_source(1, 1, 16, 16)
    raw[..., 0, 0] = math.nan
    before = raw.clone()
    stamps = Normalizer(gain=2.0)(raw)
    torch.testing.assert_close(raw, before, rtol=0, atol=0, equal_nan=True)
    assert (stamps.image.dtype, stamps.noise.dtype) == (torch.float32, torch.float32)
    assert stamps.mask.dtype == torch.bool
    assert stamps.image.shape == stamps.noise.shape == stamps.mask.shape == raw.shape
