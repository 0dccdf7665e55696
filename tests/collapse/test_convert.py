"""Every loss as a constant times half the summed squared error plus beta_s2 times the KL."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812

from vae_astro.collapse.convert import (
    BATCH_REDUCTIONS,
    KL_REDUCTIONS,
    REDUCTIONS,
    convert_loss,
    parse_shape,
)
from vae_astro.errors import InputError
from vae_astro.objective.kl import gaussian_kl_per_unit

ROOT = Path(__file__).parents[2]
SHAPE = (3, 5, 4)
N_PIXELS = math.prod(SHAPE)
LATENT_DIM, BATCH_SIZE, SIGMA = 7, 6, 0.3


# The loss as a user writes it, in plain torch


def pixel_loss(loss, image, output):
    squared = (image - output).square()
    return {
        "mse": squared,
        "sse": squared,
        "half_mse": squared / 2,
        "half_sse": squared / 2,
        "gaussian": squared / (2 * SIGMA**2) + math.log(SIGMA) + 0.5 * math.log(2 * math.pi),
    }[loss]


def reduced(values, reduction, batch_reduction):
    """``values`` (B, C, H, W) to a scalar, by the axes that the reduction names."""
    per_stamp = {
        "pixel_sum": lambda: values.sum((1, 2, 3)),
        "pixel_mean": lambda: values.mean((1, 2, 3)),
        "band_mean": lambda: values.mean(1).sum((1, 2)),
    }[reduction]()
    return per_stamp.mean() if batch_reduction == "batch_mean" else per_stamp.sum()


def reduced_kl(kl_per_unit, kl_reduction, kl_batch_reduction):
    """KL (B, Z) to a scalar."""
    per_stamp = {
        "unit_sum": lambda: kl_per_unit.sum(1),
        "unit_mean": lambda: kl_per_unit.mean(1),
        "pixel_mean": lambda: kl_per_unit.sum(1) / N_PIXELS,
    }[kl_reduction]()
    return per_stamp.mean() if kl_batch_reduction == "batch_mean" else per_stamp.sum()


def draw(seed):
    """Image, output (B, C, H, W) and KL per unit (B, Z), float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    image, output = normal(BATCH_SIZE, *SHAPE), normal(BATCH_SIZE, *SHAPE)
    mean, log_var = normal(BATCH_SIZE, LATENT_DIM), normal(BATCH_SIZE, LATENT_DIM)
    return image, output, gaussian_kl_per_unit(mean, log_var)


def honest(image, output, kl_per_unit, beta_s2):
    return (image - output).square().sum() / (2 * BATCH_SIZE) + beta_s2 * kl_per_unit.sum(1).mean()


WRITTEN = [
    dict(zip(("loss", "reduction", "kl_reduction", "batch_reduction", "kl_batch_reduction"),
             names, strict=True))
    for names in itertools.product(
        ("mse", "half_mse", "gaussian"), REDUCTIONS, KL_REDUCTIONS, BATCH_REDUCTIONS,
        BATCH_REDUCTIONS,
    )
]  # fmt: skip
PLAIN = {"kl_reduction": "unit_sum", "batch_reduction": "batch_mean"}
WRITTEN += [
    {"loss": loss, "reduction": "pixel_sum", "kl_batch_reduction": "batch_mean", **PLAIN}
    for loss in ("sse", "half_sse")
]


@pytest.mark.parametrize("written", WRITTEN, ids=lambda written: "-".join(written.values()))
def test_a_loss_is_a_constant_times_the_honest_objective(written):
    weight, reconstruction_weight = 0.37, 2.6
    found = convert_loss(
        **written,
        weight=weight,
        reconstruction_weight=reconstruction_weight,
        shape="3x5x4",
        latent_dim=LATENT_DIM,
        batch_size=BATCH_SIZE,
        sigma=SIGMA if written["loss"] == "gaussian" else None,
    )

    def loss(image, output, kl_per_unit):
        values = pixel_loss(written["loss"], image, output)
        term = reduced(values, written["reduction"], written["batch_reduction"])
        kl = reduced_kl(kl_per_unit, written["kl_reduction"], written["kl_batch_reduction"])
        return reconstruction_weight * term + weight * kl

    draws = [draw(seed) for seed in range(3)]
    image, _, kl_per_unit = draws[0]
    # what a normalised density adds does not depend on the model
    offset = loss(image, image, 0 * kl_per_unit)
    constant = (loss(image, image, kl_per_unit) - offset) / honest(
        image, image, kl_per_unit, found.beta_s2
    )
    for drawn in draws:
        expected = constant * honest(*drawn, found.beta_s2) + offset
        torch.testing.assert_close(loss(*drawn), expected, rtol=1e-10, atol=0)


