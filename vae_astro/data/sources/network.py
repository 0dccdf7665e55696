"""What a network needs that a disk does not: another try, and messages without passwords."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["TRANSIENT_STATUS", "as_os_error", "hide_secrets", "is_transient", "retry", "words"]

TRANSIENT_STATUS = (408, 425, 429, 500, 502, 503, 504)
"""Answers of a web server that may be others later."""
N_ATTEMPTS = 4
FIRST_WAIT_S = 0.5  # before the second attempt; doubles from there

T = TypeVar("T")


def hide_secrets(text: str) -> str:
    """The text with every address in it without user, password and query."""
    text = re.sub(r"(://)[^/@\s'\"]*@", r"\1", text)
    return re.sub(r"(https?://[^\s?'\"]*)\?[^\s'\")]*", r"\1", text, flags=re.IGNORECASE)


def retry(do: Callable[[], T]) -> T:
    """What ``do`` returns, tried again where the network or the server failed it."""
    for attempt in range(1, N_ATTEMPTS):
        try:
            return do()
        except Exception as error:
            if not is_transient(error):
                raise
        time.sleep(FIRST_WAIT_S * 2 ** (attempt - 1))
    return do()


def is_transient(error: BaseException | None) -> bool:
    """Whether the same request may succeed later; drivers wrap what they got from below."""
    while error is not None:
        status = getattr(error, "status", None)
        if isinstance(status, int):
            return status in TRANSIENT_STATUS
        if isinstance(error, TimeoutError | ConnectionError):
            return True
        if type(error).__module__.startswith("aiohttp"):
            return "InvalidURL" not in type(error).__name__
        error = error.__cause__
    return False


def words(error: BaseException) -> str:
    """What happened, without secrets: what was below, where a driver only says "not found"."""
    error = error.__cause__ or error
    tried = f"after {N_ATTEMPTS} attempts: " if is_transient(error) else ""
    return hide_secrets(f"{tried}{type(error).__name__}: {error}")


def as_os_error(error: Exception, name: str) -> OSError:
    """What a driver raised, as the errors of a local file and without secrets."""
    if isinstance(error, MemoryError):
        raise error
    if isinstance(error, FileNotFoundError | PermissionError) and not is_transient(error):
        return type(error)(f"{hide_secrets(name)}: {words(error)}")
    return OSError(words(error))
