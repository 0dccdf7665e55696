"""Properties of stamps that were drawn with known ones are measured as they were drawn."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from vae_astro.collapse.meaning import explain_code
from vae_astro.data.normalize import Normalizer
from vae_astro.data.sky import good_pixels, measure_sky
from vae_astro.data.sources.alerts.ztf import AlertReader
from vae_astro.data.store.pack import open_or_pack
from vae_astro.evaluate.properties import PROPERTIES, measure_properties

SIZE = 63
SKY, NOISE = 200.0, 3.0
SHAPE_KEYS = ("size", "ellipticity", "orientation", "x_offset", "y_offset", "offset")
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """On shared cores, waiting for a second thread costs more than it saves."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def gaussian(
    size: float = 2.5,
    ellipticity: float = 0.0,
    angle_deg: float = 0.0,
    x: float = 0.0,
    y: float = 0.0,
    side: int = SIZE,
) -> np.ndarray:
    """An elliptical Gaussian of total 1, (side, side); ``size`` is the geometric mean width."""
    rows, columns = np.indices((side, side)) - (side - 1) / 2
    angle = math.radians(angle_deg)
    dx, dy = columns - x, rows - y
    along = dx * math.cos(angle) + dy * math.sin(angle)
    across = -dx * math.sin(angle) + dy * math.cos(angle)
    major, minor = size / math.sqrt(1 - ellipticity), size * math.sqrt(1 - ellipticity)
    light = np.exp(-0.5 * ((along / major) ** 2 + (across / minor) ** 2))
    return light / (2 * math.pi * size**2)


def observe(light: np.ndarray, noise: float = NOISE, sky: float = SKY) -> np.ndarray:
    return light + sky + RNG.normal(0, noise, light.shape)


@dataclass
class StoreInMemory:
    """What is asked of a store, of stamps (N, C, H, W)."""

    pixels: np.ndarray
    sky_level: np.ndarray
    sky_noise: np.ndarray
    good_fraction: np.ndarray
    catalogue: pa.Table
    band_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pixels)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        return self.pixels[rows]


def as_store(pixels, seeing=None, band_names=("g",)) -> StoreInMemory:
    """A store in memory, of stamps (N, H, W) or (N, C, H, W)."""
    pixels = np.asarray(pixels, np.float32)
    pixels = pixels if pixels.ndim == 4 else pixels[:, None]
    good = good_pixels(pixels)
    level, noise = measure_sky(pixels, good)
    seeing = np.full(len(pixels), np.nan) if seeing is None else np.asarray(seeing)
    return StoreInMemory(
        pixels=pixels,
        sky_level=level,
        sky_noise=noise,
        good_fraction=good.mean((2, 3), dtype=np.float32),
        catalogue=pa.table({"seeing": seeing}),
        band_names=band_names,
    )


def measure(pixels, **settings) -> dict[str, np.ndarray]:
    store = as_store(pixels)
    return measure_properties(store, np.arange(len(store)), **settings)


def only(found: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: float(values[0]) for name, values in found.items()}


def angle_between(one_deg: float, other_deg: float) -> float:
    return abs((one_deg - other_deg + 90) % 180 - 90)


# Planted truth


@pytest.mark.parametrize("size", [0.9, 1.5, 2.5, 5.0])
@pytest.mark.parametrize(("ellipticity", "angle_deg"), [(0.0, 0.0), (0.3, 20.0), (0.6, 115.0)])
@pytest.mark.parametrize(("x", "y"), [(0.0, 0.0), (1.3, -0.6)])
def test_a_noiseless_source_is_measured_as_it_was_drawn(size, ellipticity, angle_deg, x, y):
    found = only(measure([1e4 * gaussian(size, ellipticity, angle_deg, x, y)]))
    assert found["x_offset"] == pytest.approx(x, abs=0.02)
    assert found["y_offset"] == pytest.approx(y, abs=0.02)
    assert found["offset"] == pytest.approx(math.hypot(x, y), abs=0.02)
    # narrower than its pixels, a source cannot show its shape
    assert found["size"] == pytest.approx(size, rel=0.02 if size > 1 else 0.05)
    if size * math.sqrt(1 - ellipticity) > 0.8:
        assert found["ellipticity"] == pytest.approx(ellipticity, abs=0.02)
        if ellipticity:
            assert angle_between(found["orientation"], angle_deg) < 1.0


