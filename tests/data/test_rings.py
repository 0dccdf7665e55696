"""Rings: what they hold, what they leave out, and what turning a stamp does to them."""

from __future__ import annotations

import pytest
import torch

from vae_astro.data.rings import radii, ring_edges, ring_members, ring_profiles


def symmetries(image: torch.Tensor) -> list[torch.Tensor]:
    turned = [torch.rot90(image, k, (2, 3)) for k in range(4)]
    return turned + [view.flip(3) for view in turned]


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
