"""Tarballs of alert packets to a folder of packets, whatever a tarball may hold."""

from __future__ import annotations

import errno
import gzip
import os
import shutil
import tarfile
import zlib
from collections import Counter
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

__all__ = ["TARBALL_SUFFIXES", "TarballError", "Unpacked", "unpack_tarball", "unpacked_folder"]

TARBALL_SUFFIXES = (".tar.gz", ".tgz", ".tar")
LARGEST_PACKET_BYTES = 2**26
LARGEST_READ_BYTES = 2**22  # tarfile reads a header's extensions in one go
LARGEST_TARBALL_BYTES = 2**39  # once unpacked; a large night of ZTF has some 2**36
MOST_PACKETS = 2 * 10**7
_UNFIT_NAME = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL)


class TarballError(Exception):
    """Why a tarball is not unpacked."""


class Unpacked(NamedTuple):
    """What came out of a tarball.

    Attributes
    ----------
    n_packets : int
        Files that were written.
    left_out : Counter
        How many entries were not, by the reason.
    """

    n_packets: int
    left_out: Counter[str]


def unpacked_folder(tarball: Path) -> Path | None:
    """Where a tarball goes: beside it, without its suffix. None if it is no tarball."""
    suffix = next((end for end in TARBALL_SUFFIXES if tarball.name.lower().endswith(end)), "")
    return tarball.with_name(tarball.name[: -len(suffix)]) if suffix else None


def unpack_tarball(tarball: Path, folder: Path) -> Unpacked:
    """Write the ``.avro`` files of a tarball below ``folder``, which is there whole or not at all.

    Links, devices, absolute paths, paths with ``..``, other files and packets of more than 64 MiB
    are left out.

    Raises
    ------
    TarballError
        If it is damaged, breaks off or unpacks to too much.
    OSError
        If the folder cannot be written.
    """
    beginning = folder.with_name(f".{folder.name}.unpacking")
    shutil.rmtree(beginning, ignore_errors=True)
    beginning.mkdir()
    try:
        with tarball.open("rb") as packed:
            is_gzip = packed.read(2) == b"\x1f\x8b"
            packed.seek(0)
            stream = gzip.GzipFile(fileobj=packed) if is_gzip else packed
            bounded = _Bounded(cast(IO[bytes], stream))
            with tarfile.open(fileobj=cast(IO[bytes], bounded), mode="r:") as tar:
                unpacked = _extract(tar, beginning)
            if len(bounded.last) < tarfile.BLOCKSIZE or bounded.last.strip(b"\0"):
                raise TarballError("damaged or cut short: it ends without the block of an end")
            while bounded.read(LARGEST_READ_BYTES):
                pass  # to the end, where the checksum of the gzip data is
        beginning.replace(folder)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise TarballError(f"damaged or cut short: {type(error).__name__}: {error}") from error
    finally:
        shutil.rmtree(beginning, ignore_errors=True)
    return unpacked


def _extract(tar: Any, folder: Path) -> Unpacked:
    n_packets, left_out = 0, Counter[str]()
    while (member := tar.next()) is not None:
        tar.members.clear()  # else it remembers every packet of the night
        if n_packets + left_out.total() >= MOST_PACKETS:
            raise TarballError(f"holds more than {MOST_PACKETS} entries")
        if member.isdir():
            continue
        why = _unwanted(member, folder)
        if not why:
            try:
                tar.extract(member, folder, filter="data")
                n_packets += 1
                continue
            except OSError as error:
                if error.errno not in _UNFIT_NAME:
                    raise
                why = "unfit name"
        left_out[why] += 1
    return Unpacked(n_packets, left_out)


def _unwanted(member: tarfile.TarInfo, folder: Path) -> str:
    """Why an entry is left out; empty if it is not."""
    if not member.isreg() or member.sparse is not None:
        return "no regular file"
    if not member.name.lower().endswith(".avro"):
        return "no .avro file"
    if member.size > LARGEST_PACKET_BYTES:
        return f"larger than {LARGEST_PACKET_BYTES} bytes"
    if "\0" in member.name:
        return "unfit name"
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "outside the folder"
    try:
        tarfile.data_filter(member, str(folder))
    except tarfile.FilterError:
        return "outside the folder"
    return "there already" if os.path.lexists(folder / member.name) else ""


class _Bounded:
    """A stream that is read forwards, and refuses too much at once or in all.

    tarfile looks back by one byte; were the stream to do so, it would unpack all from the start.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._position = 0
        self.last = b""

    def read(self, n_bytes: int) -> bytes:
        if not 0 <= n_bytes <= LARGEST_READ_BYTES:
            raise TarballError(f"a header claims {n_bytes} bytes")
        if self._position + n_bytes > LARGEST_TARBALL_BYTES:
            raise TarballError(f"unpacks to more than {LARGEST_TARBALL_BYTES} bytes")
        back = self._stream.tell() - self._position
        if back > len(self.last):
            raise TarballError("a header leads backwards")
        if back > 0:
            content = self.last[-back:][:n_bytes]
        else:
            self._stream.seek(self._position)
            self.last = content = self._stream.read(n_bytes)
        self._position += len(content)
        return content

    def seek(self, position: int) -> int:
        self._position = position
        return position

    def tell(self) -> int:
        return self._position
