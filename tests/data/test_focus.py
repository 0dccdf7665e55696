"""How far out to look: as far as the light of the objects in the middle differs, no further."""

from __future__ import annotations

import torch

from vae_astro.data.focus import informative_radius, ring_information
from vae_astro.data.rings import radii

SIZE = 63


def noise(n: int, size: int = SIZE) -> torch.Tensor:
    return torch.randn(n, 1, size, size, generator=torch.Generator().manual_seed(0))


def good(light: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(light, dtype=torch.bool)


def blobs(widths: torch.Tensor, size: int = SIZE) -> torch.Tensor:
    return torch.exp(-0.5 * (radii(size, size).float() / widths[:, None, None]).square())[:, None]


def with_neighbours(light: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    place = torch.randint(0, SIZE - 4, (len(light), 2), generator=generator)
    for stamp, (row, column) in zip(light, place.tolist(), strict=True):
        stamp[0, row : row + 4, column : column + 4] += 100
    return light


def test_sources_of_different_width_in_the_middle_keep_the_view_to_the_middle() -> None:
    widths = torch.linspace(1.0, 2.5, 300)
    light = with_neighbours(100 * blobs(widths) + noise(300))
    assert 4 <= informative_radius(light, good(light)) <= 11


def test_lobes_far_out_widen_the_view_to_hold_them() -> None:
    generator = torch.Generator().manual_seed(2)
    distance = 14 + 10 * torch.rand(300, generator=generator)
    angle = 3.1416 * torch.rand(300, generator=generator)
    rows = torch.arange(SIZE) - 31.0
    light = 100 * blobs(torch.full((300,), 1.5)) + noise(300)
    for sign in (-1, 1):
        y = rows[:, None] - sign * (distance * angle.sin())[:, None, None]
        x = rows[None, :] - sign * (distance * angle.cos())[:, None, None]
        light[:, 0] += 60 * torch.exp(-0.5 * (y.square() + x.square()) / 4)
    assert informative_radius(light, good(light)) >= 21


def test_frames_that_the_source_fills_are_seen_whole() -> None:
    light = 50 * blobs(torch.linspace(2.5, 6.0, 300), 20) + noise(300, 20)
    assert informative_radius(light, good(light)) >= 8


def test_flux_alone_is_no_reason_to_look_anywhere() -> None:
    flux = torch.linspace(50, 500, 300)[:, None, None, None]
    light = flux * blobs(torch.full((300,), 1.5)) + noise(300)
    _, nats = ring_information(light, good(light))
    wide = 100 * blobs(torch.linspace(1.0, 5.0, 300)) + noise(300)
    assert nats.sum() < ring_information(wide, good(wide))[1].sum()


def test_noise_alone_and_stamps_without_a_good_pixel_leave_the_whole_stamp() -> None:
    light = torch.zeros(8, 2, 20, 20)
    assert informative_radius(light, torch.zeros_like(light, dtype=torch.bool)) == 10