def test_noisy_sources_scatter_around_what_was_drawn():
    truth = [
        {
            "size": RNG.uniform(1.5, 4),
            "ellipticity": RNG.uniform(0.2, 0.6),
            "angle_deg": RNG.uniform(0, 180),
            "x": RNG.normal(0, 1),
            "y": RNG.normal(0, 1),
        }
        for _ in range(200)
    ]
    flux = RNG.uniform(2e3, 2e4, 200)  # signal-to-noise from 50 on
    stamps = [observe(f * gaussian(**drawn)) for f, drawn in zip(flux, truth, strict=True)]
    found = measure(stamps)
    assert all(np.isfinite(found[name]).all() for name in SHAPE_KEYS)
    for name, key, scatter in (
        ("size", "size", 0.1),
        ("ellipticity", "ellipticity", 0.03),
        ("x_offset", "x", 0.1),
        ("y_offset", "y", 0.1),
    ):
        residual = found[name] - [drawn[key] for drawn in truth]
        assert abs(np.median(residual)) < scatter / 5
        assert np.std(residual) < scatter
    turned = [
        angle_between(a, drawn["angle_deg"])
        for a, drawn in zip(found["orientation"], truth, strict=True)
    ]
    assert np.median(turned) < 2.0
    # 193 pixels of noise 3, and the sky under them as uncertain as the median of 3969
    rows, columns = np.indices((SIZE, SIZE)) - 31
    aperture = np.hypot(rows, columns) <= SIZE / 8
    share = np.array([gaussian(**drawn)[aperture].sum() for drawn in truth])
    residual = found["flux"] - share * flux
    assert np.std(residual) < 60
    assert abs(residual.mean()) < 30  # the wings of a source raise the median of its stamp


def test_flux_and_peak_are_sky_subtracted_and_within_the_aperture():
    light = 5e3 * gaussian(1.5)
    light[5, 5] = 1e4  # a neighbour far from the centre
    found = only(measure([observe(light, noise=0.01)]))
    assert found["flux"] == pytest.approx(5e3, rel=1e-2)
    assert found["peak"] == pytest.approx(light[31, 31], rel=1e-2)


def test_sky_noise_and_good_fraction_are_those_of_the_store():
    stamps = np.stack([observe(1e3 * gaussian(), sky=sky) for sky in (50.0, 400.0)])
    stamps[1, :10] = np.nan
    store = as_store(stamps)
    found = measure_properties(store, np.arange(2))
    np.testing.assert_array_equal(found["sky_level"], store.sky_level[:, 0].astype(float))
    np.testing.assert_array_equal(found["sky_noise"], store.sky_noise[:, 0].astype(float))
    assert found["good_fraction"] == pytest.approx([1.0, 53 / 63])


def test_the_sky_of_the_normalised_stamp_moves_with_minmax_only():
    stamps = [observe(flux * gaussian()) for flux in (1e3, 1e5)]
    faint, bright = measure(stamps, normalizer=Normalizer(stretch="minmax"))["normalized_sky"]
    assert 0.001 < bright < faint < 0.6
    image = Normalizer(stretch="minmax")(torch.tensor(np.array(stamps)[:, None]).float()).image
    assert [faint, bright] == pytest.approx(image.flatten(1).median(1).values.tolist(), abs=0.01)
    assert not measure(stamps, normalizer=Normalizer(stretch="asinh"))["normalized_sky"].any()


def test_an_even_stamp_has_its_centre_between_pixels():
    found = only(measure([1e4 * gaussian(2.0, x=0.5, y=-0.5, side=32)]))
    assert (found["x_offset"], found["y_offset"]) == pytest.approx((0.5, -0.5), abs=0.02)


