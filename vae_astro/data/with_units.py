"""Stamps of astropy that know their unit, mask and uncertainty: NDData and Quantity."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from astropy import units
from astropy.nddata import NDData, NDUncertainty, StdDevUncertainty
from astropy.utils.masked import Masked

from vae_astro.data.raw import filled
from vae_astro.errors import InputError

__all__ = ["taken_apart"]

NOT_LIGHT = {"angle", "frequency", "length", "speed", "time"}
"""Physical types that a map of something else has: a seeing, a wavelength, a velocity field."""

Parts: TypeAlias = tuple[np.ndarray, np.ndarray | None, units.UnitBase | None]


def taken_apart(stamps: Any) -> Parts | None:
    """Pixels (NaN where masked), their standard deviation and their unit; None for what has none.

    Raises
    ------
    InputError
        No real numbers; a unit that is logarithmic or not one of light; a mask or an uncertainty of
        another shape, kind or unit.
    """
    unit = getattr(stamps, "unit", None)
    if isinstance(stamps, NDData | Masked | units.Quantity) and unit is not None:
        _refuse_what_is_no_light(unit)
    if isinstance(stamps, NDData):
        return _of_nddata(stamps)
    if isinstance(stamps, Masked):
        pixels = np.asarray(stamps.unmasked)
        pixels = np.where(stamps.mask, np.float32(np.nan), filled(pixels))
        return pixels, None, unit
    if isinstance(stamps, units.Quantity):
        return stamps.value, None, stamps.unit
    return None


def _refuse_what_is_no_light(unit: units.UnitBase) -> None:
    """Sky and noise are measured in pixels that add up as photons do."""
    logarithmic = isinstance(unit, units.function.FunctionUnitBase) or unit in (
        units.mag,
        units.dex,
        units.dB,
    )
    if logarithmic:
        raise InputError(
            f"the stamps are in {unit}, a logarithm; give them in a linear unit such as adu, "
            "electron or nJy"
        )
    if NOT_LIGHT & set(unit.physical_type):
        raise InputError(
            f"the stamps are in {unit}, a unit of {unit.physical_type}; give counts, a flux or a "
            "surface brightness"
        )


def _of_nddata(stamps: NDData) -> Parts:
    """Pixels of an NDData, NaN where it is masked, and its uncertainty."""
    pixels = stamps.data
    if np.asarray(pixels).dtype.kind not in "biuf":
        raise InputError(f"stamps are {np.asarray(pixels).dtype} in a {type(stamps).__name__}")
    if stamps.mask is not None:
        try:
            is_bad = np.broadcast_to(np.asarray(stamps.mask, bool), pixels.shape)
        except ValueError as error:
            raise InputError(
                f"the mask of a {type(stamps).__name__} has shape {np.shape(stamps.mask)}, its "
                f"pixels {pixels.shape}"
            ) from error
        pixels = np.where(is_bad, np.float32(np.nan), filled(pixels))
    noise = None
    if stamps.uncertainty is not None:
        noise = _std(stamps.uncertainty, stamps.unit)
        if noise.shape != pixels.shape:
            raise InputError(
                f"the uncertainty of a {type(stamps).__name__} has shape {noise.shape}, its pixels "
                f"{pixels.shape}"
            )
    return pixels, noise, stamps.unit


def _std(uncertainty: NDUncertainty, unit: units.UnitBase | None) -> np.ndarray:
    """Standard deviations in the unit of the pixels."""
    try:
        with np.errstate(divide="ignore", invalid="ignore"):  # an inverse variance of 0: masked
            std = uncertainty.represent_as(StdDevUncertainty)
    except (TypeError, AttributeError) as error:
        raise InputError(
            f"an uncertainty of the kind {uncertainty.uncertainty_type} is not a standard "
            "deviation: give a StdDevUncertainty, VarianceUncertainty or InverseVariance"
        ) from error
    values = np.asarray(std.array)
    if unit is None or std.unit is None or std.unit == unit:
        return values
    return values * std.unit.to(unit)  # which astropy has seen to be possible
