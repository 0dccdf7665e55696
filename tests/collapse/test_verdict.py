"""Where none, partial and full collapse begin, and what the sentence says."""

from __future__ import annotations

import numpy as np
import pytest

from vae_astro.collapse.units import ACTIVE_VARIANCE, FULL_COLLAPSE_NATS
from vae_astro.collapse.verdict import CollapseVerdict, judge


def means_of_variance(*variances: float, n_stamps: int = 10) -> np.ndarray:
    """Posterior means (N, Z) that vary by exactly this much around 3, one unit each."""
    signs = np.where(np.arange(n_stamps) % 2, 1.0, -1.0)
    return 3 + signs[:, None] * np.sqrt(variances)


def kl(*nats: float, n_stamps: int = 10) -> np.ndarray:
    """The same KL per unit for every stamp, (N, Z)."""
    return np.tile(nats, (n_stamps, 1))


def test_unit_is_active_if_its_mean_varies_over_stamps_more_than_the_threshold():
    variances = (0.0, 0.99 * ACTIVE_VARIANCE, 1.01 * ACTIVE_VARIANCE, 1.0)
    judged = judge(means_of_variance(*variances), kl(1, 1, 1, 1))
    assert (judged.active_units, judged.latent_dim) == (2, 4)


def test_unit_whose_mean_is_far_from_zero_but_constant_is_not_active():
    means = np.full((300_000, 2), 123.456, dtype=np.float32)
    assert judge(means, np.ones_like(means)).active_units == 0


def test_active_variance_is_that_of_burda():
    assert ACTIVE_VARIANCE == 0.01


@pytest.mark.parametrize(
    ("active_units", "latent_dim", "verdict"),
    [
        (0, 4, "full"),
        (1, 4, "partial"),
        (2, 4, "none"),
        (4, 4, "none"),
        (1, 3, "partial"),
        (2, 3, "none"),
        (1, 1, "none"),
        (0, 1, "full"),
        (7, 16, "partial"),
        (8, 16, "none"),
    ],
)
def test_collapse_is_partial_below_half_of_the_units_and_full_without_any(
    active_units, latent_dim, verdict
):
    variances = [1.0] * active_units + [0.0] * (latent_dim - active_units)
    judged = judge(means_of_variance(*variances), kl(*[1.0] * latent_dim))
    assert judged.verdict == verdict


@pytest.mark.parametrize(
    ("total", "verdict"), [(0.99 * FULL_COLLAPSE_NATS, "full"), (1.01 * FULL_COLLAPSE_NATS, "none")]
)
def test_code_of_almost_no_nats_is_fully_collapsed_though_its_units_vary(total, verdict):
    assert judge(means_of_variance(1, 1), kl(total / 2, total / 2)).verdict == verdict


def test_kl_is_averaged_over_stamps_and_summed_over_units():
    judged = judge(means_of_variance(1, 1, n_stamps=2), np.array([[1.0, 4.0], [3.0, 6.0]]))
    assert judged.kl_per_unit_nats == (2.0, 5.0)
    assert judged.kl_nats == 7.0


def test_float32_kl_is_averaged_in_double_precision():
    kl_per_unit = np.full((300_000, 1), 0.1, dtype=np.float32)
    judged = judge(means_of_variance(1, n_stamps=300_000), kl_per_unit)
    assert judged.kl_nats == pytest.approx(float(np.float32(0.1)), rel=1e-12)


def test_judged_numbers_are_plain_python():
    judged = judge(means_of_variance(1, 0).astype(np.float32), kl(1, 2).astype(np.float32))
    assert type(judged.active_units) is int
    assert {type(nats) for nats in judged.kl_per_unit_nats} == {float}


@pytest.mark.parametrize(
    ("variances", "nats", "sentence"),
    [
        (
            (1, 1, 0),
            (2.5, 1.25, 0),
            "No collapse: 2 of 3 latent units are active and carry 3.75 nats per stamp.",
        ),
        (
            (1, 0, 0),
            (12.3456, 0, 0),
            "Partial collapse: only 1 of 3 latent units are active and carry 12.3 nats per stamp; "
            "fewer units, a smaller beta or a learned sigma would use the code better.",
        ),
        (
            (0, 0, 0),
            (0.001, 0, 0),
            "Full collapse: 0 of 3 latent units are active and carry 0.001 nats per stamp; the "
            "code says nothing about the stamps. Lower the final beta or the decoder's variance "
            "(likelihood=sigma learns it).",
        ),
    ],
)
def test_sentence_names_the_verdict_its_figures_and_the_next_step(variances, nats, sentence):
    assert judge(means_of_variance(*variances), kl(*nats)).sentence == sentence


def test_sentence_follows_the_verdict_of_the_record():
    judged = CollapseVerdict("none", active_units=4, latent_dim=8, kl_per_unit_nats=(0.5,) * 8)
    assert judged.sentence == (
        "No collapse: 4 of 8 latent units are active and carry 4 nats per stamp."
    )
