"""The likelihood of a stamp in any of eight orientations, against the sum written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from vae_astro.data.augment import N_SYMMETRIES, apply_symmetry
from vae_astro.data.normalize import Normalizer
from vae_astro.errors import InputError
from vae_astro.model.focus import FocusedLikelihood, central_window
from vae_astro.model.likelihoods import LIKELIHOODS, FixedGaussian, SharedGaussian
from vae_astro.model.orientation import OrientationMarginal
from vae_astro.settings import build

DENSITIES = [name for name in LIKELIHOODS if name != "pixel_mean_mse"]


def scene(size: int = 7, n_bands: int = 2, n: int = 4) -> tuple[torch.Tensor, ...]:
    """Stamps that are pictures turned in ways of their own, with masks and uneven noise."""
    rng = torch.Generator().manual_seed(0)
    output = torch.rand(n, n_bands, size, size, generator=rng)
    noise = 0.2 + torch.rand(n, n_bands, size, size, generator=rng)
    mask = torch.rand(n, n_bands, size, size, generator=rng) > 0.2
    image = torch.stack([apply_symmetry(output[k], k + 1) for k in range(n)])
    image = (image + 0.01 * torch.rand(image.shape, generator=rng)).clamp(0, 1)
    return image.where(mask, torch.zeros(())), output, mask, noise.where(mask, torch.ones(()))


def marginal_of(name: str, **keys: Any) -> OrientationMarginal:
    return OrientationMarginal(build("likelihood", LIKELIHOODS, {"name": name, **keys}, n_bands=2))


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("name", DENSITIES)
def test_marginal_is_the_mean_density_of_the_stamp_turned_with_its_mask_and_noise(
    name: str, size: int
) -> None:
    marginal = marginal_of(name)
    image, output, mask, noise = scene(size)
    turns = [
        marginal.given.log_density(
            apply_symmetry(image, g), output, apply_symmetry(mask, g), apply_symmetry(noise, g)
        ).double()
        for g in range(N_SYMMETRIES)
    ]
    expected = torch.stack(turns).exp().mean(0).log()
    torch.testing.assert_close(
        marginal.log_density(image, output, mask, noise).double(), expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", DENSITIES)
def test_picture_that_looks_the_same_from_all_sides_has_the_plain_likelihood(name: str) -> None:
    marginal = marginal_of(name)
    image, output, mask, noise = scene()
    same = torch.stack([apply_symmetry(output, g) for g in range(N_SYMMETRIES)]).mean(0)
    torch.testing.assert_close(
        marginal.log_prob(image, same, mask, noise),
        marginal.given.log_prob(image, same, mask, noise),
    )


def test_turning_the_stamp_changes_nothing() -> None:
    marginal = marginal_of("noise")
    image, output, mask, noise = scene()
    as_is = marginal.log_density(image, output, mask, noise)
    for g in range(N_SYMMETRIES):
        torch.testing.assert_close(
            marginal.log_density(
                apply_symmetry(image, g), output, apply_symmetry(mask, g), apply_symmetry(noise, g)
            ),
            as_is,
        )


def test_densities_far_below_float32_are_summed_safely() -> None:
    marginal = OrientationMarginal(FixedGaussian(std=1e-4))
    image, output, mask, noise = scene(16)
    output.requires_grad_()
    nats = marginal.log_density(image, output, mask, noise)
    nats.sum().backward()
    assert nats.max() < -1000
    assert nats.isfinite().all()
    assert output.grad is not None
    assert output.grad.isfinite().all()


def test_gradient_is_that_of_each_turn_weighted_by_its_probability() -> None:
    marginal = OrientationMarginal(FixedGaussian(std=3.0))
    image, output, mask, noise = scene()
    output.requires_grad_()
    marginal.log_density(image, output, mask, noise).sum().backward()
    with torch.no_grad():
        probability = marginal.log_densities(image, output, mask, noise).softmax(1)
        assert 0.11 < probability.max() < 0.9
        expected = torch.zeros_like(output)
        for g in range(N_SYMMETRIES):
            slope = torch.where(mask, image - apply_symmetry(output, g), 0) / 9.0
            # turned back by trying: the inverse of a turn is a turn
            back = next(
                h
                for h in range(N_SYMMETRIES)
                if torch.equal(apply_symmetry(apply_symmetry(image, g), h), image)
            )
            expected += probability[:, g, None, None, None] * apply_symmetry(slope, back)
    torch.testing.assert_close(output.grad, expected)


def test_aligned_picture_lies_as_the_stamp_does() -> None:
    marginal = marginal_of("sigma")
    image, output, mask, noise = scene()
    found = marginal.aligned(image, output, mask, noise)
    residual = (found - image).where(mask, torch.zeros(())).abs().max()
    assert residual < 0.011
    assert (output - image).where(mask, torch.zeros(())).abs().max() > 0.5


def test_sigma_is_learned_from_the_turns_by_their_probability() -> None:
    image, output, mask, noise = scene()
    marginal = OrientationMarginal(SharedGaussian(n_bands=2))
    probability = marginal.log_densities(image, output, mask, noise).softmax(1)
    squared = sum(
        probability[:, g, None, None, None] * (image - apply_symmetry(output, g)).square()
        for g in range(N_SYMMETRIES)
    )
    expected = (squared * mask).sum((0, 2, 3)) / mask.sum((0, 2, 3))
    marginal.observe(image, output, mask, noise)
    torch.testing.assert_close(marginal.learned()["std"], expected.sqrt())


@pytest.mark.parametrize("name", ["sigma", "noise", "student_t"])
def test_settling_comes_down_to_the_noise_once_the_turns_are_known(name: str) -> None:
    image, output, mask, noise = scene(16)
    marginal = marginal_of(name)
    before = marginal.log_density(image, output, mask, noise).mean()
    for _ in range(3):
        marginal.settle(image, output, mask, noise)
    after = marginal.log_density(image, output, mask, noise).mean()
    assert after > before
    aligned = marginal.aligned(image, output, mask, noise)
    fitted = marginal.given.log_density(image, aligned, mask, noise).mean()
    torch.testing.assert_close(after, fitted - math.log(N_SYMMETRIES))


def test_what_is_no_density_has_nothing_to_average() -> None:
    with pytest.raises(InputError, match=r"model\.symmetry=d4"):
        marginal_of("pixel_mean_mse")


def test_bernoulli_still_refuses_pixels_out_of_range() -> None:
    marginal = marginal_of("bernoulli")
    image, output, mask, noise = scene()
    with pytest.raises(InputError, match="between 0 and 1"):
        marginal.log_prob(3 * image, output, mask, noise)


def test_a_central_window_weighs_the_training_term_of_every_turn() -> None:
    marginal = OrientationMarginal(
        FocusedLikelihood(build("likelihood", LIKELIHOODS, {"name": "gaussian"}, n_bands=2), 7, 2.0,
                          Normalizer())
    )  # fmt: skip
    image, output, mask, noise = scene()
    turns = [
        marginal.given.training_term(image, apply_symmetry(output, g), mask, noise)
        for g in range(N_SYMMETRIES)
    ]
    expected = torch.stack(turns).logsumexp(0) - math.log(N_SYMMETRIES)
    weighted = marginal.training_term(image, output, mask, noise)
    torch.testing.assert_close(weighted, expected)
    torch.testing.assert_close(marginal.pixel_weight, central_window(7, 2.0))
    assert (weighted - marginal.log_density(image, output, mask, noise)).abs().min() > 1
