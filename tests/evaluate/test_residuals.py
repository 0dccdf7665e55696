"""Where a stamp is odd: units of noise, light that was not drawn, lines and areas."""

from __future__ import annotations

import pytest
import torch

from vae_astro.data.normalize import Normalizer
from vae_astro.evaluate.residuals import (
    RESIDUAL_SCORES,
    ResidualMaps,
    residual_maps,
    residual_scores,
)

SIZE = 41
LINEAR = Normalizer(stretch="linear")


def maps_of(image: torch.Tensor, mask: torch.Tensor | None = None, location=None) -> ResidualMaps:
    mask = torch.ones_like(image, dtype=torch.bool) if mask is None else mask
    location = torch.zeros_like(image) if location is None else location
    return residual_maps(LINEAR, image, location, mask, torch.ones_like(image))


def score(name: str, image: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    mask = torch.ones_like(image, dtype=torch.bool) if mask is None else mask
    return residual_scores(maps_of(image, mask), mask)[:, RESIDUAL_SCORES.index(name)]


def noise(n: int, n_bands: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, n_bands, SIZE, SIZE, generator=generator)


@pytest.mark.parametrize("n_bands", [1, 3])
@pytest.mark.parametrize("bad_share", [0.0, 0.4])
def test_the_smoothed_map_of_white_noise_has_unit_variance(n_bands, bad_share):
    image = noise(60, n_bands)
    mask = torch.rand(image.shape, generator=torch.Generator().manual_seed(1)) >= bad_share
    # divided by a share of their light: residuals of noise alone are a little less than the noise
    wanted = maps_of(image, mask).pixels[mask].std()
    smoothed = maps_of(image, mask).smoothed
    assert smoothed.std() == pytest.approx(float(wanted), rel=0.04)


def test_a_bright_source_that_is_drawn_to_a_tenth_is_not_odd_and_one_that_is_not_is():
    star = torch.zeros(1, 1, SIZE, SIZE)
    star[..., 20, 20] = 1e4
    drawn = maps_of(star, location=0.9 * star).pixels
    missed = maps_of(star).pixels
    assert drawn.abs().max() < 0.3
    assert missed.max() > 1.9


def test_the_map_is_brightest_where_the_light_is():
    image = noise(1)
    image[..., 30:33, 8:11] += 6
    row, column = divmod(int(maps_of(image).smoothed.argmax()), SIZE)
    assert abs(row - 31) <= 1
    assert abs(column - 9) <= 1


@pytest.mark.parametrize("angle", [0.0, 0.4, 0.785, 1.9, 3.0])
def test_a_faint_line_is_found_at_every_angle(angle):
    axis = torch.arange(SIZE) - SIZE // 2.0
    across = axis[None, :] * torch.cos(torch.tensor(angle)) + axis[:, None] * torch.sin(
        torch.tensor(angle)
    )
    image = noise(20)
    line = 2.0 * torch.exp(-0.5 * (across - 6).square())
    assert score("line", image + line).min() > score("line", image).max()


def test_a_ghost_stands_out_broadly_though_no_pixel_does():
    image = noise(40)
    axis = torch.arange(SIZE) - SIZE // 2.0
    disc = 1.0 * ((axis[None, :] - 5) ** 2 + axis[:, None] ** 2 < 81)
    assert (score("broad", image + disc) > score("broad", image).max()).all()


def test_a_faint_arc_covers_as_much_as_a_point_ten_thousand_times_brighter():
    axis = torch.arange(SIZE) - SIZE // 2.0
    distance = torch.hypot(axis[None, :].expand(SIZE, SIZE), axis[:, None].expand(SIZE, SIZE))
    arc = 4.0 * torch.exp(-0.5 * (distance - 9).square()) * (axis[None, :] > 0)
    point = 1e5 * torch.exp(-0.5 * (distance / 1.2).square())
    image = noise(1)
    covered = score("odd_area", image + arc)
    assert covered > 20 * score("odd_area", image).clamp(min=0.5)
    assert covered > 0.5 * score("odd_area", image + point)


def test_masked_pixels_say_nothing():
    image, mask = noise(1), torch.ones(1, 1, SIZE, SIZE, dtype=torch.bool)
    mask[..., :10, :10] = False
    spoiled = image.clone()
    spoiled[..., :10, :10] = 1e6
    one, two = (residual_scores(maps_of(each, mask), mask) for each in (image, spoiled))
    torch.testing.assert_close(one, two)


def test_without_a_good_pixel_all_is_zero_and_finite():
    image = noise(2)
    mask = torch.zeros_like(image, dtype=torch.bool)
    maps = maps_of(image, mask)
    assert not maps.smoothed.any()
    assert torch.isfinite(residual_scores(maps, mask)).all()


def test_the_brightest_pixels_that_float32_holds_stay_finite():
    image = noise(1)
    image[..., 3, 3] = 1e17
    assert torch.isfinite(residual_scores(maps_of(image), torch.ones_like(image).bool())).all()
