"""Batches keep their contract, and the n-th batch of an epoch is always the same."""

import math
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_astro.data.augment import apply_symmetry
from vae_astro.data.batches import Draw, EpochSampler, InOrder, StampDataset, StampLoader
from vae_astro.data.normalize import Normalizer, measure_sky
from vae_astro.data.store import StampStore
from vae_astro.errors import InputError

N_STAMPS = 37
NORMALIZER = Normalizer(gain=2.0)

relaxed = settings(deadline=None, max_examples=60)  # two busy cores keep no deadline


@pytest.fixture
def store() -> StampStore:
    """A store of two bands in memory, some of its pixels bad."""
    rng = np.random.default_rng(63)
    pixels = rng.normal(100, 5, (N_STAMPS, 2, 16, 16)).astype(np.float32)
    pixels[:, 0, 6:9, 5:8] += 500
    pixels[rng.random(pixels.shape) < 0.02] = np.nan
    pixels[5, 1] = np.nan
    raw = torch.from_numpy(pixels)
    sky = measure_sky(raw, raw.isfinite())
    return StampStore(
        path=Path("nowhere"),
        pixels=pixels,
        sky_level=sky.level.numpy(),
        sky_noise=sky.noise.numpy(),
        good_fraction=raw.isfinite().float().mean((2, 3)).numpy(),
        catalogue=pa.table({"id": [str(row) for row in range(N_STAMPS)]}),
        band_names=("g", "r"),
        n_rejected=0,
    )


@pytest.fixture
def dataset(store) -> StampDataset:
    return StampDataset(store, NORMALIZER)


def flat(draws) -> list[int]:
    return [row for draw in draws for row in draw.rows.tolist()]


def assert_same_draws(found, expected) -> None:
    found, expected = list(found), list(expected)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.rows, other.rows)
        np.testing.assert_array_equal(one.symmetries, other.symmetries)


# The batch


def test_a_batch_is_what_the_contract_says(dataset):
    rows = np.array([30, 5, 7])
    batch = dataset[Draw(rows, None)]
    assert {name: (value.dtype, tuple(value.shape)) for name, value in batch.items()} == {
        "image": (torch.float32, (3, 2, 16, 16)),
        "mask": (torch.bool, (3, 2, 16, 16)),
        "noise": (torch.float32, (3, 2, 16, 16)),
        "index": (torch.int64, (3,)),
    }
    assert batch["index"].tolist() == [30, 5, 7]


def test_the_mask_is_true_where_the_pixel_is_good_and_bad_pixels_are_neutral(dataset, store):
    rows = np.arange(N_STAMPS)
    batch = dataset[Draw(rows, None)]
    np.testing.assert_array_equal(batch["mask"], np.isfinite(store.pixels))
    bad = ~batch["mask"]
    assert bad.any()
    assert (batch["image"][bad] == 0).all()
    assert (batch["noise"][bad] == 1).all()
    assert (batch["noise"] > 0).all()


def test_image_and_noise_are_those_of_the_normaliser(dataset, store):
    rows = np.array([3, 30, 5])
    batch = dataset[Draw(rows, None)]
    expected = NORMALIZER(torch.from_numpy(store.pixels[rows]))
    assert torch.equal(batch["image"], expected.image)
    assert torch.equal(batch["noise"], expected.noise)


def test_the_sky_is_that_of_the_store_and_is_not_measured_again(store):
    store.sky_level[4] = 90
    store.sky_noise[4] = 2
    image = StampDataset(store, Normalizer("linear"))[Draw(np.array([4]), None)]["image"][0]
    good = np.isfinite(store.pixels[4])
    np.testing.assert_array_equal(image.numpy()[good], (store.pixels[4][good] - 90) / 2)


def test_image_mask_and_noise_of_a_stamp_are_turned_by_its_symmetry(dataset):
    rows, symmetries = np.arange(16), np.arange(16) % 8
    plain, turned = dataset[Draw(rows, None)], dataset[Draw(rows, symmetries)]
    for name in ("image", "mask", "noise"):
        for k in range(16):
            assert torch.equal(turned[name][k], apply_symmetry(plain[name][k], k % 8))
    assert torch.equal(turned["index"], plain["index"])


