"""Memory of a batch is used again when nobody holds the batch, and never before."""

import gc

import pytest
import torch

from vae_astro.data import batch_memory
from vae_astro.data.batch_memory import N_KEPT, batch_tensors

SHAPE = (5, 2, 7, 7)

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="torch keeps pinned memory")


@pytest.fixture(autouse=True)
def _nothing_kept():
    batch_memory._kept.clear()
    yield
    batch_memory._kept.clear()


def place() -> int:
    """Where the next batch lies."""
    return batch_tensors(SHAPE)[0].data_ptr()


def test_tensors_are_of_the_kinds_of_a_batch_and_do_not_overlap():
    image, mask, noise = batch_tensors(SHAPE)
    assert (image.dtype, mask.dtype, noise.dtype) == (torch.float32, torch.bool, torch.float32)
    assert all(value.shape == SHAPE and value.is_contiguous() for value in (image, mask, noise))
    image.fill_(1)
    noise.fill_(2)
    mask.fill_(True)
    assert (image == 1).all()
    assert (noise == 2).all()
    assert mask.all()


def test_memory_that_nobody_holds_is_used_again():
    assert place() == place()


@pytest.mark.parametrize(
    "hold",
    [
        lambda image, mask, noise: mask,
        lambda image, mask, noise: noise[3:4, 0].mT,
        lambda image, mask, noise: image.numpy()[::2],
        lambda image, mask, noise: (image.detach().requires_grad_() ** 2).sum(),
        lambda image, mask, noise: image.untyped_storage(),
        lambda image, mask, noise: memoryview(image.numpy()),
    ],
    ids=["mask", "view", "array", "graph", "storage", "buffer"],
)
def test_memory_that_anyone_holds_is_left_alone(hold):
    tensors = batch_tensors(SHAPE)
    first = tensors[0].data_ptr()
    held = hold(*tensors)
    del tensors
    gc.collect()
    assert place() != first
    del held
    assert first in {place(), place()} or place() == first


def test_many_batches_can_be_held_and_few_are_kept():
    batches = [batch_tensors(SHAPE) for _ in range(N_KEPT + 5)]
    for k, batch in enumerate(batches):
        batch[0].fill_(k)
    assert all((batch[0] == k).all() for k, batch in enumerate(batches))
    assert len(batch_memory._kept) == N_KEPT


def test_a_batch_of_another_shape_has_memory_of_its_size():
    batch_tensors(SHAPE)
    smaller = batch_tensors((3, 2, 7, 7))
    assert smaller[0].shape == (3, 2, 7, 7)
    assert smaller[0].untyped_storage().nbytes() == 4 * 3 * 2 * 49
