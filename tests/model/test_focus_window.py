"""A window over the likelihood: neighbours cost nothing, figures stay those of the whole stamp."""

from __future__ import annotations

import pytest
import torch

from vae_astro.collapse.spectrum import measure_spectrum
from vae_astro.data.normalize import Normalizer
from vae_astro.data.rings import radii
from vae_astro.errors import InputError
from vae_astro.model.focus import build_likelihood, central_window, trains_a_density
from vae_astro.model.likelihoods import LIKELIHOODS
from vae_astro.model.orientation import OrientationMarginal
from vae_astro.vae import VAE

SIZE = 31


def stamps(n: int = 4) -> tuple[torch.Tensor, ...]:
    image = torch.randn(n, 2, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(image.shape, generator=torch.Generator().manual_seed(1)) > 0.1
    return image, torch.zeros_like(image), mask, torch.ones_like(image)


def focused(name: str = "sigma", radius: object = 8.0):
    settings = {"name": name, "focus_radius": radius}
    return build_likelihood(settings, n_bands=2, size=SIZE, normalizer=Normalizer())


def test_the_window_is_one_in_the_middle_half_at_its_radius_and_zero_outside() -> None:
    window, distance = central_window(SIZE, 8.0), radii(SIZE, SIZE)
    assert (window[distance < 6] == 1).all()
    assert (window[distance > 10] == 0).all()
    assert window[15, 23].item() == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["gaussian", "sigma", "noise", "student_t"])
def test_a_neighbour_outside_costs_nothing_in_training_and_all_in_the_figures(name: str) -> None:
    likelihood = focused(name)
    image, output, mask, noise = stamps()
    crowded = image.clone()
    crowded[:, :, :5, :5] += 100
    before, after = (likelihood.training_term(x, output, mask, noise) for x in (image, crowded))
    assert torch.equal(before, after)
    figures = (likelihood.log_density(x, output, mask, noise) for x in (image, crowded))
    first, second = figures
    assert (second < first - 100).all()


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_a_density_of_whole_stamps_is_trained_on_where_nothing_is_weighted(name: str) -> None:
    plain = {"name": name, "focus_radius": None}
    whole = name != "pixel_mean_mse"
    built = build_likelihood(plain, n_bands=2, size=SIZE, normalizer=Normalizer())
    assert built.trains_a_density == trains_a_density(plain) == whole
    if whole:
        assert OrientationMarginal(built).trains_a_density
        behind_a_window = focused(name)
        assert not behind_a_window.trains_a_density
        assert not OrientationMarginal(behind_a_window).trains_a_density
    assert not trains_a_density({"name": name, "focus_radius": "auto"})


@pytest.mark.parametrize("unknown", [None, "sigma", {}, {"name": "poisson"}, {"name": ["sigma"]}])
def test_what_names_no_likelihood_trains_no_density(unknown: object) -> None:
    assert not trains_a_density(unknown)


@pytest.mark.parametrize("radius", [8.0, None])
@pytest.mark.parametrize("name", ["gaussian", "sigma", "noise", "student_t", "bernoulli"])
def test_weight_of_a_pixel_is_how_much_of_its_density_is_trained_on(name, radius) -> None:
    likelihood = focused(name, radius)
    image, output, mask, noise = stamps()
    image = image.sigmoid()
    output.requires_grad_()
    trained, whole = (
        torch.autograd.grad(term(image, output, mask, noise).sum(), output)[0]
        for term in (likelihood.training_term, likelihood.log_density)
    )
    torch.testing.assert_close(trained, likelihood.pixel_weight * whole)


def test_a_window_of_one_everywhere_is_no_window() -> None:
    likelihood, plain = focused(radius=1000.0), focused(radius=None)
    args = stamps()
    torch.testing.assert_close(likelihood.training_term(*args), plain.training_term(*args))


def test_the_learned_scale_is_that_of_the_pixels_that_count() -> None:
    likelihood = focused()
    image, output, mask, noise = stamps()
    image[:, :, :5] += 100
    likelihood.observe(image, output, mask, noise)
    assert likelihood.learned()["std"].max() < 1.2


def test_the_radius_can_come_from_the_stamps_and_travels_with_the_weights() -> None:
    settings = {"name": "sigma", "focus_radius": "auto"}
    model = {"name": "linear", "latent_dim": 2}
    vae = VAE([1, SIZE, SIZE], model=model, likelihood=settings)
    widths = torch.linspace(1.0, 2.5, 200)[:, None, None]
    image = 100 * torch.exp(-0.5 * (radii(SIZE, SIZE).float() / widths).square())[:, None]
    image = vae.normalizer.stretched(image + torch.randn(image.shape))
    good = torch.ones_like(image, dtype=torch.bool)
    vae.prepare([{"image": image, "mask": good, "noise": torch.ones_like(image)}])
    weight = vae.likelihood.weight
    assert 0.02 < weight.mean() < 0.5
    other = VAE([1, SIZE, SIZE], model=model, likelihood=settings)
    other.load_state_dict(vae.state_dict())
    assert torch.equal(other.likelihood.weight, weight)


@pytest.mark.parametrize("radius", [1.0, -3, "wide", True])
def test_a_radius_that_cannot_be_is_refused_by_name(radius: object) -> None:
    with pytest.raises(InputError, match=r"likelihood\.focus_radius"):
        focused(radius=radius)


def test_what_is_no_density_cannot_be_weighted() -> None:
    with pytest.raises(InputError, match=r"likelihood\.focus_radius needs"):
        focused("pixel_mean_mse")


def test_a_forecast_counts_the_pixels_inside_the_window_alone() -> None:
    image, _, mask, noise = stamps(200)
    image[:, 0, 15] += torch.linspace(-5, 5, 200)[:, None]  # a direction in the middle
    image[:, 0, :3] += 20 * torch.randn(200, 1, 1)  # a stronger one outside
    batch = {"image": image.where(mask, torch.zeros(())), "mask": mask, "noise": noise}
    inside = measure_spectrum([batch], focused("gaussian")).eigenvalues
    whole = measure_spectrum([batch], focused("gaussian", None)).eigenvalues
    assert 20 < inside[0] < 0.1 * whole[0]
