"""What every likelihood promises, and the sum over good pixels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

__all__ = ["Likelihood", "sum_good"]


class Likelihood(nn.Module, ABC):
    """Density of the pixels of a batch around the decoder's output.

    All methods take ``image``, ``output``, ``noise`` as (B, C, H, W) float32 and ``mask`` as
    (B, C, H, W) bool, True where the pixel is good. ``output`` is what the decoder emits.
    """

    is_density = True
    """False where `training_term` is not a log-density, so beta has no fixed meaning."""

    kl_weight = 1.0
    """Factor on beta in training; 1 for every density."""

    learns_scale = False
    """Whether training adapts the width of the density to the residuals."""

    pixel_range: tuple[float, float] | None = None
    """Between what the good pixels have to lie; None: anywhere."""

    started = True
    """False where the next batch that is observed gives what learning starts from."""

    @abstractmethod
    def log_prob(self, image: Tensor, output: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        """Log-density of the good pixels of each stamp, shape (B,), in nats."""

    def training_term(self, image: Tensor, output: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        """What is maximised in training beside the KL, shape (B,); here the log-density.

        Nothing is read back from the device here, nor in `log_density` and `observe`: training does
        not wait for it. Whether the pixels are in range is for the caller to check.
        """
        return self.log_density(image, output, mask, noise)

    @property
    def pixel_weight(self) -> Tensor:
        """Weight of each pixel in `training_term`, to be broadcast to (C, H, W); here 1."""
        return torch.ones(())

    def log_density(self, image: Tensor, output: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        """`log_prob` of pixels that are known to be in range."""
        return self.log_prob(image, output, mask, noise)

    def check_range(self, low: float, high: float) -> None:
        """Raise `InputError` if pixels from ``low`` to ``high`` are not within `pixel_range`."""

    @property
    def trains_a_density(self) -> bool:
        """Whether `training_term` is the log-density of all good pixels, so that it compares with
        a validation.
        """
        return self.is_density

    @property
    def wants_stamps(self) -> bool:
        """Whether `prepare` looks at any."""
        return False

    def prepare(self, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Take what is needed from training ``batches`` before the first step: here nothing."""

    def observe(self, image: Tensor, output: Tensor, mask: Tensor, noise: Tensor) -> None:
        """Update what is learned in closed form; called once for each training batch."""

    def settle(self, image: Tensor, output: Tensor, mask: Tensor, noise: Tensor) -> None:
        """Set what is learned to its best value for these outputs, at once."""

    def location(self, output: Tensor) -> Tensor:
        """Expected pixel value (B, C, H, W), to look at and to take residuals against."""
        return output

    def aligned(self, image: Tensor, output: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        """``output`` in the orientation of the stamp; as it is, where the two have but one."""
        return output

    @property
    def of_one_orientation(self) -> Likelihood:
        """The density of a stamp whose orientation is known: pixel by pixel."""
        return self

    def learned(self) -> dict[str, Tensor]:
        """What was learned, by name, each (C,); left on the device."""
        return {}

    def describe(self) -> dict[str, list[float]]:
        """What was learned, by name, one number per band; for logs."""
        return {name: values.tolist() for name, values in self.learned().items()}


def sum_good(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of ``values`` (B, C, H, W) over the pixels of ``mask``, shape (B,)."""
    return values.where(mask, values.new_zeros(())).flatten(1).sum(1)
