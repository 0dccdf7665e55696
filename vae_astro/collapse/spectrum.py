r"""How strongly the stamps vary along each direction, in the units in which a loss weighs them.

A VAE whose code says nothing draws one picture for all stamps. Let that picture change a little
along a direction W, and the loss changes by

.. math::
    \tfrac12\, W^\top \langle \psi\psi^\top \rangle\, W / \beta
    \;-\; \tfrac12\, W^\top \mathrm{diag}\langle h \rangle\, W ,

with :math:`\psi` the slope of each pixel's log-density in the decoder's output and h minus its
second derivative. So the directions in which the loss can fall are those of the covariance of
:math:`\psi / \sqrt{\langle h \rangle}` with an eigenvalue above :math:`\beta`, for any likelihood.
For a Gaussian with variance s2 this covariance is that of the stamps divided by s2, and the
condition that of Lucas et al. (2019, beta = 1) and Wang & Ziyin (2022, Theorem 2),
:math:`\lambda > \beta s^2`; masks and the noise of each pixel come in through h.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vae_astro.data.batches import Batch
from vae_astro.errors import InputError
from vae_astro.model.likelihoods import Likelihood

__all__ = ["MOST_ELEMENTS", "Spectrum", "collapsed_picture", "measure_spectrum"]

MOST_ELEMENTS = 80_000_000
"""Pixels held at a time, whatever the number of stamps: 20,000 stamps of 63x63, 320 MB."""
N_FIRST = 2048
"""Stamps that the collapsed picture is found from, before all are weighed around it."""
CHUNK = 512
NEWTON_STEPS = 30
LARGEST_STEP = 1e3
CLOSE_ENOUGH = 1e-8
"""Mean change of a pixel's log-density, in nats, below which the picture is found."""
SMALLEST_VARIANCE = 1e-10
"""Variance of a whitened pixel below which it is taken for constant."""
SMALLEST_EXACT = 1024
"""Rows or columns up to which the decomposition is exact and not randomised."""


@dataclass(frozen=True)
class Spectrum:
    """Leading part of the stamps' covariance in the units of a loss, its collapsed state at 1.

    C counts the bands in which stamps differ: one without a good pixel in any stamp, or the same in
    all of them, has nothing to say and is left out.

    Attributes
    ----------
    eigenvalues : ndarray, shape (Q,), float64
        Largest eigenvalues of the whitened covariance, descending. Dimensionless: a direction
        lowers the loss if its eigenvalue exceeds the weight of the KL.
    overlap : ndarray, shape (C, Q, Q), float64
        For each band, products of the eigenvectors' parts in it; they add up to the unit matrix.
    variance : ndarray, shape (C,), float64
        Trace of the whitened covariance in each band, all directions.
    fitting_variance : ndarray, shape (C,), float64
        The trace that fits the decoder variance: the number of pixels of the band for a Gaussian,
        each by its weight in training.
    decoder_variance : ndarray, shape (C,), float64
        Variance of a pixel of each band given the collapsed picture, squared units of the decoder's
        output: what the loss takes (``likelihood.std ** 2``), or what is learned at collapse (with
        `FocusedLikelihood`, up to how its window is weighed: it learns from the inner pixels).
    learned_scale : bool
        Whether the likelihood learns that variance, so that it shrinks as directions are explained.
    kl_weight : float
        What the likelihood multiplies beta with.
    n_stamps, n_pixels : int
        Stamps measured, and pixels (all bands) that any of them observed.
    """

    eigenvalues: np.ndarray
    overlap: np.ndarray
    variance: np.ndarray
    fitting_variance: np.ndarray
    decoder_variance: np.ndarray
    learned_scale: bool
    kl_weight: float
    n_stamps: int
    n_pixels: int

    def with_learned_scale(self) -> Spectrum:
        """The same stamps under a Gaussian that learns its variance, at its proper weight."""
        return replace(self, learned_scale=True, kl_weight=1.0)


class _Stamps(NamedTuple):
    """Stamps in memory, as in `Batch`."""

    image: Tensor
    mask: Tensor
    noise: Tensor

    def chunks(self) -> Iterator[_Stamps]:
        yield from map(_Stamps, *(part.split(CHUNK) for part in self))

    def first(self, n: int) -> _Stamps:
        return _Stamps(*(part[:n] for part in self))