def test_all_losses_of_the_parametrization_are_there():
    assert len(WRITTEN) == 3 * 3 * 3 * 2 * 2 + 2


# Known answers


def test_the_loss_of_the_question_is_a_beta_of_two_million():
    found = convert_loss(loss="mse", weight=1000, shape="63x63", eigenvalue=10)
    assert found.beta_s2 == pytest.approx(1000 * 3969 / 2)
    assert found.collapses is True
    assert found.outlook.startswith("certain")


@pytest.mark.parametrize(
    ("settings", "beta_s2"),
    [
        ({"loss": "half_sse", "weight": 0.3}, 0.3),
        ({"loss": "sse", "weight": 0.3}, 0.15),
        ({"loss": "mse", "weight": 0.3, "shape": "8x8"}, 0.3 * 32),
        (
            {"loss": "mse", "weight": 0.1, "shape": "3x64x64", "kl_reduction": "unit_mean",
             "latent_dim": 256},
            0.1 * 12288 / 512,
        ),
        ({"loss": "gaussian", "weight": 4.0, "sigma": 0.5}, 1.0),
    ],
)  # fmt: skip
def test_known_losses_have_their_known_threshold(settings, beta_s2):
    assert convert_loss(**settings).beta_s2 == pytest.approx(beta_s2, rel=1e-12)


def test_the_same_loss_is_told_as_a_gaussian_in_two_ways():
    found = convert_loss(loss="sse", weight=18.0, sigma=0.5)
    assert found.sigma == pytest.approx(3.0)
    assert found.beta == pytest.approx(36.0)
    assert found.equivalent == (
        "a Gaussian with sigma = 3 at beta = 1, or beta = 36 at sigma = 0.5"
    )


@given(weight=st.floats(1e-6, 1e6), wanted=st.floats(1e-6, 1e6))
def test_the_way_back_gives_the_wanted_beta_s2(weight, wanted):
    settings = {"loss": "mse", "shape": "3x64x64", "kl_reduction": "unit_mean", "latent_dim": 5}
    back = convert_loss(weight=weight, **settings).weight_for(wanted)
    assert convert_loss(weight=back, **settings).beta_s2 == pytest.approx(wanted, rel=1e-12)


def test_collapse_begins_at_the_weight_that_is_told():
    settings = {"loss": "mse", "shape": "8x8", "eigenvalue": 5.0}
    begins = convert_loss(weight=1.0, **settings).collapse_weight
    assert convert_loss(weight=0.999 * begins, **settings).collapses is False
    assert convert_loss(weight=1.001 * begins, **settings).collapses is True
    assert "not certain" in convert_loss(weight=0.999 * begins, **settings).outlook


def test_without_an_eigenvalue_nothing_is_said_of_collapse():
    found = convert_loss(loss="sse")
    assert found.collapses is None
    assert found.collapse_weight is None
    assert found.outlook.startswith("certain if")


# The threshold itself, against the second derivative of the loss at the collapsed state


def lowest_curvature(pixels, picture, loss, weight):
    """Smallest eigenvalue of the Hessian of a linear VAE with one unit, all weights zero.

    Encoder weights e and decoder weights d (D,), posterior variance 1. Noise of plus and minus 1
    has the mean and variance of a normal one, which is all that the second order sees.
    """
    n_pixels = pixels.shape[1]
    centred = pixels - pixels.mean(0)

    def objective(weights):
        e, d = weights.split(n_pixels)
        mu = centred @ e
        outputs = [picture + (mu + eps)[:, None] * d for eps in (-1.0, 1.0)]
        reconstruction = sum(loss(output, pixels).sum(1).mean() for output in outputs) / 2
        return reconstruction + weight * mu.square().mean() / 2

    at_zero = torch.zeros(2 * n_pixels, dtype=torch.float64)
    hessian = torch.autograd.functional.hessian(objective, at_zero)
    return torch.linalg.eigvalsh(hessian)[0]


def correlated_pixels():
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(400, 2, generator=generator, dtype=torch.float64)
    mixing = torch.tensor([[1.0, 0.4, -0.6, 0.2], [0.3, -0.5, 0.1, 0.7]], dtype=torch.float64)
    pixels = 0.1 * z @ mixing + 0.02 * torch.randn(400, 4, generator=generator, dtype=torch.float64)
    return (pixels - pixels.mean(0) + 0.3).clamp(0, 1)


