"""One file from a web server to disk: resumed where it broke off, checked, never half there."""

from __future__ import annotations

import errno
import hashlib
import http.client
import importlib.metadata
import json
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import unquote, urlsplit

from vae_astro.data.sources.network import TRANSIENT_STATUS, hide_secrets
from vae_astro.errors import InputError
from vae_astro.settings import check_int, check_number

__all__ = ["DownloadError", "Manners", "Wanted", "fetch", "fetch_text"]

CHUNK_BYTES = 2**20
LONGEST_TEXT_BYTES = 2**26

T = TypeVar("T")
Progress = Callable[[int, int | None], None]
"""Told how many bytes there are, and of how many."""


class DownloadError(Exception):
    """Why a file could not be had."""


class _AgainError(Exception):
    """What may go better at the next attempt, and how long the server asks to wait [s]."""

    def __init__(self, why: str, wait_s: float = 0.0) -> None:
        super().__init__(why)
        self.wait_s = wait_s


@dataclass(frozen=True)
class Wanted:
    """A file to download.

    Attributes
    ----------
    url : str
        Where it is: http or https.
    checksum : str
        ``md5:`` or ``sha256:`` and the hexadecimal digits; empty where it is not known.

    Raises
    ------
    InputError
        If the address or the checksum is none, or the address does not end in the name of a file.
    """

    url: str
    checksum: str = ""

    def __post_init__(self) -> None:
        plain = r"https?://[\w.:\[\]-]+(/[\x21-\x7e]*)?"
        if not re.fullmatch(plain, self.url, re.ASCII):
            raise InputError(
                f"{hide_secrets(self.url)} is no address to download from; expected "
                "https://HOST/FILE, without a user and without blanks (%20 is one)"
            )
        if self.name.startswith(".") or not self.name or re.search(r"[/\0]", self.name):
            raise InputError(f"{hide_secrets(self.url)} does not end in the name of a file")
        if self.checksum and not re.fullmatch(
            r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", self.checksum
        ):
            raise InputError(
                f"{self.checksum!r} is no checksum; expected md5: and 32 hexadecimal digits or "
                "sha256: and 64"
            )

    @property
    def name(self) -> str:
        """Of the file on disk."""
        return unquote(urlsplit(self.url).path.rpartition("/")[2])


@dataclass(frozen=True)
class Manners:
    """How much a server is asked for. One connection at a time, always.

    Parameters
    ----------
    max_mib_per_s : float, optional
        Most MiB a second; None is as fast as they come.
    pause_s : float
        Between two files, in seconds.
    timeout_s : float
        Longest silence of a server, in seconds.
    n_attempts : int
        Most requests for one file.
    first_wait_s, longest_wait_s : float
        Seconds before the second attempt, doubled for each further one, and the most that a
        server may ask for.

    Raises
    ------
    InputError
        If a setting is out of range; the message names its key.
    """

    max_mib_per_s: float | None = 20.0
    pause_s: float = 1.0
    timeout_s: float = 60.0
    n_attempts: int = 5
    first_wait_s: float = 2.0
    longest_wait_s: float = 600.0

    def __post_init__(self) -> None:
        if self.max_mib_per_s is not None:
            check_number("max_mib_per_s", self.max_mib_per_s, above=0)
        check_number("pause_s", self.pause_s, minimum=0)
        check_number("timeout_s", self.timeout_s, above=0)
        check_int("n_attempts", self.n_attempts, minimum=1)


