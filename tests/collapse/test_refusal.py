"""A collapsed code is refused with its verdict, and goes on only where that is wanted."""

from __future__ import annotations

import numpy as np
import pytest

from vae_astro.collapse.refusal import refuse_collapsed, verdict_in
from vae_astro.collapse.verdict import judge
from vae_astro.errors import InputError


def checkpoint_of(active_units: int, kl_per_unit: list[float]) -> dict:
    last = {"active_units": active_units, "kl_per_unit_nats": kl_per_unit}
    first = {"active_units": 0, "kl_per_unit_nats": [0.0] * len(kl_per_unit)}
    return {"callbacks": {"CollapseMonitor": {"validations": [first, last]}}}


def judged(n_active: int, latent_dim: int = 4):
    means = np.random.default_rng(0).normal(size=(50, latent_dim))
    means[:, n_active:] = 0.0
    return judge(means, np.where(means, 1.0, 0.0))


def test_a_full_collapse_is_refused_with_its_figures_and_the_way_on():
    for found in (judged(0), checkpoint_of(0, [0.0, 0.001])):
        with pytest.raises(InputError, match=r"full collapse: 0 of \d latent units.*force=true"):
            refuse_collapsed(found, force=False)


def test_force_goes_on_and_says_so(caplog):
    verdict = refuse_collapsed(judged(0), force=True)
    assert verdict is not None
    assert verdict.verdict == "full"
    assert "full collapse" in caplog.text


def test_a_partial_collapse_is_told_and_a_healthy_code_is_not(caplog):
    assert refuse_collapsed(judged(4), force=False).verdict == "none"
    assert caplog.text == ""
    assert refuse_collapsed(judged(1), force=False).verdict == "partial"
    assert "partial collapse" in caplog.text


def test_a_checkpoint_speaks_of_its_last_validation():
    verdict = verdict_in(checkpoint_of(2, [1.0, 2.0]))
    assert (verdict.verdict, verdict.active_units, verdict.kl_nats) == ("none", 2, 3.0)


@pytest.mark.parametrize("callbacks", [{}, {"CollapseMonitor": {"validations": []}}])
def test_a_run_that_nobody_watched_is_not_refused_by_its_checkpoint(callbacks):
    assert refuse_collapsed({"callbacks": callbacks}, force=False) is None
