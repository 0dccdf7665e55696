"""Likelihoods of pixels between 0 and 1."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from vae_astro.errors import InputError
from vae_astro.model.continuous_bernoulli import langevin, log_sinhc
from vae_astro.model.likelihoods.base import Likelihood, sum_good
from vae_astro.settings import check_choice

__all__ = ["Bernoulli"]


class Bernoulli(Likelihood):
    """Pixels between 0 and 1; the decoder emits logits.

    Parameters
    ----------
    kind : {"continuous", "binary"}
        ``continuous``: the density that Bernoulli cross-entropy lacks the constant of
        (Loaiza-Ganem & Cunningham 2019). ``binary``: the plain probability, for pixels that are
        exactly 0 or 1.
    """

    pixel_range = (0.0, 1.0)

    def __init__(self, *, kind: str = "continuous") -> None:
        super().__init__()
        self.kind = check_choice("likelihood.kind", kind, ("continuous", "binary"))

    def log_prob(self, image: Tensor, output: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        """See `Likelihood`.

        Raises
        ------
        InputError
            If a good pixel lies outside 0 to 1.
        """
        # masked pixels are 0 by contract, so the extremes of the whole tensor will do
        self.check_range(*(float(bound) for bound in image.aminmax()))
        return self.log_density(image, output, mask, noise)

    def check_range(self, low: float, high: float) -> None:
        """See `Likelihood`."""
        if low < 0 or high > 1:
            raise InputError(
                f"likelihood=bernoulli needs pixels between 0 and 1, got {low:g} to {high:g}; "
                "set data.normalize.stretch=minmax or choose another likelihood"
            )

    def log_density(self, image: Tensor, output: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        """See `Likelihood`."""
        if self.kind == "continuous":
            # the same as x logit - log(...) of the paper, written around x = 1/2: no overflow
            log_density = output * (image - 0.5) - log_sinhc(0.5 * output)
        else:
            log_density = -F.binary_cross_entropy_with_logits(output, image, reduction="none")
        return sum_good(log_density, mask)

    def location(self, output: Tensor) -> Tensor:
        """Mean of the density."""
        if self.kind == "continuous":
            return 0.5 + 0.5 * langevin(0.5 * output)
        return output.sigmoid()
