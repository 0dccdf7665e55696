"""Along one axis of a tensor: which entries of a model come from which of another.

An axis is units, bands, pixels, or these in one another; of two models of other sizes it has other
lengths. `Axis` says what each entry of ours is made of, and is composed as the axes are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["Axis"]


@dataclass(frozen=True)
class Axis:
    """Each of N entries as a weighted sum of M of theirs.

    Attributes
    ----------
    source : Tensor of int64, shape (N, M)
        Which of theirs.
    weight : Tensor of float32, shape (N, M)
        By how much; all 0 where nothing of theirs corresponds.
    n_theirs : int
        Length of their axis.
    fresh : float
        What an entry to which nothing corresponds keeps of the value that it was drawn with. With
        0, as for pixels and bands, what is new is silent until it has learned to speak.
    """

    source: Tensor
    weight: Tensor
    n_theirs: int
    fresh: float = 0.0

    @classmethod
    def of(cls, source: Sequence[int | None], n_theirs: int) -> Axis:
        """One entry of theirs for each, or none."""
        index = torch.tensor([0 if k is None else k for k in source], dtype=torch.int64)
        weight = torch.tensor([float(k is not None) for k in source])
        return cls(index[:, None], weight[:, None], n_theirs)

    @classmethod
    def summed(cls, weight: Sequence[Sequence[float]]) -> Axis:
        """Entries by their weights on all of theirs, (N, n_theirs)."""
        weights = torch.tensor(weight, dtype=torch.float32)
        source = torch.arange(weights.shape[1]).expand(weights.shape)
        return cls(source, weights, weights.shape[1])

    @classmethod
    def same(cls, n: int) -> Axis:
        """Theirs, one by one."""
        return cls.of(list(range(n)), n)

    @classmethod
    def centred(cls, n: int, n_theirs: int) -> Axis:
        """Theirs cropped, or continued with nothing, as stamps are: n // 2 on n // 2."""
        offset = n_theirs // 2 - n // 2
        return cls.of([k + offset if 0 <= k + offset < n_theirs else None for k in range(n)],
                      n_theirs)  # fmt: skip

    @classmethod
    def cells(cls, n: int, n_theirs: int) -> Axis:
        """Cells of a coarse map, their middles on one another; between two, the mean of both."""
        if (n - n_theirs) % 2 == 0:
            return cls.centred(n, n_theirs)
        below = torch.arange(n) + (n_theirs - n - 1) // 2
        source = torch.stack([below, below + 1], 1)
        inside = (source >= 0) & (source < n_theirs)
        weight = inside / inside.sum(1, keepdim=True).clamp(min=1)
        return cls(source.clamp(0, n_theirs - 1), weight.float(), n_theirs)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def known(self) -> Tensor:
        """Whether anything of theirs corresponds, (N,) bool."""
        return (self.weight != 0).any(1)

    @property
    def is_same(self) -> bool:
        """Whether it takes theirs as they are."""
        n = len(self)
        return (
            n == self.n_theirs
            and self.source.shape[1] == 1
            and bool((self.weight == 1).all())
            and torch.equal(self.source[:, 0], torch.arange(n))
        )

    def times(self, inner: Axis) -> Axis:
        """The axis on which each entry of this one has all of ``inner``, as `flatten` lays them."""
        source = self.source[:, None, :, None] * inner.n_theirs + inner.source[None, :, None, :]
        weight = self.weight[:, None, :, None] * inner.weight[None, :, None, :]
        shape = (len(self) * len(inner), self.source.shape[1] * inner.source.shape[1])
        n_theirs = self.n_theirs * inner.n_theirs
        return Axis(source.reshape(shape), weight.reshape(shape), n_theirs, self.fresh)

    def then(self, following: Axis) -> Axis:
        """The axis on which ``following`` comes after this one."""
        width = max(self.source.shape[1], following.source.shape[1])

        def wide(values: Tensor) -> Tensor:
            return torch.nn.functional.pad(values, (0, width - values.shape[1]))

        source = torch.cat([wide(self.source), wide(following.source + self.n_theirs)])
        weight = torch.cat([wide(self.weight), wide(following.weight)])
        source = source.where(weight != 0, 0)  # of no entries at all none can be pointed at
        return Axis(source, weight, self.n_theirs + following.n_theirs, self.fresh)

    def keeping(self, fresh: float) -> Axis:
        """The same with another `fresh`."""
        return replace(self, fresh=fresh)

    def take(self, theirs: Tensor, dim: int) -> Tensor:
        """Ours of ``theirs`` along ``dim``; 0 where nothing corresponds."""
        moved = theirs.movedim(dim, 0)
        shape = (len(self), *(1,) * (moved.dim() - 1))
        taken = moved.new_zeros((len(self), *moved.shape[1:]))
        for source, weight in zip(self.source.unbind(1), self.weight.unbind(1), strict=True):
            taken += moved[source] * weight.to(moved).view(shape)
        return taken.movedim(0, dim)

    def kept(self, like: Tensor, dim: int) -> Tensor:
        """Factor on what was drawn along ``dim``: 1 where something corresponds, else `fresh`."""
        factor = torch.where(self.known, 1.0, self.fresh).to(like)
        return factor.view([-1 if d == dim else 1 for d in range(like.dim())])
