"""How fast steps follow each other: ours against others, all in turns."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import peers_folder
from benchmarks.stamps import export_batches
from benchmarks.table import Row, not_measured, ratio_row, value_row
from benchmarks.turns import SideError, interleave, side, with_peers

__all__ = ["ON_CPU", "Plan", "ddp_rows", "our_side", "question_rows", "training_rows"]

ON_CPU = {"CUDA_VISIBLE_DEVICES": ""}
SHARED_BY_DDP = 2
ENDLESS = ("trainer.max_epochs=100000", "collapse.forecast_stamps=0")
"""Of a training that is stopped when there are no more turns."""


@dataclass(frozen=True)
class Plan:
    """What is measured, and where.

    Attributes
    ----------
    compose : callable
        Overrides to the settings of ``train.py``, in plain Python.
    overrides : sequence of str
        Of every training here: stamps, batch, store.
    folder : Path
        Files that are written meanwhile.
    n_rounds : int
        Turns of each side that count.
    peers : str or None
        Folder of the packages of others; None leaves them out.
    """

    compose: Callable[[Sequence[str]], dict[str, Any]]
    overrides: tuple[str, ...]
    folder: Path
    n_rounds: int
    peers: str | None

    def settings(self, *overrides: str) -> dict[str, Any]:
        """Of a training."""
        return self.compose([*self.overrides, *overrides])

    def write(self, name: str, settings: dict[str, Any]) -> str:
        """Settings as a file for another process."""
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(settings))
        return str(path)


def our_side(
    plan: Plan, name: str, settings: dict[str, Any], environment: dict[str, str] | None = None
) -> Any:
    """``train.py`` in turns."""
    arguments = [plan.write(name, settings), str(plan.folder / f"run-{name}")]
    environment = ON_CPU if environment is None else environment
    return side("ours.py", arguments, plan.folder / f"{name}.log", environment)


def training_rows(plan: Plan) -> Iterator[Row]:
    """The default training against a hand-written loop, pythae, and the same step without a tax."""
    settings = plan.settings(*ENDLESS)
    stamps = str(plan.folder / "stamps.npz")
    export_batches(settings, Path(stamps))
    arguments = [stamps, plan.write("default", settings)]
    what = "default training"
    goals, against = (2.0, 3.0), "pythae's trainer, same network and stamps"
    with ExitStack() as sides:
        ours = sides.enter_context(our_side(plan, "ours", settings))
        loop = sides.enter_context(
            side("bare_loop.py", arguments, plan.folder / "loop.log", ON_CPU)
        )
        turns: dict[str, Callable[[], float]] = {
            "ours": ours.rate,
            "bare": partial(ours.rate, "bare"),
            "loop": loop.rate,
        }
        try:
            environment = ON_CPU | with_peers(peers_folder(plan.peers))
            last = [*arguments, str(plan.folder / "pythae")]
            pythae = sides.enter_context(
                side("pythae_vae.py", last, plan.folder / "pythae.log", environment)
            )
            pythae.turn()
            turns["pythae"] = pythae.rate
            missing = ""
        except SideError as error:
            missing = str(error)
        found = interleave(turns, plan.n_rounds)
    yield ratio_row(what, found["ours"], found["loop"], (1.8, 2.5), "the same network, eager "
                    "float32, a careful bare loop")  # fmt: skip
    if missing:
        yield not_measured(what, goals, against, missing)
    else:
        yield ratio_row(what, found["ours"], found["pythae"], goals, against)
    against = "a bare PyTorch loop with the same step"
    yield ratio_row(
        "our loop with logging, bar and checkpoints", found["ours"], found["bare"], (0.95, 0.99),
        against, "of the rate",
    )  # fmt: skip
    ms = (
        1e3
        * settings["data"]["batch_size"]
        * (1 / np.array(found["ours"]) - 1 / np.array(found["bare"]))
    )
    note = f"of {1e3 * settings['data']['batch_size'] / np.median(found['ours']):.1f} ms"
    yield value_row("the same, more time for each step", ms, "ms", (1.5, None), against, note)


def question_rows(plan: Plan) -> Iterator[Row]:
    """The question's network against Keras."""
    name, against = (
        "the question's network, trained",
        "Keras 3 (torch backend), the question's code",
    )
    goals = (2.5, 4.0)
    settings = plan.settings(
        "experiment=question_repaired", *ENDLESS, "optim.lr=1e-4", "optim.schedule=constant",
        "optim.warmup_steps=0", "data.batch_size=32",
        f"data.n_stamps={plan.settings()['data']['n_stamps']}",
    )  # fmt: skip
    try:
        environment = ON_CPU | with_peers(peers_folder(plan.peers)) | {"KERAS_BACKEND": "torch"}
        stamps = str(plan.folder / "question.npz")
        export_batches(settings, Path(stamps))
        arguments = [stamps, plan.write("question", settings)]
        log = plan.folder / "keras.log"
        with (
            our_side(plan, "question", settings) as ours,
            side("keras_question.py", arguments, log, environment) as keras,
        ):
            found = interleave({"ours": ours.rate, "keras": keras.rate}, plan.n_rounds)
        yield ratio_row(name, found["ours"], found["keras"], goals, against)
    except SideError as error:
        yield not_measured(name, goals, against, str(error))


def ddp_rows(plan: Plan) -> Iterator[Row]:
    """Two processes that share each batch against one."""
    one = plan.settings(*ENDLESS, "trainer=cpu")
    two = plan.settings(*ENDLESS, "trainer=ddp", f"trainer.devices={SHARED_BY_DDP}")
    with our_side(plan, "one", one) as alone, our_side(plan, "two", two) as together:
        found = interleave({"one": alone.rate, "two": together.rate}, plan.n_rounds)
    yield ratio_row(
        "two DDP processes on two cores", found["two"], found["one"], (0.85, 0.95),
        "one process on two cores, the same batch", "of the rate",
    )  # fmt: skip
