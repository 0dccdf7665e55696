"""The width of a density, one number per band, learned from residuals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vae_astro.ranks import gather, sum_over_ranks
from vae_astro.settings import check_choice

__all__ = ["Scale"]


class Scale(nn.Module):
    """One positive number per band, learned from squared residuals in closed form or by gradient.

    In closed form it is the running root of the mean squared residual: the maximum of a Gaussian
    likelihood for fixed outputs (Rybkin et al. 2021, "optimal sigma"), averaged over batches so
    that training and evaluation use the same number. It starts at the first batch's value.

    Parameters
    ----------
    group : str
        Config key prefix for messages.
    n_bands : int
        C.
    learn : {"closed_form", "gradient"}
        How.
    momentum : float
        Share of the old mean square kept at each batch, between 0 and 1.
    """

    FLOOR = 1e-6
    """Smallest mean square, so that a perfect reconstruction has a finite density."""

    log_std: nn.Parameter
    mean_square: Tensor
    n_updates: Tensor

    def __init__(self, group: str, n_bands: int, learn: str, momentum: float = 0.98) -> None:
        super().__init__()
        self.learn = check_choice(f"{group}.learn", learn, ("closed_form", "gradient"))
        self.momentum = momentum
        if self.learn == "gradient":
            self.log_std = nn.Parameter(torch.zeros(n_bands))
        else:
            self.register_buffer("mean_square", torch.ones(n_bands))
        self.register_buffer("n_updates", torch.zeros(n_bands, dtype=torch.long))
        self._known_to_have_started = self.learn == "closed_form"

    @property
    def started(self) -> bool:
        """Whether a first batch has been seen, where it is needed.

        The device is asked no more once it has said so.
        """
        if not self._known_to_have_started:
            self._known_to_have_started = bool(self.n_updates.any())
        return self._known_to_have_started

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._known_to_have_started = self.learn == "closed_form"

    def forward(self) -> Tensor:
        """The scale, shape (C, 1, 1)."""
        log_std = self.log_std if self.learn == "gradient" else 0.5 * self.mean_square.log()
        return log_std.exp()[:, None, None]

    @torch.no_grad()
    def observe(self, residual: Tensor, mask: Tensor) -> None:
        """Fold in the squared ``residual`` (B, C, H, W) of the good pixels."""
        if self.learn == "gradient":
            self.start(lambda: self.settle(gather(residual), gather(mask)))
            return
        squared = residual.square().where(mask, residual.new_zeros(()))
        totals = torch.stack([squared.sum((0, 2, 3)), mask.to(residual.dtype).sum((0, 2, 3))])
        totals = sum_over_ranks(totals)
        mean_square = (totals[0] / totals[1].clamp(min=1)).clamp(min=self.FLOOR)
        # a plain average until the window is full, so that the first batches are not half forgotten
        observed = (totals[1] > 0) & torch.isfinite(totals[0])
        self.n_updates += observed
        keep = torch.clamp(1 - 1 / self.n_updates.clamp(min=1), max=self.momentum)
        self.mean_square.copy_(
            torch.where(
                observed, keep * self.mean_square + (1 - keep) * mean_square, self.mean_square
            )
        )

    @torch.no_grad()
    def start(self, settle: Callable[[], None]) -> None:
        """At the first batch take the best scale: from 1, Adam would need thousands of steps.

        ``settle`` is to look at the whole batch, not only at the part that this process has.
        """
        if self.started:
            self.n_updates.clamp_(min=1)  # a step that is taken again has set it back
            return
        settle()
        self.n_updates += 1
        self._known_to_have_started = True

    @torch.no_grad()
    def settle(self, residual: Tensor, mask: Tensor) -> None:
        """Take the root of the mean squared ``residual`` (B, C, H, W) of the good pixels."""
        squared = residual.square().where(mask, residual.new_zeros(()))
        n_good = mask.sum((0, 2, 3)).clamp(min=1)
        mean_square = (squared.sum((0, 2, 3)) / n_good).clamp(min=self.FLOOR)
        if self.learn == "gradient":
            self.log_std.copy_(0.5 * mean_square.log())
        else:
            self.mean_square.copy_(mean_square)
