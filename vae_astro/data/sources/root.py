"""Where files lie: a folder or one file on this machine, or an address that fsspec understands."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import unquote

from vae_astro.data.sources.files import RefusedError
from vae_astro.errors import InputError

__all__ = ["FileVersion", "Root", "open_root"]

_SAFE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""A link is not followed unseen, and a pipe does not block."""
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class FileVersion(NamedTuple):
    """A file as it was when it was listed.

    Attributes
    ----------
    name : str
        Relative to the root, with forward slashes; the file's own name if it is the root.
    n_bytes : int
        Its size.
    version : str
        Changes when the content does: time of change in ns, or the ETag of a remote file.
    """

    name: str
    n_bytes: int
    version: str


@dataclass(frozen=True)
class Root:
    """A folder or one file on this machine; every file is opened through it.

    Parameters
    ----------
    address : str
        Folder or file, as ``data.root`` has it.
    allow_outside : bool
        Read what lies outside of the root as well, behind a symbolic link or named by a catalogue.
    """

    address: str
    allow_outside: bool = False

    @property
    def identity(self) -> str:
        """The same for all spellings of this root: part of the key of a store."""
        return os.path.realpath(self.address)

    def list_files(self) -> list[FileVersion]:
        """Every file at any depth, sorted by name.

        Hidden files and folders are skipped; folders behind a symbolic link are not entered unless
        ``allow_outside``.

        Raises
        ------
        InputError
            If the root does not exist or cannot be listed.
        """
        if not os.path.exists(self.address):
            raise InputError(
                f"data.root={self.address} does not exist; give a folder or a file that does"
            )
        if not os.path.isdir(self.address):
            return [_version(os.path.basename(self.address), os.stat(self.address))]
        return sorted(self._walk("", frozenset({os.path.realpath(self.address)})))

    def _walk(self, folder: str, seen: frozenset[str]) -> Iterator[FileVersion]:
        try:
            with os.scandir(os.path.join(self.address, folder)) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    name = f"{folder}/{entry.name}" if folder else entry.name
                    if not entry.is_dir(follow_symlinks=self.allow_outside):
                        try:
                            status = entry.stat()
                        except OSError:  # a dangling link: reading it will say so
                            yield FileVersion(name, 0, "")
                        else:
                            if not stat.S_ISDIR(status.st_mode):  # behind a link
                                yield _version(name, status)
                        continue
                    inner = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
                    if inner not in seen:  # a link to a folder above would never end
                        yield from self._walk(name, seen | {os.path.realpath(inner)})
        except OSError as error:
            raise InputError(
                f"data.root={self.address}: cannot list {error.filename}: {error.strerror}"
            ) from error

    def find(
        self, suffixes: tuple[str, ...], other_suffixes: tuple[str, ...], advice: str
    ) -> list[FileVersion]:
        """Every file that ends in one of the suffixes, whatever its case.

        Parameters
        ----------
        suffixes, other_suffixes : tuple of str
            Endings that are wanted, and those of other readers; lower case, with their dot.
        advice : str
            What to advise if nothing fits but a file of another reader is there.

        Returns
        -------
        list of FileVersion
            At least one, sorted by name.

        Raises
        ------
        InputError
            If nothing is found; the message says what is there instead.
        """
        files = self.list_files()
        found = [file for file in files if file.name.lower().endswith(suffixes)]
        if found:
            return found
        if not files:
            raise InputError(
                f"data.root={self.address} holds no files; expected some ending in {suffixes[0]}"
            )
        count = "1 file" if len(files) == 1 else f"{len(files)} files"
        has_other = any(file.name.lower().endswith(other_suffixes) for file in files)
        raise InputError(
            f"data.root={self.address} holds {count}, none ending in {', '.join(suffixes)}; the "
            f"first is {files[0].name.rpartition('/')[2]}" + (f". {advice}" if has_other else "")
        )

    def describe(self, name: str) -> FileVersion:
        """The file of that name as it is now, where a catalogue or a pattern names it.

        Raises
        ------
        RefusedError
            If it lies outside of the root.
        OSError
            If it is not there.
        """
        return _version(name, os.stat(self._contained(name)))

    def open(self, file: FileVersion) -> BinaryIO:
        """The file, open at its first byte; it can be searched.

        Raises
        ------
        RefusedError
            If it lies outside the root, is empty, is no regular file, or is not the one that was
            listed.
        OSError
            If it is not there.
        """
        return os.fdopen(self.descriptor(file), "rb")

    def descriptor(self, file: FileVersion) -> int:
        """As `open`, an open file descriptor: for reading without a file object."""
        path = os.path.join(self.folder, file.name)
        try:
            descriptor = os.open(path, _SAFE)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            descriptor = os.open(self._contained(file.name), _SAFE & ~os.O_NOFOLLOW)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise RefusedError(
                    "not a regular file", "a folder, pipe or device; expected a file"
                )
            if status.st_size == 0:
                raise RefusedError("empty file", "0 bytes")
            if (status.st_size, str(status.st_mtime_ns)) != file[1:]:
                raise RefusedError(
                    "changed", f"{status.st_size} bytes, it was another file when it was listed"
                )
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def read(self, file: FileVersion, max_bytes: int) -> bytes:
        """The whole file.

        Raises
        ------
        RefusedError
            As `open`, or if it has more than ``max_bytes``.
        OSError
            If it is not there.
        """
        if file.n_bytes > max_bytes:
            raise RefusedError("too large", f"{file.n_bytes} bytes, at most {max_bytes} are read")
        descriptor = self.descriptor(file)  # a file object would cost more than the reading
        try:
            content = os.read(descriptor, file.n_bytes)
            while 0 < len(content) < file.n_bytes:  # Linux gives at most 2 GiB at once
                more = os.read(descriptor, file.n_bytes - len(content))
                if not more:
                    break
                content += more
        finally:
            os.close(descriptor)
        if len(content) < file.n_bytes:
            raise RefusedError(
                "changed", f"{len(content)} bytes, {file.n_bytes} when it was listed"
            )
        return content

    def read_many(
        self, files: Sequence[FileVersion], max_bytes: int
    ) -> Iterator[bytes | RefusedError | OSError]:
        """`read` of each file in order; what it would raise comes in the file's place."""
        for file in files:
            try:
                yield self.read(file, max_bytes)
            except (RefusedError, OSError) as error:
                yield error

    def local_path(self, file: FileVersion) -> Path:
        """Where libraries that need a path find the file; checked as `open` does."""
        os.close(self.descriptor(file))
        return Path(self.folder, file.name)

    @cached_property
    def folder(self) -> str:
        """The folder that names are relative to."""
        if os.path.isdir(self.address):
            return self.address
        return os.path.dirname(self.address)

    def _contained(self, name: str) -> str:
        """Path of a file whose name cannot be trusted, links followed."""
        target = os.path.realpath(os.path.join(self.folder, name), strict=True)
        folder = os.path.realpath(self.folder)
        # A root that is itself a link to a file was named by the user.
        is_inside = target == self.identity or os.path.commonpath([target, folder]) == folder
        if not self.allow_outside and not is_inside:
            raise RefusedError(
                "outside the root",
                f"leads to {target}, outside data.root={self.address}; copy the file, or set "
                "data.allow_outside=true",
            )
        return target


def open_root(address: str, allow_outside: bool = False) -> Root:
    """The root at an address: a local folder or file, or a remote one (``s3://``, ``https://``).

    ``~`` is the user's home; ``file://`` is this machine.

    Raises
    ------
    InputError
        If no library for such addresses is installed; the message names it.
    """
    if _SCHEME.match(address) is None:
        return Root(os.path.expanduser(address), allow_outside)
    if address.lower().startswith("file://"):
        host, slash, path = address[len("file://") :].partition("/")
        if host not in ("", "localhost"):
            raise InputError(
                f"data.root={address} is on the machine {host}; give file:///FOLDER for this one"
            )
        return Root(slash + unquote(path, errors="surrogateescape"), allow_outside)
    from vae_astro.data.sources.remote import RemoteRoot  # fsspec is slow to import

    return RemoteRoot(address, allow_outside)


def _version(name: str, status: os.stat_result) -> FileVersion:
    return FileVersion(name, status.st_size, str(status.st_mtime_ns))