def test_the_orientation_runs_from_the_columns_axis_to_the_rows():
    stamp = np.zeros((SIZE, SIZE))
    for k in range(-6, 7):
        stamp[31 + k, 31 + k] = 100.0  # rows and columns rise together
    assert only(measure([observe(stamp, noise=0.1)]))["orientation"] == pytest.approx(45, abs=1)


def test_a_trail_across_the_stamp_has_its_orientation():
    stamp = observe(1e5 * gaussian(5.0, 0.97, 30.0))
    assert angle_between(only(measure([stamp]))["orientation"], 30.0) < 1.0


# What disturbs


def test_a_bright_neighbour_does_not_move_the_source():
    light = 3e3 * gaussian(2.0, x=0.5) + 3e4 * gaussian(2.0, x=16.0, y=12.0)
    found = only(measure([observe(light)]))
    assert (found["x_offset"], found["y_offset"]) == pytest.approx((0.5, 0.0), abs=0.15)
    assert found["size"] == pytest.approx(2.0, abs=0.15)


def test_masked_pixels_away_from_the_core_change_nothing():
    light = 1e4 * gaussian(2.0, 0.3, 40.0)
    stamp = observe(light)
    holed = stamp.copy()
    holed[:20] = np.nan
    holed[40, :] = np.inf
    holed[50, 50] = np.finfo(np.float32).min  # a fill value, finite
    one, other = only(measure([stamp])), only(measure([holed]))
    for name in SHAPE_KEYS:
        assert other[name] == pytest.approx(one[name], rel=1e-2, abs=1e-2), name


def test_a_saturated_core_is_no_light():
    stamp = observe(1e5 * gaussian(3.0))
    free, masked = (
        only(measure([stamp], normalizer=Normalizer(saturation=limit))) for limit in (None, 1000.0)
    )
    assert free["peak"] > 1000 > masked["peak"]
    # all the light was within the hole
    assert np.isnan(masked["size"]) or masked["flux"] < 0.5 * free["flux"]


def test_a_source_half_off_the_detector_has_no_shape():
    stamp = observe(1e4 * gaussian(2.5))
    stamp[:, 32:] = np.nan
    found = only(measure([stamp]))
    assert all(np.isnan(found[name]) for name in SHAPE_KEYS)


# Nothing to measure


def test_empty_sky_has_flux_but_no_place_and_no_shape():
    found = measure([observe(np.zeros((SIZE, SIZE))) for _ in range(200)])
    for name in SHAPE_KEYS:
        assert np.isnan(found[name]).all(), name
    # 221 pixels of noise 3 add up to 45, and their sky is uncertain by 13
    assert np.abs(found["flux"]).max() < 5 * 50
    assert abs(found["flux"].mean()) < 10


def test_a_round_source_has_no_orientation():
    found = measure([observe(1e4 * gaussian(2.5)) for _ in range(200)])
    assert np.isfinite(found["size"]).all()
    # three standard deviations: 1 in 90
    assert np.isfinite(found["orientation"]).mean() < 0.05


def test_a_negative_source_has_flux_but_no_shape():
    found = only(measure([observe(-5e3 * gaussian(2.0))]))
    assert found["flux"] < -4e3
    assert all(np.isnan(found[name]) for name in SHAPE_KEYS)


@pytest.mark.parametrize("value", [0.0, 7.0, -3.0, 1e17])
def test_a_constant_stamp_has_no_source(value):
    found = only(measure([np.full((SIZE, SIZE), value)]))
    assert found["sky_level"] == pytest.approx(value)
    assert found["flux"] == 0
    assert all(np.isnan(found[name]) for name in SHAPE_KEYS)


