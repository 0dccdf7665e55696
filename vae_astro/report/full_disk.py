"""What a full disk may cost: curves, pictures and the log file, but not the run."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.summary.writer.event_file_writer import (  # type: ignore[import-untyped]
    _AsyncWriterThread,
)

from vae_astro.command.files import whole
from vae_astro.report.history import SCHEDULE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Curves", "file_handlers_that_give_up", "save_figure"]

log = logging.getLogger(__name__)


class _Nowhere:
    """Takes every call that a writer takes."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


class Curves(TensorBoardLogger):
    """TensorBoard, as long as it can be written.

    Its file is written by a thread, so an error comes up at some later call. The first one ends the
    curves with one line of warning, and the run goes on.

    Attributes
    ----------
    is_lost : bool
        Whether that has happened.
    """

    is_lost = False

    @property
    def experiment(self) -> Any:
        """The writer, or what does nothing in its place."""
        if not self.is_lost:
            with self._while_it_works():
                _silence_its_thread()
                return super().experiment
        return _Nowhere()

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """As `TensorBoardLogger` does; what stands in no group goes to ``schedule/``."""
        with self._while_it_works():
            super().log_metrics(
                {f"{'' if '/' in name else SCHEDULE}{name}": metrics[name] for name in metrics},
                step,
            )

    def log_hyperparams(
        self, params: Any, metrics: dict[str, Any] | None = None, step: int | None = None
    ) -> None:
        """As `TensorBoardLogger` does."""
        if not self.is_lost:
            with self._while_it_works():
                super().log_hyperparams(params, metrics, step)

    def add_figure(self, name: str, figure: Figure, step: int) -> None:
        """Show a picture beside the curves."""
        with self._while_it_works():
            self.experiment.add_figure(name, figure, step)

    def add_text(self, name: str, text: str, step: int) -> None:
        """Show text (Markdown) beside the curves."""
        with self._while_it_works():
            self.experiment.add_text(name, text, step)

    def add_layout(self, layout: dict[str, Any]) -> None:
        """Arrange curves on the page of custom scalars: group to title to kind and names."""
        with self._while_it_works():
            self.experiment.add_custom_scalars(layout)

    def add_summaries(self, summaries: Iterable[Any], step: int) -> None:
        """Write finished summaries of TensorBoard's plugins."""
        with self._while_it_works():
            writer = self.experiment._get_file_writer()
            for each in summaries:
                writer.add_summary(each, step)

    def save(self) -> None:
        """As `TensorBoardLogger` does."""
        if not self.is_lost:
            with self._while_it_works():
                super().save()

    def finalize(self, status: str) -> None:
        """As `TensorBoardLogger` does."""
        if not self.is_lost:
            with self._while_it_works():
                super().finalize(status)

    @contextmanager
    def _while_it_works(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            reason = error if isinstance(error, OSError) else error.__cause__
            if not isinstance(reason, OSError):  # what Lightning makes of any error
                raise
            if not self.is_lost:
                log.warning(
                    "curves are not written from here on: %s; the run goes on without them", reason
                )
            self.is_lost = True


def _silence_its_thread() -> None:
    """Keep the traceback of the writer's thread from the user: the next call brings its error."""
    hook = threading.excepthook
    if getattr(hook, "knows_curves", False):
        return

    def quiet(args: threading.ExceptHookArgs) -> None:
        if not (
            isinstance(args.thread, _AsyncWriterThread) and isinstance(args.exc_value, OSError)
        ):
            hook(args)

    quiet.knows_curves = True  # type: ignore[attr-defined]
    threading.excepthook = quiet


def save_figure(figure: Figure, path: Path) -> bool:
    """Write a picture whole or not at all; where that fails, say so and go on.

    Returns
    -------
    bool
        Whether it is there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as partial:
            figure.savefig(partial, dpi=110)
    except OSError as error:
        log.warning("no picture %s: %s", path, error)
        return False
    return True


def file_handlers_that_give_up() -> None:
    """Let log files that cannot be written end with one line and no traceback for each record."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handleError = _GivesUp(handler)  # type: ignore[method-assign]


class _GivesUp:
    def __init__(self, handler: logging.FileHandler) -> None:
        self.handler = handler

    def __call__(self, record: logging.LogRecord) -> None:
        logging.getLogger().removeHandler(self.handler)
        log.warning("%s is not written from here on", self.handler.baseFilename)
