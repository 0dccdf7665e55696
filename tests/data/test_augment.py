"""The symmetries of the square are eight, form a group, and only move pixels about."""

import itertools

import pytest
import torch

from vae_astro.data.augment import N_SYMMETRIES, apply_symmetries, apply_symmetry

ALL = range(N_SYMMETRIES)


def numbered(*shape: int) -> torch.Tensor:
    """No two pixels alike."""
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape)


def which(image: torch.Tensor, of: torch.Tensor) -> int:
    """The one symmetry that makes ``image`` of ``of``."""
    (found,) = (s for s in ALL if torch.equal(apply_symmetry(of, s), image))
    return found


@pytest.mark.parametrize("size", [4, 5])
def test_the_eight_symmetries_differ(size):
    image = numbered(size, size)
    turned = {tuple(apply_symmetry(image, s).flatten().tolist()) for s in ALL}
    assert len(turned) == N_SYMMETRIES == 8


def test_zero_is_the_identity_and_one_a_quarter_turn_and_four_a_flip():
    image = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert apply_symmetry(image, 0).tolist() == [[1, 2], [3, 4]]
    assert apply_symmetry(image, 1).tolist() == [[2, 4], [1, 3]]
    assert apply_symmetry(image, 4).tolist() == [[2, 1], [4, 3]]


def test_one_symmetry_after_another_is_a_third():
    image = numbered(5, 5)
    table = [[which(apply_symmetry(apply_symmetry(image, a), b), image) for b in ALL] for a in ALL]
    # A group: each row and each column of the table holds every symmetry once.
    assert all(sorted(row) == list(ALL) for row in table)
    assert all(sorted(column) == list(ALL) for column in zip(*table, strict=True))
    # Not an abelian group of the same order: a turn and a flip do not commute.
    assert any(table[a][b] != table[b][a] for a, b in itertools.combinations(ALL, 2))


def test_every_symmetry_can_be_undone():
    image = numbered(3, 6, 6)
    for symmetry in ALL:
        turned = apply_symmetry(image, symmetry)
        undone = [s for s in ALL if torch.equal(apply_symmetry(turned, s), image)]
        assert len(undone) == 1


@pytest.mark.parametrize("symmetry", ALL)
def test_pixels_are_moved_and_never_changed(symmetry):
    image = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(63))
    turned = apply_symmetry(image, symmetry)
    assert torch.equal(turned.flatten(2).sort().values, image.flatten(2).sort().values)
    assert torch.equal(turned[..., 4, 4], image[..., 4, 4])  # the central pixel stays


def test_each_stamp_of_a_batch_gets_its_own_symmetry():
    images = numbered(16, 2, 5, 5)
    symmetries = torch.arange(16) % N_SYMMETRIES
    turned = apply_symmetries(images, symmetries)
    for k in range(16):
        assert torch.equal(turned[k], apply_symmetry(images[k], k % N_SYMMETRIES))


def test_image_mask_and_noise_are_turned_alike():
    generator = torch.Generator().manual_seed(63)
    image = torch.randn(32, 2, 7, 7, generator=generator)
    mask = image > -0.5
    noise = image.square() + 1
    symmetries = torch.randint(N_SYMMETRIES, (32,), generator=generator)
    turned, turned_mask, turned_noise = (
        apply_symmetries(value, symmetries) for value in (image, mask, noise)
    )
    assert not torch.equal(turned, image)
    assert turned_mask.dtype == torch.bool
    assert torch.equal(turned_mask, turned > -0.5)
    assert torch.equal(turned_noise, turned.square() + 1)


def test_the_batch_that_was_given_stays_as_it_was():
    images = numbered(8, 1, 4, 4)
    apply_symmetries(images, torch.arange(8))
    assert torch.equal(images, numbered(8, 1, 4, 4))
