"""Batches keep their contract, and the n-th batch of an epoch is always the same."""

import math
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_astro.data.augment import apply_symmetry
from vae_astro.data.batches import Draw, EpochSampler, InOrder, StampDataset, StampLoader
from vae_astro.data.normalize import Normalizer, Sky
from vae_astro.data.shuffle import BlockOrder
from vae_astro.data.sky import good_pixels, measure_sky
from vae_astro.errors import InputError

N_STAMPS = 37
NORMALIZER = Normalizer(gain=2.0)

relaxed = settings(deadline=None, max_examples=60)  # two busy cores keep no deadline


class ArrayStore:
    """What batches ask of a store, of arrays in memory: shards of pixels, and of noise or none."""

    def __init__(self, pixels, noise=None, n_shards=1, addressed=True) -> None:
        self.pixels, self.noise, self.addressed = pixels, noise, addressed
        planes = pixels if noise is None else np.concatenate([pixels, noise], axis=1)
        self.shards = [np.ascontiguousarray(part) for part in np.array_split(planes, n_shards)]
        self.first_rows = np.cumsum([0] + [len(shard) for shard in self.shards])
        self.stamp_shape = pixels.shape[1:]
        self.has_noise = noise is not None
        self.sky_level, self.sky_noise = measure_sky(pixels, good_pixels(pixels))

    def __len__(self) -> int:
        return len(self.pixels)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        return np.concatenate(self.shards)[rows]

    def addresses(self, rows: np.ndarray) -> np.ndarray | None:
        if not self.addressed:
            return None
        shards = np.searchsorted(self.first_rows, rows, side="right") - 1
        begins = np.array([shard.ctypes.data for shard in self.shards], dtype=np.uint64)
        offsets = (rows - self.first_rows[shards]).astype(np.uint64)
        return begins[shards] + offsets * np.uint64(self.shards[0][0].nbytes)


@pytest.fixture
def pixels() -> np.ndarray:
    """Stamps of two bands, some of their pixels bad."""
    rng = np.random.default_rng(63)
    pixels = rng.normal(100, 5, (N_STAMPS, 2, 16, 16)).astype(np.float32)
    pixels[:, 0, 6:9, 5:8] += 500
    pixels[rng.random(pixels.shape) < 0.02] = np.nan
    pixels[5, 1] = np.nan
    return pixels


@pytest.fixture
def store(pixels) -> ArrayStore:
    return ArrayStore(pixels)


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
    # float32 rounds some four times on the way, on either side
    torch.testing.assert_close(batch["image"], expected.image, rtol=8e-7, atol=0)
    torch.testing.assert_close(batch["noise"], expected.noise, rtol=8e-7, atol=0)
    assert torch.equal(batch["mask"], expected.mask)


@pytest.mark.parametrize("addressed", [True, False], ids=["in place", "gathered"])
@pytest.mark.parametrize("n_shards", [1, 3])
def test_where_the_store_has_its_planes_changes_no_bit(pixels, dataset, n_shards, addressed):
    draw = Draw(np.random.default_rng(1).permutation(N_STAMPS), np.arange(N_STAMPS) % 8)
    other = StampDataset(ArrayStore(pixels, None, n_shards, addressed), NORMALIZER)[draw]
    for name, value in dataset[draw].items():
        assert torch.equal(value, other[name])


def test_noise_planes_of_the_store_take_the_place_of_sky_and_gain(pixels):
    noise = np.random.default_rng(2).uniform(4, 8, pixels.shape).astype(np.float32)
    noise[3, 0, 4, :3] = 0, np.nan, np.inf
    store = ArrayStore(pixels, noise, n_shards=2)
    rows = np.array([3, 30, 5])
    batch = StampDataset(store, NORMALIZER)[Draw(rows, None)]
    sky = Sky(torch.from_numpy(store.sky_level[rows]), torch.from_numpy(store.sky_noise[rows]))
    expected = NORMALIZER(torch.from_numpy(pixels[rows]), sky, torch.from_numpy(noise[rows]))
    assert not batch["mask"][0, 0, 4, :3].any()
    assert torch.equal(batch["mask"], expected.mask)
    torch.testing.assert_close(batch["image"], expected.image, rtol=8e-7, atol=0)
    torch.testing.assert_close(batch["noise"], expected.noise, rtol=1e-6, atol=0)


def test_a_batch_stays_as_it_was_while_others_are_made(dataset):
    draws = [Draw(np.arange(k, k + 8), None) for k in range(12)]
    held = [dataset[draw] for draw in draws]
    for batch, draw in zip(held, draws, strict=True):
        for name, value in dataset[draw].items():
            assert torch.equal(batch[name], value)