class _Part:
    """The beginning of a file, and beside it what is known of the whole."""

    def __init__(self, target: Path, url: str) -> None:
        self.path = target.with_name(f"{target.name}.part")
        self._notes = target.with_name(f"{target.name}.part.json")
        self._url = hide_secrets(url)  # what a query holds may be a key
        self.total: int | None = None
        self.validator = ""
        self.n_pieces = 0
        try:
            notes = json.loads(self._notes.read_text())
            if notes["url"] == self._url and self.path.exists():
                self.total, self.validator = notes["total"], notes["validator"]
                self.n_pieces = notes["n_pieces"]
                return
        except (OSError, ValueError, KeyError, TypeError):
            pass
        self.discard()

    @property
    def n_bytes(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._notes.unlink(missing_ok=True)
        self.total, self.validator, self.n_pieces = None, "", 0

    def begin(self, total: int | None, validator: str) -> None:
        """Note what is known before a piece is written, so that it can be gone on with."""
        self.total, self.validator, self.n_pieces = total, validator, self.n_pieces + 1
        notes = {"url": self._url, "total": total, "validator": validator}
        self._notes.write_text(json.dumps({**notes, "n_pieces": self.n_pieces}))

    def finish(self, target: Path) -> None:
        with self.path.open("rb+") as file:
            os.fsync(file.fileno())
        self.path.replace(target)
        self._notes.unlink(missing_ok=True)


def fetch(wanted: Wanted, folder: Path, manners: Manners, progress: Progress) -> bool:
    """Download a file, going on where an earlier attempt broke off.

    What has arrived is kept in ``NAME.part`` until size and checksum are right; a file whose
    checksum is wrong is deleted.

    Returns
    -------
    bool
        False if it is there already; nothing is asked for then.

    Raises
    ------
    DownloadError
        If the server does not give it, or gives another one than the checksum tells.
    InputError
        If the folder cannot be written, or its disk is full.
    """
    target = folder / wanted.name
    if target.exists():
        return False
    part = _Part(target, wanted.url)

    def attempt() -> None:
        _receive(wanted, part, manners, progress)
        _check_sum(wanted, part)

    try:
        _persist(attempt, manners)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = "the disk is full; make room and run again" if full else error
        raise InputError(f"out={folder}: {why}") from error
    part.finish(target)
    return True


def fetch_text(url: str, manners: Manners) -> str:
    """A small text file, not kept; see `fetch`."""

    def attempt() -> str:
        with _answer(url, {}, manners) as response:
            content = _read(response, LONGEST_TEXT_BYTES, exactly=True)
            _, total = _place(response)
        if total is not None and len(content) < min(total, LONGEST_TEXT_BYTES):
            raise _AgainError(f"broke off at byte {len(content)} of {total}")
        return content.decode(errors="replace")

    return _persist(attempt, manners)


def _persist(attempt: Callable[[], T], manners: Manners) -> T:
    """What ``attempt`` returns, in as many attempts as manners allow."""
    for n in range(1, manners.n_attempts + 1):
        try:
            return attempt()
        except _AgainError as problem:
            why, wait_s = str(problem), problem.wait_s
        if n == manners.n_attempts:
            break
        if wait_s > manners.longest_wait_s:
            raise DownloadError(f"{why}; asks to wait {wait_s:.0f} s, run again later")
        time.sleep(max(wait_s, manners.first_wait_s * 2 ** (n - 1)))
    raise DownloadError(f"{why}; given up after {manners.n_attempts} attempts")


def _receive(wanted: Wanted, part: _Part, manners: Manners, progress: Progress) -> None:
    """Complete the part by one request at most."""
    have = part.n_bytes
    if have and have == part.total:
        return
    if have and not (part.validator or wanted.checksum):
        have = 0  # nobody could tell whether the rest belongs to the same file
    headers = {"Range": f"bytes={have}-"} if have else {}
    if have and part.validator:
        headers["If-Range"] = part.validator
    with _answer(wanted.url, headers, manners) as response:
        first, total = _place(response)
        if response.status == 416 and total == have:
            return
        as_asked = first in (0, have) and (first == 0 or part.total in (None, total))
        if first is None or not as_asked:
            part.discard()
            raise _AgainError("the server sent another part than it was asked for")
        if first == 0:  # it ignores ranges, or the file has changed
            part.discard()
        part.begin(total, _validator(response))
        folder = part.path.parent
        if total is not None and total - first > (free := shutil.disk_usage(folder).free):
            raise InputError(f"out={folder}: {total - first} bytes to come, {free} are free")
        _write(response, part, first, manners, progress)
    if total is not None and part.n_bytes != total:
        raise _AgainError(f"broke off at byte {part.n_bytes} of {total}")


def _write(
    response: http.client.HTTPResponse, part: _Part, first: int, manners: Manners, tell: Progress
) -> None:
    rate = (manners.max_mib_per_s or 0) * 2**20
    chunk_bytes = min(CHUNK_BYTES, max(4096, int(rate / 4))) if rate else CHUNK_BYTES
    began, n_bytes = time.monotonic(), 0
    with part.path.open("r+b" if first else "wb") as file:
        file.seek(first)
        tell(first, part.total)
        while chunk := _read(response, chunk_bytes):
            file.write(chunk)
            n_bytes += len(chunk)
            tell(first + n_bytes, part.total)
            if rate:
                time.sleep(max(0.0, n_bytes / rate - (time.monotonic() - began)))


def _check_sum(wanted: Wanted, part: _Part) -> None:
    algorithm, _, expected = wanted.checksum.partition(":")
    if not algorithm:
        return
    with part.path.open("rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if found == expected:
        return
    in_pieces = part.n_pieces > 1
    part.discard()
    why = f"its {algorithm} is {found}, expected {expected}"
    # Pieces may be of different files; what came in one piece would come again.
    raise _AgainError(why) if in_pieces else DownloadError(why)


def _read(response: http.client.HTTPResponse, n_bytes: int, exactly: bool = False) -> bytes:
    """What has arrived; errors of the network, but not those of the disk, are worth a retry."""
    try:
        return response.read(n_bytes) if exactly else response.read1(n_bytes)
    except (OSError, http.client.HTTPException) as error:
        raise _AgainError(f"{type(error).__name__}: {error}") from error


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Never from https to http."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise DownloadError(f"is moved to {hide_secrets(newurl)}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """Web addresses only: urllib would follow a redirect to ftp too."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
        _SafeRedirects,
    ):
        opener.add_handler(handler())
    return opener


@contextmanager
def _answer(
    url: str, headers: dict[str, str], manners: Manners
) -> Iterator[http.client.HTTPResponse]:
    """The answer to a request: 200, 206 or 416; everything else is an error."""
    agent = f"vae-astro/{importlib.metadata.version('vae-astro')} (downloads stamps, one by one)"
    request = urllib.request.Request(
        url, headers={"User-Agent": agent, "Accept-Encoding": "identity", **headers}
    )
    try:
        response = _opener().open(request, timeout=manners.timeout_s)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:
                yield cast(http.client.HTTPResponse, error)  # it is the response, too
                return
            why = f"HTTP {error.code} {error.reason}"
            if error.code in TRANSIENT_STATUS:
                raise _AgainError(why, _asked_to_wait_s(error)) from error
        raise DownloadError(why) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        why = hide_secrets(f"{type(reason).__name__}: {reason}")
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise DownloadError(why) from error
        raise _AgainError(why) from error
    with response:
        yield response


def _asked_to_wait_s(response: Any) -> float:
    """Seconds of a Retry-After header, which may be a date; 0 where there is none."""
    text = response.headers.get("Retry-After") or ""
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return 0.0


def _place(response: Any) -> tuple[int | None, int | None]:
    """First byte and total size of what a response holds, None where it does not tell."""
    length = response.headers.get("Content-Length") or ""
    if response.status == 200:
        return 0, int(length) if length.isdecimal() else None
    found = re.fullmatch(
        r"bytes (?:\*|(\d+)-\d+)/(?:\*|(\d+))", response.headers.get("Content-Range") or ""
    )
    if found is None:
        return None, None
    first, total = found.groups()
    return (None if first is None else int(first)), (None if total is None else int(total))


def _validator(response: Any) -> str:
    """What tells later whether the file is still the same: a strong ETag or a date."""
    etag = response.headers.get("ETag") or ""
    return etag if etag.startswith('"') else response.headers.get("Last-Modified") or ""
