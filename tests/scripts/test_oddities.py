"""What is planted on stamps: as bright as asked, and nothing else changes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))  # where scripts find their modules

from benchmarks.oddities import ODDITIES, odd_light, plant, plant_on

from vae_astro.data.sky_model import SATURATION_ADU, draw_stamp
from vae_astro.errors import InputError


@pytest.mark.parametrize("kind", ODDITIES)
def test_an_oddity_falls_on_the_stamp_that_is_drawn_without_it(kind):
    below, odd = draw_stamp(3, seed=5, size=48), plant_on(3, kind, seed=5, size=48, snr=80)
    added = odd.pixels - below.pixels
    good = np.isfinite(below.pixels) & (odd.pixels < SATURATION_ADU)
    assert added[good].min() >= 0
    noise = below.truth["sky_noise_adu"]
    # matched-filter S/N; its own Poisson noise and lost pixels take from it and add to it
    assert np.sqrt((added[good] ** 2).sum()) / noise == pytest.approx(80, rel=0.35)
    assert odd.label == kind
    np.testing.assert_array_equal(np.isnan(odd.pixels), np.isnan(below.pixels))


@pytest.mark.parametrize("kind", ODDITIES)
def test_it_is_a_pure_function_of_its_arguments(kind):
    one, two = (plant_on(2, kind, seed=9, size=32) for _ in range(2))
    np.testing.assert_array_equal(one.pixels, two.pixels)
    assert not np.array_equal(one.pixels, plant_on(3, kind, seed=9, size=32).pixels)


@pytest.mark.parametrize("kind", ODDITIES)
def test_light_is_never_negative_and_always_on_the_stamp(kind):
    for seed in range(20):
        light = odd_light(kind, np.random.default_rng(seed), 63, 2.5)
        assert light.shape == (63, 63)
        assert light.min() >= 0
        assert light.max() > 0.5


def test_what_cannot_be_planted_is_refused():
    with pytest.raises(InputError, match="kind"):
        plant_on(0, "unicorn", seed=0)
    with pytest.raises(InputError, match="snr"):
        plant(np.ones((4, 4)), np.ones((4, 4)), np.random.default_rng(0), snr=0, sky_level=100)
