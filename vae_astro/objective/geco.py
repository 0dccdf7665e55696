r"""GECO: beta is moved until the stamps are explained down to their noise.

Rezende & Viola (2018) minimise the rate under a constraint on the reconstruction,
:math:`\mathrm{KL} + \lambda\,\langle\chi^2 - \chi^2_0\rangle`, and move the multiplier by the
moving average of the constraint. Here the reconstruction keeps its nats and the KL its weight, so
beta takes the place of :math:`1 / \lambda`. The pixels of a stamp have known noise: the target
needs no tuning, it is one per pixel.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vae_astro.errors import InputError
from vae_astro.ranks import gather
from vae_astro.settings import check_number

__all__ = ["Geco", "chi2_per_pixel"]


def chi2_per_pixel(residual: Tensor, mask: Tensor) -> Tensor:
    """Mean of the squared residual over the good pixels of each stamp.

    Parameters
    ----------
    residual : Tensor, shape (B, C, H, W)
        Stamp minus model in units of the pixel noise (`Normalizer.residual`).
    mask : Tensor of bool, shape (B, C, H, W)
        True where the pixel is good.

    Returns
    -------
    Tensor, shape (B,)
        Near 1 where the stamp is explained down to its noise; 0 without a good pixel.
    """
    squared = residual.square().where(mask, residual.new_zeros(()))
    return squared.flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1)


class Geco:
    r"""Controller of beta.

    At each training batch the constraint is :math:`c = (\mathrm{med}\,\chi^2 - \chi^2_0) / \tau`,
    cut at -1 and 1, the median taken over the stamps of the batch because a few bright ones own the
    mean. Its moving average :math:`\bar c` moves beta,

    .. math:: \ln\beta \leftarrow \ln\beta - r\,\bar c,

    within ``minimum`` and ``maximum``. Beyond the tolerance beta moves at the full rate, however
    badly an untrained decoder draws; within it beta settles.

    Chi-squared is that of the sampled code, as training sees it, so the posterior's own spread
    counts: at the posterior mean, where validation looks, it ends a little lower.

    Where the target cannot be met (bright stars that no short code explains), beta falls to
    ``minimum``; where the median stamp is empty sky, no code is needed and beta rises to
    ``maximum``.

    Parameters
    ----------
    target_chi2 : float
        :math:`\chi^2_0`, per good pixel.
    tolerance : float
        :math:`\tau`, in units of chi-squared per pixel.
    start : float
        Beta before the first step.
    rate : float
        :math:`r`, the largest change of ln(beta) in one step.
    momentum : float
        Share of the moving average kept at each batch, from 0 up to but not including 1.
    minimum, maximum : float
        Bounds of beta.

    Attributes
    ----------
    state : Tensor, shape (3,)
        Beta, moving average of the constraint and number of batches seen, on the device that beta
        is moved on: a training step does not wait for them.

    Raises
    ------
    InputError
        A setting out of range.
    """

    def __init__(
        self,
        *,
        target_chi2: float = 1.0,
        tolerance: float = 0.1,
        start: float = 1.0,
        rate: float = 0.01,
        momentum: float = 0.9,
        minimum: float = 0.01,
        maximum: float = 10.0,
    ) -> None:
        self.target_chi2 = check_number("beta.target_chi2", target_chi2, above=0)
        self.tolerance = check_number("beta.tolerance", tolerance, above=0)
        self.rate = check_number("beta.rate", rate, above=0, maximum=1)
        self.momentum = check_number("beta.momentum", momentum, minimum=0)
        if self.momentum >= 1:
            raise InputError(f"beta.momentum must be less than 1, got {momentum:g}")
        self.minimum = check_number("beta.minimum", minimum, above=0)
        self.maximum = check_number("beta.maximum", maximum, minimum=self.minimum)
        beta = check_number("beta.start", start, minimum=self.minimum, maximum=self.maximum)
        self.state = self._state_of(beta, 0.0, 0)

    @property
    def beta(self) -> float:
        """Weight of the KL now; read from where it is moved, so not to be asked at every step."""
        return float(self.state[0])

    def state_on(self, device: torch.device) -> Tensor:
        """``state``, brought to where it is moved from now on."""
        if self.state.device != device:
            self.state = self.state.to(device, dtype=precision_on(device))
        return self.state

    @torch.no_grad()
    def observe(self, chi2: Tensor) -> None:
        """Move beta by a batch's chi-squared per pixel, shape (B,), of any precision.

        Processes that train together move as one, by the median over the whole batch. An infinite
        median counts as any that is far from the target; a batch with a NaN is passed over.
        """
        self.state = self.moved(self.state_on(chi2.device), chi2)

    def moved(self, state: Tensor, chi2: Tensor) -> Tensor:
        """The state after a batch, as `observe` has it; a pure function, and nothing is read back.

        Parameters
        ----------
        state : Tensor, shape (3,)
            Beta, moving average of the constraint, number of batches seen.
        chi2 : Tensor, shape (B,)
            Of the batch, on the same device.
        """
        whole = gather(chi2, equal=True).float()
        median = _median(whole.clamp(max=1e30))  # between infinities lies NaN
        constraint = ((median - self.target_chi2) / self.tolerance).clamp(-1, 1)
        beta, average, n_seen = state.unbind()
        n_seen = n_seen + 1
        # a plain average until the window is full: the first batch alone decides the first step
        keep = (1 - 1 / n_seen).clamp(max=self.momentum)
        average = keep * average + (1 - keep) * constraint
        beta = (beta * torch.exp(-self.rate * average)).clamp(self.minimum, self.maximum)
        return torch.where(constraint.isnan(), state, torch.stack([beta, average, n_seen]))

    @staticmethod
    def _state_of(beta: float, average: float, n_seen: int) -> Tensor:
        return torch.tensor([beta, average, n_seen], dtype=torch.float64)

    def state_dict(self) -> dict[str, float]:
        """What a resumed run needs, in plain numbers."""
        beta, average, n_seen = self.state.tolist()
        return {"beta": beta, "average": average, "n_seen": int(n_seen)}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from `state_dict`; settings are those of this object, its bounds included."""
        beta = min(max(state["beta"], self.minimum), self.maximum)
        self.state = self._state_of(beta, state["average"], int(state["n_seen"]))


def precision_on(device: torch.device) -> torch.dtype:
    """The finest that a device computes in."""
    return torch.float32 if device.type == "mps" else torch.float64


def _median(values: Tensor) -> Tensor:
    """Median of ``values`` (B,), NaN if one is."""
    ordered = values.sort().values  # NaN comes last
    below, above = ordered[(len(values) - 1) // 2], ordered[len(values) // 2]
    return torch.where(ordered[-1].isnan(), ordered[-1], torch.lerp(below, above, 0.5))