def test_gathering_leaves_the_store_as_it_was(dataset, store):
    before = store.pixels.copy()
    dataset[Draw(np.arange(8), np.arange(8))]["image"].zero_()
    np.testing.assert_array_equal(store.pixels, before)


# The shuffled epoch

epochs = {
    "n_rows": st.integers(1, 60),
    "batch_size": st.integers(1, 70),
    "seed": st.integers(0, 2**31),
    "epoch": st.integers(0, 1000),
}


@given(**epochs, n_ranks=st.integers(1, 4))
@relaxed
def test_an_epoch_draws_no_stamp_twice_and_shares_them_equally(
    n_rows, batch_size, seed, epoch, n_ranks
):
    rows = np.arange(n_rows) * 3 + 100  # any rows, not the first ones
    if n_rows < n_ranks:
        with pytest.raises(InputError, match=f"{n_rows} training stamps .* {n_ranks} processes"):
            EpochSampler(rows, batch_size, seed, rank=0, n_ranks=n_ranks)
        return
    drawn = []
    for rank in range(n_ranks):
        sampler = EpochSampler(rows, batch_size, seed, augment=True, rank=rank, n_ranks=n_ranks)
        sampler.set_epoch(epoch)
        draws = list(sampler)
        per_rank = n_rows // n_ranks
        size = min(batch_size, per_rank)
        assert [len(draw.rows) for draw in draws] == [size] * (per_rank // size)
        assert len(sampler) == len(draws)
        assert all(draw.rows.dtype == np.int64 for draw in draws)
        assert all(draw.symmetries.shape == draw.rows.shape for draw in draws)
        assert all(set(draw.symmetries) <= set(range(8)) for draw in draws)
        drawn.append(flat(draws))
    everyone = list(chain(*drawn))
    assert len(set(everyone)) == len(everyone)
    assert set(everyone) <= set(rows.tolist())
    assert len({len(rows_of_rank) for rows_of_rank in drawn}) == 1


def test_ranks_together_draw_the_stamps_and_the_poses_of_one_process():
    def draw(rank: int, n_ranks: int) -> Draw:
        (only,) = EpochSampler(
            np.arange(60), 60 // n_ranks, 63, augment=True, rank=rank, n_ranks=n_ranks
        )
        return only

    alone, shares = draw(0, 1), [draw(rank, 3) for rank in range(3)]
    np.testing.assert_array_equal(np.concatenate([d.rows for d in shares]), alone.rows)
    np.testing.assert_array_equal(np.concatenate([d.symmetries for d in shares]), alone.symmetries)


@given(**epochs)
@relaxed
def test_an_epoch_is_a_function_of_seed_and_epoch_alone(n_rows, batch_size, seed, epoch):
    rows = np.arange(n_rows)
    one = EpochSampler(rows, batch_size, seed, augment=True)
    one.set_epoch(epoch)
    other = EpochSampler(rows, batch_size, seed, augment=True)
    for before in (epoch + 1, 0):  # another past, and other random numbers drawn meanwhile
        other.set_epoch(before)
        list(other)
    np.random.default_rng().random()
    torch.rand(1)
    other.set_epoch(epoch)
    assert_same_draws(one, other)
    assert_same_draws(one, one)


def test_other_epochs_and_other_seeds_have_another_order_and_other_poses():
    def draw(seed: int, epoch: int) -> Draw:
        sampler = EpochSampler(np.arange(200), 200, seed, augment=True)
        sampler.set_epoch(epoch)
        (only,) = sampler
        return only

    draws = [draw(0, 0), draw(0, 1), draw(1, 0), draw(1, 1)]
    assert len({tuple(draw.rows) for draw in draws}) == 4
    assert len({tuple(draw.symmetries) for draw in draws}) == 4


def test_every_pose_is_as_likely_as_any_other():
    (draw,) = EpochSampler(np.arange(8000), 8000, 63, augment=True)
    counts = np.bincount(draw.symmetries, minlength=8)
    assert np.abs(counts - 1000).max() < 4 * math.sqrt(1000 * 7 / 8)


def test_augmentation_does_not_change_the_order():
    plain = EpochSampler(np.arange(50), 8, 63)
    augmented = EpochSampler(np.arange(50), 8, 63, augment=True)
    assert flat(plain) == flat(augmented)
    assert all(draw.symmetries is None for draw in plain)


def test_a_batch_larger_than_the_data_holds_all_of_it():
    (draw,) = EpochSampler(np.arange(5), 256, 63)
    assert sorted(draw.rows) == [0, 1, 2, 3, 4]


def test_a_smaller_last_batch_is_dropped_and_its_stamps_come_in_other_epochs():
    sampler = EpochSampler(np.arange(10), 4, 63)
    seen = set()
    for epoch in range(20):
        sampler.set_epoch(epoch)
        draws = list(sampler)
        assert [len(draw.rows) for draw in draws] == [4, 4]
        seen |= set(flat(draws))
    assert seen == set(range(10))


@pytest.mark.parametrize("n_ranks", [1, 3])
@pytest.mark.parametrize("done", [0, 1, 3, 4])
def test_a_resumed_epoch_goes_on_where_it_stopped_and_the_next_are_whole(done, n_ranks):
    def sampler() -> EpochSampler:
        return EpochSampler(np.arange(60), 5, 63, augment=True, rank=n_ranks - 1, n_ranks=n_ranks)

    uninterrupted, resumed = sampler(), sampler()
    resumed.resume_at(7, done)
    for epoch, first in ((7, done), (8, 0), (9, 0)):
        uninterrupted.set_epoch(epoch)
        resumed.set_epoch(epoch)
        assert_same_draws(resumed, list(uninterrupted)[first:])


# In order


@given(
    n_rows=st.integers(0, 40),
    batch_size=st.integers(1, 50),
    n_ranks=st.integers(1, 5),
)
@relaxed
def test_in_order_covers_every_row_once_over_all_ranks(n_rows, batch_size, n_ranks):
    rows = np.arange(n_rows) * 2 + 1
    samplers = [InOrder(rows, batch_size, rank, n_ranks) for rank in range(n_ranks)]
    drawn = [flat(sampler) for sampler in samplers]
    assert sorted(chain(*drawn)) == rows.tolist()
    for sampler, rows_of_rank in zip(samplers, drawn, strict=True):
        assert rows_of_rank == sorted(rows_of_rank)
        draws = list(sampler)
        assert len(draws) == len(sampler)
        assert all(draw.symmetries is None for draw in draws)
        assert all(len(draw.rows) == batch_size for draw in draws[:-1])


# The loader


def test_the_loader_hands_on_whole_batches(dataset):
    batches = list(StampLoader(dataset, InOrder(np.arange(N_STAMPS), 16)))
    assert [batch["image"].shape[0] for batch in batches] == [16, 16, 5]
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(N_STAMPS))


