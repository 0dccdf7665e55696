"""How a command ends: its exit status, and one line on standard error for a mistake.

====  ==========================================================================
0     done
1     something unexpected, with a traceback; or a part that failed, which is said
2     a mistake in the settings or the input, in one line
128+n signal n stopped it: 130 Ctrl-C, 143 SIGTERM, 138 SIGUSR1, 141 nobody reads its output
====  ==========================================================================
"""

from __future__ import annotations

import functools
import logging
import os
import re
import select
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from hydra.errors import (
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf.errors import OmegaConfBaseException

from vae_astro.command.conf_files import ConfFiles
from vae_astro.errors import InputError
from vae_astro.folders import is_first_process
from vae_astro.progress import mute
from vae_astro.settings import nearest
from vae_astro.stopping import exit_status, heeded, is_told

__all__ = ["Console", "NoErrors", "mistake_in_words", "past_hydra", "run", "wants_traceback"]

FULL, OURS = "HYDRA_FULL_ERROR", "VAE_ASTRO_PLAIN_ERRORS"
"""The first asks for tracebacks; `run` sets both, so that the processes it starts know better."""
UNREAD = 141
MISTAKES = (InputError, HydraException, OmegaConfBaseException)

T = TypeVar("T")


def wants_traceback() -> bool:
    """Whether a user asks for tracebacks of mistakes: ``HYDRA_FULL_ERROR=1``."""
    return os.environ.get(FULL) == "1" and OURS not in os.environ


class _Carried(BaseException):
    """No `Exception`, so that Hydra lets it pass."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def past_hydra(command: Callable[[Any], T]) -> Callable[[Any], T]:
    """Carry what `run` knows to say past Hydra, which announces any error by a line of its own.

    Goes between ``hydra.main`` and the command.
    """

    @functools.wraps(command)
    def carried(cfg: Any) -> T:
        try:
            return command(cfg)
        except (*MISTAKES, BrokenPipeError) as error:
            raise _Carried(error) from error

    return carried


def run(main: Callable[[], Any], config_name: str, conf: Path, stopped: str = "stopped") -> None:
    """Call what ``hydra.main`` made of a command and end as the table above says.

    Parameters
    ----------
    main : callable
        Reads the command line by itself.
    config_name : str
        Of its file in ``conf``, to name what was probably meant.
    conf : Path
        Folder of the configuration.
    stopped : str
        What to say to somebody who pressed Ctrl-C, and to a scheduler whose signal has come.
    """
    if not wants_traceback():
        # Hydra would put its errors into words of several lines and end with 1
        os.environ |= {FULL: "1", OURS: "1"}
    try:
        with heeded(lambda: stopped):
            _with_all_said(main)
    except BrokenPipeError:
        if not _reader_is_gone():
            raise  # of another process
        for stream in (sys.stdout, sys.stderr):
            mute(stream)
        sys.exit(UNREAD)
    except MISTAKES as error:
        if is_told():  # its processes were told too, and gone before it
            _stop(stopped)
        if wants_traceback():
            raise
        typed = [word for word in sys.argv[1:] if not word.startswith("-")]
        words = mistake_in_words(error, ConfFiles(conf), config_name, typed)
        print(f"error: {words}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        _stop(stopped)


def _stop(words: str) -> NoReturn:
    if is_first_process():
        print(words, file=sys.stderr)
    sys.exit(exit_status())


def _with_all_said(main: Callable[[], Any]) -> None:
    """Call a command and write out what it has printed.

    The end of Python would do that too, but whoever reads by ``| head`` may be gone by then, and of
    that it makes a message and a status of its own.
    """
    try:
        main()
    except _Carried as carried:
        raise carried.error from None
    except SystemExit:
        sys.stdout.flush()
        raise
    sys.stdout.flush()


def _reader_is_gone() -> bool:
    """Whether standard output or standard error is a pipe that nobody reads."""
    ends = select.poll()
    for stream in (sys.stdout, sys.stderr):
        ends.register(stream.fileno(), 0)  # errors are told without being asked for
    return bool(ends.poll(0))


def mistake_in_words(
    error: BaseException, conf: ConfFiles, config_name: str, typed: list[str]
) -> str:
    """One line that names what was typed, what was expected, and what was probably meant.

    Parameters
    ----------
    error : Exception
        Of this project, of Hydra or of OmegaConf.
    conf : ConfFiles
        What can be typed.
    config_name : str
        File of the command.
    typed : list of str
        The words of the command line.
    """
    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _no_such_choice(error)
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override, text)
    if match := re.match(r"Error parsing override '(.*)'", text):
        return _unreadable(match[1], text)
    if match := re.match(r"Could not override '([^']+)'", text):
        return _no_such_key(match[1], conf, config_name, typed)
    if match := re.match(r"Could not append to config. An item is already at '([^']+)'", text):
        return f"{match[1]} is there already; write {match[1]}=... without the +"
    if match := re.match(r"Could not delete (?:from config\. )?'(.+?)'", text):
        return f"~{match[1]}: there is no {match[1]} to leave out"
    if match := re.match(
        r"(Ambiguous value for argument|Sweep parameters) '(.*?)'( |$)", text, re.M
    ):
        return (
            f"{match[2]!r} names several values; add -m for one run with each, or write a list in "
            "brackets: key=[a,b]"
        )
    return _in_one_line(text)


def _in_one_line(text: str) -> str:
    """The first sentence of a message of several lines, and what it is about."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    kept = [
        line
        for line in lines
        if not line.startswith(("object_type", "See https", "reference_type"))
    ]
    return " ".join(kept) or "unknown"


