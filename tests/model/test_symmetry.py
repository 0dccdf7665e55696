"""The encoder that does not see how a stamp is turned, and sees everything else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vae_astro.data.augment import N_SYMMETRIES, apply_symmetry
from vae_astro.errors import InputError
from vae_astro.model.networks import conv
from vae_astro.model.symmetry import D4Encoder, GroupConv


def encoder_of(size: int, n_bands: int = 1, width: int = 16) -> D4Encoder:
    """As after some training: no weight is zero."""
    torch.manual_seed(0)
    made = D4Encoder(n_bands, size, 5, width)
    for parameter in made.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.3)
    return made


def stamps(n: int, n_bands: int, size: int) -> torch.Tensor:
    return torch.randn(n, n_bands, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("n_bands", [1, 3])
@pytest.mark.parametrize("size", [16, 17, 30, 33, 63, 64])
@torch.no_grad()
def test_posterior_is_the_same_for_all_eight_turns(size: int, n_bands: int) -> None:
    made, image = encoder_of(size, n_bands), stamps(2, n_bands, size)
    as_is = made(image)
    assert as_is.mean.std(0).max() > 1e-3  # and yet it tells stamps apart
    for turn in range(1, N_SYMMETRIES):
        posterior = made(apply_symmetry(image, turn))
        change = (posterior.mean - as_is.mean).abs() / as_is.std
        assert change.max() < 1e-5
        torch.testing.assert_close(posterior.log_var, as_is.log_var, rtol=0, atol=1e-5)


@torch.no_grad()
def test_rounding_of_bfloat16_stays_below_a_thousandth_of_the_posterior() -> None:
    made, image = encoder_of(33), stamps(4, 1, 33)
    with torch.autocast("cpu", torch.bfloat16):
        as_is = made(image)
        for turn in range(1, N_SYMMETRIES):
            assert (made(apply_symmetry(image, turn)).mean - as_is.mean).abs().max() < 1e-3


@torch.no_grad()
def test_posterior_is_not_that_of_a_stamp_with_its_halves_exchanged() -> None:
    """Invariant under the turns, and under no more than these."""
    made, image = encoder_of(32), stamps(2, 1, 32)
    as_is, rolled = made(image).mean, made(image.roll(16, dims=-1)).mean
    assert (as_is - rolled).abs().max() > 1e-3


def test_group_convolution_turns_its_maps_and_shuffles_its_poses() -> None:
    torch.manual_seed(0)
    layer = GroupConv(2, 3, 4, stride=2, padding=1)
    x = torch.randn(1, 2, N_SYMMETRIES, 8, 8)
    made = layer(x.flatten(1, 2)).unflatten(1, (3, N_SYMMETRIES))
    for turn in range(N_SYMMETRIES):
        # poses of the turned input: where pose h was, g h comes to lie
        poses = [_product(turn, pose) for pose in range(N_SYMMETRIES)]
        moved, expected = torch.empty_like(x), torch.empty_like(made)
        moved[:, :, poses] = apply_symmetry(x, turn)
        expected[:, :, poses] = apply_symmetry(made, turn)
        got = layer(moved.flatten(1, 2)).unflatten(1, (3, N_SYMMETRIES))
        torch.testing.assert_close(got, expected)


def _product(g: int, h: int) -> int:
    """The number of the turn that is ``h``, then ``g``."""
    square = torch.arange(9.0).view(3, 3)
    both = apply_symmetry(apply_symmetry(square, h), g)
    return next(k for k in range(N_SYMMETRIES) if torch.equal(apply_symmetry(square, k), both))


@pytest.mark.parametrize("initialisation", ["default", "xavier"])
def test_gradients_reach_all_parameters(initialisation: str) -> None:
    torch.manual_seed(0)
    made = conv(
        n_bands=2, size=17, latent_dim=3, width=16, symmetry="d4", initialisation=initialisation
    )
    for parameter in made.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    posterior = made.encode(stamps(4, 2, 17))
    made.decode(posterior.sample(torch.randn(4, 3))).square().sum().backward()
    unreached = [
        key for key, p in made.named_parameters() if p.grad is None or not p.grad.abs().max() > 0
    ]
    assert unreached == []


def test_as_many_units_are_clustered_as_were_asked_for() -> None:
    for keys, in_all in (({}, 6), ({"symmetry": "d4"}, 6), ({"pose": "rotation_shift"}, 10)):
        made = conv(n_bands=1, size=16, latent_dim=6, width=8, **keys)
        assert made.clustered_units == tuple(range(6))
        assert made.latent_dim == in_all


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"symmetry": "c4"}, "model.symmetry"),
        ({"pose": "rotation"}, "model.pose"),
        ({"shift_px": 0.0}, "model.shift_px"),
        ({"shift_px": 17.0}, "model.shift_px"),
    ],
)
def test_what_is_no_choice_is_refused_by_name(keys: dict[str, object], match: str) -> None:
    with pytest.raises(InputError, match=match):
        conv(n_bands=1, size=16, width=8, **keys)
