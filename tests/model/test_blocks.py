"""What encoder and decoder share: the padded grid and the residual block."""

from __future__ import annotations

import pytest
import torch

from vae_astro.model.blocks import GRID, ResidualBlock, padded_size


@pytest.mark.parametrize(
    ("size", "padded"), [(1, 16), (16, 16), (17, 32), (32, 32), (33, 48), (63, 64), (64, 64)]
)
def test_padded_size_is_the_next_multiple_of_the_grid(size, padded):
    assert padded_size(size) == padded
    assert padded % GRID == 0


def test_residual_block_is_the_identity_at_initialisation():
    x = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ResidualBlock(16)(x), x)


def test_residual_block_learns_from_the_first_step():
    block = ResidualBlock(8)
    block(torch.randn(2, 8, 5, 5)).square().sum().backward()
    last = block.body[-1]
    assert last.weight.grad.abs().max() > 0
    assert last.bias.grad.abs().max() > 0


def test_residual_block_adds_to_its_input():
    block = ResidualBlock(8)
    torch.nn.init.normal_(block.body[-1].weight)
    x = torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(block(x), x + block.body(x))
    assert (block(x) - x).abs().max() > 0.1