@pytest.mark.parametrize(
    ("settings", "loss", "is_logit"),
    [
        ({"loss": "sse"}, lambda output, x: (output - x).square(), False),
        ({"loss": "half_sse"}, lambda output, x: (output - x).square() / 2, False),
        ({"loss": "mse", "shape": "2x2"}, lambda output, x: (output - x).square() / 4, False),
        (
            {"loss": "bce", "reduction": "pixel_sum", "mean_pixel": 0.3},
            lambda output, x: F.binary_cross_entropy_with_logits(output, x, reduction="none"),
            True,
        ),
    ],
)
def test_the_collapsed_state_turns_stable_at_the_weight_that_is_told(settings, loss, is_logit):
    pixels = correlated_pixels()
    pixels += 0.3 - pixels.mean(0)  # every pixel has the mean that is told
    eigenvalue = float(torch.linalg.eigvalsh(torch.cov(pixels.T, correction=0))[-1])
    begins = convert_loss(**settings, eigenvalue=eigenvalue).collapse_weight
    picture = torch.logit(pixels.mean(0)) if is_logit else pixels.mean(0)
    assert lowest_curvature(pixels, picture, loss, 0.99 * begins) < -1e-6
    assert lowest_curvature(pixels, picture, loss, 1.01 * begins) > -1e-9


def test_cross_entropy_is_told_in_logits_and_in_pixel_values():
    found = convert_loss(loss="bce", reduction="pixel_sum", mean_pixel=0.2, weight=3.0)
    assert found.beta_s2 == pytest.approx(3 / 0.16)
    assert found.threshold == pytest.approx(3 * 0.16)
    assert found.beta == pytest.approx(3.0)
    assert "in logits" in found.equivalent
    assert not found.is_exact


def test_absolute_error_has_the_curvature_of_laplace_residuals():
    scale, shift = 0.4, 0.02
    quantiles = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    residual = torch.distributions.Laplace(0.0, scale).icdf(quantiles)
    rise = (residual - shift).abs().mean() - residual.abs().mean()
    # as steep as shift^2 / (2 s2 / beta) with beta_s2 of the conversion, to third order
    found = convert_loss(loss="l1", reduction="pixel_sum", scale=scale)
    assert float(rise) == pytest.approx(shift**2 / (2 * found.beta_s2), rel=shift / scale)
    assert "Laplace density of scale 1 at beta = 1" in found.equivalent


def test_absolute_error_without_a_scale_is_refused_and_told_as_a_laplace_density():
    with pytest.raises(InputError, match=r"no curvature.*Laplace density of scale 8 .*give scale="):
        convert_loss(loss="l1", reduction="pixel_mean", shape="4x4", weight=0.5)


# What is told


def test_equivalents_are_told_for_every_density():
    laplace = convert_loss(loss="l1", reduction="pixel_sum", scale=0.5, weight=3.0)
    # beta_s2 = 3 * 0.5; |error| + 3 KL is a Laplace density of scale 3, or beta 6 at scale 0.5
    assert laplace.equivalent == (
        "a Laplace density of scale 3 at beta = 1, or beta = 6 at scale = 0.5; near its optimum "
        "like a Gaussian with sigma = 1.225"
    )
    bernoulli = convert_loss(loss="bce", reduction="pixel_sum", mean_pixel=0.5, weight=4.0)
    assert bernoulli.equivalent == (
        "a Bernoulli density at beta = 4; near its optimum like a Gaussian with sigma = 4 in logits"
    )


def test_outlooks_are_told_with_what_is_certain_and_what_expected():
    def gaussian(eigenvalue):
        return convert_loss(loss="half_sse", weight=2.0, eigenvalue=eigenvalue).outlook

    assert gaussian(None) == (
        "certain if the largest eigenvalue of the pixels' covariance does not exceed 2"
    )
    assert gaussian(1.0) == (
        "certain: the largest eigenvalue 1 does not exceed 2; nothing survives from weight = 1"
    )
    assert gaussian(5.0) == (
        "not certain: the largest eigenvalue 5 exceeds 2; nothing survives from weight = 5"
    )
    laplace = convert_loss(loss="l1", reduction="pixel_sum", scale=1.0, eigenvalue=4.0)
    assert laplace.outlook == (
        "not expected: the largest eigenvalue 4 exceeds 1; nothing survives from weight = 4"
    )


def test_an_eigenvalue_at_the_threshold_is_lost_and_zero_too():
    assert convert_loss(loss="half_sse", weight=2.0, eigenvalue=2.0).collapses is True
    assert convert_loss(loss="half_sse", weight=2.0, eigenvalue=0).collapses is True


