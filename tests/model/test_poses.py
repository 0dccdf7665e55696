"""Rotation and shift as latent units: exact where they can be, found where they were planted."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from vae_astro import VAE
from vae_astro.data.augment import apply_symmetry
from vae_astro.model.networks import conv
from vae_astro.model.poses import N_POSE_UNITS, PosedDecoder, placed


def picture(size: int, n: int = 1) -> torch.Tensor:
    """A long Gaussian along the rows' axis, brighter to its right."""
    axis = torch.arange(size) - (size - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    light = torch.exp(-0.5 * ((x / (0.2 * size)) ** 2 + (y / (0.07 * size)) ** 2))
    return (light * (1 + 0.04 * x)).expand(n, 1, size, size).clone()


@pytest.mark.parametrize("size", [16, 17])
def test_a_quarter_turn_and_whole_pixels_are_exact(size: int) -> None:
    image, none = picture(size), torch.zeros(1, 2)
    quarter = torch.full((1,), math.pi / 2)
    torch.testing.assert_close(placed(image, 0 * quarter, none), image)
    torch.testing.assert_close(
        placed(image, quarter, none), apply_symmetry(image, 3), atol=1e-5, rtol=0
    )
    moved = placed(image, 0 * quarter, torch.tensor([[2.0, -1.0]]))
    inside = slice(3, size - 3)
    torch.testing.assert_close(
        moved[..., inside, inside],
        image.roll((2, -1), dims=(-1, -2))[..., inside, inside],
        atol=1e-5,
        rtol=0,
    )


def test_light_moves_by_the_shift_and_turns_by_the_angle() -> None:
    size, angle, shift = 33, 0.6, (1.5, -2.25)
    made = placed(picture(size), torch.tensor([angle]), torch.tensor([shift]))[0, 0]
    axis = torch.arange(size) - (size - 1) / 2
    total = made.sum()
    start = picture(size)[0, 0]
    x_start = (start.sum(0) * axis).sum() / start.sum()
    x, y = (made.sum(0) * axis).sum() / total, (made.sum(1) * axis).sum() / total
    assert float(x) == pytest.approx(float(shift[0] + math.cos(angle) * x_start), abs=0.05)
    assert float(y) == pytest.approx(float(shift[1] + math.sin(angle) * x_start), abs=0.05)
    dx, dy = axis - x, (axis - y)[:, None]
    xx, yy, xy = ((made * part).sum() for part in (dx * dx, dy * dy, dx * dy))
    assert 0.5 * math.atan2(2 * xy, xx - yy) == pytest.approx(angle, abs=0.01)


def test_the_angle_is_uniform_under_the_prior() -> None:
    decoder = PosedDecoder(nn.Identity(), shift_px=2.0)
    angle, shift = decoder.pose(torch.randn(40_000, 7, generator=torch.Generator().manual_seed(0)))
    share = torch.histc(angle, 8, -math.pi, math.pi) / len(angle)
    assert (share - 1 / 8).abs().max() < 0.01
    assert shift.std(0).tolist() == pytest.approx([2.0, 2.0], rel=0.02)


def test_with_quarter_turns_tried_the_angles_cover_a_quarter() -> None:
    decoder = conv(n_bands=1, size=16, width=8, symmetry="d4", pose="rotation_shift").decoder
    angle, _ = decoder.pose(torch.randn(1000, 20))
    assert angle.abs().max() <= math.pi / 4 + 1e-6
    assert angle.abs().max() > 0.7


def test_a_pose_starts_upright_and_centred_and_the_rest_at_the_prior() -> None:
    torch.manual_seed(0)
    made = conv(n_bands=1, size=16, latent_dim=3, width=8, pose="rotation_shift")
    posterior = made.encode(torch.randn(64, 1, 16, 16))
    angle, shift = made.decoder.pose(posterior.sample(torch.randn(64, 3 + N_POSE_UNITS)))
    assert angle.abs().median() < math.radians(12)
    assert shift.abs().max() < 0.6
    assert posterior.mean[:, :3].abs().max() < 0.1


def test_gradient_reaches_the_pose_and_its_kl_counts_in_nats() -> None:
    torch.manual_seed(0)
    vae = VAE([1, 16, 16], model={"name": "conv", "latent_dim": 3, "width": 8,
                                  "pose": "rotation_shift"})  # fmt: skip
    assert vae.latent_dim == 7
    assert vae.clustered_units == (0, 1, 2)
    z = torch.randn(2, 7, requires_grad=True)
    vae.network.decode(z).square().sum().backward()
    assert z.grad is not None
    assert (z.grad.abs() > 0).all()
    image = torch.randn(2, 1, 16, 16)
    batch = {"image": image, "mask": image < 9, "noise": torch.ones_like(image),
             "index": torch.arange(2)}  # fmt: skip
    assert vae.score(batch, torch.randn(2, 7)).elbo.kl_per_unit.shape == (2, 7)


def test_angle_and_shift_that_were_planted_are_found() -> None:
    """The decoder knows the source; the encoder has to find how it lies."""
    torch.manual_seed(0)
    size, n = 16, 256
    angle = 1.2 * (torch.rand(n) - 0.5)
    shift = torch.randn(n, 2)
    stamps = placed(picture(size, n), angle, shift)

    class Source(nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return picture(size, len(z))

    network = conv(n_bands=1, size=size, latent_dim=1, width=8, pose="rotation_shift")
    network.decoder.decoder = Source()
    optimizer = torch.optim.Adam(network.encoder.parameters(), lr=3e-3)
    for _ in range(150):
        posterior = network.encode(stamps)
        made = network.decode(posterior.sample(torch.randn_like(posterior.mean)))
        kl = 0.5 * (posterior.mean.square() + posterior.log_var.exp() - posterior.log_var - 1)
        loss = ((made - stamps).square().sum((1, 2, 3)) / (2 * 0.1**2) + kl.sum(1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found, moved = network.decoder.pose(network.encode(stamps).mean)
    assert (found - angle).abs().median() < math.radians(6)
    assert (moved - shift).abs().median() < 0.25
