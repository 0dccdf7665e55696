"""scripts/benchmark_rescue.py: what it runs, and that its table stands alone."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[2]
LOUD = ("pytorch.utilities.rank_zero", "fabric.utilities.distributed")
"""Loggers of Lightning that give advice."""


@pytest.fixture
def lightning_as_it_is() -> Iterator[None]:
    """Its loggers speak as they do unasked, and again afterwards."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in LOUD]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.INFO)
    with warnings.catch_warnings():
        yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def test_table_has_no_advice_of_lightning_in_it(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    lightning_as_it_is: None,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import benchmark_rescue

    runs = []

    def run(overrides: tuple[str, ...], cfg: Any) -> Any:
        for name in LOUD:
            logging.getLogger(f"lightning.{name}").info("Tip: install what sends your runs away")
        warnings.warn("The loader does not have many workers", stacklevel=1)
        runs.append(overrides)
        is_faulty = overrides not in {fault.network for fault in benchmark_rescue.FAULTS}
        is_rescued = "collapse.action=rescue" in overrides
        state = "collapsed" if is_faulty and not is_rescued else "healthy"
        n_active = {"collapsed": 0, "healthy": 8}[state]
        return benchmark_rescue.Outcome(state, None, n_active, 1.0, -1.0, "none", (), 1.0)

    monkeypatch.setattr(benchmark_rescue, "run", run)
    out = tmp_path / "rescue.json"
    benchmark_rescue.main(OmegaConf.create({"size": "small", "out": str(out)}))
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == "rescued: 2 of 2"
    assert len(said.out.splitlines()) == 2 + 2 + 1
    assert said.err == ""
    assert caplog.text == ""
    assert len(runs) == 1 + 2 * 2  # both faults have one network
    shares = [row["value"] for row in json.loads(out.read_text())["rows"]]
    assert shares == [1.0, 1.0, 1.0]