def measure_spectrum(
    batches: Iterable[Batch], likelihood: Likelihood, *, n_modes: int = 64
) -> Spectrum:
    """Spectrum of the stamps as ``likelihood`` weighs them.

    Reads batches until `MOST_ELEMENTS` pixels are held, so give them in random order; memory does
    not grow beyond. The decomposition is exact for up to `SMALLEST_EXACT` stamps or pixels, above
    that a randomised subspace iteration (Halko, Martinsson & Tropp 2011).

    Parameters
    ----------
    batches : iterable of Batch
        Normalised stamps, as training sees them.
    likelihood : Likelihood
        Left as it is; a copy takes the scale that it would learn for a collapsed code.
    n_modes : int
        Eigenvalues wanted, Q; fewer where the stamps are fewer.

    Raises
    ------
    InputError
        Fewer than two stamps, no good pixel, or stamps that are all the same.
    """
    stamps = _collect(batches)
    # with the orientation unknown no pixel is by itself: the stamps are weighed as they lie
    likelihood = copy.deepcopy(likelihood.of_one_orientation)
    location = _collapsed_picture(likelihood, stamps)
    whitened, curvature, convex = _whiten(likelihood, stamps, location)
    observed = curvature > 0
    if not bool(observed.any()):
        raise InputError("no pixel of any stamp is good: look at data.normalize and the masks")
    # one column for each pixel that was ever observed
    columns = whitened.flatten(1)
    if not bool(observed.all()):
        columns = columns[:, observed.flatten()]
    # a pixel that is 0 in all stamps has no best logit: one residual for all of them says nothing
    columns[:, columns.var(0, correction=0) <= SMALLEST_VARIANCE] = 0
    variance = columns.square().mean(0)
    if float(variance.max()) == 0:
        raise InputError(
            "the stamps do not differ: all of them are the same in every good pixel, and there is "
            "nothing that a latent code could say"
        )
    bands = torch.arange(len(curvature))[:, None, None].expand_as(curvature)[observed]
    n_pixels = len(bands)
    total = torch.zeros(len(curvature)).index_add(0, bands, variance).double()
    told = total > 0
    if not bool(told.all()):  # the scale of a band that says nothing is not known either
        columns, bands = columns[:, told[bands]], (told.cumsum(0) - 1)[bands[told[bands]]]
        total = total[told]
    # a pixel that training weighs by a half bends half as much, and is half a pixel
    weight = likelihood.pixel_weight.to(stamps.image.device).expand_as(curvature).double()
    n_good = (stamps.mask.sum(0) * weight).sum((1, 2))[told].float() / len(stamps.mask)
    decoder_variance = n_good / curvature.sum((1, 2))[told].double()
    fitting = bands.bincount(weight[observed & told[:, None, None]]) if convex else total
    if likelihood.learns_scale:
        # its scale was found from the first stamps: make it that of all
        misfit = total / fitting
        columns *= misfit.rsqrt().float()[bands]
        total, decoder_variance = fitting, decoder_variance * misfit
    eigenvalues, directions = _leading(columns, n_modes)
    parts = [directions[bands == band] for band in range(len(total))]
    return Spectrum(
        eigenvalues=eigenvalues.numpy(),
        overlap=torch.stack([part.T @ part for part in parts]).numpy(),
        variance=total.numpy(),
        fitting_variance=fitting.numpy(),
        decoder_variance=decoder_variance.numpy(),
        learned_scale=likelihood.learns_scale,
        kl_weight=likelihood.kl_weight,
        n_stamps=len(stamps.image),
        n_pixels=n_pixels,
    )


