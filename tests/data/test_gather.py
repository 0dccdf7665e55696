"""A batch made in one pass is the one that the normaliser and the symmetries define."""

import threading

import numpy as np
import pytest
import torch

from vae_astro.data.augment import apply_symmetries
from vae_astro.data.batches import _kernel_settings
from vae_astro.data.gather import STRETCHES, addresses_of, copy_rows, normalize_rows
from vae_astro.data.normalize import Normalizer, Sky

N, C, SIZE = 48, 2, 33


@pytest.fixture(scope="module")
def raw() -> np.ndarray:
    """Stamps of every brightness, with defects, without light, without noise."""
    rng = np.random.default_rng(63)
    raw = rng.normal(100, 5, (N, C, SIZE, SIZE))
    star = np.exp(-((np.indices((SIZE, SIZE)) - SIZE // 2) ** 2).sum(0) / 10)
    raw += 10 ** rng.uniform(0, 6, (N, C, 1, 1)) * star
    raw[rng.random(raw.shape) < 0.02] = np.nan
    raw[0, 0, 3, :5] = [np.inf, -np.inf, np.finfo(np.float32).min, 1e18, 9e17]
    raw[1] = np.nan
    raw[2] = 7
    raw[3, 0] *= 1e-30
    return raw.astype(np.float32)


@pytest.fixture(scope="module")
def noise(raw) -> np.ndarray:
    """Standard deviations in raw units, some of which say nothing."""
    rng = np.random.default_rng(64)
    noise = 5 * rng.lognormal(0, 1, raw.shape)
    for nothing in (0, -1, np.nan, np.inf, 2e18):
        noise[rng.random(raw.shape) < 0.01] = nothing
    return noise.astype(np.float32)


def in_one_pass(normalizer, raw, sky, noise=None, symmetries=None, n_threads=1):
    planes = raw if noise is None else np.concatenate([raw, noise], axis=1)
    image, std = np.full((2, *raw.shape), np.nan, dtype=np.float32)
    mask = np.zeros(raw.shape, dtype=bool)
    normalize_rows(
        addresses_of(planes),
        _kernel_settings(normalizer, raw.shape[1]),
        *(value.numpy() for value in sky),
        *(image, mask, std),
        symmetries=symmetries,
        with_noise=noise is not None,
        n_threads=n_threads,
    )
    return image, mask, std


def sky_of(normalizer: Normalizer, raw: np.ndarray) -> Sky:
    tensor = torch.from_numpy(raw)
    return normalizer.sky(tensor, normalizer.good_pixels(tensor))


def assert_within(found: np.ndarray, expected: np.ndarray, units: float) -> None:
    step = np.spacing(np.maximum(np.abs(expected), 1e-30).astype(np.float32))
    assert np.max(np.abs(found - expected) / step) <= units


@pytest.mark.parametrize("own_noise", [False, True], ids=["sky", "own"])
@pytest.mark.parametrize("gain", [None, 2.5, [1.0, 4.0]], ids=["-", "gain", "gains"])
@pytest.mark.parametrize("stretch", STRETCHES)
def test_it_is_what_the_normaliser_defines(raw, noise, stretch, gain, own_noise):
    normalizer = Normalizer(stretch, softening=2.0, gain=gain, saturation=[5e4, 1e5])
    sky = sky_of(normalizer, raw)
    planes = noise if own_noise else None
    symmetries = np.arange(N) % 8
    image, mask, std = in_one_pass(normalizer, raw, sky, planes, symmetries)
    given = torch.from_numpy(raw), sky, None if planes is None else torch.from_numpy(noise)
    tensors = normalizer(*given)
    exact = normalizer(
        given[0].double(),
        Sky(*(value.double() for value in sky)),
        None if given[2] is None else given[2].double(),
    )

    def posed(value: torch.Tensor) -> np.ndarray:
        return apply_symmetries(value, torch.from_numpy(symmetries)).numpy()

    np.testing.assert_array_equal(mask, posed(tensors.mask))
    assert not mask.all()
    # float32 rounds some four times on the way; torch does so too, but at other places
    assert_within(image, posed(exact.image), 4)
    assert_within(std, posed(exact.noise), 5)
    assert_within(image, posed(tensors.image), 6)
    assert_within(std, posed(tensors.noise), 8)
    assert (image[~mask] == 0).all()
    assert (std[~mask] == 1).all()


@pytest.mark.parametrize("stretch", STRETCHES)
def test_pose_thread_and_neighbours_change_no_bit(raw, noise, stretch):
    normalizer = Normalizer(stretch, gain=2.0)
    sky = sky_of(normalizer, raw)
    plain = in_one_pass(normalizer, raw, sky, noise)
    symmetries = np.arange(N) % 8
    turned = in_one_pass(normalizer, raw, sky, noise, symmetries, n_threads=3)
    for one, other in zip(plain, turned, strict=True):
        expected = apply_symmetries(torch.from_numpy(one), torch.from_numpy(symmetries))
        np.testing.assert_array_equal(other, expected.numpy())
    for k in (0, 5, N - 1):
        own = Sky(*(value[k : k + 1] for value in sky))
        alone = in_one_pass(normalizer, raw[k : k + 1], own, noise[k : k + 1])
        for one, other in zip(plain, alone, strict=True):
            np.testing.assert_array_equal(one[k], other[0])


@pytest.mark.parametrize("shape", [(16, 16), (20, 31), (63, 63), (1, 1)])
def test_stamps_of_any_shape_are_normalised(shape):
    raw = np.random.default_rng(1).normal(100, 5, (5, 3, *shape)).astype(np.float32)
    normalizer = Normalizer()
    sky = Sky(torch.full((5, 3), 100.0), torch.full((5, 3), 5.0))
    image, mask, _ = in_one_pass(normalizer, raw, sky)
    assert mask.all()
    assert_within(image, normalizer(torch.from_numpy(raw), sky).image.numpy(), 6)


def test_stamps_that_are_not_square_are_not_turned():
    raw = np.zeros((1, 1, 4, 5), dtype=np.float32)
    sky = Sky(torch.zeros(1, 1), torch.ones(1, 1))
    with pytest.raises(ValueError, match="4 x 5 pixels cannot be turned"):
        in_one_pass(Normalizer(), raw, sky, symmetries=np.array([1]))


@pytest.mark.parametrize("n_threads", [1, 2, 5])
@pytest.mark.parametrize(("n_rows", "n_values"), [(1, 1), (7, 300), (100, 3969)])
def test_rows_are_copied_from_where_they_lie(n_rows, n_values, n_threads):
    rng = np.random.default_rng(2)
    here, there = rng.random((2, 50, n_values), dtype=np.float32)
    sides, rows = rng.integers(2, size=n_rows), rng.integers(50, size=n_rows)
    addresses = np.where(sides == 0, addresses_of(here)[rows], addresses_of(there)[rows])
    out = np.empty((n_rows, n_values), dtype=np.float32)
    copy_rows(addresses, out, n_threads)
    np.testing.assert_array_equal(out, np.where(sides[:, None] == 0, here[rows], there[rows]))


def test_several_callers_at_a_time_get_each_their_own(raw):
    normalizer = Normalizer()
    sky = sky_of(normalizer, raw)
    expected = in_one_pass(normalizer, raw, sky)
    found: list[tuple[np.ndarray, ...]] = []

    def call() -> None:
        for _ in range(20):
            found.append(in_one_pass(normalizer, raw, sky, n_threads=2))

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(found) == 80
    for one in found:
        for value, right in zip(one, expected, strict=True):
            np.testing.assert_array_equal(value, right)