@pytest.mark.parametrize("value", [np.nan, np.inf, np.finfo(np.float32).min])
def test_a_band_without_a_good_pixel_has_nothing(value):
    stamps = np.stack([observe(1e4 * gaussian()), np.full((SIZE, SIZE), value)])[None]
    store = as_store(stamps, band_names=("science", "template"))
    found = only(measure_properties(store, np.arange(1)))
    assert found["good_fraction_template"] == 0
    for name in PROPERTIES:
        if name not in ("good_fraction", "seeing"):
            assert np.isnan(found[f"{name}_template"]), name
    assert found["size"] == pytest.approx(2.5, abs=0.1)


def test_one_hot_pixel_is_a_point_and_no_error():
    stamp = np.zeros((SIZE, SIZE))
    stamp[31, 31] = 1e17
    found = only(measure([stamp]))
    assert found["peak"] == pytest.approx(1e17)
    assert found["size"] < 0.5


def test_random_rubbish_gives_numbers_or_nan_and_no_warning():
    rng = np.random.default_rng(1)
    for scale in (1e-30, 1.0, 1e17):
        stamps = scale * rng.standard_cauchy((20, 16, 16))
        stamps[rng.random(stamps.shape) < 0.2] = np.nan
        with np.errstate(over="ignore"):
            found = measure(stamps)
        assert not any(np.isinf(values).any() for values in found.values())


# Rows, bands, time


def test_rows_are_measured_in_their_order_whatever_the_batch(monkeypatch):
    stamps = [observe(1e4 * gaussian(size)) for size in (1.5, 2.0, 2.5, 3.0, 3.5)]
    store = as_store(stamps, seeing=[1, 2, 3, 4, np.nan])
    monkeypatch.setattr("vae_astro.evaluate.properties.BATCH", 2)
    rows = np.array([4, 0, 2])
    found = measure_properties(store, rows)
    assert found["size"] == pytest.approx([3.5, 1.5, 2.5], abs=0.1)
    np.testing.assert_array_equal(found["seeing"], [np.nan, 1.0, 3.0])
    assert set(found) == set(PROPERTIES)
    assert all(values.dtype == np.float64 for values in found.values())


def test_no_rows_give_no_numbers():
    found = measure_properties(as_store([observe(gaussian())]), np.array([], np.int64))
    assert {values.shape for values in found.values()} == {(0,)}


def test_further_bands_are_named_and_the_seeing_has_none():
    stamps = [[observe(1e4 * gaussian(2.0)), observe(1e4 * gaussian(4.0))]]
    store = as_store(stamps, band_names=("science", "template"))
    found = measure_properties(store, np.arange(1))
    assert found["size"] == pytest.approx([2.0], abs=0.1)
    assert found["size_template"] == pytest.approx([4.0], abs=0.1)
    assert "seeing_template" not in found
    assert len(found) == 2 * len(PROPERTIES) - 1


def test_a_thousand_stamps_take_less_than_a_second():
    stamps = observe(1e4 * gaussian())[None] + RNG.normal(0, 1, (1000, SIZE, SIZE))
    store = as_store(stamps)
    began = time.process_time()
    measure_properties(store, np.arange(1000))
    assert time.process_time() - began < 1.0


# Real stamps


@pytest.mark.real_data
def test_the_one_unit_that_minmax_leaves_follows_the_sky_and_is_called_useless(
    real_data: Path, tmp_path: Path
):
    reader = AlertReader(cutouts=("science",))
    store = open_or_pack(real_data / "ztf_alerts", reader, tmp_path, progress=False)
    normalizer = Normalizer(stretch="minmax")
    image = (
        normalizer(torch.from_numpy(store.gather(np.arange(len(store))))).image.flatten(1).double()
    )
    # the first principal component stands in for the unit: a linear VAE's would be its multiple
    centred = image - image.mean(0)
    first = torch.linalg.eigh(centred @ centred.T).eigenvectors[:, -1:].numpy()
    found = explain_code(
        first,
        np.array([2.2]),
        np.array([True]),
        measure_properties(store, np.arange(len(store)), normalizer),
    )
    assert found.units[0].follows == "normalized_sky"
    assert abs(found.units[0].correlation) > 0.98
    assert found.is_useless
