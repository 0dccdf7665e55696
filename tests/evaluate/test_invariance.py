"""What is said of a code that knows the orientation, and of one that does not."""

from __future__ import annotations

import pytest
import torch

from vae_astro.errors import InputError
from vae_astro.evaluate.invariance import MOST_STAMPS, measure_invariance
from vae_astro.model.networks import conv
from vae_astro.model.posterior import DiagonalGaussian


def encode(image: torch.Tensor) -> DiagonalGaussian:
    """Unit 0 the brightness, unit 1 which half is brighter; stds of 0.5 and 0.25."""
    half = image.shape[-1] // 2
    mean = torch.stack(
        [image.mean((1, 2, 3)), image[..., :half].mean((1, 2, 3)) - image.mean((1, 2, 3))], dim=1
    )
    log_var = 2 * torch.log(torch.tensor([0.5, 0.25])).expand_as(mean)
    return DiagonalGaussian(mean, log_var)


def test_change_is_in_units_of_the_posterior_and_of_each_unit() -> None:
    image = torch.zeros(1, 1, 16, 16)
    image[..., :8] = 2.0  # the left half: half the stamp, so the mean is 1
    found = measure_invariance(encode, [image])
    assert found.change.shape == (1, 7, 2)
    # the left half is 1 above the mean, turned by a quarter 0, by half 1 below
    assert found.maximum == pytest.approx(2 / 0.25)
    said = found.as_dict()
    assert said["max_per_unit_std"] == pytest.approx([0.0, 8.0])
    assert said["median_per_unit_std"] == pytest.approx([0.0, 4.0])
    assert measure_invariance(encode, [image], units=[0]).maximum == pytest.approx(0.0, abs=1e-6)


def test_network_with_d4_meets_the_goal_and_a_plain_one_does_not() -> None:
    image = torch.randn(8, 1, 17, 17, generator=torch.Generator().manual_seed(0))
    largest = {}
    for symmetry in ("none", "d4"):
        torch.manual_seed(0)
        made = conv(n_bands=1, size=17, width=8, symmetry=symmetry)
        largest[symmetry] = measure_invariance(made.encode, [image]).maximum
    assert largest["d4"] < 1e-4 < 1e-2 < largest["none"]


def test_no_more_stamps_are_looked_at_than_needed() -> None:
    def endless():
        while True:
            yield torch.ones(50, 1, 16, 16)

    assert len(measure_invariance(encode, endless()).change) == MOST_STAMPS


@pytest.mark.parametrize(
    ("images", "units"),
    [([], None), ([torch.ones(1, 1, 16, 16)], ()), ([torch.ones(0, 1, 4, 4)], None)],
)
def test_nothing_to_measure_is_said(images: list[torch.Tensor], units: object) -> None:
    with pytest.raises(InputError, match="at least one stamp"):
        measure_invariance(encode, images, units)
