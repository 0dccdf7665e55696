"""Noise of evaluation: standard normal, and the stamp's own wherever and whenever it is scored."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from vae_astro.objective.noise import (
    SEED,
    _as_normal,
    _on_device,
    _signed,
    _splitmix64,
    _splitmix64_of_signed,
    noise_of_stamps,
)


def test_noise_belongs_to_the_stamp_and_leaves_the_global_state_alone():
    state = torch.get_rng_state()
    index = torch.arange(1000)
    noise = noise_of_stamps(index, 3)
    shuffled = index[torch.randperm(len(index), generator=torch.Generator().manual_seed(0))]
    assert torch.equal(noise_of_stamps(shuffled, 3), noise[shuffled])
    assert torch.equal(noise_of_stamps(index, 5)[:, :3], noise)
    assert torch.equal(state, torch.get_rng_state())


def test_noise_is_standard_normal_and_independent_between_units_and_stamps():
    noise = noise_of_stamps(torch.arange(20_000), 3)
    # within 5 standard errors
    assert noise.mean(0).abs().max() < 5 / math.sqrt(len(noise))
    assert (torch.cov(noise.T) - torch.eye(3)).abs().max() < 5 * math.sqrt(2 / len(noise))
    assert kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3
    neighbours = (noise[1:] * noise[:-1]).mean(0)
    assert neighbours.abs().max() < 5 / math.sqrt(len(noise))


# -- the hash ------------------------------------------------------------------------------------


def splitmix64(seed: int) -> int:
    """First output of SplitMix64 from ``seed`` (Steele, Lea & Flood 2014), in whole numbers."""
    x = (seed + 0x9E3779B97F4A7C15) % 2**64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    return x ^ (x >> 31)


def test_the_whole_numbers_are_those_of_the_published_generator():
    # first output of the reference implementation (Vigna, prng.di.unimi.it) from seed 1234567
    assert splitmix64(1234567) == 6457827717110365317


@pytest.mark.parametrize("first", [0, 4, 1000])
def test_noise_is_a_normal_quantile_of_the_hash_of_row_and_unit(first):
    rows = [0, 1, 77, 10**9, 2**40]
    noise = noise_of_stamps(torch.tensor(rows), 3, first=first)
    for row, of_stamp in zip(rows, noise.tolist(), strict=True):
        for unit, value in enumerate(of_stamp, start=first):
            bits = splitmix64(splitmix64(row + SEED) ^ unit) >> 11
            quantile = NormalDist().inv_cdf((bits + 0.5) / 2**53)
            assert value == pytest.approx(quantile, rel=1e-6)


def test_the_hash_of_a_device_is_that_of_the_host():
    # a device has no unsigned integers; half of all hashes would be negative on it
    values = [0, 1, 12345, 2**31, 2**62, 2**63 - 1, -1, -(2**63)]
    hashed = _splitmix64_of_signed(torch.tensor(values)).tolist()
    assert [value % 2**64 for value in hashed] == [splitmix64(value) for value in values]
    on_host = _splitmix64(np.array(values).astype(np.uint64)).tolist()
    assert on_host == [splitmix64(value) for value in values]


@pytest.mark.parametrize("first", [0, 5])
def test_the_noise_of_a_device_is_that_of_the_host(first):
    index = torch.tensor([0, 1, 77, 10**9, 2**40])
    there = _on_device(index, 3, first)
    assert torch.equal(there, noise_of_stamps(index, 3, first))
    assert (there.shape, there.dtype) == ((5, 3), torch.float32)


class Elsewhere(torch.Tensor):
    """An index that says that it lies on a device."""

    is_cuda = True


def test_an_index_on_a_device_is_hashed_there():
    index = torch.tensor([0, 1, 77])
    there = noise_of_stamps(index.as_subclass(Elsewhere), 3, 5)
    assert isinstance(there, Elsewhere)  # numpy would have left it behind
    assert torch.equal(there, noise_of_stamps(index, 3, 5))


def test_the_smallest_hashes_have_finite_noise():
    noise = _as_normal(torch.tensor([0.0, 1.0], dtype=torch.float64))
    expected = [NormalDist().inv_cdf(half / 2**54) for half in (1, 3)]
    assert noise.tolist() == pytest.approx(expected, rel=1e-6)


def test_noise_lies_where_the_index_does():
    assert noise_of_stamps(torch.tensor([0]), 1).device == torch.device("cpu")
    # whatever a device computes in, the rows are the same
    for dtype in (torch.int32, torch.int16):
        assert torch.equal(
            noise_of_stamps(torch.tensor([3, 8], dtype=dtype), 2),
            noise_of_stamps(torch.tensor([3, 8]), 2),
        )


def test_later_draws_of_a_stamp_go_on_in_its_row_of_numbers():
    index = torch.tensor([3, 8])
    together = noise_of_stamps(index, 6)
    assert torch.equal(noise_of_stamps(index, 2, first=4), together[:, 4:])
    assert together.dtype == torch.float32


@pytest.mark.parametrize(
    ("constant", "signed"),
    [(0, 0), (5, 5), (2**63 - 1, 2**63 - 1), (2**63, -(2**63)), (2**64 - 1, -1)],
)
def test_a_constant_keeps_its_bits_as_a_signed_number(constant, signed):
    assert _signed(constant) == signed
