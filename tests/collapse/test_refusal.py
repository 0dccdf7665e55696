"""A collapsed code is refused with its verdict, and goes on only where that is wanted."""

from __future__ import annotations

import numpy as np
import pytest

from vae_astro.collapse.refusal import refuse_collapsed, verdict_in
from vae_astro.collapse.verdict import CollapseVerdict, judge
from vae_astro.errors import InputError


def checkpoint_of(active_units: int, kl_per_unit: list[float]) -> dict:
    last = {"active_units": active_units, "kl_per_unit_nats": kl_per_unit}
    first = {"active_units": 0, "kl_per_unit_nats": [0.0] * len(kl_per_unit)}
    return {"callbacks": {"CollapseMonitor": {"validations": [first, last]}}}


def judged(n_active: int, latent_dim: int = 4):
    means = np.random.default_rng(0).normal(size=(50, latent_dim))
    means[:, n_active:] = 0.0
    return judge(means, np.where(means, 1.0, 0.0), np.ones(latent_dim))


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


def test_the_refusal_is_one_sentence_with_the_way_on():
    with pytest.raises(InputError) as refused:
        refuse_collapsed(checkpoint_of(0, [0.0, 0.001]), force=False)
    assert str(refused.value) == (
        "checkpoint: full collapse: 0 of 2 latent units are active and carry 0.001 nats per stamp, "
        "so that nothing can be sorted by it; train it again (what to change stands in the last "
        "lines of its train.log), or give force=true"
    )


@pytest.mark.parametrize(("n_active", "kind"), [(0, "full"), (1, "partial")])
def test_what_goes_on_all_the_same_is_told_once(caplog, n_active, kind):
    verdict = refuse_collapsed(judged(n_active), force=True)
    (record,) = caplog.records
    assert record.getMessage() == f"{kind} collapse: {verdict.figures}"


def test_a_verdict_of_a_checkpoint_is_plain_and_whole():
    verdict = verdict_in(checkpoint_of(1, [0.25, 0.5, 1.0]))
    assert verdict == CollapseVerdict("partial", 1, 3, (0.25, 0.5, 1.0))
    assert verdict_in({}) is None
    assert verdict_in({"callbacks": {"CollapseMonitor": {}}}) is None
