"""`model=rings`: what each group of units knows, and what it must not."""

from __future__ import annotations

import pytest
import torch

from vae_astro.data.normalize import Normalizer
from vae_astro.data.rings import radii
from vae_astro.errors import InputError
from vae_astro.model.networks import RingsNetwork, rings
from vae_astro.vae import VAE

SIZE = 31


def sources(n: int, n_bands: int = 2, seed: int = 0, flux: float = 300.0) -> torch.Tensor:
    """Round sources of two widths on noise, in units of the noise, before any stretch."""
    generator = torch.Generator().manual_seed(seed)
    widths = torch.where(torch.arange(n) % 2 == 0, 1.5, 3.0)[:, None, None]
    light = torch.exp(-0.5 * (radii(SIZE, SIZE).float() / widths).square()) / widths.square()
    noise = torch.randn(n, n_bands, SIZE, SIZE, generator=generator)
    return flux * light[:, None] + noise


def batch_of(light: torch.Tensor) -> dict[str, torch.Tensor]:
    image = Normalizer().stretched(light)
    return {
        "image": image,
        "mask": torch.ones_like(image, dtype=torch.bool),
        "noise": torch.ones_like(image),
    }


def prepared(n_bands: int = 2, seed: int = 0, **keys: object) -> RingsNetwork:
    torch.manual_seed(seed)
    settings = {"latent_dim": 12, "shape_units": 3, "width": 8, "hidden": 8, **keys}
    network = rings(n_bands=n_bands, size=SIZE, **settings)  # type: ignore[arg-type]
    network.prepare([batch_of(sources(64, n_bands))])
    for parameter in network.parameters():  # as after some training: nothing is exactly 0
        parameter.data += 0.05 * torch.randn(parameter.shape)
    assert isinstance(network, RingsNetwork)
    return network


def shape_of(network: RingsNetwork, light: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        posterior = network.encode(batch_of(light)["image"])
    return posterior.mean[:, list(network.clustered_units)]


@pytest.mark.parametrize(("harmonics", "bfloat16"), [(0, False), (4, False), (4, True)])
def test_shape_units_are_the_same_in_all_eight_poses(harmonics: int, bfloat16: bool) -> None:
    network = prepared(harmonics=harmonics)
    light = sources(6) + 40 * torch.rand(6, 2, SIZE, SIZE)
    image = batch_of(light)["image"]
    image[:, :, 3:9, 4:20] = 0  # masked
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        posterior = network.encode(image)
        for turn in range(8):
            view = torch.rot90(image, turn % 4, (2, 3))
            turned = network.encode(view.flip(3) if turn >= 4 else view)
            units = list(network.clustered_units)
            change = ((turned.mean - posterior.mean) / posterior.std)[:, units]
            assert change.abs().max() < 1e-3


def test_shape_units_tell_shapes_apart_and_not_fluxes() -> None:
    network = prepared()
    faint, bright = (shape_of(network, sources(40, seed=3, flux=f)) for f in (1000.0, 4000.0))
    between = (bright[::2].mean(0) - bright[1::2].mean(0)).norm()
    moved = (bright.mean(0) - faint.mean(0)).norm()
    assert between > 10 * moved


def test_the_sign_of_a_difference_image_is_a_matter_of_flux() -> None:
    network = prepared(harmonics=0, outer_radius=9.0)
    light = sources(20, flux=2000.0)
    with torch.no_grad():
        system = network.encoder.rings
        up, down = (system.measure(batch_of(x)["image"]) for x in (light, -light))
    assert torch.equal(up.log_flux > 0, down.log_flux < 0)
    torch.testing.assert_close(up.shape, down.shape, atol=0.05, rtol=0.05)


def test_light_beyond_the_outer_radius_does_not_move_the_shape() -> None:
    network = prepared(outer_radius=8.0)
    light = sources(4, flux=3000.0)
    disturbed = light.clone()
    disturbed[:, :, :5, :5] += 5000
    change = shape_of(network, disturbed) - shape_of(network, light)
    with torch.no_grad():
        std = network.encode(batch_of(light)["image"]).std[:, :3]
    assert (change / std).abs().max() < 0.5  # what is left comes through the background


def test_the_rest_cannot_say_what_the_profile_says() -> None:
    system = prepared(outer_radius=10.0).encoder.rings
    rest = system.without_rings(torch.randn(3, 2, SIZE, SIZE))
    assert (rest.flatten(2) @ system.basis).abs().max() < 1e-3
    torch.testing.assert_close(system.without_rings(rest), rest, atol=1e-4, rtol=1e-4)


def test_what_is_measured_is_drawn_again() -> None:
    network = prepared(n_bands=1)
    system = network.encoder.rings
    light = sources(6, 1, flux=5000.0)
    image = batch_of(light)["image"]
    measured = system.measure(image)
    drawn = system.draw(measured.shape[:, : system.n_profile], *measured[1:])
    inside = (radii(SIZE, SIZE) < 0.8 * system.outer_radius).expand_as(image)
    before = (image[inside]).square().mean()
    after = (image - drawn)[inside].square().mean()
    assert after < 0.1 * before


@pytest.mark.parametrize("stretch", ["asinh", "linear", "log", "minmax"])
def test_stamps_without_anything_good_give_finite_posteriors_and_gradients(stretch: str) -> None:
    torch.manual_seed(0)
    vae = VAE(
        [2, SIZE, SIZE],
        model={"name": "rings", "latent_dim": 8, "shape_units": 3, "width": 8},
        normalize={"stretch": stretch},
    )
    raw = sources(8)
    raw[0] = torch.nan
    raw[1, 0] = torch.nan
    raw[2] = 1e5
    raw[3, :, 10:20, 10:20] = torch.nan
    stamps = vae.normalizer(raw)
    batch = {"image": stamps.image, "mask": stamps.mask, "noise": stamps.noise}
    vae.network.prepare([batch])
    posterior = vae.network.encode(stamps.image)
    output = vae.network.decode(posterior.sample(torch.randn_like(posterior.mean)))
    loss = -vae.likelihood.log_density(stamps.image, output, stamps.mask, stamps.noise).mean()
    (loss + vae.prior.kl_per_unit(posterior).sum()).backward()
    assert posterior.mean.isfinite().all()
    assert output.isfinite().all()
    for name, parameter in vae.network.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


def test_the_rings_travel_with_the_weights() -> None:
    network = prepared()
    torch.manual_seed(1)
    other = rings(n_bands=2, size=SIZE, latent_dim=12, shape_units=3, width=8, hidden=8)
    other.load_state_dict(network.state_dict())
    image = batch_of(sources(3))["image"]
    assert torch.equal(other.encode(image).mean, network.encode(image).mean)


def test_too_few_latent_units_are_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"model\.latent_dim=8 .* at least 10"):
        rings(n_bands=3, size=SIZE, latent_dim=8, shape_units=6)


def test_clustered_units_are_the_shape_units_and_all_of_another_network() -> None:
    assert prepared().clustered_units == (0, 1, 2)
    conv = VAE([1, 16, 16], model={"name": "linear", "latent_dim": 4})
    assert conv.clustered_units == (0, 1, 2, 3)
    assert conv.object_units == conv.clustered_units


def test_object_units_are_shape_and_flux() -> None:
    network = prepared()
    assert network.object_units == (0, 1, 2, 3)
    light = sources(8)
    with torch.no_grad():
        faint, bright = (network.encode(batch_of(k * light)["image"]).mean for k in (1.0, 8.0))
    assert (bright[:, 3] > faint[:, 3]).all()
    moved = (bright - faint).abs().mean(0)
    assert moved[3] > 3 * moved[:3].max()
