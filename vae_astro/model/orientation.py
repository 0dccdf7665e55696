r"""A stamp may lie in any of eight ways: the likelihood that does not care in which.

The decoder draws a source in one orientation of its own, and every turn g of the square is as
likely as another, so

.. math:: \ln p(x|z) = \ln \tfrac18 \sum_g p(x \,|\, g\,\hat x(z)) .

This is the exact marginal, in the same nats as the density without it: of a picture that looks the
same from all sides the two are equal. The decoder is asked once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from vae_astro.data.augment import N_SYMMETRIES, apply_symmetry
from vae_astro.errors import InputError
from vae_astro.model.likelihoods import Likelihood

__all__ = ["OrientationMarginal"]


class OrientationMarginal(Likelihood):
    """A density of pixels, averaged over the eight orientations of the decoder's picture.

    A density that treats each pixel by itself is the same whether the picture is turned, or stamp,
    mask and noise the other way; turning the picture moves one array in place of three.

    Parameters
    ----------
    given : Likelihood
        Of a stamp whose orientation is known: pixel by pixel, its scale (if it learns one) the same
        for all pixels of a band and learned from squared residuals, as all of `LIKELIHOODS` are.

    Raises
    ------
    InputError
        If ``given`` is not a density: there is nothing to average then.
    """

    def __init__(self, given: Likelihood) -> None:
        super().__init__()
        if not given.is_density:
            raise InputError(
                "model.symmetry=d4 averages a density over the orientations, and this likelihood "
                "is none; choose likelihood=sigma or another, or model.symmetry=none"
            )
        self.given = given
        self.kl_weight = given.kl_weight
        self.learns_scale = given.learns_scale
        self.pixel_range = given.pixel_range

    @property
    def started(self) -> bool:  # type: ignore[override]
        """See `Likelihood`."""
        return self.given.started

    @property
    def trains_a_density(self) -> bool:
        """See `Likelihood`."""
        return self.given.trains_a_density

    @property
    def of_one_orientation(self) -> Likelihood:
        """The density that is averaged."""
        return self.given

    @property
    def pixel_weight(self) -> Tensor:
        """See `Likelihood`; the same from all sides."""
        return self.given.pixel_weight

    @property
    def wants_stamps(self) -> bool:
        """See `Likelihood`."""
        return self.given.wants_stamps

    def prepare(self, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """See `Likelihood`."""
        self.given.prepare(batches)

    def log_densities(self, image: Tensor, output: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        """Log-density of each stamp under each turn of ``output``, shape (B, 8), in nats."""
        turns = [apply_symmetry(output, turn) for turn in range(N_SYMMETRIES)]
        return torch.stack([self.given.log_density(image, t, mask, noise) for t in turns], dim=1)

    def training_terms(self, image: Tensor, output: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        """The same of what is maximised in training: a central window is that of all turns."""
        turns = [apply_symmetry(output, turn) for turn in range(N_SYMMETRIES)]
        return torch.stack([self.given.training_term(image, t, mask, noise) for t in turns], dim=1)

    def training_term(self, image: Tensor, output: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        """See `Likelihood`."""
        by_turn = self.training_terms(image, output, mask, noise)
        return by_turn.logsumexp(dim=1) - math.log(N_SYMMETRIES)

    def log_prob(self, image: Tensor, output: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        """See `Likelihood`."""
        if self.pixel_range is not None:
            self.check_range(*(float(bound) for bound in image.aminmax()))
        return self.log_density(image, output, mask, noise)

    def log_density(self, image: Tensor, output: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        """See `Likelihood`."""
        by_turn = self.log_densities(image, output, mask, noise)
        return by_turn.logsumexp(dim=1) - math.log(N_SYMMETRIES)

    def check_range(self, low: float, high: float) -> None:
        """See `Likelihood`."""
        self.given.check_range(low, high)

    def aligned(self, image: Tensor, output: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        """``output`` turned as the stamp most probably lies; see `Likelihood`."""
        with torch.no_grad():
            best = self.log_densities(image, output, mask, noise).argmax(dim=1)[:, None, None, None]
        found = output
        for turn in range(1, N_SYMMETRIES):
            found = torch.where(best == turn, apply_symmetry(output, turn), found)
        return found

    @torch.no_grad()
    def observe(self, image: Tensor, output: Tensor, mask: Tensor, noise: Tensor) -> None:
        """See `Likelihood`; an orientation counts as much as it is probable."""
        self.given.observe(image, self._expected(image, output, mask, noise), mask, noise)

    @torch.no_grad()
    def settle(self, image: Tensor, output: Tensor, mask: Tensor, noise: Tensor) -> None:
        """See `Likelihood`; for the probabilities that the scale so far gives."""
        self.given.settle(image, self._expected(image, output, mask, noise), mask, noise)

    def _expected(self, image: Tensor, output: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        """A picture whose squared residuals are those of all turns, weighted by probability.

        That is the expectation in a step of expectation maximisation: with the orientation unknown
        the best scale is the root mean square over stamps and turns.
        """
        probability = self.training_terms(image, output, mask, noise).softmax(dim=1)
        squared = torch.zeros_like(image)
        for turn in range(N_SYMMETRIES):
            weight = probability[:, turn, None, None, None]
            squared += weight * (image - apply_symmetry(output, turn)).square()
        return image - squared.sqrt()

    def location(self, output: Tensor) -> Tensor:
        """See `Likelihood`; in the orientation of ``output``."""
        return self.given.location(output)

    def learned(self) -> dict[str, Tensor]:
        """See `Likelihood`."""
        return self.given.learned()
