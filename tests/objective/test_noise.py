"""Noise of evaluation: standard normal, and the stamp's own wherever and whenever it is scored."""

from __future__ import annotations

import math

import torch
from scipy.stats import kstest

from vae_astro.objective.noise import noise_of_stamps


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
