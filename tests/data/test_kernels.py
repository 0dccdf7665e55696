"""Compiled arithmetic against float64: a few units in the last place, over the whole range."""

import numpy as np
import pytest
from numba import njit

from vae_astro.data import kernels


def over(function):
    """A compiled function of one float32, applied to each of many."""

    @njit
    def apply(x: np.ndarray) -> np.ndarray:
        y = np.empty_like(x)
        for i in range(len(x)):
            y[i] = function(x[i])
        return y

    return apply


@njit
def asinh_of_faint(u):
    return kernels._asinh_of_faint(u, u * u)


def units_off(found: np.ndarray, exact: np.ndarray) -> float:
    """Largest error in units in the last place."""
    return float(np.max(np.abs(found - exact) / np.spacing(np.abs(exact).astype(np.float32))))


def magnitudes(low: float, high: float) -> np.ndarray:
    return np.geomspace(low, high, 200_000).astype(np.float32)


BORDER = np.sqrt(kernels.FAINT)


@pytest.mark.parametrize(
    ("function", "x", "exact", "limit"),
    [
        (kernels._log, magnitudes(1.5, 1e38), np.log, 2),
        (kernels._log1p, magnitudes(1e-30, 1e18), np.log1p, 3),
        (kernels._log1p, np.linspace(0, 4, 200_001)[1:].astype(np.float32), np.log1p, 3),
        (asinh_of_faint, magnitudes(1e-18, BORDER), np.arcsinh, 2),
        (asinh_of_faint, -np.linspace(0, BORDER, 200_001)[1:].astype(np.float32), np.arcsinh, 2),
        (kernels._asinh_of_bright, magnitudes(BORDER, 1e30), np.arcsinh, 3),
        (kernels._asinh_of_bright, -magnitudes(BORDER, 100), np.arcsinh, 3),
    ],
    ids=["log", "log1p", "log1p near 0", "faint", "faint below 0", "bright", "bright below 0"],
)
def test_a_function_is_exact_to_units_in_the_last_place(function, x, exact, limit):
    assert units_off(over(function)(x), exact(x.astype(np.float64))) < limit


def test_nothing_is_nothing():
    zero = np.zeros(1, dtype=np.float32)
    assert over(kernels._log1p)(zero) == 0
    assert over(asinh_of_faint)(zero) == 0


def test_a_scale_is_finite_even_for_the_smallest_of_units():
    tiny = np.float32(1e-45)
    assert kernels._scale(np.float32(4), np.float32(2)) == 0.125
    assert np.isfinite(kernels._scale(tiny, np.float32(0.5)))