def test_workers_give_the_same_batches_and_leave_the_random_state_alone(dataset):
    sampler = EpochSampler(np.arange(N_STAMPS), 8, 63, augment=True)
    sampler.set_epoch(3)
    state = torch.get_rng_state()
    alone = list(StampLoader(dataset, sampler))
    helped = list(StampLoader(dataset, sampler, n_workers=2))
    assert torch.equal(torch.get_rng_state(), state)
    assert len(alone) == len(helped) == 4
    for one, other in zip(alone, helped, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def loader(dataset: StampDataset, n_rows: int = 30, batch_size: int = 5, seed: int = 1):
    return StampLoader(dataset, EpochSampler(np.arange(n_rows), batch_size, seed))


def test_a_loader_takes_back_its_own_state(dataset):
    state = loader(dataset).state_dict()
    assert all(type(value) is int for value in state.values())
    loader(dataset).load_state_dict(state)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 2}, "seed was 1, is 2"),
        ({"batch_size": 6}, "batch_size was 5, is 6"),
        ({"n_rows": 31}, "n_stamps was 30, is 31"),
    ],
)
def test_a_state_of_other_batches_is_refused_with_what_to_do(dataset, changed, message):
    state = loader(dataset).state_dict()
    with pytest.raises(InputError, match=message) as error:
        loader(dataset, **changed).load_state_dict(state)
    for word in ("cannot resume", "data.batch_size", "seed", "init_from="):
        assert word in str(error.value)


def test_a_loader_in_order_has_no_state_to_agree_on(dataset):
    in_order = StampLoader(dataset, InOrder(np.arange(5), 2))
    assert in_order.state_dict() == {}
    in_order.load_state_dict({})