def test_beta_counts_in_the_variance_of_the_density():
    laplace = convert_loss(loss="l1", reduction="pixel_sum", scale=0.5, weight=3.0)
    assert (laplace.s2, laplace.beta_s2, laplace.threshold) == (0.25, 1.5, 1.5)
    assert (laplace.slope, laplace.density, laplace.is_exact) == (1.0, "laplace", False)
    bernoulli = convert_loss(loss="bce", reduction="pixel_sum", mean_pixel=0.5)
    assert (bernoulli.s2, bernoulli.slope, bernoulli.density) == (4.0, 0.25, "bernoulli")
    gaussian = convert_loss(loss="gaussian", sigma=0.5)
    assert (gaussian.s2, gaussian.slope, gaussian.density) == (0.25, 1.0, "gaussian")
    assert (gaussian.beta, gaussian.is_exact, gaussian.eigenvalue) == (1.0, True, None)


@pytest.mark.parametrize("weight", [1e-150, 1e150, 1e200])
def test_the_ends_of_float64_are_refused_with_the_number(weight):
    with pytest.raises(InputError) as refused:
        convert_loss(loss="half_sse", weight=weight)
    assert str(refused.value) == (
        f"beta * s2 comes out as {weight:g}, which no loss can mean; check weight, sigma and the "
        "other numbers"
    )


# Bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "mae"}, "loss must be one of"),
        ({"loss": "sse", "weight": 0}, "weight must be greater than 0"),
        ({"loss": "sse", "weight": -1.0}, "weight must be greater than 0"),
        ({"loss": "sse", "weight": "much"}, "weight must be a finite number"),
        ({"loss": "sse", "weight": math.nan}, "weight must be a finite number"),
        ({"loss": "sse", "reconstruction_weight": 0}, "reconstruction_weight must be greater"),
        ({"loss": "gaussian"}, "loss=gaussian needs sigma"),
        ({"loss": "gaussian", "sigma": 0}, "sigma must be greater than 0"),
        ({"loss": "mse"}, "reduction=pixel_mean needs shape"),
        ({"loss": "mse", "shape": "63"}, "shape must be .*63x63"),
        ({"loss": "mse", "shape": 3969}, "shape must be"),
        ({"loss": "mse", "shape": "0x63"}, "shape must be"),
        ({"loss": "mse", "shape": "-3x63"}, "shape must be"),
        ({"loss": "mse", "shape": "1x3x63x63"}, "shape must be"),
        ({"loss": "sse", "shape": "six"}, "shape must be"),
        ({"loss": "sse", "reduction": "pixel_mean"}, "loss=mse"),
        ({"loss": "mse", "reduction": "mean", "shape": "8x8"}, "reduction must be one of"),
        ({"loss": "sse", "kl_reduction": "mean"}, "kl_reduction must be one of"),
        ({"loss": "sse", "kl_reduction": "unit_mean"}, "needs latent_dim"),
        ({"loss": "sse", "kl_reduction": "unit_mean", "latent_dim": 0}, "latent_dim must be at"),
        ({"loss": "sse", "kl_reduction": "pixel_mean"}, "needs shape"),
        ({"loss": "sse", "kl_batch_reduction": "batch_sum"}, "needs batch_size"),
        ({"loss": "bce"}, "loss=bce needs reduction"),
        ({"loss": "bce", "reduction": "pixel_sum"}, "needs mean_pixel"),
        ({"loss": "bce", "reduction": "pixel_sum", "mean_pixel": 1}, "mean_pixel must be less"),
        ({"loss": "bce", "reduction": "pixel_sum", "mean_pixel": 0}, "mean_pixel must be greater"),
        ({"loss": "bce", "sigma": 1}, "loss=bce has no sigma"),
        ({"loss": "sse", "scale": 1}, "loss=sse has no scale"),
        ({"loss": "l1", "reduction": "pixel_sum", "scale": 0}, "scale must be greater than 0"),
        ({"loss": "sse", "eigenvalue": -1}, "eigenvalue must be at least 0"),
        ({"loss": "sse", "weight": 1e300}, "which no loss can mean"),
    ],
)
def test_what_is_no_loss_is_refused_by_the_name_of_its_key(settings, message):
    with pytest.raises(InputError, match=message):
        convert_loss(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "mae"}, "loss must be one of mse, sse, half_mse, half_sse, gaussian, bce, l1, "
         "got 'mae'"),
        ({"loss": "sse", "sigma": -1}, "sigma must be greater than 0, got -1"),
        ({"loss": "sse", "reduction": "pixel_mean"}, "loss=sse is a sum over pixels; with "
         "reduction=pixel_mean, loss=mse"),
        ({"loss": "half_sse", "reduction": "band_mean"}, "loss=half_sse is a sum over pixels; with "
         "reduction=band_mean, loss=half_mse"),
        ({"loss": "mse"}, "reduction=pixel_mean needs shape, such as 3x64x64"),
        ({"loss": "bce"}, "loss=bce needs reduction: one of pixel_sum, pixel_mean, band_mean"),
        ({"loss": "bce", "reduction": "pixel_sum"},
         "loss=bce needs mean_pixel, the mean value of the pixels, between 0 and 1"),
        ({"loss": "bce", "reduction": "pixel_sum", "mean_pixel": 1.5},
         "mean_pixel must be less than 1, got 1.5"),
        ({"loss": "bce", "reduction": "pixel_sum", "mean_pixel": -1},
         "mean_pixel must be greater than 0, got -1"),
        ({"loss": "gaussian"}, "loss=gaussian needs sigma, its standard deviation"),
        ({"loss": "gaussian", "sigma": 1, "scale": 1}, "loss=gaussian has no scale; leave it away"),
        ({"loss": "l1", "mean_pixel": 0.5}, "loss=l1 has no mean_pixel; leave it away"),
        ({"loss": "bce", "sigma": 1.0}, "loss=bce has no sigma; leave it away"),
        ({"loss": "l1", "reduction": "pixel_sum", "weight": 2.0},
         "loss=l1 has no curvature, so its weight alone sets no threshold: it is a Laplace density "
         "of scale 2 at beta = 1; give scale=, the mean absolute residual of a pixel, for the "
         "threshold near Laplace residuals"),
        ({"loss": "l1", "reduction": "pixel_sum", "scale": -1},
         "scale must be greater than 0, got -1"),
        ({"loss": "sse", "kl_reduction": "mean"},
         "kl_reduction must be one of unit_sum, unit_mean, pixel_mean, got 'mean'"),
        ({"loss": "sse", "kl_reduction": "unit_mean"},
         "kl_reduction=unit_mean needs latent_dim, the number of latent units"),
        ({"loss": "sse", "kl_reduction": "pixel_mean"},
         "kl_reduction=pixel_mean needs shape, such as 3x64x64"),
        ({"loss": "sse", "latent_dim": 0}, "latent_dim must be at least 1, got 0"),
        ({"loss": "sse", "batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"loss": "sse", "batch_reduction": "mean"},
         "batch_reduction must be one of batch_mean, batch_sum, got 'mean'"),
        ({"loss": "sse", "kl_batch_reduction": "mean"},
         "kl_batch_reduction must be one of batch_mean, batch_sum, got 'mean'"),
        ({"loss": "sse", "kl_batch_reduction": "batch_sum"},
         "a sum over the batch in one term and a mean in the other needs batch_size, the number of "
         "stamps in a batch"),
        ({"loss": "sse", "eigenvalue": -1}, "eigenvalue must be at least 0, got -1"),
        ({"loss": "sse", "reconstruction_weight": 0},
         "reconstruction_weight must be greater than 0, got 0"),
        ({"loss": "mse", "shape": "63"}, "shape must be rows and columns such as 63x63, or bands, "
         "rows and columns such as 3x64x64, got '63'"),
    ],
)  # fmt: skip
def test_a_refusal_says_what_was_given_and_what_is_wanted(settings, message):
    with pytest.raises(InputError) as refused:
        convert_loss(**settings)
    assert str(refused.value) == message


def test_a_wanted_beta_s2_is_checked_too():
    with pytest.raises(InputError, match=r"^wanted_beta_s2 must be greater than 0, got 0$"):
        convert_loss(loss="sse").weight_for(0)


def test_shapes_are_read_with_and_without_bands():
    assert parse_shape("3x64x64") == (3, 64, 64)
    assert parse_shape(" 63X48 ") == (63, 48)


# The command


def command(*arguments):
    return subprocess.run(
        [sys.executable, "scripts/convert.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_answers_the_loss_of_a_user():
    done = command(
        "loss=mse", "reduction=pixel_mean", "kl_reduction=unit_mean", "latent_dim=256",
        "weight=0.1", "shape=3x64x64", "eigenvalue=0.5", "wanted_beta_s2=1.2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "beta * s2   2.4:" in done.stdout
    assert "sigma = 1.549 at beta = 1, or beta = 2.4 at sigma = 1" in done.stdout
    assert "certain: the largest eigenvalue 0.5 does not exceed 2.4" in done.stdout
    assert "weight = 0.05 gives beta * s2 = 1.2" in done.stdout


def test_the_command_ends_a_mistake_in_one_line():
    done = command("loss=mse", "shape=63")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: shape must be")