def _no_such_choice(error: MissingConfigException) -> str:
    group, _, choice = str(error.missing_cfg_file).rpartition("/")
    choices = sorted(error.options or ())
    if not group:
        return f"there is no configuration {choice}"
    if not choices:
        return f"{group}={choice}: there is no group {group}"
    meant = nearest(choice, choices)
    guess = f"did you mean {group}={meant}? " if meant else ""
    return f"{group}={choice} is no choice; {guess}there are {', '.join(choices)}"


def _no_such_key(key: str, conf: ConfFiles, config_name: str, typed: list[str]) -> str:
    chosen = conf.chosen(config_name)
    for word in typed:
        group, is_set, choice = word.lstrip("+").partition("=")
        if is_set and choice in conf.groups.get(group, []):
            chosen[group] = choice
    known = [key.name for key in conf.keys(None, config_name)]
    for group, choice in chosen.items():
        known += [f"{group}.{key.name}" for key in conf.keys(group, choice)]
    group = key.partition(".")[0]
    owner = f" of {group}={chosen[group]}" if "." in key and group in chosen else ""
    if key in chosen:
        return f"{key} is a group; write {key}=CHOICE: {', '.join(conf.groups[key])}"
    if "." not in key and key not in known:
        known += [*chosen, "experiment", "debug"]
    meant = nearest(key, known)
    if meant and meant in conf.groups:
        guess = f"; did you mean {meant}={'|'.join(conf.groups[meant])}?"
    elif meant:
        guess = f"; did you mean {meant}?"
    elif owner:
        has = [name.partition(".")[2] for name in known if name.startswith(f"{group}.")]
        guess = f"; it has {', '.join(has)}"
    else:
        guess = "; --help lists what there is"
    return f"{key} is no setting{owner}{guess}"


def _unreadable(override: str, text: str) -> str:
    if "=" not in override and not override.startswith("~"):
        return f"{override!r} is not key=value; --help lists what can be set"
    key, _, value = override.partition("=")
    return (
        f"{override!r} cannot be read; a value with =, ~, comma, braces or brackets in it needs "
        f"quotes within quotes: '{key}=\"{value}\"'"
    )


class Console(logging.StreamHandler[Any]):
    """What a run says; where nobody reads it any more the run goes on, and says it to its file."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # of logging
        """See `logging.Handler`."""
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            mute(self.stream)
        else:
            super().handleError(record)


class NoErrors(logging.Filter):
    """Keeps errors from standard output: they go to standard error."""

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging.Filter`."""
        return record.levelno < logging.ERROR
