"""Nights of the public ZTF alert archive, and files from a list, to a folder of this machine."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vae_astro.data.sources.network import hide_secrets
from vae_astro.data.tarballs import TarballError, unpack_tarball, unpacked_folder
from vae_astro.data.transfer import DownloadError, Manners, Wanted, fetch, fetch_text
from vae_astro.errors import InputError
from vae_astro.progress import progress_of

__all__ = ["Outcome", "download", "read_urls", "with_md5sums", "ztf_nights"]

FIRST_NIGHT = date(2018, 6, 1)  # of the archive


@dataclass
class Outcome:
    """What became of the files.

    Attributes
    ----------
    n_downloaded, n_there : int
        Files that came, and those that were there already.
    n_packets : int
        Alert packets that were unpacked.
    failed : dict of str to str
        Address, without what may be secret, and reason of each file that could not be had.
    notes : list of str
        What else there is to know.
    """

    n_downloaded: int = 0
    n_there: int = 0
    n_packets: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def ztf_nights(nights: Any, archive: str) -> list[Wanted]:
    """The tarballs of nights.

    Parameters
    ----------
    nights : int, str or a sequence of them
        ``20240101``, or ``20240101-20240107`` for a range with both ends.
    archive : str
        Address of the folder that holds ``ztf_public_YYYYMMDD.tar.gz``.

    Raises
    ------
    InputError
        If one is no date, or a range ends before it begins.
    """
    given = [nights] if isinstance(nights, int | str) else nights
    if not isinstance(given, Iterable):
        raise InputError(f"nights must be dates such as 20240101, got {nights!r}")
    chosen: set[date] = set()
    for entry in given:
        first, *rest = (_night(text) for text in str(entry).split("-"))
        last = rest[0] if rest else first
        if len(rest) > 1 or last < first:
            raise InputError(
                f"nights must be YYYYMMDD or a range such as 20240101-20240107, got {entry!r}"
            )
        chosen.update(first + timedelta(days) for days in range((last - first).days + 1))
    folder = archive.rstrip("/")
    return [Wanted(f"{folder}/ztf_public_{night:%Y%m%d}.tar.gz") for night in sorted(chosen)]


def _night(text: str) -> date:
    try:
        if not re.fullmatch(r"\d{8}", text.strip(), re.ASCII):
            raise ValueError
        night = date(int(text[:4]), int(text[4:6]), int(text[6:]))
    except ValueError:
        raise InputError(f"nights must be dates such as 20240101, got {text!r}") from None
    if not FIRST_NIGHT <= night <= date.today():
        raise InputError(
            f"nights must lie between {FIRST_NIGHT:%Y%m%d}, the first, and today, got {text}"
        )
    return night


def with_md5sums(wanted: Sequence[Wanted], archive: str, manners: Manners) -> list[Wanted]:
    """The same files with the checksums that the archive tells in its file ``MD5SUMS``.

    Raises
    ------
    DownloadError
        If it cannot be had.
    """
    text = fetch_text(f"{archive.rstrip('/')}/MD5SUMS", manners)
    sums = {
        name: digest.lower()
        for digest, name in re.findall(r"^([0-9a-fA-F]{32}) [ *](?:.*/)?(\S+)$", text, re.MULTILINE)
    }
    return [
        replace(file, checksum=f"md5:{sums[file.name]}") if file.name in sums else file
        for file in wanted
    ]


def read_urls(path: Path) -> list[Wanted]:
    """The files of a list: an address a line, then its checksum where it is known.

    Empty lines and those that begin with ``#`` do not count.

    Raises
    ------
    InputError
        If the list cannot be read, a line is not understood or two files have one name.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"urls={path} cannot be read: {error}") from error
    by_name: dict[str, Wanted] = {}
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            if len(words) > 2:
                raise InputError("expected an address and at most one checksum")
            file = Wanted(words[0], words[1].lower() if len(words) == 2 else "")
        except InputError as error:
            raise InputError(f"urls={path}, line {number}: {error}") from error
        if by_name.setdefault(file.name, file) != file:
            raise InputError(f"urls={path}, line {number}: a second file called {file.name}")
    if not by_name:
        raise InputError(f"urls={path} holds no address")
    return list(by_name.values())


def download(
    wanted: Sequence[Wanted],
    folder: Path,
    manners: Manners,
    *,
    archive: str | None = None,
    unpack: bool = False,
    keep_tarballs: bool = True,
) -> Outcome:
    """Fetch the files that are not there yet, one after another.

    Parameters
    ----------
    wanted : sequence of Wanted
        The files.
    folder : Path
        Where they go; made if it is not there.
    manners : Manners
        How much is asked of the server.
    archive : str, optional
        Address of a folder whose ``MD5SUMS`` tells the checksums.
    unpack : bool
        Unpack tarballs into a folder of their name, ``.avro`` files only.
    keep_tarballs : bool
        Keep them when they are unpacked.

    Raises
    ------
    InputError
        If the folder cannot be used, or another download is writing to it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".download.lock", timeout=0):
            return _download(wanted, folder, manners, archive, unpack, keep_tarballs)
    except Timeout as error:
        raise InputError(f"out={folder}: another download is writing there") from error
    except OSError as error:
        raise InputError(f"out={folder}: {error.strerror or error}") from error


def _download(
    wanted: Sequence[Wanted],
    folder: Path,
    manners: Manners,
    archive: str | None,
    unpack: bool,
    keep_tarballs: bool,
) -> Outcome:
    outcome = Outcome()
    coming = [file for file in wanted if not _is_there(folder / file.name, unpack)]
    outcome.n_there = len(wanted) - len(coming)
    if archive is not None and any(not (folder / file.name).exists() for file in coming):
        try:
            coming = with_md5sums(coming, archive, manners)
        except DownloadError as error:
            outcome.notes.append(f"downloaded without checksums, no MD5SUMS at {archive}: {error}")
    asked = False
    for number, file in enumerate(coming, start=1):
        if asked:
            time.sleep(manners.pause_s)
        try:
            asked = _fetch_with_bar(file, folder, manners, f"{number}/{len(coming)}")
            outcome.n_downloaded += asked
            outcome.n_there += not asked
            if unpack:
                _unpack(folder / file.name, keep_tarballs, outcome)
        except DownloadError as error:
            asked = True
            outcome.failed[hide_secrets(file.url)] = str(error)
        except TarballError as error:
            outcome.failed[hide_secrets(file.url)] = f"downloaded, but not unpacked: {error}"
    return outcome


def _is_there(target: Path, unpack: bool) -> bool:
    """Whether nothing is left to do for a file."""
    unpacked = unpacked_folder(target) if unpack else None
    return target.exists() if unpacked is None else unpacked.is_dir()


def _fetch_with_bar(file: Wanted, folder: Path, manners: Manners, count: str) -> bool:
    with progress_of(None, f"{count} {file.name}", "B") as bar:

        def show(n_bytes: int, total: int | None) -> None:
            bar.total = total
            bar.update(n_bytes - bar.n)

        return fetch(file, folder, manners, show)


def _unpack(tarball: Path, keep: bool, outcome: Outcome) -> None:
    folder = unpacked_folder(tarball)
    if folder is None:
        return
    unpacked = unpack_tarball(tarball, folder)
    outcome.n_packets += unpacked.n_packets
    if unpacked.left_out:
        entries = ", ".join(f"{n} {why}" for why, n in sorted(unpacked.left_out.items()))
        outcome.notes.append(f"{tarball.name}: left out {entries}")
    if not keep:
        tarball.unlink()
