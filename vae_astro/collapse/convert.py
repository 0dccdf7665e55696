r"""Any loss in one number: what a KL weight beside a reconstruction loss really asks for.

Write the loss as a constant times ``half the summed squared error + beta_s2 * KL``, the KL summed
over units and both averaged over stamps. The constant moves nothing but the learning rate; the
number left, :math:`\beta\sigma^2`, is all that the two weights decide. It is the variance of the
Gaussian decoder whose evidence lower bound (beta = 1) this is, and the threshold of collapse: of a
linear VAE a principal direction survives if and only if its eigenvalue of the data covariance lies
above it (Lucas et al. 2019; Wang & Ziyin 2022, theorem 2); for deep networks the collapsed state
loses its stability there.

With reductions :math:`r` and curvature :math:`c` of the loss of one pixel,

.. math:: \beta\sigma^2 = \frac{w_\mathrm{KL}\, r_\mathrm{KL}}{w_\mathrm{rec}\, r_\mathrm{rec}\, c}.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from vae_astro.errors import InputError
from vae_astro.settings import check_choice, check_int, check_number

__all__ = ["LOSSES", "Conversion", "convert_loss", "parse_shape"]

LOSSES = ("mse", "sse", "half_mse", "half_sse", "gaussian", "bce", "l1")
"""Squared error (``mse``, ``sse``), half of it, Gaussian log-density, cross-entropy, |error|."""

REDUCTIONS = ("pixel_sum", "pixel_mean", "band_mean")
KL_REDUCTIONS = ("unit_sum", "unit_mean", "pixel_mean")
BATCH_REDUCTIONS = ("batch_mean", "batch_sum")

_OWN_REDUCTION = {
    "mse": "pixel_mean",
    "half_mse": "pixel_mean",
    "sse": "pixel_sum",
    "half_sse": "pixel_sum",
    "gaussian": "pixel_sum",
}
_OWN_KEY = {"bce": "mean_pixel", "l1": "scale"}  # what each density needs; the others sigma
_SHAPE = re.compile(r"[1-9]\d*(x[1-9]\d*){1,2}", re.ASCII)
_SMALLEST, _LARGEST = 1e-150, 1e150  # beyond, squares and ratios leave float64


@dataclass(frozen=True)
class Conversion:
    """A loss in the units of collapse. Everything is proportional to the weight of the KL.

    Attributes
    ----------
    beta_s2 : float
        Weight of the KL beside half the summed squared error, in units of the decoder's output
        squared.
    weight : float
        The factor on the KL that was converted.
    density : {"gaussian", "bernoulli", "laplace"}
        What the reconstruction term is a log-density of, up to factors.
    s2 : float
        Its variance for the decoder's output (one over its curvature): ``beta`` counts in it.
    slope : float
        Change of the expected pixel with the decoder's output: 1, or p (1 - p) for logits.
    eigenvalue : float or None
        Largest eigenvalue of the covariance of the pixels, if it was given.
    """

    beta_s2: float
    weight: float
    density: str
    s2: float
    slope: float = 1.0
    eigenvalue: float | None = None

    def __post_init__(self) -> None:
        if not _SMALLEST < self.beta_s2 < _LARGEST:
            raise InputError(
                f"beta * s2 comes out as {self.beta_s2:g}, which no loss can mean; check weight, "
                "sigma and the other numbers"
            )

    @property
    def beta(self) -> float:
        """Beta of Higgins et al. (2017), beside the density with variance ``s2``."""
        return self.beta_s2 / self.s2

    @property
    def sigma(self) -> float:
        """Standard deviation at which the same loss is the evidence lower bound: beta = 1."""
        return math.sqrt(self.beta_s2)

    @property
    def threshold(self) -> float:
        """Eigenvalue of the pixel covariance below which a direction is lost."""
        return self.beta_s2 * self.slope**2

    @property
    def is_exact(self) -> bool:
        """False where the threshold holds to second order only: no Gaussian."""
        return self.density == "gaussian"

    @property
    def collapses(self) -> bool | None:
        """Whether even the strongest direction is lost; None without an eigenvalue."""
        return None if self.eigenvalue is None else self.eigenvalue <= self.threshold

    @property
    def collapse_weight(self) -> float | None:
        """The factor on the KL from which all is lost; None without an eigenvalue."""
        return None if self.eigenvalue is None else self.weight * self.eigenvalue / self.threshold

    def weight_for(self, beta_s2: float) -> float:
        """The factor on the KL that gives ``beta_s2``, everything else as it is."""
        return self.weight * check_number("wanted_beta_s2", beta_s2, above=0) / self.beta_s2

    @property
    def equivalent(self) -> str:
        """The same loss as an honest density, for a person."""
        sigma, beta = f"{self.sigma:.4g}", f"{self.beta:.4g}"
        near = f"near its optimum like a Gaussian with sigma = {sigma}"
        if self.density == "gaussian":
            given = f"{math.sqrt(self.s2):.4g}"
            return (
                f"a Gaussian with sigma = {sigma} at beta = 1, or beta = {beta} at sigma = {given}"
            )
        if self.density == "laplace":
            # |error| / b + beta KL is the same as |error| / (b beta) + KL
            scale = math.sqrt(self.s2)
            one = f"a Laplace density of scale {scale * self.beta:.4g} at beta = 1"
            return f"{one}, or beta = {beta} at scale = {scale:.4g}; {near}"
        return f"a Bernoulli density at beta = {beta}; {near} in logits"

    @property
    def outlook(self) -> str:
        """Whether the code collapses, for a person."""
        word = "certain" if self.is_exact else "expected"
        if self.eigenvalue is None:
            return (
                f"{word} if the largest eigenvalue of the pixels' covariance does not exceed "
                f"{self.threshold:.4g}"
            )
        found = f"the largest eigenvalue {self.eigenvalue:.4g}"
        begins = f"nothing survives from weight = {self.collapse_weight:.4g}"
        if self.collapses:
            return f"{word}: {found} does not exceed {self.threshold:.4g}; {begins}"
        return f"not {word}: {found} exceeds {self.threshold:.4g}; {begins}"


def convert_loss(
    *,
    loss: str,
    weight: float = 1.0,
    reduction: str | None = None,
    kl_reduction: str = "unit_sum",
    shape: str | None = None,
    latent_dim: int | None = None,
    reconstruction_weight: float = 1.0,
    batch_reduction: str = "batch_mean",
    kl_batch_reduction: str = "batch_mean",
    batch_size: int | None = None,
    sigma: float | None = None,
    mean_pixel: float | None = None,
    scale: float | None = None,
    eigenvalue: float | None = None,
) -> Conversion:
    """Convert a loss ``reconstruction_weight * reconstruction + weight * KL`` as it is written.

    Parameters
    ----------
    loss : str
        One of `LOSSES`. ``mse`` and ``sse`` differ in the reduction they take if none is given.
    weight, reconstruction_weight : float
        Factors on the KL and on the reconstruction.
    reduction : {"pixel_sum", "pixel_mean", "band_mean"}, optional
        Of the reconstruction over bands and pixels; ``band_mean`` averages over bands and sums
        over pixels, as Keras' losses do in many tutorials. Needed for ``bce`` and ``l1``.
    kl_reduction : {"unit_sum", "unit_mean", "pixel_mean"}
        Of the KL over latent units; ``pixel_mean`` is its sum divided by the number of pixels.
    shape : str, optional
        Stamps as ``63x63`` or ``3x64x64`` (bands, rows, columns); where a mean needs it.
    latent_dim : int, optional
        Latent units; where a mean needs it.
    batch_reduction, kl_batch_reduction : {"batch_mean", "batch_sum"}
        Of either term over the batch. Only where they differ does ``batch_size`` matter.
    batch_size : int, optional
        Stamps in a batch.
    sigma : float, optional
        Standard deviation of ``gaussian``, needed there; with squared errors, the sigma at which
        beta is told (1 without it).
    mean_pixel : float, optional
        Mean pixel value p, between 0 and 1; needed for ``bce``, whose curvature in the logit is
        p (1 - p).
    scale : float, optional
        Mean absolute residual of a pixel b; needed for ``l1``, whose expected curvature is 1 / b
        for Laplace residuals and nothing without them.
    eigenvalue : float, optional
        Largest eigenvalue of the covariance of the pixels as the network sees them.

    Returns
    -------
    Conversion

    Raises
    ------
    InputError
        A number out of range, a name unknown, or one that is missing; names the key.
    """
    check_choice("loss", loss, LOSSES)
    for key, value in (("sigma", sigma), ("mean_pixel", mean_pixel), ("scale", scale)):
        if value is not None and key != _OWN_KEY.get(loss, "sigma"):
            raise InputError(f"loss={loss} has no {key}; leave it away")
    weight = check_number("weight", weight, above=0)
    sigma = _checked("sigma", sigma, above=0)
    scale = _checked("scale", scale, above=0)
    p = _checked("mean_pixel", mean_pixel, above=0)
    eigenvalue = _checked("eigenvalue", eigenvalue, minimum=0)
    # weight of the KL, summed over units, beside the loss of a pixel summed over pixels
    beside_sum = weight * _kl_share(kl_reduction, shape, latent_dim)
    beside_sum *= _batch_ratio(batch_reduction, kl_batch_reduction, batch_size)
    beside_sum /= check_number("reconstruction_weight", reconstruction_weight, above=0)
    beside_sum /= _reconstruction_share(loss, reduction, shape)
    s2 = 1.0 if sigma is None else sigma**2
    if loss == "bce":
        p = _needed("mean_pixel", p, "loss=bce", "the mean value of the pixels, between 0 and 1")
        if p >= 1:
            raise InputError(f"mean_pixel must be less than 1, got {p:g}")
        slope = p * (1 - p)  # of the mean in the logit, and curvature of the loss
        return Conversion(beside_sum / slope, weight, "bernoulli", 1 / slope, slope, eigenvalue)
    if loss == "l1":
        if scale is None:
            raise InputError(
                "loss=l1 has no curvature, so its weight alone sets no threshold: it is a Laplace "
                f"density of scale {beside_sum:.4g} at beta = 1; give scale=, the mean absolute "
                "residual of a pixel, for the threshold near Laplace residuals"
            )
        return Conversion(beside_sum * scale, weight, "laplace", scale**2, eigenvalue=eigenvalue)
    if loss == "gaussian":
        _needed("sigma", sigma, "loss=gaussian", "its standard deviation")
        beta_s2 = beside_sum * s2
    else:
        beta_s2 = beside_sum if loss.startswith("half") else beside_sum / 2
    return Conversion(beta_s2, weight, "gaussian", s2, eigenvalue=eigenvalue)


def parse_shape(shape: object) -> tuple[int, ...]:
    """Bands, rows and columns of ``"3x64x64"``, or rows and columns of ``"63x63"``.

    Raises
    ------
    InputError
        For anything else.
    """
    text = str(shape).strip().lower()
    if not _SHAPE.fullmatch(text):
        raise InputError(
            f"shape must be rows and columns such as 63x63, or bands, rows and columns such as "
            f"3x64x64, got {shape!r}"
        )
    return tuple(map(int, text.split("x")))


def _reconstruction_share(loss: str, reduction: str | None, shape: str | None) -> float:
    """What the reduction makes of a sum over the pixels and bands of a stamp."""
    if reduction is None:
        reduction = _OWN_REDUCTION.get(loss)
    if reduction is None:
        raise InputError(f"loss={loss} needs reduction: one of {', '.join(REDUCTIONS)}")
    check_choice("reduction", reduction, REDUCTIONS)
    if loss in ("sse", "half_sse") and reduction != "pixel_sum":
        mean = loss.replace("sse", "mse")
        raise InputError(
            f"loss={loss} is a sum over pixels; with reduction={reduction}, loss={mean}"
        )
    if shape is not None:
        parse_shape(shape)
    if reduction == "pixel_sum":
        return 1.0
    axes = parse_shape(_needed("shape", shape, f"reduction={reduction}", "such as 3x64x64"))
    n_bands = axes[0] if len(axes) == 3 else 1
    return 1 / (n_bands if reduction == "band_mean" else math.prod(axes))


def _kl_share(kl_reduction: str, shape: str | None, latent_dim: int | None) -> float:
    """What the reduction makes of a sum over latent units."""
    check_choice("kl_reduction", kl_reduction, KL_REDUCTIONS)
    if latent_dim is not None:
        check_int("latent_dim", latent_dim, minimum=1)
    asks = f"kl_reduction={kl_reduction}"
    if kl_reduction == "unit_mean":
        return 1 / _needed("latent_dim", latent_dim, asks, "the number of latent units")
    if kl_reduction == "pixel_mean":
        return 1 / math.prod(parse_shape(_needed("shape", shape, asks, "such as 3x64x64")))
    return 1.0


def _batch_ratio(batch_reduction: str, kl_batch_reduction: str, batch_size: int | None) -> float:
    """How much more the KL weighs than the reconstruction by what is done over the batch."""
    check_choice("batch_reduction", batch_reduction, BATCH_REDUCTIONS)
    check_choice("kl_batch_reduction", kl_batch_reduction, BATCH_REDUCTIONS)
    if batch_size is not None:
        check_int("batch_size", batch_size, minimum=1)
    if batch_reduction == kl_batch_reduction:
        return 1.0
    differ = "a sum over the batch in one term and a mean in the other"
    n_stamps = _needed("batch_size", batch_size, differ, "the number of stamps in a batch")
    return float(n_stamps) if kl_batch_reduction == "batch_sum" else 1 / n_stamps


def _needed(key: str, value: Any, asked_by: str, meaning: str) -> Any:
    """``value``, or an `InputError` that says who needs it."""
    if value is None:
        raise InputError(f"{asked_by} needs {key}, {meaning}")
    return value


def _checked(key: str, value: float | None, **bounds: float) -> float | None:
    """`check_number` for a number that may be left away."""
    return None if value is None else check_number(key, value, **bounds)
