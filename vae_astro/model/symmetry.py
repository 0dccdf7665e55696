r"""An encoder that says the same of a stamp however it is turned.

The eight turns of a square (four quarter-turns, each with and without a flip) are a group, D4. A
group convolution (Cohen & Welling 2016) keeps for every feature its value in each of the eight
poses, and draws the filters of all poses from one:

.. math:: f_h = \sum_k f_k \star L_h w_{h^{-1}k} .

Turning the stamp by u turns the maps and shuffles the poses, :math:`f_h \to L_u f_{u^{-1}h}`, so a
mean over the poses at the end does not change at all. Beside the mean over eight passes
of an encoder (orbit pooling) it has the same guarantee at an eighth of the cost: a map of 32
channels is 4 features in 8 poses, and costs what 32 channels cost.

The guarantee needs grids that lie alike from all sides. Strides have even kernels on even maps, and
the first kernel has 11 or 12 pixels, so that it fits odd and even stamps without a lopsided border.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from vae_astro.data.augment import N_SYMMETRIES, apply_symmetry
from vae_astro.model.blocks import GRID, padded_size
from vae_astro.model.posterior import DiagonalGaussian

__all__ = ["D4Encoder", "GroupConv"]

FOLD = 4
"""Pixels that the first layer folds into channels, along each axis."""


def _seen_from() -> list[list[int]]:
    r"""Row h, column k: the number of the turn :math:`h^{-1} k`."""
    square = torch.arange(9).unflatten(0, (3, 3))
    poses = [apply_symmetry(square, turn) for turn in range(N_SYMMETRIES)]
    number = {tuple(pose.flatten().tolist()): turn for turn, pose in enumerate(poses)}
    table = [[0] * N_SYMMETRIES for _ in poses]
    for h in range(N_SYMMETRIES):
        for j, pose in enumerate(poses):
            table[h][number[tuple(apply_symmetry(pose, h).flatten().tolist())]] = j
    return table


SEEN_FROM = _seen_from()


class GroupConv(nn.Module):
    """Convolution over positions and poses; equivariant where padding and stride are symmetric.

    Channels lie as (feature, pose): 8 for each feature.

    Parameters
    ----------
    n_in, n_out : int
        Features in and out; of the first layer ``n_in`` are bands, which have one pose.
    kernel : int
        Height and width.
    stride, padding : int
        As in `torch.nn.Conv2d`.
    lifts : bool
        Whether the input is a stamp and not features in eight poses.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        lifts: bool = False,
    ) -> None:
        super().__init__()
        self.stride, self.padding, self.lifts = stride, padding, lifts
        n_poses = 1 if lifts else N_SYMMETRIES
        # four axes, which can lie channels last
        self.weight = nn.Parameter(torch.empty(n_out, n_in * n_poses, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(n_out))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def filters(self) -> Tensor:
        """The filters of all poses, shape (8 n_out, n_in * poses, kernel, kernel)."""
        poses = []
        for turn in range(N_SYMMETRIES):
            weight: Tensor = self.weight
            if not self.lifts:
                by_pose = weight.unflatten(1, (-1, N_SYMMETRIES)).unbind(2)
                ordered = [by_pose[pose] for pose in SEEN_FROM[turn]]
                weight = torch.stack(ordered, dim=2).flatten(1, 2)
            poses.append(apply_symmetry(weight, turn))
        return torch.stack(poses, dim=1).flatten(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, n_in * poses, H, W) to (B, 8 n_out, H', W')."""
        bias = self.bias.repeat_interleave(N_SYMMETRIES)
        return F.conv2d(x, self.filters(), bias, self.stride, self.padding)


class FoldedConv(GroupConv):
    """The first layer: a group convolution of stride 4 over a stamp of any size.

    Computed as a 3x3 convolution of the pixel-unshuffled stamp, which is the same and several times
    faster than a wide kernel on few bands.

    Parameters
    ----------
    n_bands, n_out : int
        Bands of the stamp, features out.
    size : int
        H = W.
    """

    def __init__(self, n_bands: int, n_out: int, size: int) -> None:
        odd = size % 2
        super().__init__(n_bands, n_out, 3 * FOLD - odd, lifts=True)
        missing = padded_size(size) - size
        # an odd filter does not see the last row and column: the stamp lies in the middle of what
        # it sees
        self.edges = (missing // 2, missing - missing // 2) * 2
        self.odd = odd

    def forward(self, x: Tensor) -> Tensor:
        """(B, n_bands, H, W) to (B, 8 n_out, S / 4, S / 4), S the padded size."""
        filters = F.pad(self.filters(), (0, self.odd, 0, self.odd))
        folded = F.pixel_unshuffle(F.pad(x, self.edges), FOLD)
        bias = self.bias.repeat_interleave(N_SYMMETRIES)
        return F.conv2d(folded, F.pixel_unshuffle(filters, FOLD), bias, padding=1)


class WholeMapConv(GroupConv):
    """A group convolution as large as its map: one dense layer, several times faster as such."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, 8 n_in, kernel, kernel) to (B, 8 n_out)."""
        bias = self.bias.repeat_interleave(N_SYMMETRIES)
        return F.linear(x.flatten(1), self.filters().flatten(1), bias)


class PoseNorm(nn.Module):
    """Group normalisation in float32 whose groups hold all poses of their features.

    Parameters
    ----------
    n_features : int
        Of eight channels each.
    """

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.n_groups = math.gcd(8, n_features)
        self.weight = nn.Parameter(torch.ones(n_features))
        self.bias = nn.Parameter(torch.zeros(n_features))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as ``x`` (B, 8 n_features, H, W), float32."""
        weight = self.weight.repeat_interleave(N_SYMMETRIES)
        bias = self.bias.repeat_interleave(N_SYMMETRIES)
        return F.group_norm(x.float(), self.n_groups, weight, bias)


class GroupResidual(nn.Module):
    """`ResidualBlock` over positions and poses, the identity at initialisation.

    Parameters
    ----------
    n_features : int
        In and out.
    """

    def __init__(self, n_features: int) -> None:
        super().__init__()
        last = GroupConv(n_features, n_features, 3, padding=1)
        nn.init.zeros_(last.weight)
        self.body = nn.Sequential(
            nn.SiLU(),
            GroupConv(n_features, n_features, 3, padding=1),
            PoseNorm(n_features),
            nn.SiLU(),
            last,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as ``x`` (B, 8 n_features, H, W)."""
        return x + self.body(x)


class D4Encoder(nn.Module):
    """The convolutional encoder whose posterior does not change when a stamp is turned.

    As many channels as `ConvEncoder` at each of its three resolutions, an eighth of them free. The
    coarsest map goes through one layer as large as itself, still in eight poses, and their mean
    to the posterior: the layer before the mean can tell places apart, which a mean over pixels
    could not.

    Parameters
    ----------
    n_bands, size, latent_dim : int
        C, H = W and Z.
    width : int
        Channels at the first of three resolutions, a multiple of 8; doubled at each halving.
    """

    def __init__(self, n_bands: int, size: int, latent_dim: int, width: int) -> None:
        super().__init__()
        n_features = width // N_SYMMETRIES
        cells = padded_size(size) // GRID
        self.trunk = nn.Sequential(
            FoldedConv(n_bands, n_features, size),
            GroupResidual(n_features),
            GroupConv(n_features, 2 * n_features, 4, stride=2, padding=1),
            GroupResidual(2 * n_features),
            GroupConv(2 * n_features, 4 * n_features, 4, stride=2, padding=1),
            GroupResidual(4 * n_features),
            nn.SiLU(),
            WholeMapConv(4 * n_features, 2 * width, cells),
            nn.SiLU(),
        )
        self.head = nn.Linear(2 * width, 2 * latent_dim)
        nn.init.normal_(self.head.weight, std=1e-2)  # posteriors near the prior at first
        nn.init.zeros_(self.head.bias)

    def forward(self, image: Tensor) -> DiagonalGaussian:
        """Posterior of ``image`` (B, C, H, W)."""
        poses = self.trunk(image).unflatten(1, (-1, N_SYMMETRIES))
        mean, log_var = self.head(poses.float().mean(2)).chunk(2, dim=1)
        return DiagonalGaussian(mean, log_var)