def collapsed_picture(likelihood: Likelihood, image: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
    """What a decoder emits for all stamps where the code says nothing: the likeliest output.

    Parameters
    ----------
    likelihood : Likelihood
        Left as it is; a copy takes the scale that it would learn for a collapsed code.
    image, mask, noise : Tensor, shape (B, C, H, W)
        As `Likelihood` takes them.

    Returns
    -------
    Tensor, shape (C, H, W)
        Pixels, or logits where the likelihood takes these; zero where no pixel is good.
    """
    alone = copy.deepcopy(likelihood.of_one_orientation)
    return _collapsed_picture(alone, _Stamps(image, mask, noise))


def _collect(batches: Iterable[Batch]) -> _Stamps:
    parts: list[_Stamps] = []
    n_elements = 0
    for batch in batches:
        parts.append(_Stamps(batch["image"], batch["mask"], batch["noise"]))
        n_elements += batch["image"].numel()
        if n_elements >= MOST_ELEMENTS:
            break
    n_stamps = sum(len(part.image) for part in parts)
    if n_stamps < 2:
        raise InputError(f"a spectrum needs at least 2 stamps, got {n_stamps}")
    return _Stamps(*map(torch.cat, zip(*parts, strict=True)))


def _collapsed_picture(likelihood: Likelihood, stamps: _Stamps) -> Tensor:
    """The decoder's best constant output (C, H, W); the likelihood's scale is set to match it."""
    few = stamps.first(N_FIRST)
    location = torch.zeros_like(few.image[0])
    for _ in range(NEWTON_STEPS):
        likelihood.settle(few.image, location.expand_as(few.image), few.mask, few.noise)
        step, curvature = _newton_step(likelihood, few, location)
        location = location + step
        if float((step.square() * curvature).mean()) <= CLOSE_ENOUGH:
            break
    if len(few.image) < len(stamps.image):
        location = location + _newton_step(likelihood, stamps, location)[0]
    return location


def _newton_step(
    likelihood: Likelihood, stamps: _Stamps, location: Tensor
) -> tuple[Tensor, Tensor]:
    """Step towards the best constant output, and mean curvature, both (C, H, W)."""
    slope, curvature = torch.zeros_like(location), torch.zeros_like(location)
    for part in stamps.chunks():
        score, bend = _derivatives(likelihood, part, location)
        slope += score.sum(0)
        curvature += bend.sum(0)
    # a logit far from its data has next to no curvature
    step = torch.where(curvature > 0, slope / curvature, 0).clamp(-LARGEST_STEP, LARGEST_STEP)
    return step, curvature / len(stamps.image)


def _whiten(
    likelihood: Likelihood, stamps: _Stamps, location: Tensor
) -> tuple[Tensor, Tensor, bool]:
    """Residuals (N, C, H, W) in units of their own noise, mean curvature (C, H, W), convexity.

    Written over the images of ``stamps``.

    Where noise differs from stamp to stamp, each is whitened by its own. A density without a
    curvature of its own in every pixel (Student's t: negative beyond the shoulder) is whitened
    by the mean. Pixels that training gives no weight have none to show.
    """
    curvature, convex = torch.zeros_like(location), True
    counts = likelihood.pixel_weight.to(location.device) > 0
    for part in stamps.chunks():
        _, bend = _derivatives(likelihood, part, location)
        curvature += bend.sum(0)
        convex = convex and bool((bend > 0).logical_or(~(part.mask & counts)).all())
    curvature = (curvature / len(stamps.image)).clamp(min=0)
    # only now is it known how all of them are whitened
    for part in stamps.chunks():
        score, bend = _derivatives(likelihood, part, location)
        # the stamps are not needed any more, and their memory is
        part.image.copy_(score / bend.where(part.mask & counts, 1).sqrt() if convex else score)
    if convex:
        weight = (len(stamps.image) / stamps.mask.sum(0).clamp(min=1)).sqrt()
    else:
        weight = curvature.where(curvature > 0, 1).rsqrt()
    return stamps.image.mul_(weight), curvature, convex


def _derivatives(
    likelihood: Likelihood, stamps: _Stamps, location: Tensor
) -> tuple[Tensor, Tensor]:
    """Slope and minus the second derivative of what is maximised, pixel by pixel, in the output."""
    output = location.expand_as(stamps.image).clone().requires_grad_()
    with torch.enable_grad():
        term = likelihood.training_term(stamps.image, output, stamps.mask, stamps.noise).sum()
        # every pixel's density depends on its own output alone: the Hessian is diagonal
        (score,) = torch.autograd.grad(term, output, create_graph=True)
        (bend,) = torch.autograd.grad(score.sum(), output)
    return score.detach(), -bend


def _leading(whitened: Tensor, n_modes: int) -> tuple[Tensor, Tensor]:
    """Largest eigenvalues (Q,) and eigenvectors (D, Q) of ``whitened.T @ whitened / N``."""
    n_rows, n_columns = whitened.shape
    if min(n_rows, n_columns) <= SMALLEST_EXACT:
        exact = whitened.double()
        wide = n_rows < n_columns
        gram = (exact @ exact.T if wide else exact.T @ exact) / n_rows
        values, vectors = torch.linalg.eigh(gram)
        values, vectors = values.flip(0)[:n_modes].clamp(min=0), vectors.flip(1)[:, :n_modes]
        if wide:
            vectors = torch.nn.functional.normalize(exact.T @ vectors, dim=0)
        return values, vectors
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _, singular, directions = torch.svd_lowrank(whitened, min(n_modes + 32, *whitened.shape), 4)
    values = singular.double().square() / n_rows
    return values[:n_modes], directions[:, :n_modes].double()
