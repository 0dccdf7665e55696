"""What the convolutional encoder and decoder share."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["GRID", "ResidualBlock", "padded_size"]

GRID = 16
"""Pixels of the stamp per cell of the coarsest feature map."""


def padded_size(size: int) -> int:
    """The next multiple of `GRID` from ``size`` up, in pixels."""
    return -(-size // GRID) * GRID


class GroupNorm(nn.GroupNorm):
    """Group normalisation in float32 (Wu & He 2018), whatever the rest computes in.

    Statistics want the digits; and of channels that lie last, torch normalises bfloat16 on a
    processor several times slower than float32.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Same shape as ``input`` (B, n_channels, H, W), float32."""
        return super().forward(input.float())


class ResidualBlock(nn.Module):
    """``x + conv(silu(norm(conv(silu(x)))))``, the identity at initialisation.

    Parameters
    ----------
    n_channels : int
        Channels in and out, a multiple of 8.
    """

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(n_channels, n_channels, 3, padding=1, bias=False),
            GroupNorm(8, n_channels),
            nn.SiLU(),
            nn.Conv2d(n_channels, n_channels, 3, padding=1),
        )
        last = self.body[-1]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as ``x`` (B, n_channels, H, W)."""
        return x + self.body(x)
