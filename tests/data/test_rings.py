"""Rings: what they hold, what they leave out, and what turning a stamp does to them."""

from __future__ import annotations

import pytest
import torch

from vae_astro.data.augment import N_SYMMETRIES, apply_symmetry
from vae_astro.data.rings import harmonic_power, radii, ring_edges, ring_means, ring_members


def ring_profiles(
    image: torch.Tensor, mask: torch.Tensor, n_rings: int, outer_radius: float
) -> torch.Tensor:
    """Means of rings of one width."""
    edges = torch.linspace(0, outer_radius, n_rings + 1, dtype=torch.float64)
    return ring_means(image, mask, ring_members(image.shape[2], image.shape[3], edges))


def symmetries(image: torch.Tensor) -> list[torch.Tensor]:
    return [apply_symmetry(image, symmetry) for symmetry in range(N_SYMMETRIES)]


@pytest.mark.parametrize("size", [16, 21, 63])
def test_a_profile_is_the_same_in_all_eight_poses(size: int) -> None:
    image = torch.randn(3, 2, size, size, dtype=torch.float64)
    mask = torch.rand(3, 2, size, size) > 0.2
    whole = ring_profiles(image, mask, 6, size / 2)
    for view, good in zip(symmetries(image), symmetries(mask), strict=True):
        torch.testing.assert_close(ring_profiles(view, good, 6, size / 2), whole)


def test_a_ring_says_the_mean_of_its_good_pixels_and_zero_without_any() -> None:
    image = radii(21, 21).float()[None, None].clone()
    mask = torch.ones_like(image, dtype=torch.bool)
    mask[radii(21, 21)[None, None] < 2] = False
    image[~mask] = torch.nan
    profile = ring_profiles(image, mask, 5, 10.0)[0, 0]
    assert profile[0] == 0
    inside = (radii(21, 21) >= 4) & (radii(21, 21) < 6)
    assert profile[2] == pytest.approx(radii(21, 21)[inside].mean().item(), rel=1e-6)


def test_no_pixel_beyond_the_outer_radius_counts() -> None:
    image = torch.ones(1, 1, 31, 31)
    image[0, 0][radii(31, 31) >= 9] = 1e6
    mask = torch.ones_like(image, dtype=torch.bool)
    torch.testing.assert_close(ring_profiles(image, mask, 8, 9.0), torch.ones(1, 1, 8))


@pytest.mark.parametrize("outer", [5.0, 9.0, 31.5, 200.0])
def test_rings_reach_the_outer_radius_and_resolve_the_centre(outer: float) -> None:
    edges = ring_edges(8, outer)
    widths = edges.diff()
    assert edges[0] == 0
    assert edges[-1].item() == pytest.approx(outer)
    assert (widths > 0).all()
    assert widths[0] <= 1.2
    assert (widths.diff() >= -1e-9).all()


def test_each_pixel_inside_belongs_to_one_ring() -> None:
    members = ring_members(20, 20, ring_edges(8, 9.5))
    counts = members.sum(0).reshape(20, 20)
    assert torch.equal(counts, (radii(20, 20) < 9.5).float())


@pytest.mark.parametrize("size", [16, 21])
def test_the_power_of_harmonics_is_the_same_in_all_eight_poses(size: int) -> None:
    image = torch.randn(3, 2, size, size, dtype=torch.float64)
    image[:, :, size // 2, size // 2] += 100  # the middle, which has no angle
    mask = torch.rand(3, 2, size, size) > 0.2
    members = ring_members(size, size, ring_edges(5, size / 2))
    whole = harmonic_power(image, mask, members, 4)
    for view, good in zip(symmetries(image), symmetries(mask), strict=True):
        torch.testing.assert_close(harmonic_power(view, good, members, 4), whole)


def test_noise_has_a_harmonic_power_of_its_variance_and_a_bar_has_its_order() -> None:
    good = torch.ones(2000, 1, 21, 21, dtype=torch.bool)
    members = ring_members(21, 21, ring_edges(4, 10.0))
    power = harmonic_power(3 * torch.randn(2000, 1, 21, 21), good, members, 3)
    assert power[:, :, 1:].mean((0, 1)).sub(9).abs().max() < 1
    rows = torch.arange(21) - 10.0
    bar = torch.exp(-0.5 * (rows / 1.5).square())[:, None].expand(21, 21)[None, None]
    power = harmonic_power(bar, good[:1], members, 3)[0, 0, -1]
    assert power[1] > 100 * (power[0] + power[2])
