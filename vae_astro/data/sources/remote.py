"""Roots that are not on this machine: object stores and web servers, through fsspec.

Passwords, keys and endpoints are fsspec's own affair: its configuration files and ``FSSPEC_*``
variables, or what the driver looks up by itself (``AWS_PROFILE``, ``~/.aws``,
``GOOGLE_APPLICATION_CREDENTIALS``).
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property, partial
from io import BytesIO
from typing import Any, BinaryIO, NoReturn, TypeVar, cast
from urllib.parse import quote, unquote, urlsplit

from vae_astro.data.sources.files import MAX_UNPACKED_BYTES, RefusedError
from vae_astro.data.sources.network import as_os_error, hide_secrets, is_transient, retry, words
from vae_astro.data.sources.root import FileVersion, Root
from vae_astro.errors import InputError

__all__ = ["RemoteRoot"]

N_CONNECTIONS = 16
BYTES_AHEAD = 2**26  # of files that are read before their turn, beside the one whose turn it is
BLOCK_BYTES = 2**20  # that an open file fetches at once
TIMEOUT_S = 60.0  # without a single byte
DEEPEST_FOLDER = 32  # of a web server, whose links may lead in circles

_WEB = ("http", "https")
_IN_EXTRA = (*_WEB, "s3", "s3a")
_VERSIONS = (
    *("ETag", "etag", "generation", "Content-MD5", "Digest", "mtime"),
    *("LastModified", "Last-Modified", "updated", "last_modified", "modified", "created"),
)
"""What drivers call that which changes with the content, best first."""

T = TypeVar("T")
Task = TypeVar("Task")


@dataclass(frozen=True)
class RemoteRoot(Root):
    """A folder or one file behind an address that fsspec understands.

    Attributes are those of `Root`; ``address`` is without user, password and query, as messages
    show it. A file may be read again up to four times if the network or the server fails.

    Raises
    ------
    InputError
        If no driver for such addresses is installed or known; the message says which one to
        install.
    """

    secret_address: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if not self.secret_address:  # else this is a copy
            object.__setattr__(self, "secret_address", self.address)
            object.__setattr__(self, "address", hide_secrets(self.address))
        self._filesystem()

    @property
    def identity(self) -> str:
        """Address without secrets; a query, which may choose the content, is there as a digest."""
        parts = urlsplit(self.secret_address)
        host = parts.netloc.rpartition("@")[2]
        if self._protocol in _WEB:
            host = host.lower()
        query = hashlib.blake2b(self._query.encode(), digest_size=8).hexdigest()
        path = self._without_query(self.secret_address).partition("://")[2].partition("/")[2]
        return f"{self._protocol}://{host}/{path.rstrip('/')}" + (
            f"#{query}" if self._query else ""
        )

    def list_files(self) -> list[FileVersion]:
        """Every file at any depth, sorted by name; hidden files and folders are skipped.

        A web server is asked for its lists of links, and for the size of every file.
        """
        try:
            filesystem = self._filesystem()
            if self._is_file:
                name = unquote(self._base.rpartition("/")[2], errors="surrogateescape")
                return [self._as_listed(name, retry(partial(self._info, filesystem, self._top)))]
            if self._protocol in _WEB:
                names = sorted(self._linked_names(filesystem))
                versions = self._overlapped(names, partial(self._version_or_none, filesystem))
                return [
                    self._as_listed(name, info) for name, info in zip(names, versions, strict=True)
                ]
            found = retry(partial(filesystem.find, self._base, detail=True))
            if not found and not filesystem.exists(self._base):
                raise FileNotFoundError(self.address)
        except Exception as error:
            self._fail(error)
        names = [path[len(self._base) :].lstrip("/") for path in found]
        listed = zip(names, found.values(), strict=True)
        return sorted(self._as_listed(name, info) for name, info in listed if _is_shown(name))

    def describe(self, name: str) -> FileVersion:
        """The file of that name as it is now; one request."""
        if name.startswith("/") or "://" in name or ".." in name.split("/"):
            raise RefusedError(
                "outside the root",
                f"{hide_secrets(name)} leads outside data.root={self.address}; set data.root to "
                "a folder that holds both",
            )
        try:
            filesystem = self._filesystem()
            return self._as_listed(name, retry(partial(self._info, filesystem, self._path(name))))
        except Exception as error:
            raise as_os_error(error, name) from None

    def open(self, file: FileVersion) -> BinaryIO:
        """The file, open at its first byte; blocks of 1 MiB are fetched as they are asked for.

        Where a server gives no parts of a file the whole of it is held in memory.
        """
        try:
            filesystem = self._filesystem()
            info = retry(partial(self._checked_info, filesystem, file))
            if info.get("partial", True):
                options = {"block_size": BLOCK_BYTES, "cache_type": "blockcache"}
                path = self._path(file.name)
                stream = filesystem.open(path, "rb", size=file.n_bytes, **options)
                if stream.seekable() and self._gives_parts(stream):
                    return cast(BinaryIO, stream)
        except RefusedError:
            raise
        except Exception as error:
            raise as_os_error(error, file.name) from None
        return BytesIO(self.read(file, MAX_UNPACKED_BYTES))

    def descriptor(self, file: FileVersion) -> NoReturn:
        """Refused: there is no descriptor of a file that is not on this machine."""
        raise RefusedError("not on this machine", f"lies below {self.address}; read its content")

    local_path = descriptor

    def read(self, file: FileVersion, max_bytes: int) -> bytes:
        """The whole file, in two requests: whether it is still the same, and its content."""
        return self._read(self._filesystem(), file, max_bytes)

    def _read(self, filesystem: Any, file: FileVersion, max_bytes: int) -> bytes:
        try:
            return retry(partial(self._read_once, filesystem, file, max_bytes))
        except RefusedError:
            raise
        except Exception as error:
            raise as_os_error(error, file.name) from None

    def read_many(
        self, files: Sequence[FileVersion], max_bytes: int
    ) -> Iterator[bytes | RefusedError | OSError]:
        """`read` of each file in order, up to 16 at once and 64 MiB ahead."""
        filesystem = self._filesystem()  # fsspec would keep one more for each thread that asks

        def read(file: FileVersion) -> bytes | RefusedError | OSError:
            try:
                return self._read(filesystem, file, max_bytes)
            except (RefusedError, OSError) as error:
                return error

        return self._overlapped(files, read, lambda file: file.n_bytes)

    @cached_property
    def folder(self) -> str:
        """The address that names are relative to."""
        return self.address.rpartition("/")[0] if self._is_file else self.address.rstrip("/")

    @cached_property
    def _protocol(self) -> str:
        return self.secret_address.partition("://")[0].lower()

    @property
    def _query(self) -> str:
        return urlsplit(self.secret_address).query if self._protocol in _WEB else ""

    @cached_property
    def _top(self) -> str:
        """The root as the file system spells it."""
        return str(self._filesystem()._strip_protocol(self.secret_address))

    @cached_property
    def _base(self) -> str:
        """The same without a query and without a slash at its end."""
        return self._without_query(self._top).rstrip("/")

    @cached_property
    def _is_file(self) -> bool:
        """Whether the root is one file; asked once."""
        filesystem = self._filesystem()
        if self._protocol not in _WEB:
            return bool(retry(partial(filesystem.isfile, self._base)))
        if self._without_query(self._top).endswith("/"):
            return False
        info = retry(partial(self._info, filesystem, self._top))
        moved_to = self._without_query(info.get("url", ""))
        return not (moved_to.endswith("/") or info.get("mimetype") == "text/html")

    def _without_query(self, address: str) -> str:
        return address.partition("?")[0] if self._protocol in _WEB else address

    def _path(self, name: str) -> str:
        """A file as the file system spells it."""
        if self._is_file:
            return self._top
        if self._protocol in _WEB:
            return f"{self._base}/{quote(name, errors='surrogateescape')}"
        return f"{self._base}/{name}"

    def _filesystem(self) -> Any:
        """fsspec's driver. It keeps one for each process and thread, so nothing is held here."""
        import fsspec
        from fsspec.config import conf

        try:
            # Listings that are kept would hide a change.
            options = {"use_listings_cache": False, **self._web_options(conf)}
            return fsspec.filesystem(self._protocol, **options)
        except ImportError as error:
            command = " (pip install 'vae-astro[remote]')" if self._protocol in _IN_EXTRA else ""
            raise InputError(
                f"data.root={self.address}: {self._protocol}:// needs a driver that is not "
                f"installed{command}: {error}"
            ) from error
        except ValueError as error:
            known = "s3://, gs://, https://, file://"
            raise InputError(
                f"data.root={self.address}: {self._protocol}:// is not known; use a folder, "
                f"{known} or another protocol of fsspec ({error})"
            ) from error

    def _web_options(self, conf: dict[str, Any]) -> dict[str, Any]:
        """Bytes as they are stored (a .fits.gz must not arrive unpacked), and no endless wait."""
        if self._protocol not in _WEB:
            return {}
        from aiohttp import ClientTimeout

        given = conf.get(self._protocol, {})
        timeout = ClientTimeout(total=None, sock_connect=TIMEOUT_S, sock_read=TIMEOUT_S)
        client = {"auto_decompress": False, "timeout": timeout, **given.get("client_kwargs", {})}
        headers = {"Accept-Encoding": "identity", **given.get("headers", {})}
        return {"headers": headers, "client_kwargs": client}

    def _linked_names(self, filesystem: Any) -> Iterator[str]:
        """Files that the pages of a web server link to, at or below the root."""
        folders, seen = [f"{self._base}/"], {f"{self._base}/"}
        while folders:
            folder = folders.pop()
            for entry in retry(partial(filesystem.ls, folder, detail=True)):
                address = entry["name"]
                path = address[len(self._base) + 1 :]
                name = unquote(path, errors="surrogateescape")
                if address in seen or "?" in path or "#" in path or not _is_shown(name):
                    continue
                seen.add(address)
                if not address.endswith("/"):
                    yield name
                elif name.count("/") <= DEEPEST_FOLDER:
                    folders.append(address)

    def _info(self, filesystem: Any, path: str) -> dict[str, Any]:
        return dict(filesystem.info(path))

    def _version_or_none(self, filesystem: Any, name: str) -> dict[str, Any]:
        """What is known of a file that was linked to; nothing if it is not there."""
        try:
            return retry(partial(self._info, filesystem, self._path(name)))
        except Exception:  # reading it will say what is wrong
            return {}

    def _as_listed(self, name: str, info: dict[str, Any]) -> FileVersion:
        size = info.get("size")
        version = next((info[key] for key in _VERSIONS if info.get(key)), "")
        if isinstance(version, datetime):  # some drivers list seconds, and then tell the date
            version = version.timestamp()
        return FileVersion(name, int(size or 0), str(version) or f"{size} bytes")

    def _checked_info(self, filesystem: Any, file: FileVersion) -> dict[str, Any]:
        """What the server says of a file, if it is the one that was listed."""
        info = self._info(filesystem, self._path(file.name))
        if info.get("size") is None:
            raise RefusedError("size unknown", "the server does not tell it; download the file")
        if info["size"] == 0:
            raise RefusedError("empty file", "0 bytes")
        now = self._as_listed(file.name, info)
        if now != file:
            raise RefusedError(
                "changed",
                f"{now.n_bytes} bytes, version {now.version}; it was {file.n_bytes} bytes, "
                f"version {file.version} when it was listed",
            )
        return info

    def _read_once(self, filesystem: Any, file: FileVersion, max_bytes: int) -> bytes:
        if file.n_bytes > max_bytes:
            raise RefusedError("too large", f"{file.n_bytes} bytes, at most {max_bytes} are read")
        self._checked_info(filesystem, file)
        path, limit = self._path(file.name), file.n_bytes + 1
        if self._protocol in _WEB:
            # A stream, because a server may send more than it was asked for.
            with filesystem.open(path, "rb", block_size=0, size=file.n_bytes) as stream:
                chunks, n_bytes = [], 0
                while n_bytes < limit and (chunk := stream.read(limit - n_bytes)):
                    chunks.append(chunk)
                    n_bytes += len(chunk)
            content = b"".join(chunks)
        else:
            content = bytes(filesystem.cat_file(path, start=0, end=limit))
        if len(content) < file.n_bytes:
            raise ConnectionError(f"{len(content)} bytes of {file.n_bytes} arrived")
        if len(content) > file.n_bytes:
            raise RefusedError("changed", f"more than the {file.n_bytes} bytes that were listed")
        return content

    def _gives_parts(self, stream: Any) -> bool:
        """Whether a stream can begin in the middle: some web servers always send all."""
        if self._protocol not in _WEB or stream.size <= 1:
            return True
        try:
            stream.seek(-1, 2)
            stream.read(1)
            stream.seek(0)
        except (OSError, ValueError):
            return False
        return True

    def _overlapped(
        self,
        tasks: Sequence[Task],
        do: Callable[[Task], T],
        n_bytes: Callable[[Task], int] = lambda task: 0,
    ) -> Iterator[T]:
        """Results in order, of requests that overlap; at most `BYTES_AHEAD` wait for their turn."""
        pool = ThreadPoolExecutor(N_CONNECTIONS, thread_name_prefix="remote")
        running: deque[tuple[Future[T], int]] = deque()
        ahead = 0
        try:
            for task in tasks:
                size = n_bytes(task)
                while running and (len(running) >= 2 * N_CONNECTIONS or ahead + size > BYTES_AHEAD):
                    done, its_size = running.popleft()
                    ahead -= its_size
                    yield done.result()
                running.append((pool.submit(do, task), size))
                ahead += size
            while running:
                yield running.popleft()[0].result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _fail(self, error: Exception) -> NoReturn:
        """The user's error for a root that cannot be listed."""
        if isinstance(error, InputError | MemoryError):
            raise error
        status = getattr(error.__cause__, "status", 404)
        if isinstance(error, FileNotFoundError) and status == 404 and not is_transient(error):
            raise InputError(
                f"data.root={self.address} does not exist; give an address that does"
            ) from None
        raise InputError(
            f"data.root={self.address}: cannot list it: {words(error)}; passwords and keys are "
            "looked up as fsspec's configuration says"
        ) from None


def _is_shown(name: str) -> bool:
    """Whether a name is that of a file, and no folder on its way is hidden."""
    parts = name.rstrip("/").split("/")
    return all(part and not part.startswith(".") for part in parts)