def test_a_setting_for_other_bands_is_refused_by_name(store):
    with pytest.raises(InputError, match=r"data\.normalize\.gain has 3 values .* 2 bands"):
        StampDataset(store, Normalizer(gain=[1.0, 2.0, 3.0]))


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
    share = batch_size
    batch_size *= n_ranks
    if n_rows < n_ranks:
        with pytest.raises(InputError, match=f"{n_rows} training stamps .* {n_ranks} processes"):
            EpochSampler(rows, batch_size, seed, rank=0, n_ranks=n_ranks)
        return
    drawn = []
    for rank in range(n_ranks):
        sampler = EpochSampler(rows, batch_size, seed, augment=True, rank=rank, n_ranks=n_ranks)
        sampler.set_epoch(epoch)
        draws = list(sampler)
        size = min(share, n_rows // n_ranks)
        assert sampler.batch_size == size * n_ranks
        assert [len(draw.rows) for draw in draws] == [size] * (n_rows // (size * n_ranks))
        assert len(sampler) == len(draws)
        assert all(draw.rows.dtype == np.int64 for draw in draws)
        assert all(draw.symmetries.shape == draw.rows.shape for draw in draws)
        assert all(set(draw.symmetries) <= set(range(8)) for draw in draws)
        drawn.append(flat(draws))
    everyone = list(chain(*drawn))
    assert len(set(everyone)) == len(everyone)
    assert set(everyone) <= set(rows.tolist())
    assert len({len(rows_of_rank) for rows_of_rank in drawn}) == 1


@pytest.mark.parametrize("n_ranks", [2, 3, 4])
def test_ranks_together_draw_the_stamps_and_the_poses_of_one_process(n_ranks):
    def draws(rank: int, n_ranks: int) -> list[Draw]:
        sampler = EpochSampler(np.arange(65), 12, 63, augment=True, rank=rank, n_ranks=n_ranks)
        sampler.set_epoch(3)
        return list(sampler)

    alone = draws(0, 1)
    together = list(zip(*(draws(rank, n_ranks) for rank in range(n_ranks)), strict=True))
    assert len(together) == len(alone) == 5
    for whole, shares in zip(alone, together, strict=True):
        assert np.concatenate([d.rows for d in shares]).tolist() == whole.rows.tolist()
        assert np.concatenate([d.symmetries for d in shares]).tolist() == whole.symmetries.tolist()


@pytest.mark.parametrize("shuffle", ["full", "block"])
def test_a_batch_that_does_not_divide_is_refused_and_a_small_data_set_rounded_down(shuffle):
    with pytest.raises(InputError, match=r"64 .* 3 processes.*data\.batch_size=63.*devices"):
        EpochSampler(np.arange(100), 64, 0, n_ranks=3, shuffle=shuffle)
    with pytest.raises(InputError, match=r"data\.batch_size=4,"):
        EpochSampler(np.arange(100), 2, 0, n_ranks=4, shuffle=shuffle)
    sampler = EpochSampler(np.arange(100), 128, 0, n_ranks=8, shuffle=shuffle)
    assert (sampler.batch_size, sampler.share, len(sampler)) == (96, 12, 1)


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


def test_the_full_order_and_its_poses_are_those_of_earlier_versions():
    rows = np.arange(50) * 2
    sampler = EpochSampler(rows, 10, 63, augment=True)
    sampler.set_epoch(4)
    rng = np.random.default_rng((63, 4))
    assert flat(sampler) == rng.permutation(rows).tolist()
    poses = [pose for draw in sampler for pose in draw.symmetries.tolist()]
    assert poses == rng.integers(8, size=50).tolist()


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
        return EpochSampler(
            np.arange(60), 5 * n_ranks, 63, augment=True, rank=n_ranks - 1, n_ranks=n_ranks
        )

    uninterrupted, resumed = sampler(), sampler()
    resumed.resume_at(7, done)
    for epoch, first in ((7, done), (8, 0), (9, 0)):
        uninterrupted.set_epoch(epoch)
        resumed.set_epoch(epoch)
        assert_same_draws(resumed, list(uninterrupted)[first:])


# Block by block

block_epochs = {**epochs, "block_rows": st.integers(1, 12), "window_blocks": st.integers(1, 4)}


@given(**block_epochs, n_ranks=st.integers(1, 4))
@relaxed
def test_block_by_block_no_stamp_comes_twice_and_ranks_share_equally(
    n_rows, batch_size, seed, epoch, block_rows, window_blocks, n_ranks
):
    rows = np.arange(n_rows) * 3 + 100
    if n_rows < n_ranks:
        return
    drawn = []
    for rank in range(n_ranks):
        sampler = EpochSampler(
            *(rows, batch_size * n_ranks, seed),
            augment=True,
            rank=rank,
            n_ranks=n_ranks,
            shuffle="block",
            block_rows=block_rows,
            window_blocks=window_blocks,
        )
        sampler.set_epoch(epoch)
        draws = list(sampler)
        assert [len(draw.rows) for draw in draws] == [sampler.share] * len(sampler)
        assert all(draw.symmetries.shape == draw.rows.shape for draw in draws)
        drawn.append(flat(draws))
    everyone = list(chain(*drawn))
    assert len(set(everyone)) == len(everyone)
    assert set(everyone) <= set(rows.tolist())
    assert len({len(rows_of_rank) for rows_of_rank in drawn}) == 1


@pytest.mark.parametrize("n_ranks", [1, 3])
@pytest.mark.parametrize("done", [0, 1, 7, 12, 19])
def test_block_by_block_a_resumed_epoch_goes_on_where_it_stopped(done, n_ranks):
    def sampler() -> EpochSampler:
        return EpochSampler(
            *(np.arange(300), 5 * n_ranks, 63),
            augment=True,
            rank=n_ranks - 1,
            n_ranks=n_ranks,
            shuffle="block",
            block_rows=11,
            window_blocks=3,
        )

    uninterrupted, resumed = sampler(), sampler()
    resumed.resume_at(7, done)
    for epoch, first in ((7, done), (8, 0)):
        uninterrupted.set_epoch(epoch)
        resumed.set_epoch(epoch)
        assert_same_draws(resumed, list(uninterrupted)[first:])


def test_a_resumed_epoch_mixes_no_window_that_it_has_left_behind(monkeypatch):
    mixed: list[int] = []
    window = BlockOrder.window
    monkeypatch.setattr(BlockOrder, "window", lambda o, k: mixed.append(k) or window(o, k))
    sampler = EpochSampler(np.arange(1000), 10, 63, shuffle="block", block_rows=10, window_blocks=5)
    sampler.resume_at(0, 50)
    next(iter(sampler))
    assert mixed == [10]


def test_the_store_is_told_what_comes_before_it_comes():
    asked: set[int] = set()
    sampler = EpochSampler(
        *(np.arange(600), 20, 63),
        shuffle="block",
        block_rows=10,
        window_blocks=6,
        will_need=lambda first, last: asked.update(range(first, last)),
    )
    ahead = []
    for draw in sampler:
        assert asked.issuperset(draw.rows.tolist())
        ahead.append(len(asked))
    # the next window is asked for while this one is drawn
    assert ahead[0] < 120
    assert ahead[2] == 120


def test_a_way_of_shuffling_that_is_not_known_is_refused_by_name():
    with pytest.raises(InputError, match=r"data\.shuffle"):
        EpochSampler(np.arange(10), 5, 1, shuffle="half")


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
    assert list(chain(*drawn)) == rows.tolist()  # one stretch after the other
    if n_rows >= n_ranks:  # or they wait for each other for ever
        assert len({len(sampler) for sampler in samplers}) == 1
    for sampler, rows_of_rank in zip(samplers, drawn, strict=True):
        assert rows_of_rank == sorted(rows_of_rank)
        draws = list(sampler)
        assert len(draws) == len(sampler)
        assert all(draw.symmetries is None for draw in draws)
        assert all(len(draw.rows) == batch_size for draw in draws[:-1])
        assert all(1 <= len(draw.rows) <= batch_size + 1 for draw in draws)


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


def loader(
    dataset: StampDataset,
    n_rows: int = 30,
    batch_size: int = 5,
    seed: int = 1,
    shuffle: str = "full",
    block_rows: int = 10,
    n_ranks: int = 1,
) -> StampLoader:
    sampler = EpochSampler(
        *(np.arange(n_rows), batch_size, seed),
        shuffle=shuffle,
        block_rows=block_rows,
        n_ranks=n_ranks,
    )
    return StampLoader(dataset, sampler)


def test_a_loader_takes_back_its_own_state(dataset):
    for shuffle in ("full", "block"):
        state = loader(dataset, shuffle=shuffle).state_dict()
        assert all(type(value) in (int, str) for value in state.values())
        loader(dataset, shuffle=shuffle).load_state_dict(state)


def test_an_epoch_goes_on_with_other_ranks_where_its_batches_stay_the_same(dataset):
    half, block = {"batch_size": 6, "n_ranks": 2}, {"shuffle": "block"}
    alone = loader(dataset, batch_size=6)
    alone.load_state_dict(loader(dataset, **half).state_dict())
    loader(dataset, **half).load_state_dict(alone.state_dict())
    # of blocks each rank has its own: only a whole epoch can be another one's
    state = loader(dataset, **half, **block).state_dict()
    between, within = (loader(dataset, batch_size=6, **block) for _ in range(2))
    between.sampler.resume_at(3, 0)
    between.load_state_dict(state)
    within.sampler.resume_at(3, 1)
    with pytest.raises(InputError, match=r"n_ranks was 2, is 1.*trainer\.devices"):
        within.load_state_dict(state)


def test_a_state_from_before_there_were_blocks_is_that_of_a_full_shuffle(dataset):
    state = loader(dataset).state_dict()
    del state["shuffle"]
    loader(dataset).load_state_dict(state)
    with pytest.raises(InputError, match="shuffle was full, is block"):
        loader(dataset, shuffle="block", block_rows=5).load_state_dict(state)


def test_blocks_of_another_size_are_another_order(dataset):
    state = loader(dataset, shuffle="block").state_dict()
    with pytest.raises(InputError, match="block_rows was 10, is 5"):
        loader(dataset, shuffle="block", block_rows=5).load_state_dict(state)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 2}, "seed was 1, is 2"),
        ({"batch_size": 6}, "batch_size was 5, is 6"),
        ({"n_rows": 31}, "n_stamps was 30, is 31"),
        ({"shuffle": "block"}, "shuffle was full, is block"),
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
