"""The six faults of the question's network and loss, and the orders they are repaired in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["FAULTS", "PATHS", "Fault", "fault_run"]


class Fault(NamedTuple):
    """One fault.

    Attributes
    ----------
    name : str
        Two or three words.
    asked, repaired : str
        What the question has, and what takes its place.
    overrides_asked, overrides_repaired : tuple of str
        The same as it is typed behind ``train.py model=question``.
    """

    name: str
    asked: str
    repaired: str
    overrides_asked: tuple[str, ...]
    overrides_repaired: tuple[str, ...]


FAULTS = {
    1: Fault(
        "softmax output",
        "softmax over a single output channel",
        "no activation at the output",
        ("model.softmax_output=true",),
        ("model.softmax_output=false",),
    ),
    2: Fault(
        "weight 1000",
        "mean of the squared error over pixels + 1000 KL",
        "Gaussian log-density summed over pixels, sigma learned, + 1 KL",
        ("likelihood=pixel_mean_mse", "likelihood.kl_weight=1000"),
        ("likelihood=sigma",),
    ),
    3: Fault(
        "noise of 0.1",
        "sampling noise with a standard deviation of 0.1",
        "1",
        ("model.eps_std=0.1",),
        ("model.eps_std=1",),
    ),
    4: Fault(
        "exp(log_var)",
        "noise scaled by exp(log_var)",
        "exp(0.5 log_var)",
        ("model.exp_full_log_var=true",),
        ("model.exp_full_log_var=false",),
    ),
    5: Fault(
        "dying bottleneck",
        "4 dense units with ReLU before the code",
        "128 with SiLU",
        ("model.bottleneck_units=4", "model.dying_bottleneck=true"),
        ("model.bottleneck_units=128", "model.dying_bottleneck=false"),
    ),
    6: Fault(
        "two latent units",
        "2 latent units",
        "16",
        ("model.latent_dim=2",),
        ("model.latent_dim=16",),
    ),
}
"""By the number they have on the page."""

PATHS = {
    "1 and 2 first": (1, 2, 5, 4, 3, 6),
    "2 and 1 first": (2, 1, 5, 4, 3, 6),
    "1 last": (6, 5, 4, 3, 2, 1),
    "2 last": (3, 4, 5, 6, 1, 2),
}
"""Orders of repair. A state is known by the faults left, so the paths share states."""


def fault_run(data: str, faults: Iterable[int], seed: int) -> str:
    """What the run with these faults left in is called."""
    left = "".join(map(str, sorted(faults))) or "none"
    return f"{data}-faults-{left}-seed{seed}"
