"""Progress in a log: a line now and then, without a control character."""

from __future__ import annotations

import io
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from vae_astro import progress
from vae_astro.progress import Sparse, can_draw, duration, in_words, progress_of
from vae_astro.report.callbacks import ProgressBar, ProgressLines


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    now = SimpleNamespace(s=0.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now.s)
    return now


def test_a_log_gets_plain_lines_now_and_then(clock: Any, capsys: pytest.CaptureFixture) -> None:
    with progress_of(1000, "packing stamps", "file") as bar:
        for _ in range(100):
            clock.s += 1
            bar.update(10)
    said = capsys.readouterr().err
    assert said.splitlines() == [
        "packing stamps: 300 of 1000 (30 %), 10 file/s, 70 s left",
        "packing stamps: 600 of 1000 (60 %), 10 file/s, 40 s left",
        "packing stamps: 900 of 1000 (90 %), 10 file/s, 10 s left",
        "packing stamps: 1000 of 1000 (100 %), 10 file/s",
    ]
    assert not {"\r", "\x1b"} & set(said)


def test_what_is_quick_leaves_no_line(clock: Any, capsys: pytest.CaptureFixture) -> None:
    with progress_of(10, "packing stamps") as bar:
        clock.s += 5
        bar.update(10)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_and_a_dumb_one_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    assert can_draw()
    with progress_of(3, "x") as bar:
        assert isinstance(bar, tqdm)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(progress_of(3, "x"), Sparse)


def test_nothing_is_shown_where_that_is_wanted(clock: Any, capsys: pytest.CaptureFixture) -> None:
    with progress_of(3, "x", show=False) as bar:
        clock.s += 100
        bar.update(3)
    assert capsys.readouterr().err == ""


def test_words() -> None:
    assert in_words("got", 3 * 2**20, None, "B", 3) == "got: 3, 1 MiB/s"
    assert [duration(s) for s in (3, 99, 100, 5399, 9000)] == [
        "3 s", "99 s", "2 min", "90 min", "2.5 h"
    ]  # fmt: skip


def test_training_says_its_epoch_and_values(clock: Any, capsys: pytest.CaptureFixture) -> None:
    lines = ProgressLines()
    trainer: Any = SimpleNamespace(
        max_epochs=4, estimated_stepping_batches=100, global_step=0, current_epoch=1, loggers=[],
        progress_bar_metrics={"val/elbo_nats": torch.tensor(-5.5)},
    )  # fmt: skip
    lines._trainer = trainer
    lines.on_train_start(trainer, torch.nn.Module())
    for _ in range(40):
        clock.s += 1
        trainer.global_step += 1
        lines.on_train_batch_end(trainer, torch.nn.Module(), None, None, 0)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "training: 30 of 100 (30 %), 1 step/s, 70 s left",
        "  epoch 2 of 4, val/elbo_nats -5.5",
    ]


class OneNumber(LightningModule):
    """Something to train that costs nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.number = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Any) -> torch.Tensor:
        return (self.number - batch[0]).square().sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trained_with(bar: Any, **options: Any) -> Trainer:
    """Two epochs of ten batches, four of them to a step: two steps, and one of the two left."""
    loader = DataLoader(TensorDataset(torch.zeros(10, 1)), batch_size=1)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False,
        accumulate_grad_batches=4, callbacks=[bar], **{"max_epochs": 2, **options},
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few batches and no workers
        trainer.fit(OneNumber(), loader)
    return trainer


@pytest.mark.parametrize(("options", "n_steps"), [({}, 6), ({"max_steps": 4}, 4)])
def test_lines_count_optimiser_steps_and_not_batches(
    options: dict[str, int], n_steps: int, clock: Any, capsys: pytest.CaptureFixture
) -> None:
    class Slow(ProgressLines):
        def on_train_batch_end(self, *given: Any) -> None:
            clock.s += 31
            super().on_train_batch_end(*given)

    trainer = trained_with(Slow(), **options)
    assert trainer.global_step == n_steps
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("training")]
    done = [int(line.split()[1]) for line in said]
    assert said[-1].startswith(f"training: {n_steps} of {n_steps} (100 %)")
    assert done[:10] == [0, 0, 0, 1, 1, 1, 1, 2, 2, 3]


def test_the_bar_counts_optimiser_steps_and_not_batches(capsys: pytest.CaptureFixture) -> None:
    class Watched(ProgressBar):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[tuple[int, int]] = []

        def on_train_batch_end(self, *given: Any) -> None:
            super().on_train_batch_end(*given)
            self.seen.append((self.train_progress_bar.n, self.train_progress_bar.total))

    bar = Watched()
    trained_with(bar)
    assert bar.seen == [(n, 3) for n in 2 * (0, 0, 0, 1, 1, 1, 1, 2, 2, 3)]
    assert "step/s" in capsys.readouterr().out


def test_one_process_of_many_speaks(clock: Any, capsys: pytest.CaptureFixture) -> None:
    lines = ProgressLines()
    trainer: Any = SimpleNamespace(is_global_zero=False, num_predict_batches=[50])
    lines.setup(trainer, torch.nn.Module(), "predict")  # as Lightning does in the others
    lines.on_predict_start(trainer, torch.nn.Module())
    for k in range(50):
        clock.s += 10
        lines.on_predict_batch_end(trainer, torch.nn.Module(), None, None, k)
    assert capsys.readouterr().err == ""
