"""What a run says at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vae_astro.collapse.verdict import Explanation
from vae_astro.report.summary import closing_lines


def metrics(verdict: str) -> dict[str, Any]:
    return {
        "val": {"elbo_nats": -1.0, "reconstruction_nats": -0.5, "kl_nats": 0.5,
                "chi2_per_pixel": 1.0},
        "classes": {"nmi": None},
        "collapse": {"active_units": 1, "latent_dim": 2, "verdict": verdict},
        "timing": {"seconds_total": 41.0},
    }  # fmt: skip


def lines(verdict: str) -> str:
    return closing_lines(metrics(verdict), Explanation("so.", None, None), Path("/runs/a b"))


def test_time_comes_first_and_the_way_on_last() -> None:
    told = lines("none").splitlines()
    assert told[0] == "trained and judged in 41 s"
    assert told[-2].split() == ["next", "tensorboard", "--logdir", "/runs"]
    assert told[-1].strip().startswith("python train.py init_from='/runs/a b' ")


def test_nobody_is_told_to_go_on_from_weights_that_say_nothing() -> None:
    assert "init_from" not in lines("full")
    assert "init_from" in lines("partial")
